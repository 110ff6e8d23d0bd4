//! Whether parts of objects are sound when they stand alone, for what is enforced in the place of an object
//! that is refused as a whole.

use mesh_api::crd::networking::{EnvoyFilter, envoy_filter::ConfigPatch};
use mesh_api::crd::security::{Condition, Operation, Source};
use mesh_api::labels::Labels;

use super::checks::Report;
use super::{Level, envoy_filter as filter, security};

fn sound(check: impl FnOnce(&mut Report)) -> bool {
    let mut out = Report::default();
    check(&mut out);
    out.findings.iter().all(|f| f.level != Level::Error)
}

/// An EnvoyFilter.
pub(crate) fn envoy_filter(envoy_filter: &EnvoyFilter) -> bool {
    sound(|out| filter::envoy_filter(envoy_filter, out))
}

/// A patch of an EnvoyFilter.
pub(crate) fn config_patch(patch: &ConfigPatch) -> bool {
    sound(|out| filter::config_patch(0, patch, out))
}

/// A source of a rule.
pub(crate) fn source(source: &Source) -> bool {
    sound(|out| security::source_rule(source, "", out))
}

/// An operation of a rule.
pub(crate) fn operation(operation: &Operation) -> bool {
    sound(|out| security::operation_rule(operation, "", out))
}

/// A condition of a rule.
pub(crate) fn condition(when: &Condition) -> bool {
    sound(|out| security::condition(when, "", out))
}

/// Labels of a selector.
pub(crate) fn labels(labels: &Labels) -> bool {
    sound(|out| security::match_labels(labels, out))
}
