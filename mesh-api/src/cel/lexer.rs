//! Words of an expression.

use super::Error;

/// A word.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Ident(String),
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

/// Longer ones before their beginnings.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// All words with their places, the end last.
pub fn words(text: &str) -> Result<Vec<(usize, Token)>, Error> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip();
        let at = lexer.at;
        let token = lexer.next()?;
        let end = token == Token::End;
        out.push((at, token));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with("//") {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn next(&mut self) -> Result<Token, Error> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(token) = self.quoted()? {
            return Ok(token);
        }
        let second = rest.chars().nth(1);
        if first.is_ascii_digit() || (first == '.' && second.is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            self.at += length;
            return Ok(Token::Ident(rest.get(..length).unwrap_or_default().to_owned()));
        }
        let sign = SIGNS.into_iter().find(|s| rest.starts_with(s));
        let sign = sign.ok_or_else(|| Error::new(self.at, format!("{first:?} has no meaning here")))?;
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    fn number(&mut self) -> Result<Token, Error> {
        let (rest, at) = (self.rest(), self.at);
        let bad = |word: &str| Error::new(at, format!("{word} is no number in range"));
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let length = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let (digits, after) = hex.split_at(length);
            let value = u64::from_str_radix(digits, 16).map_err(|_| bad(digits))?;
            self.at += 2 + length;
            return Ok(self.unsigned(after, value));
        }
        let mut end = 0;
        let mut fraction = false;
        let bytes = rest.as_bytes();
        while let Some(byte) = bytes.get(end) {
            let signed = matches!(bytes.get(end.wrapping_sub(1)), Some(b'e' | b'E'));
            match byte {
                b'0'..=b'9' => {}
                b'.' | b'e' | b'E' => fraction = true,
                b'+' | b'-' if fraction && signed => {}
                _ => break,
            }
            end += 1;
        }
        let (word, after) = rest.split_at(end);
        self.at += end;
        if fraction {
            return word.parse().map(Token::Double).map_err(|_| bad(word));
        }
        let value = word.parse().map_err(|_| bad(word))?;
        Ok(self.unsigned(after, value))
    }

    fn unsigned(&mut self, after: &str, value: u64) -> Token {
        if after.starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint(value);
        }
        Token::Int(value)
    }

    /// A text or bytes, if one begins here.
    fn quoted(&mut self) -> Result<Option<Token>, Error> {
        let (rest, start) = (self.rest(), self.at);
        let (mut raw, mut bytes, mut prefix) = (false, false, 0);
        for c in rest.chars().take(2) {
            match c {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => break,
            }
            prefix += 1;
        }
        let body = rest.get(prefix..).unwrap_or_default();
        let Some(quote) = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| body.starts_with(q)) else {
            return Ok(None);
        };
        self.at += prefix + quote.len();
        let mut out = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let Some(c) = rest.chars().next() else { return Err(Error::new(start, "a text is not closed")) };
            if quote.len() == 1 && c == '\n' {
                return Err(Error::new(start, "a text is not closed on its line"));
            }
            self.at += c.len_utf8();
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Some(Token::Bytes(out)));
        }
        let text = String::from_utf8(out).map_err(|_| Error::new(start, "a text is not UTF-8"))?;
        Ok(Some(Token::Text(text)))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Error> {
        let at = self.at;
        let bad = || Error::new(at, "this escape has no meaning");
        let c = self.rest().chars().next().ok_or_else(bad)?;
        self.at += c.len_utf8();
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => u8::try_from(c).map_err(|_| bad())?,
            'x' | 'X' => return self.code(0, 2, 16, bytes, out),
            'u' => return self.code(0, 4, 16, false, out),
            'U' => return self.code(0, 8, 16, false, out),
            '0'..='3' => return self.code(1, 3, 8, bytes, out),
            _ => return Err(bad()),
        };
        out.push(simple);
        Ok(())
    }

    /// A character by its number; `back` digits of it have been passed already.
    fn code(&mut self, back: usize, digits: usize, radix: u32, byte: bool, out: &mut Vec<u8>) -> Result<(), Error> {
        let at = self.at - back;
        let bad = || Error::new(at, "this escape names no character");
        let word = self.text.get(at..at + digits).ok_or_else(bad)?;
        if !word.chars().all(|c| c.is_digit(radix)) {
            return Err(bad());
        }
        let code = u32::from_str_radix(word, radix).map_err(|_| bad())?;
        self.at = at + digits;
        if byte {
            out.push(u8::try_from(code).map_err(|_| bad())?);
        } else {
            let c = char::from_u32(code).ok_or_else(bad)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
