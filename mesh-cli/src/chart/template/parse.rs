//! From the text of a template to a tree.

use std::collections::BTreeMap;

use serde_json::Value;

use super::functions::KNOWN;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Text as it is.
    Text(String),
    /// The text of a value.
    Output(Expr),
    /// `$name := value` or, for a variable that is there, `$name = value`.
    Set { name: String, value: Expr, new: bool },
    /// `if`, with `else if`.
    If { branches: Vec<(Expr, Vec<Node>)>, otherwise: Vec<Node> },
    /// `with`.
    With { value: Expr, body: Vec<Node>, otherwise: Vec<Node> },
    /// `range`, with variables for key and item.
    Range { key: Option<String>, item: Option<String>, over: Expr, body: Vec<Node>, otherwise: Vec<Node> },
}

/// A value to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// Itself.
    Literal(Value),
    /// `.`
    Dot,
    /// `$name`; `$` is the variable without a name.
    Variable(String),
    /// `value.field`.
    Field(Box<Expr>, String),
    /// `function a b`; what comes through a pipe is the last argument.
    Call(String, Vec<Expr>),
}

/// A parsed file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) body: Vec<Node>,
    pub(super) named: BTreeMap<String, Vec<Node>>,
}

/// Where and what.
type Failure = (usize, String);

/// Parses a file.
pub(super) fn file(text: &str) -> Result<File, Failure> {
    let mut parser = Parser { pieces: pieces(text)?, at: 0, named: BTreeMap::new() };
    let (body, end) = parser.block()?;
    match end {
        None => Ok(File { body, named: parser.named }),
        Some((line, Keyword::Else(_))) => Err((line, "an else without a beginning".to_owned())),
        Some((line, Keyword::End)) => Err((line, "an end without a beginning".to_owned())),
    }
}

/// Text, or the words of an action, with the line on which it begins.
#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Action(usize, Vec<Word>),
}

/// What Go trims, and nothing else.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

fn pieces(text: &str) -> Result<Vec<Piece>, Failure> {
    let (mut found, mut rest, mut line) = (Vec::new(), text, 1);
    let mut trim_next = false;
    loop {
        let (before, action) = match rest.split_once("{{") {
            Some((before, action)) => (before, Some(action)),
            None => (rest, None),
        };
        let starts = line + before.matches('\n').count();
        let mut shown = if trim_next { before.trim_start_matches(SPACE) } else { before };
        let Some(action) = action else {
            found.push(Piece::Text(shown.to_owned()));
            return Ok(found);
        };
        let action = match action.strip_prefix('-').filter(|a| a.starts_with(SPACE)) {
            Some(inner) => {
                shown = shown.trim_end_matches(SPACE);
                inner
            }
            None => action,
        };
        found.push(Piece::Text(shown.to_owned()));
        let length = end_of_action(action).ok_or_else(|| {
            let quotes = action.lines().next().unwrap_or_default().matches('"').count();
            let why = if quotes % 2 == 1 { "text without its end" } else { "no }} for this {{" };
            (starts, why.to_owned())
        })?;
        let inner = &action[..length];
        let trimming = inner.strip_suffix('-').filter(|rest| rest.ends_with(SPACE));
        trim_next = trimming.is_some();
        let inner = trimming.unwrap_or(inner);
        if !inner.trim_start().starts_with("/*") {
            found.push(Piece::Action(starts, words(inner).map_err(|why| (starts, why))?));
        }
        line = starts + action[..length].matches('\n').count();
        rest = &action[length + 2..];
    }
}

/// Where the `}}` stands that is not within quotes or a comment.
fn end_of_action(action: &str) -> Option<usize> {
    if action.trim_start().starts_with("/*") {
        let comment = action.find("*/")?;
        return Some(comment + action[comment..].find("}}")?);
    }
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in action.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if action[i..].starts_with("}}") => return Some(i),
            None => {}
        }
    }
    None
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    /// Text in quotes.
    Text(String),
    /// Names, numbers, `.a.b`, `$x.y`.
    Plain(String),
    /// `.a.b` right behind a `)`: fields of what stands in the parentheses.
    Fields(String),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `|`
    Pipe,
    /// `,`
    Comma,
    /// `:=` or `=`.
    Assign { new: bool },
}

