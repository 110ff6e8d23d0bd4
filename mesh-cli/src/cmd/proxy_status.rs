//! `meshctl proxy-status`: connected proxies and what became of what they were sent.

use std::process::ExitCode;

use serde_json::Value;

use crate::args::{Format, StatusArgs};
use crate::client::cluster::block_on;
use crate::client::mesh::Mesh;
use crate::exit::{Failure, NEGATIVE, Outcome};
use crate::output::{Table, print, structured};

/// Types with a column of their own.
const TYPES: [&str; 6] = ["CDS", "LDS", "EDS", "RDS", "SDS", "ECDS"];

/// Asks every control plane, prints a line a proxy; exit code 1 when one of them refused something.
pub fn run(args: &StatusArgs) -> Outcome {
    let rows = block_on(async {
        let mesh = Mesh::find(&args.mesh).await?;
        let mut rows = rows(&mesh).await?;
        match &args.proxy {
            // Names on this machine are short: any namespace.
            Some(word) if mesh.cluster().is_none() && !word.contains('/') => rows.retain(|row| named(row, word)),
            Some(word) => {
                let pods: Vec<String> = mesh.pods(word).await?.iter().map(ToString::to_string).collect();
                rows.retain(|row| pods.iter().any(|pod| pod == text(row, "proxy")));
            }
            None => {}
        }
        Ok(rows)
    })?;
    let of_namespace =
        |row: &&Value| args.mesh.namespace.as_deref().is_none_or(|n| text(row, "proxy").rsplit('.').next() == Some(n));
    let rows: Vec<&Value> = rows.iter().filter(of_namespace).collect();
    if let (true, Some(name)) = (rows.is_empty(), &args.proxy) {
        return Err(Failure::new(NEGATIVE, format!("no proxy {name} is connected; meshctl ps lists those that are")));
    }
    if args.output != Format::Short {
        structured(&rows, args.output)?;
    } else {
        print(&table(&rows));
        for row in &rows {
            for (short, reason) in rejections(row) {
                print(&format!("{}: {short} rejected: {reason}", text(row, "proxy")));
            }
        }
    }
    let rejected = rows.iter().any(|r| !rejections(r).is_empty());
    Ok(if rejected { ExitCode::from(NEGATIVE) } else { ExitCode::SUCCESS })
}

/// All proxies as the control planes know them, each with the one it is connected to as `istiod`.
///
/// # Errors
/// When no control plane answers.
pub async fn rows(mesh: &Mesh<'_>) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for told in mesh.ask("/debug/syncz").await? {
        let Value::Array(rows) = told.value else { continue };
        all.extend(rows.into_iter().filter(Value::is_object).map(|mut row| {
            row["istiod"] = told.by.as_str().into();
            row
        }));
    }
    all.sort_by(|a, b| (text(a, "proxy"), text(a, "istiod")).cmp(&(text(b, "proxy"), text(b, "istiod"))));
    Ok(all)
}

/// `NAME` or `NAME.NAMESPACE`.
fn named(row: &Value, proxy: &str) -> bool {
    let name = text(row, "proxy");
    name == proxy || name.split('.').next() == Some(proxy)
}

fn text<'v>(row: &'v Value, field: &str) -> &'v str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// istioctl's columns, and what kind of proxy it is.
fn table(rows: &[&Value]) -> String {
    let head = ["NAME", "CLUSTER", "TYPE", "CDS", "LDS", "EDS", "RDS", "SDS", "ECDS", "ISTIOD", "VERSION"];
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = vec![text(row, "proxy"), text(row, "cluster_id"), text(row, "proxy_type")];
        cells.extend(TYPES.iter().map(|short| state(row, short)));
        cells.extend([text(row, "istiod"), text(row, "proxy_version")]);
        table.row(cells);
    }
    table.render()
}

/// State of a type, in istioctl's words.
pub fn state<'v>(row: &'v Value, short: &str) -> &'v str {
    row.pointer(&format!("/types/{short}/state")).and_then(Value::as_str).unwrap_or("IGNORED")
}

/// What the proxy refused, by type.
pub fn rejections(row: &Value) -> Vec<(&str, &str)> {
    let types = row.get("types").and_then(Value::as_object).into_iter().flatten();
    types.filter_map(|(short, state)| Some((short.as_str(), state.get("error")?.as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_istioctls_words() {
        let row = serde_json::json!({
            "proxy": "web.shop",
            "istiod": "istiod-1",
            "types": {
                "CDS": {"state": "SYNCED", "error": null},
                "LDS": {"state": "ERROR", "error": "0.0.0.0_80: unknown filter"},
            },
        });
        assert_eq!(["CDS", "LDS", "ECDS"].map(|short| state(&row, short)), ["SYNCED", "ERROR", "IGNORED"]);
        let shown = table(&[&row]);
        let cells: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(cells[cells.len() - 2..], ["ISTIOD", "VERSION"]);
        assert!(shown.ends_with("istiod-1"), "{shown}");
        assert_eq!(rejections(&row), [("LDS", "0.0.0.0_80: unknown filter")]);
        assert!(named(&row, "web") && named(&row, "web.shop") && !named(&row, "we"));
    }
}
