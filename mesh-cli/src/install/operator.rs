//! What the user wants installed: a profile, files of kind IstioOperator over it, `--set` over those.
//!
//! `read` gives the sum of them, held against a schema, with file, line and field of what is not understood; `releases`
//! says which charts are rendered with which values.

use std::path::{Path, PathBuf};

use mesh_control::inject::manifest::{File, mesh_config as mesh_config_of};
use mesh_control::source::position::Locator;
use serde_json::{Map, Value, json};

use crate::chart::{self, Chart, Release, schema};

/// Namespace of the control plane, if none is named.
pub const NAMESPACE: &str = "istio-system";

/// Profiles by name.
pub const PROFILES: &[(&str, &str)] = &[
    ("default", include_str!("profiles/default.yaml")),
    ("demo", include_str!("profiles/demo.yaml")),
    ("minimal", include_str!("profiles/minimal.yaml")),
];

/// Where wishes come from.
#[derive(Debug, Default)]
pub struct Sources {
    /// Files with their content, later ones over earlier ones.
    pub files: Vec<(PathBuf, String)>,
    /// `PATH=VALUE`, over the files.
    pub set: Vec<String>,
    /// Profile below everything, if it is not named in `set`.
    pub profile: Option<String>,
    /// Revision, over everything.
    pub revision: Option<String>,
    /// Namespace, over everything.
    pub namespace: Option<String>,
}

/// What is to be installed: `spec` of an IstioOperator, complete.
#[derive(Debug, Clone)]
pub struct Wish {
    spec: Value,
}

impl Wish {
    /// Reads and adds up the sources.
    ///
    /// # Errors
    /// File, line and field, or the assignment, and what is wrong with it.
    pub fn read(sources: &Sources) -> Result<Self, String> {
        let schema = operator_schema()?;
        let mut layers = Vec::new();
        for (path, text) in &sources.files {
            layers.extend(file(&path.display().to_string(), text, &schema)?);
        }
        let mut above = json!({});
        for assignment in &sources.set {
            assign(&mut above, assignment)?;
        }
        let text = |key: &str| layers.iter().chain([&above]).rev().find_map(|l| l.get(key)?.as_str());
        let profile = sources.profile.as_deref().or_else(|| text("profile")).unwrap_or("default").to_owned();
        let mut spec = self::profile(&profile)?;
        layers.iter().for_each(|layer| overlay(&mut spec, layer));
        for assignment in &sources.set {
            assign(&mut spec, assignment)?;
        }
        for (key, value) in [("revision", &sources.revision), ("namespace", &sources.namespace)] {
            if let Some(value) = value {
                spec[key] = json!(value);
            }
        }
        spec["profile"] = json!(profile);
        let whole = json!({"spec": spec});
        if let Some(problem) = schema::check(&schema, &whole).into_iter().next() {
            return Err(format!("--set: {problem}"));
        }
        mesh_config(&spec).map_err(|problem| format!("--set: {problem}"))?;
        let wish = Self { spec };
        checked_name("revision", wish.revision(), MOST - "istiod-".len())?;
        for namespace in wish.releases().iter().map(|r| &r.namespace) {
            checked_name("namespace", namespace, MOST)?;
        }
        Ok(wish)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.spec.get(key).and_then(Value::as_str).filter(|s| !s.is_empty())
    }

    /// Namespace of the control plane.
    pub fn namespace(&self) -> &str {
        let global = self.spec.pointer("/values/global/istioNamespace").and_then(Value::as_str);
        self.text("namespace").or(global).unwrap_or(NAMESPACE)
    }

    /// Revision; `default` if there is no other.
    pub fn revision(&self) -> &str {
        let of_values = self.spec.pointer("/values/revision").and_then(Value::as_str).filter(|s| !s.is_empty());
        self.text("revision").or(of_values).unwrap_or("default")
    }

    /// The whole as a manifest.
    pub fn manifest(&self) -> Value {
        json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": self.spec})
    }

