//! Reports for other programs: SARIF for code scanners, JUnit for CI servers.

use std::collections::BTreeSet;

use mesh_control::validate::{Finding, Level, codes};
use serde_json::{Value, json};

/// SARIF 2.1.0. Codes that occur are its rules.
pub fn sarif(findings: &[Finding]) -> Value {
    let used: BTreeSet<&str> = findings.iter().filter_map(|f| f.code).collect();
    let rule = |code: &&str| {
        let code = codes::find(code)?;
        Some(json!({
            "id": code.code,
            "name": code.name,
            "shortDescription": {"text": code.what},
            "help": {"text": code.hint},
            "defaultConfiguration": {"level": sarif_level(code.level)},
        }))
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "meshctl",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": used.iter().filter_map(rule).collect::<Vec<_>>(),
            }},
            "results": findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

fn sarif_level(level: Level) -> &'static str {
    match level {
        Level::Info => "note",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

fn result(finding: &Finding) -> Value {
    let mut location = serde_json::Map::new();
    if let Some(file) = &finding.file {
        let mut physical = json!({"artifactLocation": {"uri": file.to_string_lossy()}});
        if let Some(line) = finding.line {
            physical["region"] = json!({"startLine": line, "startColumn": finding.column.unwrap_or(1)});
        }
        location.insert("physicalLocation".to_owned(), physical);
    }
    if let Some(object) = &finding.object {
        let name = json!([{"fullyQualifiedName": object.to_string(), "kind": "object"}]);
        location.insert("logicalLocations".to_owned(), name);
    }
    let mut result = json!({
        "level": sarif_level(finding.level),
        "message": {"text": text(finding)},
        "locations": [location],
    });
    if let Some(code) = finding.code {
        result["ruleId"] = json!(code);
    }
    result
}

/// Field, message and what to do.
fn text(finding: &Finding) -> String {
    let mut text = match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    };
    if let Some(hint) = finding.hint {
        text.push_str(&format!(" (to do: {hint})"));
    }
    text
}

/// JUnit's XML: a test case for each finding, failed from `failure` on.
pub fn junit(findings: &[Finding], failure: Level) -> String {
    let failures = findings.iter().filter(|f| f.level >= failure).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let counts = format!("tests=\"{}\" failures=\"{failures}\"", findings.len().max(1));
    out.push_str(&format!("<testsuites {counts}>\n  <testsuite name=\"meshctl analyze\" {counts}>\n"));
    if findings.is_empty() {
        out.push_str("    <testcase classname=\"meshctl\" name=\"analyze\"/>\n");
    }
    for finding in findings {
        let object = finding.object.as_ref().map(ToString::to_string).unwrap_or_default();
        let name = [finding.code.unwrap_or_default(), &object, &finding.field];
        let name = name.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let file = finding.file.as_ref().map(|f| f.to_string_lossy()).unwrap_or_default();
        let line = finding.line.map(|line| format!(" line=\"{line}\"")).unwrap_or_default();
        out.push_str(&format!(
            "    <testcase classname=\"{file}\" name=\"{}\" file=\"{file}\"{line}>\n",
            escaped(&name),
            file = escaped(&file)
        ));
        let said = escaped(&finding.to_string());
        if finding.level >= failure {
            let kind = finding.code.unwrap_or("finding");
            let message = escaped(&text(finding));
            out.push_str(&format!("      <failure type=\"{kind}\" message=\"{message}\">{said}</failure>\n"));
        } else {
            out.push_str(&format!("      <system-out>{said}</system-out>\n"));
        }
        out.push_str("    </testcase>\n");
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// Text within XML; what XML cannot hold is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | '\r' => out.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_holds_no_markup_of_its_content() {
        assert_eq!(escaped("<a b=\"c\">&\u{1}\n"), "&lt;a b=&quot;c&quot;&gt;&amp; ");
        assert!(junit(&[], Level::Error).contains("tests=\"1\" failures=\"0\""));
    }
}
