//! A response as bytes on a gRPC stream, made while they are taken.
//!
//! Owns the layout of `DiscoveryResponse` and `DeltaDiscoveryResponse` around resources that are encoded already. A
//! response is never put together as a whole, so what a slow client costs is one chunk, not its configuration.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::{
    encoded::Encoded,
    push::{Protocol, Response},
};

/// Bytes handed to HTTP/2 at once: the size of its frames.
const CHUNK: usize = 16 << 10;
/// Resources from here on are handed on as they are instead of being copied into a chunk.
const LARGE: usize = 2 * CHUNK;
/// `control_plane.identifier`.
const IDENTIFIER: &str = concat!("mesh-control-", env!("CARGO_PKG_VERSION"));

/// The bytes of one response that are still to be sent.
#[derive(Debug)]
pub struct Frames {
    /// Message prefix and all small fields.
    head: Bytes,
    protocol: Protocol,
    resources: std::vec::IntoIter<Arc<Encoded>>,
    /// The resource that is being copied.
    current: Bytes,
    /// Length of the message.
    size: usize,
}

impl Frames {
    /// Begins a response.
    pub fn new(response: Response) -> Self {
        let Response { protocol, ty, nonce, version, resources, removed } = response;
        let entries: usize = resources.iter().map(|e| entry_len(e, protocol)).sum();
        let mut fields = BytesMut::with_capacity(256 + removed.iter().map(|n| n.len() + 3).sum::<usize>());
        // Room for the message prefix, filled in below.
        fields.put_bytes(0, 5);
        put(1, version.as_bytes(), &mut fields);
        put(4, ty.as_str().as_bytes(), &mut fields);
        put(5, nonce.as_bytes(), &mut fields);
        let mut control_plane = BytesMut::with_capacity(64);
        put(1, IDENTIFIER.as_bytes(), &mut control_plane);
        match protocol {
            Protocol::Delta => {
                removed.iter().for_each(|name| put(6, name.as_bytes(), &mut fields));
                put(7, &control_plane, &mut fields);
            }
            Protocol::Sotw => put(6, &control_plane, &mut fields),
        }
        let size = fields.len() - 5 + entries;
        let prefix = u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes();
        for (to, from) in fields.iter_mut().skip(1).zip(prefix) {
            *to = from;
        }
        let resources = resources.into_iter();
        Self { head: fields.freeze(), protocol, resources, current: Bytes::new(), size }
    }

    /// Length of the message.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The next bytes; `None` at the end.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while self.fill() {
            let source = if self.head.is_empty() { &mut self.current } else { &mut self.head };
            if chunk.is_empty() && source.len() >= LARGE {
                return Some(std::mem::take(source));
            }
            if chunk.capacity() == 0 {
                chunk.reserve(CHUNK);
            }
            let room = CHUNK - chunk.len();
            chunk.put_slice(&source.split_to(room.min(source.len())));
            if chunk.len() == CHUNK {
                break;
            }
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// Makes the next resource current; false when all is sent.
    fn fill(&mut self) -> bool {
        while self.head.is_empty() && self.current.is_empty() {
            match self.resources.next() {
                Some(e) => self.current = entry(&e, self.protocol),
                None => return false,
            }
        }
        true
    }
}

fn entry(e: &Encoded, protocol: Protocol) -> Bytes {
    match protocol {
        Protocol::Delta => e.delta_entry(),
        Protocol::Sotw => e.sotw_entry(),
    }
}

fn entry_len(e: &Encoded, protocol: Protocol) -> usize {
    match protocol {
        Protocol::Delta => e.delta_len(),
        Protocol::Sotw => e.sotw_len(),
    }
}

fn put(tag: u32, value: &[u8], out: &mut BytesMut) {
    let len = value.len() as u64;
    out.reserve(11 + encoded_len_varint(len) + value.len());
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len, out);
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::xds::{
        TypeUrl,
        discovery::{DeltaDiscoveryResponse, DiscoveryResponse},
    };
    use prost::Message;

    fn response(protocol: Protocol, sizes: &[usize]) -> Response {
        let resources = sizes
            .iter()
            .enumerate()
            .map(|(i, n)| Encoded::new(TypeUrl::Cluster, format!("c{i}"), &vec![7; *n], vec![]))
            .collect();
        let removed = vec!["gone".into(), "lost".into()];
        let (nonce, version) = ("n-1".to_owned(), "v".to_owned());
        Response { protocol, ty: TypeUrl::Cluster, nonce, version, resources, removed }
    }

    fn bytes(response: Response) -> Vec<u8> {
        let mut frames = Frames::new(response);
        let mut out = Vec::new();
        while let Some(chunk) = frames.next_chunk() {
            assert!(!chunk.is_empty());
            out.extend_from_slice(&chunk);
        }
        let (prefix, message) = out.split_at(5);
        assert_eq!(prefix[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize, message.len());
        assert_eq!(frames.size(), message.len());
        message.to_vec()
    }

    #[test]
    fn chunks_make_up_the_message() {
        for sizes in [&[][..], &[0, 1], &[CHUNK; 3], &[100; 1000], &[10, 3 * LARGE, 10, LARGE, 5]] {
            let delta = DeltaDiscoveryResponse::decode(&*bytes(response(Protocol::Delta, sizes))).unwrap();
            assert_eq!(delta.resources.len(), sizes.len());
            for (resource, size) in delta.resources.iter().zip(sizes) {
                assert_eq!(resource.resource.as_ref().unwrap().value.len(), *size);
            }
            assert_eq!(delta.removed_resources, ["gone", "lost"]);
            assert_eq!((delta.nonce.as_str(), delta.system_version_info.as_str()), ("n-1", "v"));
            assert_eq!(delta.type_url, TypeUrl::Cluster.as_str());
            assert!(delta.control_plane.unwrap().identifier.starts_with("mesh-control-"));
            let sotw = DiscoveryResponse::decode(&*bytes(response(Protocol::Sotw, sizes))).unwrap();
            assert_eq!(sotw.resources.len(), sizes.len());
            assert_eq!((sotw.nonce.as_str(), sotw.version_info.as_str()), ("n-1", "v"));
            assert!(sotw.control_plane.unwrap().identifier.starts_with("mesh-control-"));
        }
    }
}
