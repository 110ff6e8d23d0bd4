//! From text to a tree.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};

use super::functions::Function;
use super::lexer::{Token, words};
use super::{Attribute, Dialect, Error, MAX_DEPTH, MAX_NODES, MAX_TEXT, Value};

/// Largest compiled pattern, bytes.
const MAX_PATTERN: usize = 256 << 10;

/// A node.
#[derive(Debug, Clone)]
pub enum Expr {
    Literal(Value<'static>),
    Attribute(Attribute, Box<[Box<str>]>),
    /// Presence of an attribute.
    HasAttribute(Attribute, Box<[Box<str>]>),
    Member(Box<Expr>, Box<Expr>),
    /// Presence of a member.
    HasMember(Box<Expr>, Box<str>),
    Not(Box<Expr>),
    Minus(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Choice(Box<[Expr; 3]>),
    Binary(Binary, Box<[Expr; 2]>),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Call(Function, Vec<Expr>),
    Matches(Box<Expr>, Regex),
}

/// An operator between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    Add,
    /// Also joins texts, bytes and lists.
    Join,
    Sub,
    Mul,
    Div,
    Rem,
}

impl Binary {
    fn of(token: &Token, level: usize) -> Option<Self> {
        let Token::Sign(sign) = token else {
            return (level == 0 && *token == Token::Ident("in".to_owned())).then_some(Self::In);
        };
        Some(match (level, *sign) {
            (0, "==") => Self::Eq,
            (0, "!=") => Self::Ne,
            (0, "<") => Self::Lt,
            (0, "<=") => Self::Le,
            (0, ">") => Self::Gt,
            (0, ">=") => Self::Ge,
            (1, "+") => Self::Add,
            (1, "-") => Self::Sub,
            (2, "*") => Self::Mul,
            (2, "/") => Self::Div,
            (2, "%") => Self::Rem,
            _ => return None,
        })
    }
}

impl Expr {
    pub fn reads(&self, f: &mut dyn FnMut(Attribute, &[Box<str>])) {
        match self {
            Expr::Literal(_) => {}
            Expr::Attribute(a, path) | Expr::HasAttribute(a, path) => f(*a, path),
            Expr::HasMember(e, _) | Expr::Not(e) | Expr::Minus(e) | Expr::Matches(e, _) => e.reads(f),
            Expr::Member(a, b) => {
                a.reads(f);
                b.reads(f);
            }
            Expr::And(all) | Expr::Or(all) | Expr::List(all) | Expr::Call(_, all) => {
                all.iter().for_each(|e| e.reads(f));
            }
            Expr::Choice(all) => all.iter().for_each(|e| e.reads(f)),
            Expr::Binary(_, both) => both.iter().for_each(|e| e.reads(f)),
            Expr::Map(entries) => entries.iter().for_each(|(k, v)| {
                k.reads(f);
                v.reads(f);
            }),
        }
    }

    pub fn patterns<'a>(&'a self, out: &mut Vec<&'a str>) {
        match self {
            Expr::Literal(_) | Expr::Attribute(..) | Expr::HasAttribute(..) => {}
            Expr::Matches(e, regex) => {
                out.push(regex.as_str());
                e.patterns(out);
            }
            Expr::HasMember(e, _) | Expr::Not(e) | Expr::Minus(e) => e.patterns(out),
            Expr::Member(a, b) => {
                a.patterns(out);
                b.patterns(out);
            }
            Expr::And(all) | Expr::Or(all) | Expr::List(all) | Expr::Call(_, all) => {
                all.iter().for_each(|e| e.patterns(out));
            }
            Expr::Choice(all) => all.iter().for_each(|e| e.patterns(out)),
            Expr::Binary(_, both) => both.iter().for_each(|e| e.patterns(out)),
            Expr::Map(entries) => entries.iter().for_each(|(k, v)| {
                k.patterns(out);
                v.patterns(out);
            }),
        }
    }