    /// What is installed, in order.
    pub fn releases(&self) -> Vec<Release> {
        let enabled = |path: &str| self.spec.pointer(path).and_then(Value::as_bool).unwrap_or(true);
        let release = |chart: &'static Chart, name: &str, namespace: &str, values: Value| Release {
            chart,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            values,
        };
        let mut all = Vec::new();
        if enabled("/components/base/enabled") {
            let values = picked(self.spec.get("values").unwrap_or(&Value::Null), OF_BASE);
            all.push(release(&chart::BASE, "istio-base", self.namespace(), Value::Object(values)));
        }
        if enabled("/components/pilot/enabled") {
            all.push(release(&chart::ISTIOD, "istiod", self.namespace(), self.control_plane()));
        }
        for (name, gateway, _) in self.gateways().filter(|(_, _, wanted)| *wanted) {
            let values = self.gateway(gateway, self.of_values(name));
            all.push(release(&chart::GATEWAY, name, self.namespace_of(gateway), values));
        }
        all
    }

    /// Gateways that are listed and not wanted, with their namespaces.
    pub fn unwanted(&self) -> Vec<(String, String)> {
        let unwanted = self.gateways().filter(|(_, _, wanted)| !wanted);
        unwanted.map(|(name, gateway, _)| (name.to_owned(), self.namespace_of(gateway).to_owned())).collect()
    }

    /// Namespace of a gateway.
    fn namespace_of<'a>(&'a self, gateway: &'a Value) -> &'a str {
        gateway.get("namespace").and_then(Value::as_str).unwrap_or(self.namespace())
    }

    /// Gateways that are listed: name, component, whether they are wanted.
    fn gateways(&self) -> impl Iterator<Item = (&str, &Value, bool)> {
        const LISTS: [&str; 2] = ["ingressGateways", "egressGateways"];
        let listed = LISTS.iter().filter_map(|kind| self.spec.pointer(&format!("/components/{kind}"))?.as_array());
        listed.flatten().filter_map(|gateway| {
            let name = gateway.get("name")?.as_str()?;
            let by_values = self.of_values(name).and_then(|g| g.get("enabled")).and_then(Value::as_bool);
            let said = gateway.get("enabled").and_then(Value::as_bool);
            Some((name, gateway, by_values.or(said).unwrap_or(false)))
        })
    }

    /// What `values` say of a gateway.
    fn of_values(&self, gateway: &str) -> Option<&Value> {
        self.spec.pointer("/values/gateways")?.get(gateway)
    }

    /// Values of chart `istiod`.
    fn control_plane(&self) -> Value {
        let mut values = self.spec.get("values").cloned().unwrap_or(json!({}));
        if let Some(map) = values.as_object_mut() {
            map.retain(|key, _| key != "gateways" && !OF_BASE.contains(&key.as_str()));
        }
        let mut own = json!({"global": {"istioNamespace": self.namespace()}, "revision": self.revision()});
        if self.revision() == "default" {
            own["revision"] = json!("");
        }
        for key in ["hub", "tag"] {
            if let Some(value) = self.spec.get(key).filter(|v| !v.is_null()) {
                own["global"][key] = value.clone();
            }
        }
        if let Some(mesh) = self.spec.get("meshConfig") {
            own["meshConfig"] = mesh.clone();
        }
        let k8s = self.spec.pointer("/components/pilot/k8s").cloned().unwrap_or_default();
        let mut pilot = picked(
            &k8s,
            &[
                "replicaCount",
                "resources",
                "nodeSelector",
                "affinity",
                "tolerations",
                "podAnnotations",
                "serviceAnnotations",
            ],
        );
        if let Some(env) = variables(&k8s) {
            pilot.insert("env".to_owned(), env);
        }
        for (from, to) in [("minReplicas", "autoscaleMin"), ("maxReplicas", "autoscaleMax")] {
            if let Some(count) = k8s.pointer(&format!("/hpaSpec/{from}")) {
                pilot.insert(to.to_owned(), count.clone());
            }
        }
        let said = values.pointer("/pilot/autoscaleEnabled").is_some();
        if k8s.get("replicaCount").is_some() && k8s.get("hpaSpec").is_none() && !said {
            pilot.insert("autoscaleEnabled".to_owned(), json!(false));
        }
        own["pilot"] = Value::Object(pilot);
        merge(&mut own, &values);
        own
    }

    /// Values of chart `gateway`: what the component says, over Istio's names for gateways in `values`.
    fn gateway(&self, component: &Value, of_values: Option<&Value>) -> Value {
        const SERVICE: &[&str] =
            &["type", "ports", "loadBalancerIP", "loadBalancerSourceRanges", "externalTrafficPolicy", "externalIPs"];
        let nothing = json!({});
        let k8s = component.get("k8s").unwrap_or(&nothing);
        let mut values = picked(
            k8s,
            &[
                "replicaCount",
                "resources",
                "nodeSelector",
                "affinity",
                "tolerations",
                "podAnnotations",
                "imagePullPolicy",
                "priorityClassName",
            ],
        );
        if let Some(env) = variables(k8s) {
            values.insert("env".to_owned(), env);
        }
        if let Some(labels) = component.get("label") {
            values.insert("labels".to_owned(), labels.clone());
        }
        let mut service = picked(k8s.get("service").unwrap_or(&nothing), SERVICE);
        if let Some(annotations) = k8s.get("serviceAnnotations") {
            service.insert("annotations".to_owned(), annotations.clone());
        }
        let mut autoscaling = picked(k8s.get("hpaSpec").unwrap_or(&nothing), &["minReplicas", "maxReplicas"]);
        let given = of_values.unwrap_or(&nothing);
        let said = given.get("autoscaleEnabled").is_some();
        if values.contains_key("replicaCount") && autoscaling.is_empty() && !said {
            autoscaling.insert("enabled".to_owned(), json!(false));
        }
        let mut all = json!({"service": service, "autoscaling": autoscaling, "revision": self.revision()});
        merge(&mut all, &Value::Object(values));
        let mut below = picked(
            given,
            &[
                "labels",
                "replicaCount",
                "resources",
                "nodeSelector",
                "affinity",
                "tolerations",
                "podAnnotations",
                "env",
            ],
        );
        let mut service = picked(given, SERVICE);
        let renamed = |map: &mut Map<String, Value>, from: &str, to: &str| {
            if let Some(value) = given.get(from) {
                map.insert(to.to_owned(), value.clone());
            }
        };
        renamed(&mut service, "serviceAnnotations", "annotations");
        let mut autoscaling = Map::new();
        renamed(&mut autoscaling, "autoscaleEnabled", "enabled");
        renamed(&mut autoscaling, "autoscaleMin", "minReplicas");
        renamed(&mut autoscaling, "autoscaleMax", "maxReplicas");
        below.insert("service".to_owned(), Value::Object(service));
        below.insert("autoscaling".to_owned(), Value::Object(autoscaling));
        merge(&mut all, &Value::Object(below));
        let global = self.spec.pointer("/values/global").unwrap_or(&nothing);
        let everywhere = picked(global, &["imagePullPolicy", "imagePullSecrets", "priorityClassName"]);
        merge(&mut all, &Value::Object(everywhere));
        let budgets = global.pointer("/defaultPodDisruptionBudget/enabled").and_then(Value::as_bool).unwrap_or(true);
        if budgets && least_pods(&all) > 1 {
            all["podDisruptionBudget"] = json!({"minAvailable": 1});
        }
        all
    }
}

