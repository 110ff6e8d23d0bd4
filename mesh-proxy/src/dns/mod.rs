//! The application's DNS, answered beside the proxy as Istio's agent does: names of the mesh from the table that the
//! control plane sends, all others by the resolvers of the system.
//!
//! [`table`] finds the addresses of a name and [`answer`] decides about messages, both without sockets; [`forward`] asks
//! the system's resolvers; [`server`] owns the sockets. Knows neither xDS nor listeners nor clusters.

pub mod answer;
pub mod forward;
pub mod resolv_conf;
pub mod server;
pub mod stats;
pub mod table;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use mesh_api::model;

use stats::DnsStats;
use table::{Place, Table};

/// The names in force, shared by who receives them and who answers.
#[derive(Debug)]
pub struct Names {
    place: Place,
    table: ArcSwapOption<Table>,
    /// What was asked.
    pub stats: DnsStats,
}

impl Names {
    /// No table has arrived yet.
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self { place, table: ArcSwapOption::empty(), stats: DnsStats::default() })
    }

    /// Puts a table in force.
    pub fn put(&self, names: &model::NameTable) {
        self.table.store(Some(Arc::new(Table::build(names, &self.place))));
    }

    /// The table in force; `None`: none has arrived yet.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }
}
