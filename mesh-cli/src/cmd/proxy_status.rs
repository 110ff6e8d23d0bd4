//! `meshctl proxy-status`: connected proxies and what became of what they were sent.

use std::process::ExitCode;

use serde_json::Value;

use crate::args::{Format, StatusArgs};
use crate::client;
use crate::exit::{Failure, NEGATIVE, Outcome};
use crate::output::{Table, print, structured};

/// Types with a column of their own.
const TYPES: [&str; 6] = ["CDS", "LDS", "EDS", "RDS", "SDS", "ECDS"];

/// Asks the control plane, prints a line a proxy; exit code 1 when one of them refused something.
pub fn run(args: &StatusArgs) -> Outcome {
    let all = client::json(&args.control.control, "/debug/syncz")?;
    let rows: Vec<&Value> = all.as_array().into_iter().flatten().filter(|r| wanted(r, args.proxy.as_deref())).collect();
    if rows.is_empty() && args.proxy.is_some() {
        let name = args.proxy.as_deref().unwrap_or_default();
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

/// `NAME` or `NAME.NAMESPACE`.
fn wanted(row: &Value, proxy: Option<&str>) -> bool {
    let name = text(row, "proxy");
    proxy.is_none_or(|p| name == p || name.split('.').next() == Some(p))
}

fn text<'v>(row: &'v Value, field: &str) -> &'v str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn table(rows: &[&Value]) -> String {
    let mut table = Table::new(&["NAME", "CLUSTER", "TYPE", "CDS", "LDS", "EDS", "RDS", "SDS", "ECDS", "VERSION"]);
    for row in rows {
        let mut cells = vec![text(row, "proxy"), text(row, "cluster_id"), text(row, "proxy_type")];
        cells.extend(TYPES.iter().map(|short| state(row, short)));
        cells.push(text(row, "proxy_version"));
        table.row(cells);
    }
    table.render()
}

/// In istioctl's words.
fn state<'v>(row: &'v Value, short: &str) -> &'v str {
    row.pointer(&format!("/types/{short}/state")).and_then(Value::as_str).unwrap_or("IGNORED")
}

/// What the proxy refused, by type.
fn rejections(row: &Value) -> Vec<(&str, &str)> {
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
            "types": {
                "CDS": {"state": "SYNCED", "error": null},
                "LDS": {"state": "ERROR", "error": "0.0.0.0_80: unknown filter"},
            },
        });
        assert_eq!(["CDS", "LDS", "ECDS"].map(|short| state(&row, short)), ["SYNCED", "ERROR", "IGNORED"]);
        assert_eq!(rejections(&row), [("LDS", "0.0.0.0_80: unknown filter")]);
        assert!(wanted(&row, Some("web")) && wanted(&row, Some("web.shop")) && !wanted(&row, Some("we")));
    }
}
