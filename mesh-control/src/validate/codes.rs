//! The one table of codes of findings: Istio's where Istio has one for it, our own otherwise. What is printed, listed and
//! documented of a code comes from here.

use super::Level;

/// A code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// E.g. `IST0101`.
    pub code: &'static str,
    /// Istio's name of it, e.g. `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// How bad such findings are.
    pub level: Level,
    /// What is found.
    pub what: &'static str,
    /// What to do.
    pub hint: &'static str,
}

/// The object does not fit its schema, or Istio's validation would refuse it.
pub const SCHEMA: &str = "IST0106";
/// It fits, and is most likely not meant so.
pub const SCHEMA_WARNING: &str = "IST0133";
/// Something referred to is missing.
pub const MISSING: &str = "IST0101";
/// One object in two places.
pub const DUPLICATE: &str = "MESH0001";
/// Text that is no manifest.
pub const UNPARSABLE: &str = "MESH0002";
/// A field that is known and does nothing yet.
pub const NO_EFFECT: &str = "MESH0003";
/// A kind that the mesh does not read.
pub const NOT_READ: &str = "MESH0004";
/// A route for a service of another namespace.
pub const OTHERS_HOST: &str = "MESH0005";
/// An extension that does not run.
pub const NOT_RUN: &str = "MESH0006";

/// A rule that asks for HTTP of a port of TCP.
pub const HTTP_RULE_ON_TCP: &str = "MESH0007";

/// The code itself.
pub fn find(code: &str) -> Option<&'static Code> {
    ALL.iter().find(|c| c.code == code)
}

use Level::{Error as E, Info as I, Warning as W};

const fn row(code: &'static str, name: &'static str, level: Level, what: &'static str, hint: &'static str) -> Code {
    Code { code, name, level, what, hint }
}

