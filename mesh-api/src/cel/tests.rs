use super::*;

/// A request of which some is known.
struct Request {
    metadata: serde_json::Value,
}

impl Attributes for Request {
    fn get<'a>(&'a self, attribute: Attribute, path: &[Box<str>]) -> Option<Value<'a>> {
        let keys: Vec<&str> = path.iter().map(|p| &**p).collect();
        Some(match (attribute, &keys[..]) {
            (Attribute::RequestMethod, []) => Value::text("GET"),
            (Attribute::RequestPath, []) => Value::text("/a/b?x=1"),
            (Attribute::RequestHeaders, ["x-user"]) => Value::text("ann"),
            (Attribute::ResponseCode, []) => Value::Int(503),
            (Attribute::RequestDuration, []) => Value::Duration(1_500_000_000),
            (Attribute::RequestTime, []) => Value::Timestamp(1_700_000_000_250_000_000),
            (Attribute::ConnectionId, []) => Value::Uint(7),
            (Attribute::Metadata, ["filter_metadata", rest @ ..]) => {
                let rest: Vec<Box<str>> = rest.iter().map(|r| (*r).into()).collect();
                return Value::of_json_at(&self.metadata, &rest);
            }
            _ => return None,
        })
    }
}

fn text(expression: &str) -> Option<String> {
    let request = Request { metadata: serde_json::json!({"f": {"a": 1, "l": ["x", "y"], "o": {"k": true}}}) };
    let expression = Expression::parse(expression, Dialect::Label).unwrap_or_else(|e| panic!("{expression}: {e}"));
    let mut out = String::new();
    expression.evaluate(&request)?.write(&mut out);
    Some(out)
}