    fn nesting(&self) -> usize {
        let deepest = |all: &[Expr]| all.iter().map(Expr::nesting).max().unwrap_or_default();
        1 + match self {
            Expr::Literal(_) | Expr::Attribute(..) | Expr::HasAttribute(..) => 0,
            Expr::HasMember(e, _) | Expr::Not(e) | Expr::Minus(e) | Expr::Matches(e, _) => e.nesting(),
            Expr::Member(a, b) => a.nesting().max(b.nesting()),
            Expr::And(all) | Expr::Or(all) | Expr::List(all) | Expr::Call(_, all) => deepest(all),
            Expr::Choice(all) => deepest(&**all),
            Expr::Binary(_, both) => deepest(&**both),
            Expr::Map(entries) => entries.iter().map(|(k, v)| k.nesting().max(v.nesting())).max().unwrap_or_default(),
        }
    }
}

/// Parses an expression.
pub fn parse(text: &str, dialect: Dialect) -> Result<Expr, Error> {
    if text.len() > MAX_TEXT {
        return Err(Error::new(MAX_TEXT, format!("longer than {MAX_TEXT} bytes")));
    }
    let mut parser = Parser { words: words(text)?, next: 0, depth: 0, nodes: 0, dialect };
    let root = parser.choice()?;
    if *parser.peek() != Token::End {
        return Err(parser.unexpected());
    }
    // Chains of one operator are deep without having been deep to read.
    if root.nesting() > 2 * MAX_DEPTH {
        return Err(Error::new(0, format!("nested deeper than {MAX_DEPTH}")));
    }
    Ok(root)
}

struct Parser {
    words: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    nodes: usize,
    dialect: Dialect,
}

/// What stands before a dot or a bracket: names that may lead to an attribute, or anything else.
enum Operand {
    Path(Vec<Box<str>>),
    Other(Expr),
}

impl Operand {
    fn finish(self, dialect: Dialect) -> Expr {
        match self {
            Operand::Path(path) => {
                let (attribute, rest) = resolve(&path, dialect);
                Expr::Attribute(attribute, rest)
            }
            Operand::Other(expr) => expr,
        }
    }
}

fn resolve(path: &[Box<str>], dialect: Dialect) -> (Attribute, Box<[Box<str>]>) {
    let (attribute, taken) = Attribute::of(path, dialect);
    let mut rest: Box<[Box<str>]> = path.get(taken..).unwrap_or_default().into();
    if let Some(name) = rest.first_mut().filter(|_| is_headers(attribute)) {
        *name = name.to_ascii_lowercase().into();
    }
    (attribute, rest)
}

/// Their names have no case.
fn is_headers(attribute: Attribute) -> bool {
    matches!(attribute, Attribute::RequestHeaders | Attribute::ResponseHeaders | Attribute::ResponseTrailers)
}

impl Parser {
    fn peek(&self) -> &Token {
        self.words.get(self.next).map_or(&Token::End, |(_, t)| t)
    }

    fn at(&self) -> usize {
        self.words.get(self.next).or(self.words.last()).map_or(0, |(at, _)| *at)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn unexpected(&self) -> Error {
        let what = match self.peek() {
            Token::End => "it ends too early".to_owned(),
            Token::Sign(sign) => format!("{sign:?} is not expected here"),
            Token::Ident(name) => format!("{name:?} is not expected here"),
            _ => "a constant is not expected here".to_owned(),
        };
        Error::new(self.at(), what)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(s) if *s == sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Error> {
        if self.accept(sign) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn counted(&mut self, expr: Expr) -> Result<Expr, Error> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::new(self.at(), format!("more than {MAX_NODES} parts")));
        }
        Ok(expr)
    }

