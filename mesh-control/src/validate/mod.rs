//! What Istio would refuse, and what it would warn of: one `validate` serves the folder, the webhook and the command
//! line. Looks at one object at a time; what needs others is in `references`.

mod finding;

pub use finding::{Finding, Level};

use crate::source::object::Object;

/// Everything that is wrong with, or worth saying of, one object. An [`Level::Error`] means it is refused.
pub fn validate(_object: &Object) -> Vec<Finding> {
    vec![]
}