/// Values of chart `base`.
const OF_BASE: &[&str] = &["base", "defaultRevision"];

/// Longest name of a namespace or Service.
const MOST: usize = 63;

/// Whether names of objects may hold a word: else some of them would be there before the API server refuses the others.
fn checked_name(what: &str, word: &str, most: usize) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = word.starts_with('-') || word.ends_with('-');
    if word.is_empty() || word.len() > most || ends || !word.chars().all(inner) {
        let why = format!("small letters, digits and dashes between them, at most {most}, as in 1-2-0");
        return Err(format!("{what} {word:?} is no name: {why}"));
    }
    Ok(())
}

/// `spec` of a profile.
///
/// # Errors
/// When there is none of this name.
pub fn profile(name: &str) -> Result<Value, String> {
    let names: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).collect();
    let found = PROFILES.iter().find(|(n, _)| *n == name);
    let (_, text) = found.ok_or_else(|| format!("no profile {name}: there are {}", names.join(", ")))?;
    let layers = file(&format!("profile {name}"), text, &operator_schema()?)?;
    layers.into_iter().next().ok_or_else(|| format!("profile {name} is empty"))
}

/// The schema of an IstioOperator; that of `values` is the charts'.
fn operator_schema() -> Result<Value, String> {
    let mut schema: Value = serde_json::from_str(include_str!("operator.schema.json")).map_err(|e| e.to_string())?;
    let values = schema.pointer_mut("/properties/spec/properties/values/properties").and_then(Value::as_object_mut);
    if let Some(values) = values {
        for chart in [&chart::ISTIOD, &chart::BASE] {
            for (name, of_chart) in chart.schema()?["properties"].as_object().into_iter().flatten() {
                values.entry(name).or_insert(of_chart.clone());
            }
        }
    }
    Ok(schema)
}