#[test]
fn values_of_expressions() {
    for (expression, value) in [
        ("request.method", "GET"),
        ("request['method'] == \"GET\"", "true"),
        ("request.headers['X-User']", "ann"),
        ("request.headers['x-user'].size() + 1", "4"),
        ("response.code >= 400 && response.code < 600", "true"),
        ("response.code == 503 ? 'bad' : 'good'", "bad"),
        ("has(request.headers.x_none) || has(request.nonsense)", "false"),
        ("has(request.headers) && 'X-User' in request.headers && !('x' in request.headers)", "true"),
        ("has(request.headers.none) || request.method in ['GET', 'HEAD']", "true"),
        ("request.headers['x-none'] == 'a' || true", "true"),
        ("false && request.headers['x-none'] == 'a'", "false"),
        ("request.path.startsWith('/a') && request.path.endsWith('=1') && request.path.contains('/b')", "true"),
        ("request.path.matches('^/[a-z]/b') && matches(request.path, '[?]')", "true"),
        ("{'a': 1, 'b': 2}['b'] * 3 - 10 / 3 % 2", "5"),
        ("[1, 2, 3][1]", "2"),
        ("2 in {1: 'x', 2: 'y'} && !(3 in [1])", "true"),
        ("request.duration > duration('1s500us') && request.duration < duration('1m')", "true"),
        ("request.duration", "1.5s"),
        ("duration('90.25s')", "1m30.25s"),
        ("request.time", "2023-11-14T22:13:20.25+00:00"),
        ("request.time == timestamp('2023-11-14T23:13:20.25+01:00')", "true"),
        ("request.time - duration('20s250ms') == timestamp('2023-11-14T22:13:00Z')", "true"),
        ("request.time.getFullYear() * 100 + request.time.getMonth()", "202310"),
        ("request.time.getDayOfWeek() + request.time.getDayOfYear()", "319"),
        ("connection.id == 7 && connection.id == 7u && 1.0 == 1", "true"),
        ("'1' == 1", "false"),
        ("-response.code + -1", "-504"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("!!true", "true"),
        ("'a' + 'b' + string(1)", "ab1"),
        ("int('12') + int(3.9) + size('äö')", "17"),
        ("'\\u00e4\\x41\\n'", "äA\n"),
        ("r'\\n' == '\\\\n' && '''it's''' == \"it's\"", "true"),
        ("metadata.filter_metadata['f'].o.k && metadata.filter_metadata.f['a'] == 1", "true"),
        ("'x' in metadata.filter_metadata.f.l && size(metadata.filter_metadata.f.l) == 2", "true"),
        ("metadata.filter_metadata.f.l[1]", "y"),
        ("// a remark\n1", "1"),
        ("0x1F + 1", "32"),
    ] {
        assert_eq!(text(expression).as_deref(), Some(value), "{expression}");
    }
}

#[test]
fn what_has_no_value_has_none() {
    for expression in [
        "request.headers['x-none']",
        "request.nonsense",
        "nonsense == 1",
        "request.headers['x-none'] == 'a' || false",
        "true && request.headers['x-none'] == 'a'",
        "1 / 0",
        "1 % 0",
        "9223372036854775807 + 1",
        "-(-9223372036854775808)",
        "'a' < 1",
        "1 + 1u",
        "'a' && true",
        "[1][1]",
        "[1][-1]",
        "{'a': 1}['b']",
        "request.method.size",
        "int('x')",
        "duration('x')",
        "timestamp('2023-02-30T00:00:00Z')",
        "'a' ? 1 : 2",
    ] {
        assert_eq!(text(expression), None, "{expression}");
    }
    let request = Request { metadata: serde_json::Value::Null };
    assert!(!Expression::parse("'true'", Dialect::Label).unwrap().is_true(&request));
}

#[test]
fn filters_of_logs_know_less_than_labels() {
    let request = Request { metadata: serde_json::Value::Null };
    for expression in ["'a' + 'b' == 'ab'", "[1] + [2] == [1, 2]"] {
        for (dialect, joined) in [(Dialect::Filter, false), (Dialect::Label, true)] {
            assert_eq!(Expression::parse(expression, dialect).unwrap().is_true(&request), joined, "{expression}");
        }
    }
    let mut read = Vec::new();
    Expression::parse("node.id == ''", Dialect::Filter).unwrap().reads(&mut |a, _| read.push(a));
    Expression::parse("node.id == ''", Dialect::Label).unwrap().reads(&mut |a, _| read.push(a));
    assert_eq!(read, [Attribute::Unknown, Attribute::Node]);
    let matches = Expression::parse("request.path.matches('a.*') || matches('x', 'b')", Dialect::Filter).unwrap();
    assert_eq!(matches.patterns(), ["a.*", "b"]);
}

#[test]
fn what_is_no_expression_is_refused_with_its_place() {
    for (bad, at) in [
        ("", 0),
        ("1 +", 3),
        ("request.", 8),
        ("a b", 2),
        ("'open", 0),
        ("nope(1)", 0),
        ("request.path.exists(x, x == 1)", 13),
        ("request.path.startsWith()", 13),
        ("matches('a', '(')", 0),
        ("matches('a', request.path)", 0),
        ("has(1)", 0),
        ("has(request)", 0),
        ("has(request.headers['a'])", 0),
        ("string(1) == '1'", 0),
        ("1 @ 2", 2),
        ("18446744073709551616", 0),
        ("9223372036854775808", 0),
        ("'\\q'", 2),
        ("{'a' 1}", 5),
        ("in", 0),
        ("1 = 1", 2),
    ] {
        let error = Expression::parse(bad, Dialect::Filter).expect_err(bad);
        assert_eq!(error.at, at, "{bad}: {error}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let refused = |text: String| Expression::parse(&text, Dialect::Label).is_err();
    assert!(refused("(".repeat(MAX_DEPTH + 1) + "1" + &")".repeat(MAX_DEPTH + 1)));
    assert!(refused("[".repeat(4000)));
    assert!(refused("1".to_owned() + &"+1".repeat(MAX_DEPTH * 2)));
    assert!(refused("1?1:".repeat(200) + "1"));
    assert!(refused("x".repeat(MAX_TEXT + 1)));
    assert!(refused("a".to_owned() + &"[0]".repeat(600)));
    assert!(refused("matches('a', '(a{1000}){1000}')".to_owned()));
    assert!(!refused("!".repeat(1000) + "true"));
    assert!(!refused("true".to_owned() + &" || true".repeat(200)));
}

#[test]
fn every_cut_and_every_changed_byte_is_handled() {
    let request = Request { metadata: serde_json::Value::Null };
    let seed = "has(request.headers.x) ? request.path.matches('^/é|b') : (1.5e3 <= -2u) || {b'\\x00': [0x1f]}[\"k\"]";
    let try_it = |text: &str| {
        if let Ok(expression) = Expression::parse(text, Dialect::Filter) {
            let _ = expression.evaluate(&request);
        }
    };
    for cut in (0..seed.len()).filter(|n| seed.is_char_boundary(*n)) {
        try_it(&seed[..cut]);
        try_it(&seed[cut..]);
        for other in ["'", "\\", "(", "]", ".", "0", "u", "-", "é", "\u{0}"] {
            try_it(&format!("{}{other}{}", &seed[..cut], &seed[cut..]));
        }
    }
}

#[test]
fn what_is_read_is_told() {
    let mut read = Vec::new();
    let expression =
        Expression::parse("request.headers['A'] == response.trailers.b && has(response.headers.C)", Dialect::Label);
    expression.unwrap().reads(&mut |attribute, path| read.push((attribute, path.join("."))));
    let of = |a, t: &str| (a, t.to_owned());
    let expected =
        [of(Attribute::RequestHeaders, "a"), of(Attribute::ResponseTrailers, "b"), of(Attribute::ResponseHeaders, "c")];
    assert_eq!(read, expected);
}
