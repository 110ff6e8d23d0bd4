//! Decides about messages: what is answered from the table, what is asked further, what is refused. Bytes in, bytes out,
//! without sockets and clocks; no bytes make it panic.

use hickory_resolver::proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};

use super::table::{Found, Table};

/// Length of a message's header.
pub const HEADER: usize = 12;
/// Seconds that an answer of ours holds: short, so that clients that heed it see changes.
pub const TTL: u32 = 30;
/// Longest message over UDP of clients that say nothing of it, and the least that one may say.
const UDP_LEAST: usize = 512;
/// Longest message over UDP that fits into a datagram.
const UDP_MOST: usize = 65_507;
/// What we say that we take over UDP.
const UDP_OURS: u16 = 4096;

/// What a message came by, and its answer goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Answers that are too long are cut.
    Udp,
    /// Answers of any length.
    Tcp,
}

/// What happens with a message.
#[derive(Debug)]
pub enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Somebody else knows.
    Ask(Question),
    /// No answer: it was no question, or too little of one.
    Drop,
}

/// A well-formed question, and what its answer must be like.
#[derive(Debug)]
pub struct Question {
    message: Message,
    query: Query,
    transport: Transport,
}

/// Decides about a message. `table`: `None` before one has arrived; then questions are refused for now, or asked further
/// if `early`. `turn` changes from question to question, so that addresses take turns in being the first.
pub fn judge(bytes: &[u8], transport: Transport, table: Option<&Table>, early: bool, turn: usize) -> Verdict {
    let Ok(Header { metadata, counts }) = Header::read(&mut BinDecoder::new(bytes)) else { return Verdict::Drop };
    // Answering an answer would make two servers talk for ever.
    if metadata.message_type == MessageType::Response {
        return Verdict::Drop;
    }
    if metadata.op_code != OpCode::Query {
        return bare(&metadata, ResponseCode::NotImp);
    }
    if counts.queries != 1 {
        return bare(&metadata, ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(bytes) else { return bare(&metadata, ResponseCode::FormErr) };
    let Some(query) = message.queries.pop() else { return bare(&metadata, ResponseCode::FormErr) };
    let question = Question { message, query, transport };
    if question.message.edns.as_ref().is_some_and(|e| e.version() != 0) {
        return Verdict::Answer(question.refused(ResponseCode::BADVERS));
    }
    // Transfers are not one message each.
    if matches!(question.query.query_type, RecordType::AXFR | RecordType::IXFR) {
        return Verdict::Answer(question.refused(ResponseCode::NotImp));
    }
    let Some(table) = table else {
        return if early { Verdict::Ask(question) } else { Verdict::Answer(question.refused(ResponseCode::ServFail)) };
    };
    match question.known(table) {
        Some((found, name)) => Verdict::Answer(question.answered(&found, &name, turn)),
        None => Verdict::Ask(question),
    }
}

/// An answer without the question, which could not be read.
fn bare(asked: &Metadata, code: ResponseCode) -> Verdict {
    let mut metadata = Metadata::response_from_request(asked);
    metadata.response_code = code;
    let mut message = Message::response(asked.id, asked.op_code);
    message.metadata = metadata;
    message.to_vec().map_or(Verdict::Drop, Verdict::Answer)
}

impl Question {
    /// Longest answer, in bytes.
    pub fn limit(&self) -> usize {
        let told = self.message.edns.as_ref().map_or(0, |e| usize::from(e.max_payload()));
        match self.transport {
            Transport::Udp => told.clamp(UDP_LEAST, UDP_MOST),
            Transport::Tcp => usize::from(u16::MAX),
        }
    }

    /// An answer that only says why there is none.
    pub fn refused(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.reply();
        message.metadata.response_code = code;
        // A question that could be read can be written.
        message.to_vec().unwrap_or_default()
    }

    /// Says that the answer is too long for this transport.
    pub fn cut(&self) -> Vec<u8> {
        let mut message = self.reply();
        message.metadata.truncation = true;
        message.to_vec().unwrap_or_default()
    }

    /// Whether these bytes answer it: the same number, the same question. Servers that refuse may leave the question out.
    pub fn is_answered_by(&self, id: u16, bytes: &[u8]) -> bool {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else { return false };
        if metadata.id != id || metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Query {
            return false;
        }
        match counts.queries {
            0 => metadata.response_code != ResponseCode::NoError,
            1 => Query::read(&mut decoder).is_ok_and(|q| {
                let asked = &self.query;
                q.name == asked.name && q.query_type == asked.query_type && q.query_class == asked.query_class
            }),
            _ => false,
        }
    }

    /// What the table has for it, and the name in the table's form. Only addresses are known there.
    fn known(&self, table: &Table) -> Option<(Found, String)> {
        let addresses = matches!(self.query.query_type, RecordType::A | RecordType::AAAA);
        if !addresses || self.query.query_class != DNSClass::IN {
            return None;
        }
        let name = self.query.name.to_ascii();
        // A label with a dot in it is not two labels.
        if name.contains('\\') {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(&name);
        Some((table.find(&name.to_ascii_lowercase())?, name.to_owned()))
    }

    fn reply(&self) -> Message {
        let mut message = Message::response(self.message.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.message.metadata);
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if self.message.edns.is_some() {
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_OURS);
            message.set_edns(ours);
        }
        message
    }

    /// A host that has no address of the family asked for exists all the same: no error and no record.
    fn answered(&self, found: &Found, name: &str, turn: usize) -> Vec<u8> {
        let mut message = self.reply();
        message.metadata.authoritative = true;
        let owner = found.alias_of.and_then(|length| Name::from_ascii(format!("{}.", name.get(..length)?)).ok());
        let real = owner.as_ref().unwrap_or(&self.query.name);
        let addresses: Vec<RData> = match self.query.query_type {
            RecordType::A => turned(&found.addresses.v4, turn).map(|ip| RData::A(A(*ip))).collect(),
            _ => turned(&found.addresses.v6, turn).map(|ip| RData::AAAA(AAAA(*ip))).collect(),
        };
        if let Some(real) = owner.as_ref().filter(|_| !addresses.is_empty()) {
            message.add_answer(Record::from_rdata(self.query.name.clone(), TTL, RData::CNAME(CNAME(real.clone()))));
        }
        message.add_answers(addresses.into_iter().map(|data| Record::from_rdata(real.clone(), TTL, data)));
        self.fitted(message)
    }

    /// As many records as there is room for.
    fn fitted(&self, mut message: Message) -> Vec<u8> {
        let limit = self.limit();
        // More than 64 KiB cannot be written at all.
        let written = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
        if let Some(bytes) = written(&message) {
            return bytes;
        }
        message.metadata.truncation = true;
        let all = std::mem::take(&mut message.answers);
        let mut best = self.cut();
        let (mut fit, mut count) = (0, all.len());
        while fit < count {
            let middle = (fit + count).div_ceil(2);
            message.answers = all.get(..middle).unwrap_or_default().to_vec();
            match written(&message) {
                Some(bytes) => (fit, best) = (middle, bytes),
                None => count = middle - 1,
            }
        }
        best
    }
}

/// All, beginning with another one each turn.
fn turned<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (tail, head) = all.split_at(turn.checked_rem(all.len()).unwrap_or(0));
    head.iter().chain(tail)
}

#[cfg(test)]
mod tests;
