//! What an Ingress refers to: its class, certificates, backends.

use mesh_api::names::service_host;

use super::checker::{Checker, list};
use crate::source::ingress::{Ingress, ServiceBackend};
use crate::source::object::{Kind, ObjectKey, Spec};
use crate::validate::Finding;
use crate::validate::codes::NO_EFFECT;

impl Checker<'_> {
    pub(super) fn ingress(&mut self, ingress: &Ingress) {
        if let Some(class) = &ingress.ingress_class_name
            && !self.has(Kind::IngressClass, "", class)
        {
            let message = format!("has no effect: there is no IngressClass {class}, so that nobody serves this");
            self.found.push(Finding::info("spec.ingressClassName", message).code(NO_EFFECT));
        }
        for (i, tls) in ingress.tls.iter().enumerate().filter(|(_, t)| !t.secret_name.is_empty()) {
            self.secret(format!("spec.tls[{i}].secretName"), &tls.secret_name);
        }
        for (i, rule) in ingress.rules.iter().enumerate() {
            for (j, path) in rule.http.iter().flat_map(|h| &h.paths).enumerate() {
                if let Some(service) = &path.backend.service {
                    self.service(&format!("spec.rules[{i}].http.paths[{j}].backend.service"), service);
                }
            }
        }
    }

    fn service(&mut self, field: &str, backend: &ServiceBackend) {
        let host = service_host(&backend.name, &self.key.namespace, &self.known.domain);
        let Some(ports) = self.ports(&host) else {
            self.missing(format!("{field}.name"), format!("there is no service {host}: requests get 503"));
            return;
        };
        if backend.port.number > 0 {
            if !ports.is_empty() && !ports.contains(&backend.port.number) {
                let message = format!("{host} has no port {}, but {}", backend.port.number, list(&ports));
                self.missing(format!("{field}.port.number"), message);
            }
            return;
        }
        let namespace = self.key.namespace.clone();
        self.has(Kind::Service, &namespace, &backend.name);
        let key = ObjectKey::new(Kind::Service, &namespace, &backend.name);
        let named = self.objects.get(&key).is_some_and(|checked| match &checked.object.spec {
            Spec::Service(service) => service.ports.iter().any(|p| p.name == backend.port.name),
            _ => false,
        });
        if !named {
            let message = format!("{host} has no port called {:?}: the path is left out", backend.port.name);
            self.missing(format!("{field}.port.name"), message);
        }
    }
}
