//! What a source says of what it read, for `/ready`, `/debug/findings` and the log.

use std::{collections::HashSet, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::object::{Kind, ObjectKey};
use crate::validate::{Finding, Level, MESH_CONFIG};

/// Shared between the source that writes it and the pages that show it.
pub type SharedStatus = Arc<RwLock<SourceStatus>>;

/// What is wrong with the objects of a source.
#[derive(Debug)]
pub struct SourceStatus {
    /// Findings.
    pub findings: Vec<Finding>,
    /// Objects of which another version than the last is in force, or none.
    pub refused: HashSet<ObjectKey>,
    /// The settings of the mesh (MeshConfig) are among what is in force.
    pub settings: bool,
    /// Where MeshConfig stands, as findings name it.
    pub mesh_config: ObjectKey,
    news: watch::Sender<()>,
}

impl Default for SourceStatus {
    fn default() -> Self {
        let (namespace, name, _) = MESH_CONFIG;
        let mesh_config = ObjectKey::new(Kind::ConfigMap, namespace, name);
        let refused = HashSet::new();
        Self { findings: vec![], refused, settings: false, mesh_config, news: watch::Sender::default() }
    }
}

impl SourceStatus {
    /// Takes over what is found now; what is new goes to the log.
    pub(crate) fn publish(&mut self, findings: Vec<Finding>, refused: HashSet<ObjectKey>, settings: bool) {
        let known: HashSet<String> = self.findings.iter().map(ToString::to_string).collect();
        for finding in findings.iter().filter(|f| !known.contains(&f.to_string())) {
            match finding.level {
                Level::Error => tracing::error!(target: "config", "{finding}"),
                Level::Warning => tracing::warn!(target: "config", "{finding}"),
                Level::Info => tracing::info!(target: "config", "{finding}"),
            }
        }
        self.findings = findings;
        self.refused = refused;
        self.settings = settings;
        self.news.send_replace(());
    }

    /// Hears of everything that is taken over from now on.
    pub fn follow(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Objects that are refused, more or less.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|f| f.level == Level::Error).count()
    }
}
