//! `meshctl proxy-status`: connected proxies and what became of what they were sent.

use std::process::ExitCode;

use serde_json::Value;

use crate::args::{Format, StatusArgs};
use crate::client::Server;
use crate::exit::{Failure, NEGATIVE, Outcome};
use crate::output::{Table, print, structured};

/// Types with a column of their own.
const TYPES: [&str; 6] = ["CDS", "LDS", "EDS", "RDS", "SDS", "ECDS"];

/// Asks the control plane, prints a line a proxy; exit code 1 when one of them refused something.
pub fn run(args: &StatusArgs) -> Outcome {
    let control = Server::control(&args.control);
    let all = control.json("/debug/syncz")?;
    let rows: Vec<&Value> = all.as_array().into_iter().flatten().filter(|r| wanted(r, args.proxy.as_deref())).collect();
    if rows.is_empty() && args.proxy.is_some() {
        let name = args.proxy.as_deref().unwrap_or_default();
        return Err(Failure::new(NEGATIVE, format!("no proxy {name} is connected; meshctl ps lists those that are")));
    }
    if args.output != Format::Short {
        structured(&rows, args.output)?;
    } else {
        print(&table(&rows, control.address()));
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

/// istioctl's columns, and what kind of proxy it is. `control` is who answered.
fn table(rows: &[&Value], control: &str) -> String {
    let head = ["NAME", "CLUSTER", "TYPE", "CDS", "LDS", "EDS", "RDS", "SDS", "ECDS", "ISTIOD", "VERSION"];
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = vec![text(row, "proxy"), text(row, "cluster_id"), text(row, "proxy_type")];
        cells.extend(TYPES.iter().map(|short| state(row, short)));
        cells.extend([control, text(row, "proxy_version")]);
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
        let shown = table(&[&row], "127.0.0.1:15014");
        let cells: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(cells[cells.len() - 2..], ["ISTIOD", "VERSION"]);
        assert!(shown.ends_with("127.0.0.1:15014"), "{shown}");
        assert_eq!(rejections(&row), [("LDS", "0.0.0.0_80: unknown filter")]);
        assert!(wanted(&row, Some("web")) && wanted(&row, Some("web.shop")) && !wanted(&row, Some("we")));
    }
}
