//! A message on the wire, written field by field.
//!
//! The generated types of Envoy's protos hold maps whose order changes from run to run, so they cannot give equal
//! bytes for equal content, which versions (content hashes) rest on. Writing fields in order does, and costs no
//! intermediate structs. Field numbers stand beside the field's name where they are used; what is written here is read
//! back with the generated types in the round-trip tests.

use std::net::IpAddr;
use std::time::Duration;

use mesh_api::model::{Address, CidrRange, Fraction};

/// A message under construction. Fields with default values are left out, as proto3 does.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn tag(&mut self, field: u32, kind: u8) {
        self.varint(u64::from(field) << 3 | u64::from(kind));
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// `bool`.
    pub fn bool(mut self, field: u32, value: bool) -> Self {
        if value {
            self.tag(field, 0);
            self.varint(1);
        }
        self
    }

    /// `bool` of a `oneof`, written also when false.
    pub fn bool_always(mut self, field: u32, value: bool) -> Self {
        self.tag(field, 0);
        self.varint(u64::from(value));
        self
    }

    /// Unsigned numbers and enumerations.
    pub fn uint(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.tag(field, 0);
            self.varint(value);
        }
        self
    }

    /// Numbers of a `oneof`, written also when zero.
    pub fn uint_always(mut self, field: u32, value: u64) -> Self {
        self.tag(field, 0);
        self.varint(value);
        self
    }

    /// Signed numbers (`int32`, `int64`).
    pub fn int(self, field: u32, value: i64) -> Self {
        self.uint(field, value as u64)
    }

    /// `double`.
    pub fn double(mut self, field: u32, value: f64) -> Self {
        if value != 0.0 {
            self.double_field(field, value);
        }
        self
    }

    fn double_field(&mut self, field: u32, value: f64) {
        self.tag(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// `double` of a `oneof`.
    pub fn double_always(mut self, field: u32, value: f64) -> Self {
        self.double_field(field, value);
        self
    }

    /// `string`.
    pub fn str(mut self, field: u32, text: &str) -> Self {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
        self
    }

    /// `string` of a `oneof` or a list, written also when empty.
    pub fn str_always(mut self, field: u32, text: &str) -> Self {
        self.bytes(field, text.as_bytes());
        self
    }

    /// `repeated string`.
    pub fn strs<S: AsRef<str>>(mut self, field: u32, texts: impl IntoIterator<Item = S>) -> Self {
        for text in texts {
            self.bytes(field, text.as_ref().as_bytes());
        }
        self
    }

    /// `repeated uint32` (or enumeration), packed.
    pub fn uints(mut self, field: u32, values: impl IntoIterator<Item = u64>) -> Self {
        let mut packed = Message::new();
        for value in values {
            packed.varint(value);
        }
        if !packed.0.is_empty() {
            self.bytes(field, &packed.0);
        }
        self
    }

    /// A message, also when it is empty.
    pub fn msg(mut self, field: u32, message: Message) -> Self {
        self.bytes(field, &message.0);
        self
    }

    /// A message that may be absent.
    pub fn maybe(self, field: u32, message: Option<Message>) -> Self {
        match message {
            Some(message) => self.msg(field, message),
            None => self,
        }
    }

    /// `repeated` messages.
    pub fn msgs(mut self, field: u32, messages: impl IntoIterator<Item = Message>) -> Self {
        for message in messages {
            self.bytes(field, &message.0);
        }
        self
    }

    /// An entry of a `map<string, Message>`; callers keep the keys in order.
    pub fn entry(self, field: u32, key: &str, value: Message) -> Self {
        self.msg(field, Message::new().str(1, key).msg(2, value))
    }

    /// `google.protobuf.Any` around a message.
    pub fn any(type_url: &str, message: Message) -> Message {
        Message::new().str(1, &format!("type.googleapis.com/{type_url}")).bytes_field(2, &message.0)
    }

    /// `bytes`.
    pub fn bytes_field(mut self, field: u32, bytes: &[u8]) -> Self {
        if !bytes.is_empty() {
            self.bytes(field, bytes);
        }
        self
    }

    /// `google.protobuf.{UInt32,UInt64}Value`.
    pub fn wrapped(self, field: u32, value: impl Into<u64>) -> Self {
        self.msg(field, Message::new().uint(1, value.into()))
    }

    /// `google.protobuf.UInt32Value` that may be absent.
    pub fn wrapped_maybe(self, field: u32, value: Option<u32>) -> Self {
        match value {
            Some(value) => self.wrapped(field, value),
            None => self,
        }
    }

    /// `google.protobuf.BoolValue`.
    pub fn wrapped_bool(self, field: u32, value: bool) -> Self {
        self.msg(field, Message::new().bool(1, value))
    }

    /// `google.protobuf.Duration`.
    pub fn duration(self, field: u32, value: Duration) -> Self {
        self.msg(field, Message::new().uint(1, value.as_secs()).uint(2, u64::from(value.subsec_nanos())))
    }

    /// `google.protobuf.Duration` that may be absent.
    pub fn duration_maybe(self, field: u32, value: Option<Duration>) -> Self {
        match value {
            Some(value) => self.duration(field, value),
            None => self,
        }
    }

    /// `envoy.type.v3.FractionalPercent`.
    pub fn fraction(self, field: u32, value: Fraction) -> Self {
        self.msg(field, fraction(value))
    }

    /// `envoy.config.core.v3.RuntimeFractionalPercent`.
    pub fn runtime_fraction(self, field: u32, value: Fraction) -> Self {
        self.msg(field, Message::new().fraction(1, value))
    }

    /// `envoy.config.core.v3.Metadata`, when there is any.
    pub fn metadata(self, field: u32, metadata: Message) -> Self {
        if metadata.0.is_empty() { self } else { self.msg(field, metadata) }
    }
}

/// `envoy.type.v3.FractionalPercent`: percent where that is exact.
fn fraction(value: Fraction) -> Message {
    const MILLION: u64 = 2;
    match value.0 {
        n if n % 10_000 == 0 => Message::new().uint(1, u64::from(n / 10_000)),
        n => Message::new().uint(1, u64::from(n)).uint(2, MILLION),
    }
}

/// `envoy.config.core.v3.Address`.
pub fn address(address: &Address) -> Message {
    // SocketAddress: address = 2, port_value = 3 of a oneof.
    let socket = |host: &str, port: u16| Message::new().msg(1, Message::new().str(2, host).uint_always(3, port.into()));
    match address {
        Address::Socket(a) => socket(&a.ip().to_string(), a.port()),
        Address::Host(host, port) => socket(host, *port),
        Address::Pipe(path) => Message::new().msg(2, Message::new().str(1, &path.to_string_lossy())),
        Address::Internal(name) => Message::new().msg(3, Message::new().str(1, name)),
    }
}

/// `envoy.config.core.v3.CidrRange`.
pub fn cidr(range: &CidrRange) -> Message {
    let address: IpAddr = range.address;
    Message::new().str(1, &address.to_string()).wrapped(2, u64::from(range.prefix_len))
}

/// `google.protobuf.Struct`; keys come in order because JSON objects here are sorted.
pub fn structure(value: &serde_json::Value) -> Message {
    let mut message = Message::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        message = message.entry(1, key, json(value));
    }
    message
}

/// `google.protobuf.Value`.
fn json(value: &serde_json::Value) -> Message {
    use serde_json::Value;
    let message = Message::new();
    match value {
        Value::Null => message.uint_always(1, 0),
        Value::Number(n) => message.double_always(2, n.as_f64().unwrap_or(0.0)),
        Value::String(text) => message.str_always(3, text),
        Value::Bool(b) => message.bool_always(4, *b),
        Value::Object(_) => message.msg(5, structure(value)),
        Value::Array(items) => message.msg(6, Message::new().msgs(1, items.iter().map(json))),
    }
}
