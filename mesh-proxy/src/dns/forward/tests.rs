use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::super::answer::{Verdict, judge};
use super::*;

fn question() -> (Question, Vec<u8>) {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("a.test.").unwrap(), RecordType::A));
    let bytes = message.to_vec().unwrap();
    match judge(&bytes, Transport::Udp, None, true, 0) {
        Verdict::Ask(question) => (question, bytes),
        other => panic!("{other:?}"),
    }
}

/// The answer to a question, changed.
fn reply(asked: &[u8], change: impl Fn(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(asked).unwrap().into_response();
    let name = message.queries[0].name.clone();
    message.add_answer(Record::from_rdata(name, 60, RData::A(A("10.0.0.1".parse().unwrap()))));
    change(&mut message);
    message.to_vec().unwrap()
}

/// A resolver that answers a question with these messages.
async fn resolver(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            for answer in answers(&buffer[..length]) {
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    address
}

async fn ask(servers: Vec<SocketAddr>, together: bool) -> (Option<Message>, DnsStats) {
    let (upstreams, stats, (question, bytes)) = (Upstreams::new(servers, together), DnsStats::default(), question());
    let answer = upstreams.ask(&question, &bytes, Transport::Udp, &stats).await;
    (answer.map(|bytes| Message::from_vec(&bytes).unwrap()), stats)
}

fn code(message: Option<Message>) -> Option<ResponseCode> {
    message.map(|m| m.metadata.response_code)
}

#[tokio::test]
async fn only_what_answers_the_question_counts() {
    let server = resolver(|asked| {
        vec![
            reply(asked, |m| m.metadata.id ^= 1),
            reply(asked, |m| m.queries[0].name = Name::from_ascii("b.test.").unwrap()),
            b"x".to_vec(),
            reply(asked, |m| m.metadata.message_type = MessageType::Query),
            reply(asked, |_| {}),
        ]
    })
    .await;
    let (answer, stats) = ask(vec![server], false).await;
    let answer = answer.unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len()), (7, 1), "the number is the client's again");
    assert_eq!(stats.counters().map(|(_, n)| n), [0, 1, 0]);
}

#[tokio::test]
async fn the_next_one_is_asked() {
    let refuses = resolver(|asked| vec![reply(asked, |m| m.metadata.response_code = ResponseCode::Refused)]).await;
    let silent = resolver(|_| vec![]).await;
    let knows = resolver(|asked| vec![reply(asked, |_| {})]).await;
    for together in [false, true] {
        let (answer, _) = ask(vec![refuses, silent, knows], together).await;
        assert_eq!(code(answer), Some(ResponseCode::NoError), "together: {together}");
    }
    let (answer, stats) = ask(vec![refuses], false).await;
    assert_eq!((code(answer), stats.counters()[2].1), (Some(ResponseCode::Refused), 0), "what is said is handed on");
}

#[tokio::test]
async fn the_one_that_answered_is_the_first_one_next_time() {
    let silent = resolver(|_| vec![]).await;
    let knows = resolver(|asked| vec![reply(asked, |_| {})]).await;
    let (upstreams, stats) = (Upstreams::new(vec![silent, knows], false), DnsStats::default());
    let (question, bytes) = question();
    assert!(upstreams.ask(&question, &bytes, Transport::Udp, &stats).await.is_some());
    let begun = Instant::now();
    assert!(upstreams.ask(&question, &bytes, Transport::Udp, &stats).await.is_some());
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn nobody_knows() {
    assert_eq!(code(ask(vec![], false).await.0), None);
    let silent = resolver(|_| vec![]).await;
    let (answer, stats) = ask(vec![silent], false).await;
    assert_eq!((code(answer), stats.counters()[2].1), (None, 1));
}

#[tokio::test]
async fn what_is_too_long_for_the_client_is_cut() {
    let server = resolver(|asked| {
        vec![reply(asked, |m| {
            let record = m.answers[0].clone();
            m.answers.extend(std::iter::repeat_n(record, 100));
        })]
    })
    .await;
    let answer = ask(vec![server], false).await.0.unwrap();
    assert_eq!((answer.metadata.truncation, answer.answers.len()), (true, 0));
}

#[tokio::test]
async fn over_tcp_as_the_client_asks() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = usize::from(stream.read_u16().await.unwrap());
            let mut asked = vec![0; length];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(&framed(&reply(&asked, |_| {})).unwrap()).await.unwrap();
        }
    });
    let (upstreams, stats, (question, bytes)) = (Upstreams::new(vec![server], false), DnsStats::default(), question());
    let answer = upstreams.ask(&question, &bytes, Transport::Tcp, &stats).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().metadata.id, 7);
}
