//! Functions that expressions may call, and the calendar.

use std::borrow::Cow;

use super::Value;

/// A function; the target of a member call is its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    Part(TimePart),
}

/// A part of a moment (in UTC) or of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePart {
    Year,
    /// From 0.
    Month,
    /// From 1.
    Date,
    /// From 0.
    DayOfMonth,
    /// Sunday is 0.
    DayOfWeek,
    /// From 0.
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

const SECOND: i128 = 1_000_000_000;

impl Function {
    pub fn of(name: &str, member: bool) -> Option<Self> {
        use TimePart as P;
        Some(match (name, member) {
            ("size", _) => Self::Size,
            ("contains", _) => Self::Contains,
            ("startsWith", _) => Self::StartsWith,
            ("endsWith", _) => Self::EndsWith,
            ("int", false) => Self::Int,
            ("uint", false) => Self::Uint,
            ("double", false) => Self::Double,
            ("string", false) => Self::Text,
            ("bytes", false) => Self::Bytes,
            ("duration", false) => Self::Duration,
            ("timestamp", false) => Self::Timestamp,
            ("getFullYear", true) => Self::Part(P::Year),
            ("getMonth", true) => Self::Part(P::Month),
            ("getDate", true) => Self::Part(P::Date),
            ("getDayOfMonth", true) => Self::Part(P::DayOfMonth),
            ("getDayOfWeek", true) => Self::Part(P::DayOfWeek),
            ("getDayOfYear", true) => Self::Part(P::DayOfYear),
            ("getHours", true) => Self::Part(P::Hours),
            ("getMinutes", true) => Self::Part(P::Minutes),
            ("getSeconds", true) => Self::Part(P::Seconds),
            ("getMilliseconds", true) => Self::Part(P::Milliseconds),
            _ => return None,
        })
    }

    /// Arguments, the target included.
    pub fn arity(self) -> usize {
        match self {
            Self::Contains | Self::StartsWith | Self::EndsWith => 2,
            _ => 1,
        }
    }

    pub fn call<'a>(self, arguments: Vec<Value<'a>>) -> Option<Value<'a>> {
        let mut arguments = arguments.into_iter();
        let first = arguments.next()?;
        Some(match self {
            Self::Size => Value::Int(first.size()?),
            Self::Contains | Self::StartsWith | Self::EndsWith => {
                let (Value::Text(text), Value::Text(part)) = (first, arguments.next()?) else { return None };
                Value::Bool(match self {
                    Self::Contains => text.contains(part.as_ref()),
                    Self::StartsWith => text.starts_with(part.as_ref()),
                    _ => text.ends_with(part.as_ref()),
                })
            }
            Self::Int => Value::Int(to_int(&first)?),
            Self::Uint => match &first {
                Value::Text(text) => Value::Uint(text.parse().ok()?),
                other => Value::Uint(to_int(other).and_then(|n| u64::try_from(n).ok())?),
            },
            Self::Double => match &first {
                Value::Text(text) => Value::Double(text.parse().ok()?),
                other => Value::Double(other.as_f64()?),
            },
            Self::Text => match first {
                Value::Text(text) => Value::Text(text),
                Value::Bytes(bytes) => Value::Text(Cow::Owned(String::from_utf8(bytes.into_owned()).ok()?)),
                Value::List(_) | Value::Map(_) | Value::Json(_) | Value::Null => return None,
                other => {
                    let mut text = String::new();
                    other.write(&mut text);
                    Value::text(text)
                }
            },
            Self::Bytes => match first {
                Value::Text(Cow::Borrowed(text)) => Value::Bytes(Cow::Borrowed(text.as_bytes())),
                Value::Text(Cow::Owned(text)) => Value::Bytes(Cow::Owned(text.into_bytes())),
                Value::Bytes(bytes) => Value::Bytes(bytes),
                _ => return None,
            },
            Self::Duration => match first {
                Value::Text(text) => Value::Duration(parse_duration(&text)?),
                Value::Duration(n) => Value::Duration(n),
                _ => return None,
            },
            Self::Timestamp => match first {
                Value::Text(text) => Value::Timestamp(parse_timestamp(&text)?),
                Value::Timestamp(n) => Value::Timestamp(n),
                Value::Int(seconds) => Value::Timestamp(i128::from(seconds) * SECOND),
                _ => return None,
            },
            Self::Part(part) => Value::Int(part.of(&first)?),
        })
    }
}

