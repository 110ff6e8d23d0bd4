//! Ingress, as the API server takes it.

use super::checks::{Report, dns_subdomain};
use crate::source::ingress::{Backend, Ingress, Path};

/// Sequences that no absolute path of an `Exact` or `Prefix` rule holds.
const UNCLEAN: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];

pub(super) fn ingress(ingress: &Ingress, out: &mut Report) {
    if ingress.rules.is_empty() && ingress.default_backend.is_none() {
        out.error("spec", "defaultBackend or rules is required");
    }
    if let Some(default) = &ingress.default_backend {
        backend("spec.defaultBackend", default, out);
    }
    for (i, tls) in ingress.tls.iter().enumerate() {
        for (j, name) in tls.hosts.iter().enumerate() {
            host(&format!("spec.tls[{i}].hosts[{j}]"), name, out);
        }
        if tls.secret_name.is_empty() {
            out.warning(format!("spec.tls[{i}].secretName"), "is empty: these hosts are not served over TLS");
        }
    }
    for (i, rule) in ingress.rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        if !rule.host.is_empty() {
            host(&format!("{field}.host"), &rule.host, out);
        }
        match &rule.http {
            None => out.warning(format!("{field}.http"), "is missing: the rule routes nothing"),
            Some(http) if http.paths.is_empty() => out.error(format!("{field}.http.paths"), "is required"),
            Some(http) => {
                for (j, path) in http.paths.iter().enumerate() {
                    one_path(&format!("{field}.http.paths[{j}]"), path, out);
                }
            }
        }
    }
}

fn host(field: &str, host: &str, out: &mut Report) {
    let bare = host.strip_prefix("*.").unwrap_or(host);
    if host.parse::<std::net::IpAddr>().is_ok() || !dns_subdomain(bare) {
        out.error(field, format!("{host:?} is not a DNS name in lower case, or *.NAME"));
    }
}

fn one_path(field: &str, path: &Path, out: &mut Report) {
    let text = path.path.as_str();
    let at = format!("{field}.path");
    match path.path_type.as_str() {
        "Exact" | "Prefix" => {
            let unclean = UNCLEAN.into_iter().find(|s| text.contains(s));
            let ending = ["/..", "/."].into_iter().find(|s| text.ends_with(s));
            if !text.starts_with('/') {
                out.error(at, format!("{text:?} must begin with '/'"));
            } else if let Some(found) = unclean.or(ending) {
                out.error(at, format!("{text:?} must not hold {found:?}"));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                out.error(at, format!("{text:?} must begin with '/'"));
            }
        }
        word => {
            let message = format!("{word:?} is not one of Exact, Prefix, ImplementationSpecific");
            out.error(format!("{field}.pathType"), message);
        }
    }
    backend(&format!("{field}.backend"), &path.backend, out);
}

fn backend(field: &str, backend: &Backend, out: &mut Report) {
    let service = match (&backend.service, &backend.resource) {
        (Some(service), None) => service,
        (None, Some(_)) => return,
        _ => return out.error(field, "either service or resource is required"),
    };
    let field = format!("{field}.service");
    if service.name.is_empty() {
        out.error(format!("{field}.name"), "is required");
    }
    if service.port.name.is_empty() == (service.port.number == 0) {
        out.error(format!("{field}.port"), "either name or number is required");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: &str) -> Vec<String> {
        let mut out = Report::default();
        ingress(&mesh_api::yaml::from_str(spec).unwrap(), &mut out);
        out.findings.into_iter().map(|f| f.field).collect()
    }

    fn path(path: &str) -> Vec<String> {
        fields(&format!("{{rules: [{{http: {{paths: [{path}]}}}}]}}"))
    }

    #[test]
    fn what_the_api_server_refuses_is_refused() {
        let at = |rest: &str| vec![format!("spec.rules[0].http.paths[0].{rest}")];
        let good = "backend: {service: {name: web, port: {number: 80}}}";
        assert!(path(&format!("{{path: /a, pathType: Prefix, {good}}}")).is_empty());
        assert!(path(&format!("{{path: '', pathType: ImplementationSpecific, {good}}}")).is_empty());
        assert_eq!(path(&format!("{{path: a, pathType: Exact, {good}}}")), at("path"));
        assert_eq!(path(&format!("{{path: /a/../b, pathType: Prefix, {good}}}")), at("path"));
        assert_eq!(path(&format!("{{path: /a, {good}}}")), at("pathType"));
        assert_eq!(path("{path: /a, pathType: Exact, backend: {}}"), at("backend"));
        let both = "{path: /a, pathType: Exact, backend: {service: {name: web, port: {number: 80, name: http}}}}";
        assert_eq!(path(both), at("backend.service.port"));
        assert_eq!(fields("{}"), ["spec"]);
        let hosts = "{rules: [{host: 10.0.0.1}, {host: A.test}], tls: [{hosts: ['*']}]}";
        assert_eq!(
            fields(hosts),
            [
                "spec.tls[0].hosts[0]",
                "spec.tls[0].secretName",
                "spec.rules[0].host",
                "spec.rules[0].http",
                "spec.rules[1].host",
                "spec.rules[1].http"
            ]
        );
    }
}
