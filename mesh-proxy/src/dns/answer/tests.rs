use std::net::Ipv4Addr;

use mesh_api::model::{NameInfo, NameTable, Registry};
use proptest::prelude::*;

use super::super::table::Place;
use super::*;

fn table() -> Table {
    let external = |ips: Vec<std::net::IpAddr>| NameInfo { ips, registry: Registry::External, ..NameInfo::default() };
    let many = (0..200u8).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect();
    let names = [
        ("one.test", external(vec!["240.240.0.1".parse().unwrap()])),
        ("three.test", external((1..4u8).map(|n| Ipv4Addr::new(10, 1, 0, n).into()).collect())),
        ("six.test", external(vec!["fd00::6".parse().unwrap()])),
        ("*.wild.test", external(vec!["240.240.0.2".parse().unwrap()])),
        ("many.test", external(many)),
    ];
    let names = NameTable(names.into_iter().map(|(host, info)| (host.into(), info)).collect());
    Table::build(&names, &Place::new("shop", "svc.cluster.local", &["shop.svc.cluster.local".to_owned()]))
}

fn ask(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_version(version);
    message.set_edns(edns);
    message
}

fn answer(message: &Message, transport: Transport, turn: usize) -> Message {
    match judge(&message.to_vec().unwrap(), transport, Some(&table()), false, turn) {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn udp(name: &str, kind: RecordType) -> Message {
    answer(&ask(name, kind), Transport::Udp, 0)
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[test]
fn addresses_of_the_table() {
    let got = udp("One.Test.", RecordType::A);
    assert_eq!((got.metadata.id, got.metadata.response_code), (77, ResponseCode::NoError));
    assert!(got.metadata.authoritative && got.metadata.recursion_desired && got.metadata.recursion_available);
    assert_eq!((addresses(&got), got.answers[0].ttl), (vec!["240.240.0.1".to_owned()], 30));
    assert_eq!(got.queries[0].name.to_ascii(), "One.Test.", "the case of the question is kept");
    assert_eq!(got.answers[0].name.to_ascii(), "One.Test.");
    assert!(got.edns.is_none());
}

#[test]
fn a_family_that_a_host_lacks() {
    for (name, kind) in [("one.test.", RecordType::AAAA), ("six.test.", RecordType::A)] {
        let got = udp(name, kind);
        assert_eq!((got.metadata.response_code, got.answers.len()), (ResponseCode::NoError, 0), "{name}");
    }
    assert_eq!(addresses(&udp("six.test.", RecordType::AAAA)), ["fd00::6"]);
}

#[test]
fn wildcards_and_search_domains() {
    let got = udp("A.wild.test.", RecordType::A);
    assert_eq!(
        (addresses(&got), got.answers[0].name.to_ascii()),
        (vec!["240.240.0.2".to_owned()], "A.wild.test.".to_owned())
    );
    let got = udp("A.wild.test.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(addresses(&got), ["A.wild.test.", "240.240.0.2"]);
    assert_eq!(got.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(got.answers[0].name, got.queries[0].name);
    assert_eq!(got.answers[1].name.to_ascii(), "A.wild.test.");
    // Without an address there is nothing to point to.
    assert!(udp("one.test.shop.svc.cluster.local.", RecordType::AAAA).answers.is_empty());
}

#[test]
fn addresses_take_turns() {
    let first = |turn| addresses(&answer(&ask("three.test.", RecordType::A), Transport::Udp, turn))[0].clone();
    assert_eq!([first(0), first(1), first(2), first(3)], ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.1"]);
}

#[test]
fn long_answers_are_cut() {
    let question = ask("many.test.", RecordType::A);
    let got = answer(&question, Transport::Udp, 0);
    assert!(got.metadata.truncation && got.answers.len() > 20);
    assert!(got.to_vec().unwrap().len() <= 512);
    let got = answer(&with_edns(question.clone(), 1232, 0), Transport::Udp, 0);
    let length = got.to_vec().unwrap().len();
    assert!(got.metadata.truncation && (1100..=1232).contains(&length) && got.edns.is_some(), "{length}");
    let got = answer(&with_edns(question.clone(), 100, 0), Transport::Udp, 0);
    assert!(got.answers.len() > 20, "less than 512 is not meant");
    for (question, transport) in [(with_edns(question.clone(), 8192, 0), Transport::Udp), (question, Transport::Tcp)] {
        let got = answer(&question, transport, 0);
        assert_eq!((got.answers.len(), got.metadata.truncation), (200, false));
    }
}

#[test]
fn what_is_asked_further() {
    let others = [("two.test.", RecordType::A), ("one.test.", RecordType::TXT), ("one.test.", RecordType::ANY)];
    for (name, kind) in others {
        let bytes = ask(name, kind).to_vec().unwrap();
        assert!(matches!(judge(&bytes, Transport::Udp, Some(&table()), false, 0), Verdict::Ask(_)), "{name} {kind}");
    }
    let mut chaos = ask("one.test.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let bytes = chaos.to_vec().unwrap();
    assert!(matches!(judge(&bytes, Transport::Udp, Some(&table()), false, 0), Verdict::Ask(_)));
}

#[test]
fn before_the_table() {
    let bytes = ask("one.test.", RecordType::A).to_vec().unwrap();
    let Verdict::Answer(got) = judge(&bytes, Transport::Udp, None, false, 0) else { panic!() };
    assert_eq!(Message::from_vec(&got).unwrap().metadata.response_code, ResponseCode::ServFail);
    assert!(matches!(judge(&bytes, Transport::Udp, None, true, 0), Verdict::Ask(_)));
}

#[test]
fn what_is_refused() {
    let code = |bytes: &[u8]| match judge(bytes, Transport::Udp, Some(&table()), false, 0) {
        Verdict::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
        Verdict::Drop => None,
        Verdict::Ask(question) => panic!("{question:?}"),
    };
    let bytes = |message: &Message| message.to_vec().unwrap();
    let good = ask("one.test.", RecordType::A);
    let mut two = good.clone();
    two.add_query(Query::query(Name::root(), RecordType::A));
    let mut none = good.clone();
    none.queries.clear();
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&bytes(&two)), Some(ResponseCode::FormErr));
    assert_eq!(code(&bytes(&none)), Some(ResponseCode::FormErr));
    assert_eq!(code(&bytes(&notify)), Some(ResponseCode::NotImp));
    assert_eq!(code(&bytes(&ask("one.test.", RecordType::AXFR))), Some(ResponseCode::NotImp));
    // Two names of one number.
    let bad_version = code(&bytes(&with_edns(good.clone(), 4096, 1))).map(u16::from);
    assert_eq!(bad_version, Some(ResponseCode::BADVERS.into()));
    // Cut in the question; counts that nothing stands behind; not even a header; an answer.
    let whole = bytes(&good);
    assert_eq!(code(&whole[..whole.len() - 3]), Some(ResponseCode::FormErr));
    let mut lies = whole.clone();
    lies[7] = 9;
    assert_eq!(code(&lies), Some(ResponseCode::FormErr));
    assert_eq!(code(&whole[..11]), None);
    assert_eq!(code(&bytes(&good.into_response())), None);
    // A name that points to itself.
    let mut looped = whole[..HEADER].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(code(&looped), Some(ResponseCode::FormErr));
}

#[test]
fn dots_in_labels_are_no_dots() {
    let mut bytes = ask("x.test.", RecordType::A).to_vec().unwrap();
    bytes.splice(HEADER..HEADER + 8, b"\x03a.b\x04wild\x04test\x00".iter().copied());
    assert!(matches!(judge(&bytes, Transport::Udp, Some(&table()), false, 0), Verdict::Ask(_)));
}

#[test]
fn only_the_answer_to_the_question_is_one() {
    let bytes = ask("two.test.", RecordType::A).to_vec().unwrap();
    let Verdict::Ask(question) = judge(&bytes, Transport::Udp, Some(&table()), false, 0) else { panic!() };
    let reply = |change: &dyn Fn(&mut Message)| {
        let mut message = ask("TWO.test.", RecordType::A).into_response();
        message.metadata.id = 5;
        change(&mut message);
        question.is_answered_by(5, &message.to_vec().unwrap())
    };
    assert!(reply(&|_| {}));
    assert!(reply(&|m| {
        m.queries.clear();
        m.metadata.response_code = ResponseCode::Refused;
    }));
    assert!(!reply(&|m| m.queries.clear()));
    assert!(!reply(&|m| m.metadata.id = 6));
    assert!(!reply(&|m| m.metadata.message_type = MessageType::Query));
    assert!(!reply(&|m| m.queries[0].name = Name::from_ascii("other.test.").unwrap()));
    assert!(!reply(&|m| m.queries[0].query_type = RecordType::AAAA));
    assert!(!question.is_answered_by(5, &[]));
    let cut = Message::from_vec(&question.cut()).unwrap();
    assert!(cut.metadata.truncation && cut.queries.len() == 1 && cut.metadata.id == 77);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool, turn: usize) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Verdict::Ask(question) = judge(&bytes, transport, Some(&table()), true, turn) {
            question.is_answered_by(0, &bytes);
            question.cut();
        }
    }

    #[test]
    fn nor_do_questions_with_changed_bytes(at in 0usize..60, byte: u8, turn: usize) {
        let mut bytes = with_edns(ask("a.wild.test.shop.svc.cluster.local.", RecordType::A), 600, 0).to_vec().unwrap();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Verdict::Answer(answer) = judge(&bytes, Transport::Udp, Some(&table()), true, turn) {
            prop_assert!(Message::from_vec(&answer).is_ok());
            prop_assert!(answer.len() <= 600);
        }
    }
}
