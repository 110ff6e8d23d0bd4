//! Certificates and kubeconfigs of a local cluster, made anew with it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::addresses::Addresses;

/// Makes all of them in a folder: `*.crt`, `*.key`, `sa.pub`, and `*.kubeconfig` with what they name inside.
///
/// # Errors
/// When they cannot be made or written.
pub fn make(folder: &Path, node: &str, addresses: &Addresses) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (ca, front) = (Authority::new(folder, "ca")?, Authority::new(folder, "front-proxy-ca")?);

    // Tokens of service accounts are signed with it.
    let tokens = KeyPair::generate()?;
    write(folder, "sa.key", &tokens.serialize_pem())?;
    write(folder, "sa.pub", &tokens.public_key_pem())?;

    let own = IpAddr::from(addresses.node);
    let mut api = vec![IpAddr::from([127, 0, 0, 1]), own, IpAddr::from(addresses.first_service)];
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let names = [names.as_slice(), &["kubernetes.default.svc.cluster.local"]].concat();
    ca.server("apiserver", &names, &mut api)?;
    ca.server("kubelet-server", &[node], &mut vec![own])?;
    ca.client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
    front.client("front-proxy-client", "front-proxy-client", None)?;

    let server = server(addresses);
    for (file, name, group) in [
        ("admin", "kubernetes-admin", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("kubelet", format!("system:node:{node}").as_str(), Some("system:nodes")),
        ("kube-proxy", "system:kube-proxy", None),
        ("dns", "system:dns", None),
    ] {
        let pair = ca.client(file, name, group)?;
        write(folder, &format!("{file}.kubeconfig"), &kubeconfig(&server, &ca.pem, name, &pair))?;
    }
    Ok(())
}

/// Where the API server is.
pub fn server(addresses: &Addresses) -> String {
    format!("https://{}:6443", addresses.node)
}

struct Pair {
    certificate: String,
    key: String,
}

struct Authority<'a> {
    folder: &'a Path,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(folder: &'a Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key)?.pem();
        write(folder, &format!("{name}.crt"), &pem)?;
        write(folder, &format!("{name}.key"), &key.serialize_pem())?;
        Ok(Self { folder, pem, issuer: Issuer::new(params, key) })
    }

    fn server(&self, name: &str, dns: &[&str], addresses: &mut Vec<IpAddr>) -> Result<()> {
        let mut params = params(name, None);
        for dns in dns {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
        }
        params.subject_alt_names.extend(addresses.drain(..).map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(name, params).map(drop)
    }

    fn client(&self, file: &str, name: &str, group: Option<&str>) -> Result<Pair> {
        let mut params = params(name, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params)
    }

    fn sign(&self, file: &str, mut params: CertificateParams) -> Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let pair = Pair { certificate: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() };
        write(self.folder, &format!("{file}.crt"), &pair.certificate)?;
        write(self.folder, &format!("{file}.key"), &pair.key)?;
        Ok(pair)
    }
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params
}

/// YAML that is JSON: both are read.
fn kubeconfig(server: &str, authority: &str, user: &str, pair: &Pair) -> String {
    let base64 = |text: &str| base64(text.as_bytes());
    let cluster = json!({ "server": server, "certificate-authority-data": base64(authority) });
    let credentials =
        json!({ "client-certificate-data": base64(&pair.certificate), "client-key-data": base64(&pair.key) });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "mesh", "cluster": cluster }],
        "users": [{ "name": user, "user": credentials }],
        "contexts": [{ "name": "mesh", "context": { "cluster": "mesh", "user": user } }],
        "current-context": "mesh",
    });
    format!("{config:#}\n")
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Addresses, make};

    #[test]
    fn every_part_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), "east-1", &Addresses::of(1)).unwrap();
        for name in ["admin", "controller-manager", "scheduler", "kubelet", "kube-proxy", "dns"] {
            let text = std::fs::read_to_string(folder.path().join(format!("{name}.kubeconfig"))).unwrap();
            let config: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config["clusters"][0]["cluster"]["server"], "https://172.30.0.11:6443", "{name}");
        }
        for name in ["apiserver", "kubelet-server", "front-proxy-client", "apiserver-kubelet-client"] {
            assert!(folder.path().join(format!("{name}.key")).exists(), "{name}");
        }
    }
}
