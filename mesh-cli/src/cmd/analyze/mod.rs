//! `meshctl analyze`: what is wrong, unreachable or in conflict in manifests and in a cluster, with Istio's codes. The
//! findings are the control plane's own; this chooses among them and shows them.

mod formats;
mod live;

use std::process::ExitCode;

use mesh_api::names::DEFAULT_DOMAIN;
use mesh_control::source::object::{Kind, ObjectKey};
use mesh_control::validate::{Finding, Level, codes};

use super::validate;
use crate::args::{AnalyzeArgs, Color, Format, ReportFormat, Threshold};
use crate::exit::{self, Failure, Outcome};
use crate::output::{Table, print, structured};

/// Namespaces of Kubernetes itself, whose objects nobody here can change.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Reads everything named and reports; the exit code does not depend on the format.
pub fn run(args: &AnalyzeArgs) -> Outcome {
    match args.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    if args.list_analyzers {
        let mut table = Table::new(&["CODE", "LEVEL", "NAME", "FINDS"]);
        for code in codes::ALL {
            table.row([code.code, level(code.level), code.name, code.what]);
        }
        print(&table.render());
        return Ok(ExitCode::SUCCESS);
    }
    let suppressed = args.suppress.iter().map(|text| Suppression::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let paths: Vec<_> = args.filename.iter().chain(&args.paths).cloned().collect();
    let use_kube = args.use_kube.unwrap_or(paths.is_empty());
    if !use_kube && paths.is_empty() {
        return Err(Failure::new(exit::USAGE, "name files or folders, or leave out --use-kube=false"));
    }
    let mut bundle = validate::bundle(&paths)?;
    let cluster = if use_kube { Some(live::add(&args.kube, &mut bundle)?) } else { None };
    let of_context = cluster.as_ref().map(|c| c.namespace.clone()).filter(|_| !args.all_namespaces);
    let namespace = args.namespace.clone().or(of_context);
    let (objects, unparsable) = (bundle.objects(), bundle.unparsable());
    let mut findings = bundle.findings(DEFAULT_DOMAIN);
    findings.retain(|f| in_namespace(f, namespace.as_deref()) && !suppressed.iter().any(|s| s.covers(f)));
    if let Some(cluster) = &cluster {
        findings.retain(|f| !cluster.hides(f) && (namespace.is_some() || !of_kubernetes(f)));
    }
    let failure = of(args.failure_threshold);
    let fails = findings.iter().any(|f| f.level >= failure);
    // What makes the command fail is always shown.
    let shown = of(args.output_threshold).min(failure);
    findings.retain(|f| f.level >= shown);
    match args.output {
        ReportFormat::Log => log(&findings, objects),
        ReportFormat::Json => structured(&findings, Format::Json)?,
        ReportFormat::Yaml => structured(&findings, Format::Yaml)?,
        ReportFormat::Sarif => structured(&formats::sarif(&findings), Format::Json)?,
        ReportFormat::Junit => print(formats::junit(&findings, failure).trim_end()),
    }
    Ok(match fails {
        _ if unparsable => ExitCode::from(exit::UNPARSABLE),
        true => ExitCode::from(exit::FINDINGS),
        false => ExitCode::SUCCESS,
    })
}

fn of(threshold: Threshold) -> Level {
    match threshold {
        Threshold::Info => Level::Info,
        Threshold::Warning => Level::Warning,
        Threshold::Error => Level::Error,
    }
}

/// In istioctl's words.
fn level(level: Level) -> &'static str {
    match level {
        Level::Info => "Info",
        Level::Warning => "Warning",
        Level::Error => "Error",
    }
}

fn log(findings: &[Finding], objects: usize) {
    for finding in findings {
        validate::line(finding);
        if let Some(hint) = finding.hint {
            print(&format!("    to do: {hint}"));
        }
    }
    if findings.is_empty() {
        anstream::eprintln!("{0}nothing found{0:#} in {objects} objects", crate::output::GREEN);
    } else {
        let count = |level| findings.iter().filter(|f| f.level == level).count();
        let (errors, warnings, infos) = (count(Level::Error), count(Level::Warning), count(Level::Info));
        eprintln!("{errors} errors, {warnings} warnings, {infos} remarks in {objects} objects that can be used");
    }
}

/// It is about an object of Kubernetes itself.
fn of_kubernetes(finding: &Finding) -> bool {
    let system = |name: &str| SYSTEM_NAMESPACES.contains(&name);
    finding.object.as_ref().is_some_and(|o| system(&o.namespace) || (o.kind == Kind::Namespace && system(&o.name)))
}

/// What is no object belongs to every namespace.
fn in_namespace(finding: &Finding, namespace: Option<&str>) -> bool {
    let (Some(namespace), Some(object)) = (namespace, &finding.object) else { return true };
    &*object.namespace == namespace || (object.kind == Kind::Namespace && &*object.name == namespace)
}

/// `CODE=GLOB`.
struct Suppression<'a> {
    code: &'a str,
    glob: &'a str,
}

impl<'a> Suppression<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        let parts = text.split_once('=').filter(|(code, glob)| !code.is_empty() && !glob.is_empty());
        let (code, glob) = parts.ok_or_else(|| {
            let message = format!("--suppress {text:?} is not CODE=GLOB, e.g. \"IST0118=Service *.shop\"");
            Failure::new(exit::USAGE, message)
        })?;
        if code != "*" && codes::find(code).is_none() {
            let message = format!("--suppress {text:?}: there is no code {code}; --list-analyzers lists them");
            return Err(Failure::new(exit::USAGE, message));
        }
        Ok(Self { code, glob })
    }

    fn covers(&self, finding: &Finding) -> bool {
        let named = finding.object.as_ref().map(name).unwrap_or_default();
        (self.code == "*" || finding.code == Some(self.code)) && fits(self.glob.as_bytes(), named.as_bytes())
    }
}

/// As istioctl names objects: `KIND NAME.NAMESPACE`.
fn name(key: &ObjectKey) -> String {
    match &*key.namespace {
        "" => format!("{} {}", key.kind, key.name),
        namespace => format!("{} {}.{namespace}", key.kind, key.name),
    }
}

/// A glob with `*` and `?`. Goes back to the last `*` only, so it takes no more than glob times text steps.
fn fits(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t, mut star) = (0, 0, None);
    while let Some(byte) = text.get(t) {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(c) if *c == b'?' || c == byte => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob.get(g..).is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, text) in
            [("*", ""), ("*", "a b"), ("Service *.shop", "Service web.shop"), ("a?c*", "abcd"), ("a*b*c", "axbxbc")]
        {
            assert!(fits(glob.as_bytes(), text.as_bytes()), "{glob} {text}");
        }
        for (glob, text) in
            [("", "a"), ("Service *.shop", "Service web.bank"), ("a?", "a"), ("a*b", "axc"), ("b*", "ab")]
        {
            assert!(!fits(glob.as_bytes(), text.as_bytes()), "{glob} {text}");
        }
    }
}
