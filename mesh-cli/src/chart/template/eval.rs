//! Walks a parsed template over values.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Files;
use super::functions;
use super::parse::{Expr, Node};

/// What a walk has at hand.
pub(super) struct Scope<'a> {
    /// `.`
    dot: Value,
    /// Variables, the newest last.
    variables: Vec<(String, Value)>,
    named: &'a BTreeMap<String, Vec<Node>>,
    files: &'a Files<'a>,
}

/// The text of a template.
pub(super) fn render(
    body: &[Node],
    context: &Value,
    named: &BTreeMap<String, Vec<Node>>,
    files: &Files<'_>,
) -> Result<String, String> {
    let variables = vec![(String::new(), context.clone())];
    let mut scope = Scope { dot: context.clone(), variables, named, files };
    let mut out = String::new();
    scope.walk(body, &mut out)?;
    Ok(out)
}

/// Whether a value counts as true: what is empty does not.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// A value as text.
pub(super) fn text(value: &Value) -> Result<String, String> {
    // From here on numbers of values have exponents in Go, which nobody wants in a manifest.
    const LARGE: f64 = 1e6;
    match value {
        Value::Null => Ok(String::new()),
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) if n.as_f64().is_some_and(|n| n.abs() >= LARGE) => {
            Err(format!("Helm writes the number {n} with an exponent: use toJson"))
        }
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Array(_) => Err("a list is no text: use toYaml".to_owned()),
        Value::Object(_) => Err("a map is no text: use toYaml".to_owned()),
    }
}

impl Scope<'_> {
    fn walk(&mut self, body: &[Node], out: &mut String) -> Result<(), String> {
        let variables = self.variables.len();
        for node in body {
            self.node(node, out)?;
        }
        // What was declared in the block is gone behind it.
        self.variables.truncate(variables);
        Ok(())
    }

    /// Walks with another `.`.
    fn walk_with(&mut self, dot: Value, body: &[Node], out: &mut String) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.dot, dot);
        let result = self.walk(body, out);
        self.dot = outer;
        result
    }

    fn node(&mut self, node: &Node, out: &mut String) -> Result<(), String> {
        match node {
            Node::Text(t) => out.push_str(t),
            Node::Output(e) => out.push_str(&text(&self.value(e)?)?),
            Node::Set { name, value, new } => {
                let value = self.value(value)?;
                if *new {
                    self.variables.push((name.clone(), value));
                } else {
                    self.variable(name)?.1 = value;
                }
            }
            Node::If { branches, otherwise } => {
                for (test, body) in branches {
                    if truth(&self.value(test)?) {
                        return self.walk(body, out);
                    }
                }
                self.walk(otherwise, out)?;
            }
            Node::With { value, body, otherwise } => match self.value(value)? {
                v if truth(&v) => self.walk_with(v, body, out)?,
                _ => self.walk(otherwise, out)?,
            },
            Node::Range { key, item, over, body, otherwise } => {
                let items = entries(self.value(over)?)?;
                if items.is_empty() {
                    return self.walk(otherwise, out);
                }
                for (k, v) in items {
                    let variables = self.variables.len();
                    self.variables.extend(key.clone().map(|name| (name, k)));
                    self.variables.extend(item.clone().map(|name| (name, v.clone())));
                    self.walk_with(v, body, out)?;
                    self.variables.truncate(variables);
                }
            }
        }
        Ok(())
    }

    fn variable(&mut self, name: &str) -> Result<&mut (String, Value), String> {
        self.variables.iter_mut().rev().find(|(n, _)| n == name).ok_or_else(|| format!("no variable ${name}"))
    }

    fn value(&mut self, expression: &Expr) -> Result<Value, String> {
        match expression {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Dot => Ok(self.dot.clone()),
            Expr::Variable(name) => Ok(self.variable(name)?.1.clone()),
            Expr::Field(of, name) => match self.value(of)? {
                Value::Object(mut map) => Ok(map.remove(name).unwrap_or_default()),
                Value::Null => Err(format!("there is no {name} in nothing")),
                other => Err(format!("there is no {name} in {other}")),
            },
            Expr::Call(name, arguments) => self.call(name, arguments),
        }
    }

    fn call(&mut self, name: &str, arguments: &[Expr]) -> Result<Value, String> {
        // The first that decides is the value; the rest is not looked at.
        if let "and" | "or" = name {
            let mut last = Value::Null;
            for argument in arguments {
                last = self.value(argument)?;
                if truth(&last) == (name == "or") {
                    break;
                }
            }
            return Ok(last);
        }
        let arguments: Vec<Value> = arguments.iter().map(|a| self.value(a)).collect::<Result<_, _>>()?;
        match (name, arguments.as_slice()) {
            ("include", [Value::String(template), context]) => {
                let body = self.named.get(template).ok_or_else(|| format!("no template {template}"))?;
                render(body, context, self.named, self.files).map(Value::String)
            }
            ("Files.Get", [Value::String(path)]) => {
                Ok(Value::String(self.files.get(path.as_str()).copied().unwrap_or_default().to_owned()))
            }
            ("Files.Glob", [Value::String(pattern)]) => {
                let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
                let fits = |path: &str| {
                    let middle = path.strip_prefix(start).and_then(|p| p.strip_suffix(end));
                    middle.is_some_and(|m| !m.contains('/'))
                };
                let found = self.files.iter().filter(|(path, _)| fits(path));
                Ok(found.map(|(path, text)| ((*path).to_owned(), Value::from(*text))).collect())
            }
            (name, arguments) => functions::call(name, arguments),
        }
    }
}

/// What a `range` goes over: keys in order, or numbers.
fn entries(value: Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::Null => Ok(vec![]),
        Value::Array(items) => Ok(items.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect()),
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().collect();
            Ok(sorted.into_iter().map(|(k, v)| (Value::String(k), v)).collect())
        }
        other => Err(format!("range goes over lists and maps, not over {other}")),
    }
}