/// `spec` of every IstioOperator of a file.
fn file(name: &str, text: &str, schema: &Value) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    let mut lines_before = 0;
    for document in chart::documents(text) {
        let value: Value = mesh_api::yaml::from_str(document).map_err(|e| format!("{name}: {e}"))?;
        let problems = schema::check(schema, &value);
        let mesh = value.get("spec").map_or(Ok(()), mesh_config);
        if let Some(problem) = problems.into_iter().chain(mesh.err()).next() {
            let place = Locator::new(document, lines_before).find(&problem.path);
            let line = place.map(|(line, _)| format!(":{line}")).unwrap_or_default();
            return Err(format!("{name}{line}: {problem}"));
        }
        lines_before += u32::try_from(document.matches('\n').count()).unwrap_or(0) + 1;
        found.extend(value.get("spec").cloned());
    }
    Ok(found)
}

/// Whether the settings of the mesh are such.
fn mesh_config(spec: &Value) -> Result<(), schema::Problem> {
    for pointer in ["/meshConfig", "/values/meshConfig"] {
        let Some(settings) = spec.pointer(pointer) else { continue };
        let text = settings.to_string();
        let file = File { path: Path::new("meshConfig"), text: &text, namespace: "" };
        if let Err(problem) = mesh_config_of(file) {
            let field = if problem.field.is_empty() { String::new() } else { format!(".{}", problem.field) };
            let path = format!("spec{}{field}", pointer.replace('/', "."));
            return Err(schema::Problem { path, message: problem.message });
        }
    }
    Ok(())
}

/// Puts a layer over a value: maps field by field, lists of named things by name, the rest as a whole.
fn overlay(value: &mut Value, layer: &Value) {
    match (value, layer) {
        (Value::Object(map), Value::Object(layer)) => {
            for (key, over) in layer {
                overlay(map.entry(key).or_insert(Value::Null), over);
            }
        }
        (Value::Array(items), Value::Array(layer)) if is_of_gateways(items) && is_of_gateways(layer) => {
            for over in layer {
                match items.iter_mut().find(|i| i["name"] == over["name"]) {
                    Some(item) => overlay(item, over),
                    None => items.push(over.clone()),
                }
            }
        }
        (value, layer) => *value = layer.clone(),
    }
}

/// Gateways have names and say whether they are enabled or how they run; ports have names, too, and are replaced.
fn is_of_gateways(items: &[Value]) -> bool {
    items.iter().all(|i| i.get("name").is_some() && i.get("port").is_none() && i.get("value").is_none())
}