/// Every code, in order.
pub const ALL: &[Code] = &[
    row(
        MISSING,
        "ReferencedResourceNotFound",
        E,
        "a host, subset, port, gateway, delegate, parent or credential that is referred to does not exist",
        "create it, or correct the name; short names are completed with the namespace of the object that uses them",
    ),
    row(
        SCHEMA,
        "SchemaValidationError",
        E,
        "the object does not fit its schema or contradicts itself, and is refused",
        "correct the field; until then the last good version serves, or none",
    ),
    row(
        "IST0107",
        "MisplacedAnnotation",
        W,
        "an annotation of Istio's stands on a kind of object that it does nothing on",
        "move it to an object of the kind that is named; annotations for pods belong into the pod template",
    ),
    row(
        "IST0108",
        "UnknownAnnotation",
        W,
        "an annotation under istio.io that Istio does not know",
        "correct its spelling, or take it away",
    ),
    row(
        "IST0109",
        "ConflictingMeshGatewayVirtualServiceHosts",
        E,
        "several VirtualServices for sidecars have one host",
        "merge them into one: of several for one host only the oldest is in force in sidecars",
    ),
    row(
        "IST0110",
        "ConflictingSidecarWorkloadSelectors",
        E,
        "several Sidecars select one workload",
        "make their selectors exclude each other: only the oldest is in force",
    ),
    row(
        "IST0111",
        "MultipleSidecarsWithoutWorkloadSelectors",
        E,
        "a namespace has several Sidecars without selector",
        "keep one of them: only the oldest is in force",
    ),
    row(
        "IST0112",
        "VirtualServiceDestinationPortSelectorRequired",
        E,
        "a route leads to a service of several ports and names none",
        "set destination.port.number",
    ),
    row(
        "IST0116",
        "DeploymentAssociatedToMultipleServices",
        W,
        "Services of one workload give a port different protocols",
        "give the port one protocol in all of them",
    ),
    row(
        "IST0118",
        "PortNameIsNotUnderNamingConvention",
        I,
        "neither name nor appProtocol of a port says what is spoken, so that it is found out from the first bytes",
        "call the port PROTOCOL or PROTOCOL-SUFFIX (http, http2, grpc, tcp, tls ...), or set appProtocol",
    ),
    row(
        "IST0123",
        "NamespaceMultipleInjectionLabels",
        W,
        "a namespace has both labels for injection",
        "keep either istio-injection or istio.io/rev",
    ),
    row(
        "IST0125",
        "InvalidAnnotation",
        W,
        "an annotation of a pod has a value that injection does not understand",
        "correct the value: pods with it are refused",
    ),
    row(
        "IST0127",
        "NoMatchingWorkloadsFound",
        W,
        "no pod of the namespace has the labels that are selected",
        "correct the selector: as it is the object has no effect",
    ),
    row(
        "IST0128",
        "NoServerCertificateVerificationDestinationLevel",
        W,
        "a DestinationRule asks for TLS and does not say who issued the server's certificate",
        "set tls.caCertificates, tls.credentialName or tls.caCertCredentialName",
    ),
    row(
        "IST0129",
        "NoServerCertificateVerificationPortLevel",
        W,
        "the same, for a port",
        "set tls.caCertificates, tls.credentialName or tls.caCertCredentialName of the port",
    ),
    row(
        "IST0130",
        "VirtualServiceUnreachableRule",
        W,
        "no request reaches a rule, as earlier ones take all that it matches",
        "move the rule up, make its match narrower than the earlier one's, or remove it",
    ),
    row(
        "IST0131",
        "VirtualServiceIneffectiveMatch",
        I,
        "one of the matches of a rule is covered by an earlier one",
        "remove the match, or move its rule up",
    ),
    row(
        "IST0132",
        "VirtualServiceHostNotFoundInGateway",
        W,
        "a gateway of a VirtualService has no server for any of its hosts",
        "add the host to a server of the Gateway, or correct it",
    ),
    row(
        SCHEMA_WARNING,
        "SchemaWarning",
        W,
        "the object is accepted, and is most likely not meant as it stands",
        "see the message",
    ),
    row(
        "IST0134",
        "ServiceEntryAddressesRequired",
        W,
        "a ServiceEntry has a port of TCP and no addresses: what goes there is told apart by its port alone",
        "set spec.addresses",
    ),
    row("IST0135", "DeprecatedAnnotation", I, "an annotation that Istio gives up", "use what replaces it"),
    row(
        "IST0137",
        "DeploymentConflictingPorts",
        W,
        "Services of one workload have different ports for one of its own",
        "give all of them the same port for it",
    ),
    row(
        "IST0138",
        "GatewayDuplicateCertificate",
        W,
        "several Gateways of one workload have one certificate: clients that use an HTTP/2 connection again get 404",
        "put the hosts of one certificate into one Gateway",
    ),
    row(
        "IST0145",
        "ConflictingGateways",
        E,
        "several Gateways of one workload have the same host on the same port",
        "keep the host in one of them: the oldest is in force",
    ),
    row(
        "IST0149",
        "JwtClaimBasedRoutingWithoutRequestAuthN",
        E,
        "routes ask for claims of tokens, and nothing checks tokens at the gateway: these routes never match",
        "add a RequestAuthentication that selects the gateway",
    ),
    row(
        "IST0150",
        "ExternalNameServiceTypeInvalidPortName",
        W,
        "a port of an ExternalName service says no protocol, or TCP: other traffic on that port may be caught",
        "name the port after its protocol, e.g. https",
    ),
    row(
        "IST0151",
        "EnvoyFilterUsesRelativeOperation",
        W,
        "a patch refers to what other patches may have changed, and the EnvoyFilter has no priority",
        "set spec.priority, so that the order of several EnvoyFilters is known",
    ),
    row(
        "IST0152",
        "EnvoyFilterUsesReplaceOperationIncorrectly",
        E,
        "a patch replaces where nothing can be replaced, and has no effect",
        "REPLACE is for filters and virtual hosts; elsewhere remove and add, or merge",
    ),
    row(
        "IST0153",
        "EnvoyFilterUsesAddOperationIncorrectly",
        E,
        "a patch adds where nothing can be added, and has no effect",
        "add a VIRTUAL_HOST or an HTTP_ROUTE; a ROUTE_CONFIGURATION can be merged only",
    ),
    row(
        "IST0154",
        "EnvoyFilterUsesRemoveOperationIncorrectly",
        E,
        "a patch removes where nothing can be removed, and has no effect",
        "remove a VIRTUAL_HOST or an HTTP_ROUTE; a ROUTE_CONFIGURATION can be merged only",
    ),
    row(
        "IST0155",
        "EnvoyFilterUsesRelativeOperationWithProxyVersion",
        W,
        "as IST0151, of what another patch changes for some versions of the proxy only",
        "set spec.priority, so that the order of several EnvoyFilters is known",
    ),
    row(
        "IST0157",
        "InvalidTelemetryProvider",
        W,
        "accessLogging names no provider",
        "name a provider of MeshConfig's extensionProviders, e.g. envoy",
    ),
    row(
        "IST0159",
        "ConflictingTelemetryWorkloadSelectors",
        E,
        "several Telemetries select one workload",
        "make their selectors exclude each other: only the oldest is in force",
    ),
    row(
        "IST0160",
        "MultipleTelemetriesWithoutWorkloadSelectors",
        E,
        "a namespace has several Telemetries without selector",
        "keep one of them: only the oldest is in force",
    ),
    row(
        "IST0161",
        "InvalidGatewayCredential",
        E,
        "the Secret that a server of a Gateway names holds no certificate with its key",
        "fill tls.crt and tls.key of the Secret with PEM",
    ),
    row(
        "IST0162",
        "GatewayPortNotDefinedOnService",
        W,
        "no Service of the gateway's pods has the port of a server",
        "add the port to the Service; its targetPort is the server's port",
    ),
    row(
        "IST0165",
        "InternalGatewayReference",
        W,
        "a VirtualService names what Istio makes of a Gateway of Gateway API",
        "route by HTTPRoute, GRPCRoute, TLSRoute or TCPRoute there",
    ),
    row(
        "IST0166",
        "IneffectiveSelector",
        W,
        "a selector takes workloads that a Gateway of Gateway API made",
        "name the Gateway in spec.targetRefs: a selector holds for other workloads with these labels too",
    ),
    row(
        "IST0173",
        "DestinationRuleSubsetNotSelectPods",
        E,
        "no pod of the service has the labels of a subset: requests there get 503",
        "correct the labels, deploy the version, or remove the subset",
    ),
    row(
        "IST0174",
        "UnknownDestinationRuleHost",
        W,
        "there is no service for the host of a DestinationRule",
        "correct spec.host; a short name belongs to the rule's own namespace",
    ),
    row(
        "IST0177",
        "ConflictingServiceEntryProtocol",
        W,
        "several ServiceEntries give one port of a host different protocols",
        "give it one protocol: that of the oldest is in force",
    ),
    row(DUPLICATE, "DeclaredTwice", E, "one object stands in two places", "remove one of them"),
    row(
        UNPARSABLE,
        "Unparsable",
        E,
        "text that is no Kubernetes object",
        "mend the YAML; every document needs apiVersion, kind and metadata.name",
    ),
    row(NO_EFFECT, "WithoutEffect", I, "a field that is accepted and has no effect yet", "do not rely on it"),
    row(
        NOT_READ,
        "KindNotRead",
        W,
        "a kind of object that this mesh does not read",
        "nothing, when it is meant for somebody else",
    ),
    row(
        OTHERS_HOST,
        "RouteForOthersHost",
        W,
        "a VirtualService for sidecars names a service of another namespace, and holds for clients of its own only",
        "move it to the service's namespace or to istio-system, or run mesh-control with --cross-namespace-routes",
    ),
    row(
        NOT_RUN,
        "ExtensionNotRun",
        W,
        "a WasmPlugin or TrafficExtension, which no proxy runs: one that fails closed refuses all it is for",
        "use a CUSTOM AuthorizationPolicy, RequestAuthentication or an EnvoyFilter instead, or failStrategy FAIL_OPEN",
    ),
    row(
        HTTP_RULE_ON_TCP,
        "HttpRuleOnTcpPort",
        W,
        "a rule of an AuthorizationPolicy asks for what only HTTP has, and a port of the workloads is TCP",
        "name the ports that the rule is for (to.operation.ports), or correct the protocol of the Service's port",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_complete() {
        for pair in ALL.windows(2) {
            assert!(pair[0].code < pair[1].code, "{pair:?}");
        }
        for code in ALL {
            assert!(!code.what.is_empty() && !code.hint.is_empty() && !code.name.is_empty(), "{code:?}");
            assert_eq!(find(code.code), Some(code));
        }
    }
}
