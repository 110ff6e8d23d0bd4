//! `/config_dump`.

use http::StatusCode;
use mesh_api::model::SdsSource;

use super::{Answer, Handles, answer, json_page, parameter};
use crate::xds::store::DumpQuery;

/// The page.
pub fn page(handles: &Handles, query: &str) -> Answer {
    let name_regex = match parameter(query, "name_regex").map(|r| regex::Regex::new(&r)).transpose() {
        Ok(regex) => regex,
        Err(error) => return answer(StatusCode::BAD_REQUEST, "text/plain", format!("name_regex: {error}\n")),
    };
    let wanted = DumpQuery {
        include_eds: parameter(query, "include_eds").is_some(),
        resource: parameter(query, "resource"),
        name_regex,
    };
    let mut dump = handles.store.lock().dump();
    // Secrets made here never came as resources: names and states are all there is to show of them.
    for (reference, state) in handles.shared.secrets.list() {
        if matches!(reference.source, SdsSource::Cluster(_)) {
            dump.secrets.push(crate::xds::store::local_secret(&reference.name, &state));
        }
    }
    json_page(&dump.render(&wanted))
}
