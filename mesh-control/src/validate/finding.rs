//! Findings: what is wrong with an object, where, and how bad it is.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use super::codes;
use crate::source::object::ObjectKey;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing: a field without effect yet.
    Info,
    /// Works, probably not as meant.
    Warning,
    /// Refused, or sure not to work.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// Istio's analyser code where there is one, e.g. `IST0101`; see [`codes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Object, when it could be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectKey>,
    /// File, for objects from a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Path of the field, e.g. `spec.http[0].route[0].weight`; empty: the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do, by the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
}

impl Finding {
    /// An error on a field.
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Error, field, message)
    }
    /// A warning on a field.
    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Warning, field, message)
    }
    /// A remark on a field.
    pub fn info(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Level::Info, field, message)
    }
    fn new(level: Level, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            level,
            code: None,
            object: None,
            file: None,
            line: None,
            column: None,
            field: field.into(),
            message: message.into(),
            hint: None,
        }
    }
    /// With a code and what that says to do.
    pub fn code(mut self, code: &'static str) -> Self {
        self.set_code(code);
        self
    }
    /// The code that its level makes, when it has none of its own.
    pub(crate) fn code_by_level(&mut self) {
        if self.code.is_none() {
            self.set_code(match self.level {
                Level::Error => codes::SCHEMA,
                Level::Warning => codes::SCHEMA_WARNING,
                Level::Info => codes::NO_EFFECT,
            });
        }
    }
    fn set_code(&mut self, code: &'static str) {
        self.code = Some(code);
        self.hint = codes::find(code).map(|c| c.hint);
    }
    /// On this object.
    pub fn on(mut self, key: &ObjectKey) -> Self {
        self.object = Some(key.clone());
        self
    }
}

/// `Error [IST0101] (VirtualService shop/web web.yaml:12:5) spec.http[0]: text`, as `istioctl analyze` prints it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Info => "Info",
            Level::Warning => "Warning",
            Level::Error => "Error",
        };
        f.write_str(level)?;
        if let Some(code) = self.code {
            write!(f, " [{code}]")?;
        }
        let mut place = Vec::new();
        if let Some(object) = &self.object {
            place.push(object.to_string());
        }
        if let Some(file) = &self.file {
            let mut at = file.display().to_string();
            for part in [self.line, self.column].into_iter().flatten() {
                at.push_str(&format!(":{part}"));
            }
            place.push(at);
        }
        if !place.is_empty() {
            write!(f, " ({})", place.join(" "))?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}
