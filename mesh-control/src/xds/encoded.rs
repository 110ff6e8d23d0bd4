//! One resource, encoded once, its bytes shared by every client that may see it.
//!
//! Owns the wire form of a resource in both protocols and its version, which is a hash of the content. Must not know
//! who receives it, nor how it came to be.

use std::{fmt, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use mesh_api::{
    model::{
        self, CertificateSource, CommonTls, Discovery, NetworkFilter, RouteSource, SdsSource, Validation,
        cluster::Cluster, listener::Listener,
    },
    xds::TypeUrl,
};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::r#gen;

/// A shared immutable name.
pub type Name = Arc<str>;

/// Another resource that a client asks for because of this one, over the same stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Need {
    /// Type of the other resource.
    pub ty: TypeUrl,
    /// Its name.
    pub name: Name,
}

/// An encoded resource.
///
/// The bytes hold one entry of `DeltaDiscoveryResponse.resources`, laid out so that its tail is at the same time one
/// entry of `DiscoveryResponse.resources` (both are field 2): neither form is ever encoded again.
pub struct Encoded {
    name: Name,
    hash: u64,
    /// Tag, length, `Resource{name, version, resource}`.
    delta: Bytes,
    /// Where in `delta` the entry of the state-of-the-world form (tag, length, `Any`) begins.
    sotw: usize,
    /// Where in `delta` the `Any` begins.
    any: usize,
    /// Where in `delta` the encoded message itself begins.
    message: usize,
    needs: Box<[Need]>,
}

impl Encoded {
    /// From the encoded message (the value of the `Any`) and what a client will ask for because of it.
    pub fn new(ty: TypeUrl, name: impl Into<Name>, message: &[u8], needs: Vec<Need>) -> Arc<Self> {
        let name = name.into();
        // A type is part of the content only through its bytes; names and types are compared beside the hash.
        let hash = xxhash_rust::xxh3::xxh3_64(message);
        let version = version_text(hash);
        let url = ty.as_str();
        let value_len = if message.is_empty() { 0 } else { field_len(message.len()) };
        let any_len = field_len(url.len()) + value_len;
        let body_len = field_len(name.len()) + field_len(version.len()) + field_len(any_len);
        let mut out = BytesMut::with_capacity(field_len(body_len));
        open(2, body_len, &mut out);
        put(3, name.as_bytes(), &mut out);
        put(1, version.as_bytes(), &mut out);
        let sotw = out.len();
        open(2, any_len, &mut out);
        let any = out.len();
        put(1, url.as_bytes(), &mut out);
        if !message.is_empty() {
            put(2, message, &mut out);
        }
        let message = out.len() - message.len();
        Arc::new(Self { name, hash, delta: out.freeze(), sotw, any, message, needs: needs.into_boxed_slice() })
    }

    /// A name without a resource, for tables of what clients asked for.
    pub(super) fn bare(name: impl Into<Name>) -> Arc<Self> {
        let needs = Box::default();
        Arc::new(Self { name: name.into(), hash: 0, delta: Bytes::new(), sotw: 0, any: 0, message: 0, needs })
    }

    /// What a client says it has, known by its version alone; nothing of it can be sent. A version that is not ours
    /// counts as 0, which no content has.
    pub(super) fn presented(name: &str, version: &str) -> Arc<Self> {
        let (hash, needs) = (parse_version(version).unwrap_or(0), Box::default());
        Arc::new(Self { name: name.into(), hash, delta: Bytes::new(), sotw: 0, any: 0, message: 0, needs })
    }

