//! `meshctl version`: of this program, of the control planes, of the proxies.

use std::collections::BTreeMap;
use std::process::ExitCode;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::proxy_status;
use crate::args::{Format, VersionArgs};
use crate::client::cluster::block_on;
use crate::client::mesh::{ControlPlane, Mesh};
use crate::exit::{Failure, Outcome};
use crate::output::{print, structured};

/// What a mesh runs.
#[derive(Debug, Default)]
struct Running {
    /// Revision (or address, where that is not known) and version of each control plane.
    control: Vec<(String, String)>,
    /// Name and version of each proxy.
    proxies: Vec<(String, String)>,
}

/// Prints our version and, unless told not to ask, those of control planes and proxies.
pub fn run(args: &VersionArgs) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let asked = if args.client || !args.remote { None } else { Some(block_on(running(args))) };
    if args.output == Format::Short {
        print(&format!("client version: {own}"));
        match &asked {
            Some(Ok(running)) => lines(running).iter().for_each(|line| print(line)),
            Some(Err(why)) => eprintln!("control plane version: unknown ({})", why.message),
            None => {}
        }
    } else {
        let mut value = json!({"clientVersion": {"version": own}});
        match asked {
            Some(Ok(running)) => {
                let component = |(revision, version): &(String, String)| {
                    let info = json!({"version": version});
                    json!({"Component": "pilot", "Revision": revision, "Info": info})
                };
                value["meshVersion"] = running.control.iter().map(component).collect();
                let proxy = |(id, version): &(String, String)| json!({"ID": id, "IstioVersion": version});
                value["dataPlaneVersion"] = running.proxies.iter().map(proxy).collect();
            }
            Some(Err(why)) => eprintln!("control plane version: unknown ({})", why.message),
            None => {}
        }
        structured(&value, args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn running(args: &VersionArgs) -> Result<Running, Failure> {
    let mesh = Mesh::find(&args.mesh).await?;
    let planes = mesh.control_planes().await?;
    let mut out = Running::default();
    let (versions, proxies) = tokio::join!(join_all(planes.iter().map(of_plane)), proxy_status::rows(&mesh));
    for (plane, version) in planes.iter().zip(versions) {
        let name = if plane.revision.is_empty() { &plane.name } else { &plane.revision };
        out.control.push((name.clone(), version?));
    }
    match proxies {
        Ok(rows) => {
            let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
            out.proxies = rows.iter().map(|row| (text(row, "proxy"), text(row, "proxy_version"))).collect();
        }
        Err(why) => anstream::eprintln!("data plane version: unknown ({})", why.message),
    }
    Ok(out)
}

/// The version of a control plane.
///
/// # Errors
/// When it does not answer.
pub async fn of_plane(plane: &ControlPlane) -> Result<String, Failure> {
    Ok(version_of(&plane.server.good("/version").await?.text()))
}

/// As istioctl says it: one version where all have the same, else each with its count or its revision.
fn lines(running: &Running) -> Vec<String> {
    let counts = |all: &[(String, String)]| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        all.iter().for_each(|(_, version)| *counts.entry(version.clone()).or_default() += 1);
        counts
    };
    let control = counts(&running.control);
    let mut out = match control.len() {
        1 => control.keys().map(|version| format!("control plane version: {version}")).collect(),
        _ => {
            let mut lines: Vec<String> = running
                .control
                .iter()
                .map(|(revision, version)| format!("control plane version: {version} (revision {revision})"))
                .collect();
            lines.dedup();
            lines
        }
    };
    let proxies: Vec<String> =
        counts(&running.proxies).into_iter().map(|(version, n)| format!("{version} ({n} proxies)")).collect();
    out.push(format!(
        "data plane version: {}",
        if proxies.is_empty() { "none".to_owned() } else { proxies.join(", ") }
    ));
    out
}

/// The first word that looks like x.y.z.
fn version_of(text: &str) -> String {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-')));
    let word = words.find(|w| w.matches('.').count() >= 2);
    // `mesh-control-1.2.3` and the like: the number is what counts.
    let digits = |w: &str| w.find(|c: char| c.is_ascii_digit()).and_then(|at| w.get(at..)).unwrap_or(w).to_owned();
    word.map_or_else(|| text.trim().to_owned(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_counts_in_istioctls_words() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let same = Running {
            control: vec![pair("default", "1.2.3"), pair("default", "1.2.3")],
            proxies: vec![pair("a.shop", "1.2.3"), pair("b.shop", "1.2.3"), pair("c.shop", "1.2.2")],
        };
        assert_eq!(
            lines(&same),
            ["control plane version: 1.2.3", "data plane version: 1.2.2 (1 proxies), 1.2.3 (2 proxies)"]
        );
        let two = Running { control: vec![pair("blue", "1.3.0"), pair("default", "1.2.3")], proxies: vec![] };
        assert_eq!(
            lines(&two),
            [
                "control plane version: 1.3.0 (revision blue)",
                "control plane version: 1.2.3 (revision default)",
                "data plane version: none"
            ]
        );
        assert_eq!(version_of("mesh-control-0.1.0"), "0.1.0");
        assert_eq!(version_of("1.26.2-abc-Clean"), "1.26.2-abc-Clean");
    }
}
