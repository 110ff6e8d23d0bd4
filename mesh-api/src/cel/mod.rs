//! CEL expressions as they stand in telemetry: the value of a metric's label, the filter of an access log.
//!
//! Owns syntax, types, operators, and the names of Envoy's attributes. Must not know exchanges nor connections: whoever
//! evaluates hands in [`Attributes`]. Both planes use it: the control plane to refuse what no proxy could evaluate, our
//! proxy to evaluate. An own implementation instead of the crate `cel`: this one reads attributes where they lie
//! instead of building maps of values for each request, bounds size, depth and patterns when it parses, and needs no
//! parser generator's runtime.
//!
//! An expression is bounded in text, nodes and depth and has no loops (as in Envoy's filters, `all`, `exists`, `map` and
//! `filter` are not to be had), so its evaluation is bounded too. Patterns are constants, and moments are looked at in UTC. What has no value (an absent header, a type that does not fit,
//! a division by zero) makes the whole expression have none, except where `||`, `&&` or a ternary decide without it.

mod attribute;
mod eval;
mod functions;
mod lexer;
mod parser;
mod value;

use std::fmt;

pub use attribute::Attribute;
pub use value::Value;

/// Longest expression, bytes.
pub const MAX_TEXT: usize = 4096;
/// Most nodes of an expression.
pub const MAX_NODES: usize = 512;
/// Deepest nesting of an expression.
pub const MAX_DEPTH: usize = 32;

/// What an expression is for. Envoy reads them a little differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The filter of an access log: texts cannot be joined, nothing becomes a text.
    Filter,
    /// The value of a metric's label: also knows `node`, `downstream_peer` and `upstream_peer`.
    Label,
}

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Expression {
    root: parser::Expr,
}

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
}

impl Error {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is no usable CEL expression: at byte {}: {}", self.at, self.message)
    }
}

impl std::error::Error for Error {}

/// What an expression looks at.
pub trait Attributes {
    /// The value of an attribute, or of what `path` leads to in it (the name of a header, keys of metadata). `None`: it
    /// has none now.
    fn get<'a>(&'a self, attribute: Attribute, path: &[Box<str>]) -> Option<Value<'a>>;
}

impl Expression {
    /// Parses.
    ///
    /// # Errors
    /// Syntax, unknown functions, too large or too deep.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self, Error> {
        parser::parse(text, dialect).map(|root| Self { root })
    }

    /// The value; `None`: there is none.
    pub fn evaluate<'a>(&'a self, attributes: &'a dyn Attributes) -> Option<Value<'a>> {
        eval::evaluate(&self.root, attributes)
    }

    /// Whether it is true; without a value it is not.
    pub fn is_true(&self, attributes: &dyn Attributes) -> bool {
        self.evaluate(attributes) == Some(Value::Bool(true))
    }

    /// The patterns that it matches with.
    pub fn patterns(&self) -> Vec<&str> {
        let mut out = Vec::new();
        self.root.patterns(&mut out);
        out
    }

    /// Calls `f` with every attribute that is read, and the path in it.
    pub fn reads(&self, f: &mut dyn FnMut(Attribute, &[Box<str>])) {
        self.root.reads(f);
    }
}

#[cfg(test)]
mod tests;