/// How many pods a gateway with these values has at least.
fn least_pods(values: &Value) -> i64 {
    let autoscaled = values.pointer("/autoscaling/enabled").and_then(Value::as_bool).unwrap_or(true);
    let count = if autoscaled { values.pointer("/autoscaling/minReplicas") } else { values.get("replicaCount") };
    count.and_then(Value::as_i64).unwrap_or(1)
}

/// Puts under a value what it lacks; what it has stays, map by map.
fn merge(value: &mut Value, under: &Value) {
    match (value, under) {
        (Value::Object(map), Value::Object(under)) => {
            for (key, v) in under {
                match map.get_mut(key) {
                    Some(there) => merge(there, v),
                    None => _ = map.insert(key.clone(), v.clone()),
                }
            }
        }
        (value @ Value::Null, under) => *value = under.clone(),
        _ => {}
    }
}

fn picked(from: &Value, keys: &[&str]) -> Map<String, Value> {
    keys.iter().filter_map(|key| Some(((*key).to_owned(), from.get(key)?.clone()))).collect()
}

/// A list of variables as a map.
fn variables(k8s: &Value) -> Option<Value> {
    let pair = |v: &Value| Some((v.get("name")?.as_str()?.to_owned(), v.get("value").cloned().unwrap_or(json!(""))));
    Some(Value::Object(k8s.get("env")?.as_array()?.iter().filter_map(pair).collect()))
}

/// `PATH=VALUE`, as Helm and istioctl take it: `a.b[0].c`, `a.b[name:x].c`, dots in keys as `\.`.
fn assign(root: &mut Value, assignment: &str) -> Result<(), String> {
    let wrong = |why: &str| format!("--set {assignment}: {why}");
    let (path, text) = assignment.split_once('=').ok_or_else(|| wrong("PATH=VALUE is expected"))?;
    let mut at = root;
    for step in steps(path.strip_prefix("spec.").unwrap_or(path)) {
        if !at.is_object() {
            if !at.is_null() {
                return Err(wrong(&format!("{} is no object", at)));
            }
            *at = json!({});
        }
        let (key, index) = match step.split_once('[') {
            Some((key, index)) => (key.to_owned(), index.strip_suffix(']').map(str::to_owned)),
            None => (step.clone(), None),
        };
        let map = at.as_object_mut().ok_or_else(|| wrong("something on the way is no object"))?;
        at = map.entry(key).or_insert(Value::Null);
        let Some(index) = index else { continue };
        if at.is_null() {
            *at = json!([]);
        }
        let items = at.as_array_mut().ok_or_else(|| wrong("something on the way is no list"))?;
        let place = match index.split_once(':') {
            Some((key, value)) => items.iter().position(|i| i[key] == value).unwrap_or_else(|| {
                items.push(json!({key: value}));
                items.len() - 1
            }),
            None => index.parse().map_err(|_| wrong(&format!("{index} is no index")))?,
        };
        if place == items.len() {
            items.push(json!({}));
        }
        at = items.get_mut(place).ok_or_else(|| wrong(&format!("there are fewer than {place} items")))?;
    }
    *at = scalar(text);
    Ok(())
}

/// Steps of a path.
fn steps(path: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut letters = path.chars().peekable();
    while let Some(c) = letters.next() {
        match (c, all.last_mut()) {
            ('\\', Some(step)) if letters.peek() == Some(&'.') => step.extend(letters.next()),
            ('.', _) => all.push(String::new()),
            (c, Some(step)) => step.push(c),
            (_, None) => {}
        }
    }
    all
}

/// A value as it is meant: booleans, whole numbers, `{a,b}` lists, else text.
fn scalar(text: &str) -> Value {
    if let Some(items) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return items.split(',').filter(|i| !i.is_empty()).map(scalar).collect();
    }
    match text {
        "null" => Value::Null,
        "true" | "false" => Value::Bool(text == "true"),
        _ => text.parse::<i64>().map_or_else(|_| Value::String(text.to_owned()), Value::from),
    }
}