    fn choice(&mut self) -> Result<Expr, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new(self.at(), format!("nested deeper than {MAX_DEPTH}")));
        }
        let condition = self.either()?;
        let expr = if self.accept("?") {
            let yes = self.either()?;
            self.expect(":")?;
            let no = self.choice()?;
            self.counted(Expr::Choice(Box::new([condition, yes, no])))?
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn either(&mut self) -> Result<Expr, Error> {
        let mut all = vec![self.both()?];
        while self.accept("||") {
            all.push(self.both()?);
        }
        if all.len() == 1 { self.counted(all.swap_remove(0)) } else { self.counted(Expr::Or(all)) }
    }

    fn both(&mut self) -> Result<Expr, Error> {
        let mut all = vec![self.binary(0)?];
        while self.accept("&&") {
            all.push(self.binary(0)?);
        }
        if all.len() == 1 { Ok(all.swap_remove(0)) } else { self.counted(Expr::And(all)) }
    }

    /// Comparisons, sums, products: the tighter, the higher the level.
    fn binary(&mut self, level: usize) -> Result<Expr, Error> {
        if level > 2 {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = Binary::of(self.peek(), level) {
            self.next += 1;
            let right = self.binary(level + 1)?;
            let operator =
                if operator == Binary::Add && self.dialect == Dialect::Label { Binary::Join } else { operator };
            left = self.counted(match (operator, left, right) {
                // Whether a header is there.
                (Binary::In, Expr::Literal(Value::Text(key)), Expr::Attribute(attribute, path))
                    if path.is_empty() && is_headers(attribute) =>
                {
                    Expr::HasAttribute(attribute, [key.to_ascii_lowercase().into()].into())
                }
                (operator, left, right) => Expr::Binary(operator, Box::new([left, right])),
            })?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, Error> {
        let (mut nots, mut minuses) = (0u32, 0u32);
        while self.accept("!") {
            nots += 1;
        }
        while nots == 0 && self.accept("-") {
            minuses += 1;
        }
        let mut expr = if minuses % 2 == 1 { self.negative()? } else { self.member()? };
        // Twice is not quite never: it still has to be a truth.
        for _ in 0..if nots > 2 { 2 - nots % 2 } else { nots } {
            expr = self.counted(Expr::Not(Box::new(expr)))?;
        }
        Ok(expr)
    }

    /// After a minus; the least number has no positive twin.
    fn negative(&mut self) -> Result<Expr, Error> {
        if *self.peek() == Token::Int(1 << 63) {
            self.next += 1;
            return self.counted(Expr::Literal(Value::Int(i64::MIN)));
        }
        let inner = self.member()?;
        self.counted(Expr::Minus(Box::new(inner)))
    }

    fn member(&mut self) -> Result<Expr, Error> {
        let mut operand = self.primary()?;
        loop {
            if self.accept(".") {
                let at = self.at();
                let Token::Ident(name) = self.take() else { return Err(Error::new(at, "a name must follow the dot")) };
                operand = if self.accept("(") {
                    let target = operand.finish(self.dialect);
                    let mut arguments = vec![target];
                    arguments.extend(self.list(")")?);
                    Operand::Other(self.call(at, &name, arguments, true)?)
                } else {
                    self.counted(Expr::Literal(Value::Null))?;
                    match operand {
                        Operand::Path(mut path) => {
                            path.push(name.into());
                            Operand::Path(path)
                        }
                        Operand::Other(of) => {
                            let key = Expr::Literal(Value::text(name));
                            Operand::Other(Expr::Member(Box::new(of), Box::new(key)))
                        }
                    }
                };
            } else if self.accept("[") {
                let key = self.choice()?;
                self.expect("]")?;
                operand = match (operand, key) {
                    (Operand::Path(mut path), Expr::Literal(Value::Text(key))) => {
                        path.push(key.as_ref().into());
                        Operand::Path(path)
                    }
                    (of, key) => {
                        let member = Expr::Member(Box::new(of.finish(self.dialect)), Box::new(key));
                        Operand::Other(self.counted(member)?)
                    }
                };
            } else {
                return Ok(operand.finish(self.dialect));
            }
        }
    }

    fn primary(&mut self) -> Result<Operand, Error> {
        let at = self.at();
        let literal = |value| Operand::Other(Expr::Literal(value));
        self.counted(Expr::Literal(Value::Null))?;
        Ok(match self.peek().clone() {
            Token::Int(n) => {
                self.next += 1;
                literal(Value::Int(i64::try_from(n).map_err(|_| Error::new(at, "this number is too large"))?))
            }
            Token::Uint(n) => {
                self.next += 1;
                literal(Value::Uint(n))
            }
            Token::Double(n) => {
                self.next += 1;
                literal(Value::Double(n))
            }
            Token::Text(text) => {
                self.next += 1;
                literal(Value::Text(Cow::Owned(text)))
            }
            Token::Bytes(bytes) => {
                self.next += 1;
                literal(Value::Bytes(Cow::Owned(bytes)))
            }
            Token::Ident(name) => {
                self.next += 1;
                self.named(at, &name)?
            }
            Token::Sign("(") => {
                self.next += 1;
                let inner = self.choice()?;
                self.expect(")")?;
                Operand::Other(inner)
            }
            Token::Sign("[") => {
                self.next += 1;
                Operand::Other(Expr::List(self.list("]")?))
            }
            Token::Sign("{") => {
                self.next += 1;
                Operand::Other(Expr::Map(self.entries()?))
            }
            _ => return Err(self.unexpected()),
        })
    }

    fn named(&mut self, at: usize, name: &str) -> Result<Operand, Error> {
        let literal = |value| Ok(Operand::Other(Expr::Literal(value)));
        match name {
            "true" => return literal(Value::Bool(true)),
            "false" => return literal(Value::Bool(false)),
            "null" => return literal(Value::Null),
            "in" => return Err(Error::new(at, "\"in\" is not expected here")),
            _ => {}
        }
        if !self.accept("(") {
            return Ok(Operand::Path(vec![name.into()]));
        }
        let arguments = self.list(")")?;
        // `has(a["b"])` is none, although it means something.
        let end = |back: usize| self.next.checked_sub(back).and_then(|at| self.words.get(at)).map(|(_, t)| t);
        if name == "has" && !matches!((end(3), end(2)), (Some(Token::Sign(".")), Some(Token::Ident(_)))) {
            return Err(Error::new(at, "has asks for a member behind a dot"));
        }
        self.call(at, name, arguments, false).map(Operand::Other)
    }

    /// Expressions between commas, up to the closing bracket.
    fn list(&mut self, close: &str) -> Result<Vec<Expr>, Error> {
        let mut all = Vec::new();
        while !self.accept(close) {
            all.push(self.choice()?);
            if !self.accept(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(all)
    }

    fn entries(&mut self) -> Result<Vec<(Expr, Expr)>, Error> {
        let mut all = Vec::new();
        while !self.accept("}") {
            let key = self.choice()?;
            self.expect(":")?;
            all.push((key, self.choice()?));
            if !self.accept(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(all)
    }

    fn call(&mut self, at: usize, name: &str, mut arguments: Vec<Expr>, member: bool) -> Result<Expr, Error> {
        let wrong = |n: usize| Error::new(at, format!("{name} does not take {n} arguments"));
        let count = arguments.len();
        let expr = match name {
            "has" if !member => match (arguments.pop(), count) {
                (Some(Expr::Attribute(attribute, path)), 1) => Expr::HasAttribute(attribute, path),
                (Some(Expr::Member(of, key)), 1) => match *key {
                    Expr::Literal(Value::Text(key)) => Expr::HasMember(of, key.as_ref().into()),
                    _ => return Err(Error::new(at, "has asks for a member behind a dot")),
                },
                _ => return Err(Error::new(at, "has asks for a member behind a dot")),
            },
            "matches" => match (arguments.pop(), arguments.pop(), count) {
                (Some(Expr::Literal(Value::Text(pattern))), Some(text), 2) => {
                    let compiled = RegexBuilder::new(&pattern).size_limit(MAX_PATTERN).build();
                    let regex = compiled.map_err(|_| Error::new(at, format!("{pattern:?} is no usable pattern")))?;
                    Expr::Matches(Box::new(text), regex)
                }
                (Some(_), Some(_), 2) => return Err(Error::new(at, "the pattern of matches must be a constant text")),
                _ => return Err(wrong(count - usize::from(member))),
            },
            _ => {
                let function = Function::of(name, member)
                    .filter(|f| *f != Function::Text || self.dialect == Dialect::Label)
                    .ok_or_else(|| Error::new(at, format!("there is no function {name}")))?;
                if count != function.arity() {
                    return Err(wrong(count - usize::from(member)));
                }
                Expr::Call(function, arguments)
            }
        };
        self.counted(expr)
    }
}
