//! Where in a resource we are, so that every refusal names its field. Costs nothing until something is refused.

use std::fmt::{self, Display};

use prost::Message;

use super::ResourceError;

/// A field of a resource, by its parents.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Resource(&'a str),
    Field(&'a str),
    Item(&'a str, usize),
}

impl<'a> At<'a> {
    /// The resource itself.
    pub fn resource(name: &'a str) -> Self {
        Self { parent: None, step: Step::Resource(name) }
    }

    /// A field.
    pub fn field(&'a self, name: &'a str) -> At<'a> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    /// An item of a list.
    pub fn item(&'a self, list: &'a str, index: usize) -> At<'a> {
        At { parent: Some(self), step: Step::Item(list, index) }
    }

    /// A refusal.
    pub fn error(&self, message: impl Display) -> ResourceError {
        let mut path = String::new();
        let resource = self.write(&mut path);
        ResourceError { resource: resource.to_owned(), path, message: message.to_string() }
    }

    /// A refusal, as a result.
    pub fn refuse<T>(&self, message: impl Display) -> Result<T, ResourceError> {
        Err(self.error(message))
    }

    fn write(&self, out: &mut String) -> &'a str {
        let resource = self.parent.map_or("", |p| p.write(out));
        let dot = if out.is_empty() { "" } else { "." };
        // Writing into a String cannot fail.
        let _ = match self.step {
            Step::Resource(name) => return name,
            Step::Field(name) => fmt::Write::write_fmt(out, format_args!("{dot}{name}")),
            Step::Item(name, index) => fmt::Write::write_fmt(out, format_args!("{dot}{name}[{index}]")),
        };
        resource
    }

    /// Decodes bytes.
    pub fn decode<M: Message + Default>(&self, bytes: &[u8]) -> Result<M, ResourceError> {
        M::decode(bytes).map_err(|e| self.error(format!("cannot be decoded: {e}")))
    }

    /// What must be there.
    pub fn required<T>(&self, value: Option<T>) -> Result<T, ResourceError> {
        value.ok_or_else(|| self.error("is required"))
    }
}