fn words(action: &str) -> Result<Vec<Word>, String> {
    let mut found = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '(' | ')' | '|' | ',' | '=' => {
                found.push(match first {
                    '(' => Word::Open,
                    ')' => Word::Close,
                    '|' => Word::Pipe,
                    ',' => Word::Comma,
                    _ => Word::Assign { new: false },
                });
                1
            }
            ':' if rest.starts_with(":=") => {
                found.push(Word::Assign { new: true });
                2
            }
            '"' => {
                let (text, length) = quoted(rest).ok_or("text without its end")?;
                found.push(Word::Text(text));
                length
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("text without its end")?;
                found.push(Word::Text(rest[1..=end].to_owned()));
                end + 2
            }
            _ => {
                let stops = |c: char| c.is_whitespace() || matches!(c, '(' | ')' | '|' | ',' | '=' | ':' | '"' | '`');
                let end = rest.find(stops).unwrap_or(rest.len());
                if end == 0 {
                    return Err(format!("{first} is not understood"));
                }
                let behind = action[..action.len() - rest.len()].ends_with(')');
                let word = rest[..end].to_owned();
                found.push(if behind && first == '.' { Word::Fields(word) } else { Word::Plain(word) });
                end
            }
        };
        rest = rest[taken..].trim_start();
    }
    Ok(found)
}

/// Text in double quotes at the start, and how long it is with them.
fn quoted(text: &str) -> Option<(String, usize)> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // Go's escapes that templates use are JSON's.
            '"' => return Some((serde_json::from_str(&text[..=i]).ok()?, i + 1)),
            _ => {}
        }
    }
    None
}

/// What ends a block.
#[derive(Debug)]
enum Keyword {
    End,
    /// With the words behind it.
    Else(Vec<Word>),
}

struct Parser {
    pieces: Vec<Piece>,
    at: usize,
    named: BTreeMap<String, Vec<Node>>,
}

impl Parser {
    /// Nodes up to the end of the block, and what ended it.
    fn block(&mut self) -> Result<(Vec<Node>, Option<(usize, Keyword)>), Failure> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get(self.at).cloned() {
            self.at += 1;
            let (line, words) = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(line, words) => (line, words),
            };
            let keyword = match words.first() {
                Some(Word::Plain(word)) => word.as_str(),
                _ => "",
            };
            match keyword {
                "end" => return Ok((nodes, Some((line, Keyword::End)))),
                "else" => return Ok((nodes, Some((line, Keyword::Else(words[1..].to_vec()))))),
                "if" => nodes.push(self.branches(line, &words[1..])?),
                "with" => {
                    let value = expression(&words[1..]).map_err(|why| (line, why))?;
                    let (body, otherwise) = self.body(line, "with")?;
                    nodes.push(Node::With { value, body, otherwise });
                }
                "range" => nodes.push(self.range(line, &words[1..])?),
                "define" => {
                    let [_, Word::Text(name)] = words.as_slice() else {
                        return Err((line, "define needs a name".to_owned()));
                    };
                    let (body, otherwise) = self.body(line, "define")?;
                    if !otherwise.is_empty() {
                        return Err((line, "a define has no else".to_owned()));
                    }
                    self.named.insert(name.clone(), body);
                }
                _ => nodes.push(simple(&words).map_err(|why| (line, why))?),
            }
        }
        Ok((nodes, None))
    }

    /// A body up to its `end`, and what stands behind its `else`.
    fn body(&mut self, line: usize, of: &str) -> Result<(Vec<Node>, Vec<Node>), Failure> {
        let missing = || (line, format!("no end for this {of}"));
        let (body, end) = self.block()?;
        match end.ok_or_else(missing)? {
            (_, Keyword::End) => Ok((body, vec![])),
            (_, Keyword::Else(words)) if words.is_empty() => match self.block()? {
                (otherwise, Some((_, Keyword::End))) => Ok((body, otherwise)),
                _ => Err(missing()),
            },
            (line, Keyword::Else(_)) => Err((line, format!("the else of {of} has no condition"))),
        }
    }

    fn branches(&mut self, line: usize, condition: &[Word]) -> Result<Node, Failure> {
        let mut condition = condition.to_vec();
        let mut branches = Vec::new();
        loop {
            let test = expression(&condition).map_err(|why| (line, why))?;
            let (body, end) = self.block()?;
            branches.push((test, body));
            match end.ok_or_else(|| (line, "no end for this if".to_owned()))? {
                (_, Keyword::End) => return Ok(Node::If { branches, otherwise: vec![] }),
                (_, Keyword::Else(words)) if words.first() == Some(&Word::Plain("if".to_owned())) => {
                    condition = words[1..].to_vec();
                }
                (line, Keyword::Else(words)) if words.is_empty() => {
                    let (otherwise, end) = self.block()?;
                    if !matches!(end, Some((_, Keyword::End))) {
                        return Err((line, "no end for this else".to_owned()));
                    }
                    return Ok(Node::If { branches, otherwise });
                }
                (line, Keyword::Else(_)) => return Err((line, "else has words that are not understood".to_owned())),
            }
        }
    }

    fn range(&mut self, line: usize, words: &[Word]) -> Result<Node, Failure> {
        let name = |word: &Word| match word {
            Word::Plain(text) => text.strip_prefix('$').map(str::to_owned),
            _ => None,
        };
        let (key, item, over) = match words {
            [key, Word::Comma, item, Word::Assign { new: true }, over @ ..] => (name(key), name(item), over),
            [item, Word::Assign { new: true }, over @ ..] => (None, name(item), over),
            over => (None, None, over),
        };
        let over = expression(over).map_err(|why| (line, why))?;
        let (body, otherwise) = self.body(line, "range")?;
        Ok(Node::Range { key, item, over, body, otherwise })
    }
}

