//! The self-signed root in Kubernetes: a Secret of the control plane's namespace, so that all replicas have one CA and
//! a pod that starts anew has it still. In the state folder lies a copy.
//!
//! Its keys are Istio's, so that a mesh can be taken over; trusted roots of the past are ours. The first replica makes it,
//! all others find it.

use std::path::Path;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{material::ROOT_FILE, state, trust};

/// Name of the Secret.
const NAME: &str = "istio-ca-secret";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";
/// As the file of the state folder.
const TRUSTED: &str = trust::FILE;

/// The Secret of a control plane.
#[derive(Clone)]
pub struct RootSecret {
    api: Api<DynamicObject>,
    namespace: String,
}

impl std::fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RootSecret({}/{NAME})", self.namespace)
    }
}

impl RootSecret {
    /// Of a namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Secret"), "secrets");
        Self { api: Api::namespaced_with(client, namespace, &kind), namespace: namespace.to_owned() }
    }

    /// Copies it to the state folder. `false`: there is none yet.
    ///
    /// # Errors
    /// When it cannot be read, or holds no CA: a new root in its place would cut off every workload.
    pub async fn restore(&self, state_dir: &Path) -> anyhow::Result<bool> {
        let what = || format!("Secret {}/{NAME}", self.namespace);
        let Some(secret) = self.api.get_opt(NAME).await.with_context(what)? else { return Ok(false) };
        let field = |name: &str| {
            let text = secret.data.pointer(&format!("/data/{}", name.replace('/', "~1"))).and_then(Value::as_str)?;
            String::from_utf8(STANDARD.decode(text).ok()?).ok().filter(|t| !t.trim().is_empty())
        };
        let need = |name: &str| {
            field(name).with_context(|| {
                format!("{} has no {name}: restore it, or remove it to start with a new root, which no workload trusts before it has a new certificate", what())
            })
        };
        let pem = format!("{}\n{}", need(KEY)?.trim_end(), need(CERTIFICATE)?);
        state::ensure(state_dir)?;
        state::replace(&state_dir.join(ROOT_FILE), &pem, state::PRIVATE)?;
        let trusted = state_dir.join(TRUSTED);
        match field(TRUSTED) {
            Some(text) => state::replace(&trusted, &text, state::PUBLIC)?,
            None => match std::fs::remove_file(&trusted) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| trusted.display().to_string());
                }
                _ => {}
            },
        }
        Ok(true)
    }

    /// Makes it from the state folder. `false`: somebody else was quicker, and theirs counts.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn create(&self, state_dir: &Path) -> anyhow::Result<bool> {
        let what = || format!("Secret {}/{NAME} cannot be made", self.namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "istio.io/ca-root",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "data": data(state_dir)?,
        });
        let secret = serde_json::from_value(secret).with_context(what)?;
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// Writes what the state folder has now: a renewed root, or what is trusted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn update(&self, state_dir: &Path) -> anyhow::Result<()> {
        let patch = json!({"data": data(state_dir)?});
        let result = self.api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await;
        result.with_context(|| format!("Secret {}/{NAME} cannot be written", self.namespace)).map(drop)
    }
}

fn data(state_dir: &Path) -> anyhow::Result<Value> {
    let file = state_dir.join(ROOT_FILE);
    let text = state::read_private(&file)?.with_context(|| format!("{} is missing", file.display()))?;
    let mut out = of_root(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if let Some(trusted) = state::read(&state_dir.join(TRUSTED))? {
        out[TRUSTED] = STANDARD.encode(trusted).into();
    }
    Ok(out)
}

/// Key and certificate of a root, in Istio's keys; they stand in the file in either order.
fn of_root(pem: &str) -> Option<Value> {
    let (mut key, mut certificate) = (None, None);
    for block in pem.split_inclusive("-----\n").collect::<Vec<_>>().chunks(2) {
        let block = block.concat();
        let slot = if block.contains("BEGIN CERTIFICATE") { &mut certificate } else { &mut key };
        slot.get_or_insert(block.trim_start().to_owned());
    }
    let (key, certificate) = (key?, certificate?);
    Some(json!({
        KEY: STANDARD.encode(key),
        CERTIFICATE: STANDARD.encode(&certificate),
        ROOT: STANDARD.encode(certificate),
        // Istio has these keys, empty.
        "cert-chain.pem": "", "key.pem": "",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_goes_to_its_keys() {
        let (key, certificate) = (
            "-----BEGIN PRIVATE KEY-----\nAAAA\nBBBB\n-----END PRIVATE KEY-----\n",
            "-----BEGIN CERTIFICATE-----\nCCCC\n-----END CERTIFICATE-----\n",
        );
        for pem in [format!("{key}{certificate}"), format!("{certificate}{key}")] {
            let data = of_root(&pem).unwrap();
            assert_eq!(data[KEY], STANDARD.encode(key), "{data}");
            assert_eq!(data[CERTIFICATE], STANDARD.encode(certificate));
            assert_eq!(data[ROOT], data[CERTIFICATE]);
        }
        assert!(of_root(key).is_none());
    }
}
