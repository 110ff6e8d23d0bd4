//! URI templates (`envoy.path.match.uri_template`): `{*}` is one segment, `{**}` any number of them, `{name}` and
//! `{name=PATTERN}` name what they match for a rewrite. Knows no routes.

use std::fmt::Write as _;

use mesh_api::model::Name;
use regex::Regex;

use crate::config::ConfigError;

/// A compiled template: a regular expression with one group a variable.
#[derive(Debug, Clone)]
pub struct Template {
    regex: Regex,
    variables: Vec<String>,
}

const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+";
const SEGMENTS: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*";

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// Not a template, a name twice, or a wildcard after `**`.
    pub fn compile(template: &str) -> Result<Self, ConfigError> {
        let bad = |what: &str| ConfigError::new(format!("URI template {template:?}: {what}"));
        if !template.starts_with('/') || template.len() > super::matchers::MAX_PATTERN {
            return Err(bad("must start with / and be of reasonable length"));
        }
        let (mut pattern, mut variables) = (String::from(r"\A"), Vec::<String>::new());
        let mut rest = template;
        let mut open_ended = false;
        while let Some(c) = rest.chars().next() {
            if open_ended && matches!(c, '*' | '{') {
                return Err(bad("no wildcard may follow **"));
            }
            if let Some(inner) = rest.strip_prefix('{') {
                let (body, after) = inner.split_once('}').ok_or_else(|| bad("unclosed {"))?;
                rest = after;
                let (name, sub) = body.split_once('=').unwrap_or((body, "*"));
                match name {
                    "*" if !body.contains('=') => pattern.push_str(SEGMENT),
                    "**" if !body.contains('=') => {
                        pattern.push_str(SEGMENTS);
                        open_ended = true;
                    }
                    _ => {
                        let valid = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
                            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                        if !valid || variables.iter().any(|v| v == name) || variables.len() >= 5 {
                            return Err(bad("bad, repeated or too many variable names"));
                        }
                        variables.push(name.to_owned());
                        pattern.push('(');
                        open_ended |= wildcards(sub, &mut pattern).ok_or_else(|| bad("bad pattern of a variable"))?;
                        pattern.push(')');
                    }
                }
            } else if rest.starts_with('*') {
                let stars = rest.len() - rest.trim_start_matches('*').len();
                open_ended |= stars == 2;
                match stars {
                    1 => pattern.push_str(SEGMENT),
                    2 => pattern.push_str(SEGMENTS),
                    _ => return Err(bad("too many *")),
                }
                rest = rest.get(stars..).unwrap_or_default();
            } else {
                if matches!(c, '}' | '?' | '#') {
                    return Err(bad("unexpected character"));
                }
                pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
            }
        }
        pattern.push_str(r"\z");
        let regex = Regex::new(&pattern).map_err(|e| bad(&e.to_string()))?;
        Ok(Self { regex, variables })
    }
    /// Whether the whole path matches.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
    /// Fills the variables of `rewrite` with what `path` has in their places.
    pub fn rewrite(&self, path: &str, rewrite: &TemplateRewrite) -> Option<String> {
        let captures = self.regex.captures(path)?;
        let mut out = String::new();
        for part in &rewrite.0 {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::Variable(i) => write!(out, "{}", captures.get(i + 1)?.as_str()).ok()?,
            }
        }
        Some(out)
    }
}

/// Translates the pattern of a variable; `Some(true)` when it holds `**`.
fn wildcards(sub: &str, pattern: &mut String) -> Option<bool> {
    let mut open = false;
    for (i, segment) in sub.split('/').enumerate() {
        if i > 0 {
            pattern.push('/');
        }
        match segment {
            "*" => pattern.push_str(SEGMENT),
            "**" => {
                pattern.push_str(SEGMENTS);
                open = true;
            }
            literal if literal.contains(['*', '{', '}']) => return None,
            literal => pattern.push_str(&regex::escape(literal)),
        }
    }
    Some(open)
}

/// A compiled rewrite: text and variables of the matching template.
#[derive(Debug, Clone)]
pub struct TemplateRewrite(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Variable(usize),
}

impl TemplateRewrite {
    /// Compiles it against the template that matches.
    ///
    /// # Errors
    /// A variable the template does not have, or unbalanced braces.
    pub fn compile(rewrite: &Name, template: &Template) -> Result<Self, ConfigError> {
        let bad = |what: &str| ConfigError::new(format!("URI template rewrite {rewrite:?}: {what}"));
        if !rewrite.starts_with('/') {
            return Err(bad("must start with /"));
        }
        let (mut parts, mut rest) = (Vec::new(), &**rewrite);
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| bad("unclosed {"))?;
            let index = template.variables.iter().position(|v| v == name).ok_or_else(|| bad("unknown variable"))?;
            parts.extend([Part::Text(text.to_owned()), Part::Variable(index)]);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching() {
        let t = |s| Template::compile(s).unwrap();
        assert!(t("/bar/{*}/foo").matches("/bar/x/foo") && !t("/bar/{*}/foo").matches("/bar/x/y/foo"));
        assert!(t("/{**}").matches("/") && t("/{**}").matches("/a/b"));
        assert!(t("/a/*/b").matches("/a/1/b"));
        assert!(t("/{country}/{lang=**}").matches("/us/en/x"));
        assert!(!t("/a.c").matches("/abc"));
        for bad in ["a", "/{", "/{1x}", "/{a}/{a}", "/***", "/}"] {
            assert!(Template::compile(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rewriting() {
        let t = Template::compile("/videos/{country}/{rest=**}").unwrap();
        let r = TemplateRewrite::compile(&"/{rest}/in/{country}".into(), &t).unwrap();
        assert_eq!(t.rewrite("/videos/us/a/b", &r).as_deref(), Some("/a/b/in/us"));
        assert!(TemplateRewrite::compile(&"/{nope}".into(), &t).is_err());
    }
}