/// An assignment, or a value to be shown.
fn simple(words: &[Word]) -> Result<Node, String> {
    match words {
        [Word::Plain(name), Word::Assign { new }, value @ ..] => {
            let name = name.strip_prefix('$').ok_or_else(|| format!("{name} is no variable"))?;
            Ok(Node::Set { name: name.to_owned(), value: expression(value)?, new: *new })
        }
        words => expression(words).map(Node::Output),
    }
}

/// A pipeline.
fn expression(words: &[Word]) -> Result<Expr, String> {
    let mut rest = words;
    let value = pipeline(&mut rest)?;
    if rest.is_empty() { Ok(value) } else { Err("a ) without its (".to_owned()) }
}

fn pipeline(rest: &mut &[Word]) -> Result<Expr, String> {
    let mut value = command(rest, None)?;
    while let [Word::Pipe, after @ ..] = *rest {
        *rest = after;
        value = command(rest, Some(value))?;
    }
    Ok(value)
}

/// A function with its arguments, or a value alone.
fn command(rest: &mut &[Word], piped: Option<Expr>) -> Result<Expr, String> {
    let function = match rest.first() {
        Some(Word::Plain(word)) => function_name(word),
        _ => None,
    };
    if function.is_some() {
        *rest = &rest[1..];
    }
    let mut operands = Vec::new();
    while let Some(word) = rest.first() {
        if matches!(word, Word::Close | Word::Pipe) {
            break;
        }
        operands.push(operand(rest)?);
    }
    operands.extend(piped);
    match (function, operands.len()) {
        (Some(name), _) => call(name, operands),
        (None, 1) => operands.pop().ok_or_else(|| "a value is missing".to_owned()),
        (None, 0) => Err("a value is missing".to_owned()),
        (None, _) => Err("a value takes no arguments".to_owned()),
    }
}

/// A call of a function that there is.
fn call(name: String, arguments: Vec<Expr>) -> Result<Expr, String> {
    if METHODS.contains(&&*name) || KNOWN.contains(&&*name) {
        Ok(Expr::Call(name, arguments))
    } else {
        Err(format!("no function {name}"))
    }
}

/// Methods of `.Files`.
const METHODS: [&str; 2] = ["Files.Get", "Files.Glob"];

/// The function that a word names: a plain name, or a method of `.Files`.
fn function_name(word: &str) -> Option<String> {
    for method in METHODS {
        if word.strip_suffix(method).is_some_and(|before| matches!(before, "." | "$.")) {
            return Some(method.to_owned());
        }
    }
    let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic()) && !matches!(word, "true" | "false" | "nil");
    is_name.then(|| word.to_owned())
}

fn operand(rest: &mut &[Word]) -> Result<Expr, String> {
    let Some((word, after)) = rest.split_first() else { return Err("a value is missing".to_owned()) };
    *rest = after;
    match word {
        Word::Text(text) => Ok(Expr::Literal(Value::String(text.clone()))),
        Word::Plain(word) => plain(word),
        Word::Open => {
            let inner = pipeline(rest)?;
            let [Word::Close, after @ ..] = *rest else { return Err("a ( without its )".to_owned()) };
            *rest = after;
            match after {
                [Word::Fields(path), after @ ..] => {
                    *rest = after;
                    Ok(fields(inner, path))
                }
                _ => Ok(inner),
            }
        }
        _ => Err("a value is missing".to_owned()),
    }
}

fn fields(start: Expr, path: &str) -> Expr {
    path.split('.').filter(|f| !f.is_empty()).fold(start, |at, field| Expr::Field(Box::new(at), field.to_owned()))
}

fn plain(word: &str) -> Result<Expr, String> {
    if let Some(path) = word.strip_prefix('.') {
        return Ok(fields(Expr::Dot, path));
    }
    if let Some(variable) = word.strip_prefix('$') {
        let (name, path) = variable.split_once('.').unwrap_or((variable, ""));
        return Ok(fields(Expr::Variable(name.to_owned()), path));
    }
    match word {
        "true" | "false" => Ok(Expr::Literal(Value::Bool(word == "true"))),
        "nil" => Ok(Expr::Literal(Value::Null)),
        // A function without arguments, as `list` or `dict`.
        name if function_name(name).is_some() => call(name.to_owned(), vec![]),
        number => serde_json::from_str::<serde_json::Number>(number)
            .map(|n| Expr::Literal(Value::Number(n)))
            .map_err(|_| format!("{word} is not understood")),
    }
}