    /// A cluster; it needs its endpoints and the secrets it takes from the stream.
    pub fn cluster(cluster: &Cluster) -> Arc<Self> {
        let mut needs = Needs::default();
        if let Discovery::Eds { service } = &cluster.discovery {
            let service = if service.is_empty() { &cluster.name } else { service };
            needs.add(TypeUrl::Endpoints, service);
        }
        let contexts = cluster.tls.iter().chain(cluster.tls_matches.iter().filter_map(|m| m.tls.as_ref()));
        contexts.for_each(|tls| needs.add_tls(&tls.common));
        Self::new(TypeUrl::Cluster, cluster.name.clone(), &r#gen::cluster(cluster), needs.0)
    }

    /// Endpoints of a cluster.
    pub fn endpoints(endpoints: &model::EndpointSet) -> Arc<Self> {
        Self::new(TypeUrl::Endpoints, endpoints.cluster.clone(), &r#gen::endpoints(endpoints), vec![])
    }

    /// A listener; it needs its route configurations and the secrets it takes from the stream.
    pub fn listener(listener: &Listener) -> Arc<Self> {
        let mut needs = Needs::default();
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            if let Some(tls) = &chain.tls {
                needs.add_tls(&tls.common);
            }
            for filter in &chain.filters {
                if let NetworkFilter::Http(manager) = filter
                    && let RouteSource::Rds(name) = &manager.routes
                {
                    needs.add(TypeUrl::Route, name);
                }
            }
        }
        Self::new(TypeUrl::Listener, listener.name.clone(), &r#gen::listener(listener), needs.0)
    }

    /// A route configuration.
    pub fn route(routes: &model::RouteConfig) -> Arc<Self> {
        Self::new(TypeUrl::Route, routes.name.clone(), &r#gen::route(routes), vec![])
    }

    /// A name table.
    pub fn name_table(name: &str, table: &model::NameTable) -> Arc<Self> {
        Self::new(TypeUrl::NameTable, name, &r#gen::name_table(table), vec![])
    }

    /// A secret.
    pub fn secret(secret: &model::Secret) -> Arc<Self> {
        Self::new(TypeUrl::Secret, secret.name.clone(), &r#gen::secret(secret), vec![])
    }

    /// Resource name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Content hash, the version in numeric form.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The version on the wire: the hash in hex.
    pub fn version(&self) -> String {
        version_text(self.hash)
    }

    /// Whether `version`, as a client presents it, is this content.
    pub fn is_version(&self, version: &str) -> bool {
        parse_version(version) == Some(self.hash)
    }

    /// One entry of `DeltaDiscoveryResponse.resources`, tag and length included.
    pub fn delta_entry(&self) -> Bytes {
        self.delta.clone()
    }

    /// One entry of `DiscoveryResponse.resources`, tag and length included.
    pub fn sotw_entry(&self) -> Bytes {
        self.delta.slice(self.sotw..)
    }

    /// Length of [`Self::delta_entry`].
    pub fn delta_len(&self) -> usize {
        self.delta.len()
    }

    /// Length of [`Self::sotw_entry`].
    pub fn sotw_len(&self) -> usize {
        self.delta.len() - self.sotw
    }

    /// The encoded `google.protobuf.Any`.
    pub fn any(&self) -> Bytes {
        self.delta.slice(self.any..)
    }

    /// The encoded message itself.
    pub fn message(&self) -> Bytes {
        self.delta.slice(self.message..)
    }

    /// What a client asks for because of this resource.
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:016x} ({} bytes)", self.name, self.hash, self.delta.len())
    }
}

/// A content hash as it travels.
pub fn version_text(hash: u64) -> String {
    format!("{hash:016x}")
}

/// The content hash in a version that we gave out; `None` for versions of another server.
pub fn parse_version(version: &str) -> Option<u64> {
    (version.len() == 16).then(|| u64::from_str_radix(version, 16).ok()).flatten()
}

/// Collects needs without repetition, in order.
#[derive(Default)]
struct Needs(Vec<Need>);

impl Needs {
    fn add(&mut self, ty: TypeUrl, name: &Name) {
        if !self.0.iter().any(|n| n.ty == ty && n.name == *name) {
            self.0.push(Need { ty, name: name.clone() });
        }
    }

    fn add_tls(&mut self, tls: &CommonTls) {
        let certificates = tls.certificates.iter().filter_map(|c| match c {
            CertificateSource::Sds(sds) => Some(sds),
            CertificateSource::Inline(_) => None,
        });
        let anchors = tls.validation.iter().filter_map(|Validation { sds, .. }| sds.as_ref());
        for sds in certificates.chain(anchors) {
            if sds.source == SdsSource::Ads {
                self.add(TypeUrl::Secret, &sds.name);
            }
        }
    }
}

/// Length of a length-delimited field with a one-byte tag.
fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Tag and length of a length-delimited field.
fn open(tag: u32, len: usize, out: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

fn put(tag: u32, value: &[u8], out: &mut BytesMut) {
    open(tag, value.len(), out);
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::xds::discovery::{DeltaDiscoveryResponse, DiscoveryResponse};
    use prost::Message;

    #[test]
    fn one_buffer_serves_both_protocols() {
        for body in [&b""[..], b"\x0a\x01x", &[7u8; 70_000]] {
            let e = Encoded::new(TypeUrl::Cluster, "outbound|80||a", body, vec![]);
            let delta = DeltaDiscoveryResponse::decode(e.delta_entry()).unwrap();
            let sotw = DiscoveryResponse::decode(e.sotw_entry()).unwrap();
            let [resource] = delta.resources.as_slice() else { panic!("one resource") };
            assert_eq!(resource.name, "outbound|80||a");
            assert_eq!(resource.version, e.version());
            assert!(e.is_version(&resource.version));
            let any = resource.resource.clone().unwrap();
            assert_eq!((any.type_url.as_str(), any.value.as_slice()), (TypeUrl::Cluster.as_str(), body));
            assert_eq!(sotw.resources, std::slice::from_ref(&any));
            assert_eq!(e.any(), any.encode_to_vec());
            assert_eq!(e.message(), body);
        }
    }

    #[test]
    fn versions_are_content() {
        let a = Encoded::new(TypeUrl::Route, "8080", b"one", vec![]);
        let b = Encoded::new(TypeUrl::Route, "8080", b"two", vec![]);
        assert_eq!(a.version(), Encoded::new(TypeUrl::Route, "8080", b"one", vec![]).version());
        assert_ne!(a.version(), b.version());
        for foreign in ["", "1", "2026-08-27T12:45:20Z/5", "zzzzzzzzzzzzzzzz"] {
            assert!(!a.is_version(foreign), "{foreign}");
        }
    }
}