#[allow(clippy::cast_possible_truncation)] // the range is looked at before
fn to_int(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        Value::Uint(n) => i64::try_from(*n).ok(),
        Value::Double(n) if n.abs() < 9.2e18 => Some(*n as i64),
        Value::Text(text) => text.parse().ok(),
        Value::Timestamp(n) => i64::try_from(n.div_euclid(SECOND)).ok(),
        _ => None,
    }
}

impl TimePart {
    fn of(self, value: &Value<'_>) -> Option<i64> {
        let n = match value {
            Value::Timestamp(n) => self.of_moment(*n),
            Value::Duration(n) => match self {
                Self::Hours => n / (3600 * SECOND),
                Self::Minutes => n / (60 * SECOND),
                Self::Seconds => n / SECOND,
                Self::Milliseconds => n / 1_000_000 % 1000,
                _ => return None,
            },
            _ => return None,
        };
        i64::try_from(n).ok()
    }

    fn of_moment(self, nanos: i128) -> i128 {
        let seconds = nanos.div_euclid(SECOND);
        let days = seconds.div_euclid(86_400);
        let (year, month, day) = civil(days);
        match self {
            Self::Year => year,
            Self::Month => month - 1,
            Self::Date => day,
            Self::DayOfMonth => day - 1,
            Self::DayOfWeek => (days + 4).rem_euclid(7),
            Self::DayOfYear => days - days_of(year, 1, 1),
            Self::Hours => seconds.rem_euclid(86_400) / 3600,
            Self::Minutes => seconds.rem_euclid(3600) / 60,
            Self::Seconds => seconds.rem_euclid(60),
            Self::Milliseconds => nanos.rem_euclid(SECOND) / 1_000_000,
        }
    }
}

/// Year, month and day of a day since 1970, in the Gregorian calendar; years begin in March while counting.
fn civil(days: i128) -> (i128, i128, i128) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i128::from(month <= 2), month, day)
}

/// The day since 1970.
fn days_of(year: i128, month: i128, day: i128) -> i128 {
    let year = year - i128::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `1h30m`, `1.5s`, `-2ms`.
fn parse_duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1, text), |r| (-1, r));
    if rest == "0" {
        return Some(0);
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "h" => 3600 * SECOND,
            "m" => 60 * SECOND,
            "s" => SECOND,
            "ms" => 1_000_000,
            "us" => 1000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit)?)?;
        if !fraction.is_empty() {
            let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
            nanos = nanos.checked_add(fraction.parse::<i128>().ok()? * unit / scale)?;
        }
        rest = after;
    }
    // As long as CEL's durations may be.
    (!text.trim_start_matches('-').is_empty() && nanos < 315_576_000_001 * SECOND).then_some(sign * nanos)
}

/// RFC 3339.
fn parse_timestamp(text: &str) -> Option<i128> {
    let number = |from: usize, to: usize| -> Option<i128> {
        let word = text.get(from..to)?;
        if word.bytes().all(|b| b.is_ascii_digit()) { word.parse().ok() } else { None }
    };
    let sign = |at: usize, wanted: &str| (text.get(at..at + 1)?.eq_ignore_ascii_case(wanted)).then_some(());
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hours, minutes, seconds) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    for (at, wanted) in [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")] {
        sign(at, wanted)?;
    }
    let days = days_of(year, month, day);
    if hours > 23 || minutes > 59 || seconds > 59 || civil(days) != (year, month, day) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        if end == 0 || end > 9 {
            return None;
        }
        let (digits, after) = fraction.split_at(end);
        nanos = digits.parse::<i128>().ok()? * 10i128.pow(9 - u32::try_from(end).ok()?);
        rest = after;
    }
    let offset = if rest.eq_ignore_ascii_case("Z") {
        0
    } else {
        let at = text.len() - rest.len();
        sign(at + 3, ":")?;
        let offset = number(at + 1, at + 3)? * 3600 + number(at + 4, at + 6)? * 60;
        match (rest.len(), rest.chars().next()?) {
            (6, '+') => offset,
            (6, '-') => -offset,
            _ => return None,
        }
    };
    Some((days * 86_400 + hours * 3600 + minutes * 60 + seconds - offset) * SECOND + nanos)
}

/// Appends RFC 3339, in UTC.
pub fn write_timestamp(nanos: i128, out: &mut String) {
    use std::fmt::Write as _;
    let part = |p: TimePart| p.of_moment(nanos);
    let (year, month, day) = (part(TimePart::Year), part(TimePart::Month) + 1, part(TimePart::Date));
    let (h, m, s) = (part(TimePart::Hours), part(TimePart::Minutes), part(TimePart::Seconds));
    let fraction = format!("{:09}", nanos.rem_euclid(SECOND));
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    // Writing into a String cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{dot}{fraction}+00:00");
}
