//! Time formats of `%START_TIME(...)%`: strftime with Envoy's sub-second specifiers.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::ConfigError;

/// A time format, checked.
#[derive(Debug, Clone)]
pub enum TimeFormat {
    /// `2023-11-14T22:13:20.123Z`, without going through a general formatter.
    Iso,
    /// Seconds since the epoch.
    Seconds,
    /// Anything else.
    Strftime(Box<str>),
}

impl TimeFormat {
    /// Parses a format; empty is ISO 8601 with milliseconds.
    ///
    /// # Errors
    /// A specifier that is not known.
    pub fn parse(format: &str) -> Result<Self, ConfigError> {
        if format.is_empty() || format == "%Y-%m-%dT%H:%M:%S.%3fZ" || format == "%Y-%m-%dT%T.%3fZ" {
            return Ok(TimeFormat::Iso);
        }
        if format == "%s" {
            return Ok(TimeFormat::Seconds);
        }
        // Envoy's %E3S is seconds with a fraction, its bare %f is nanoseconds.
        let mut translated = String::with_capacity(format.len() + 8);
        let mut rest = format;
        while let Some((before, after)) = rest.split_once('%') {
            translated.push_str(before);
            let bytes = after.as_bytes();
            let (text, used) = match bytes {
                [b'E', d @ b'1'..=b'9', b'S', ..] => (format!("%S.%{}f", char::from(*d)), 3),
                [b'E', b'*', b'S', ..] => ("%S.%9f".to_owned(), 3),
                [d @ b'1'..=b'9', b'f', ..] => (format!("%{}f", char::from(*d)), 2),
                [b'f', ..] => ("%9f".to_owned(), 1),
                [b'%', ..] => ("%%".to_owned(), 1),
                _ => ("%".to_owned(), 0),
            };
            translated.push_str(&text);
            rest = after.get(used..).unwrap_or_default();
        }
        translated.push_str(rest);
        let checked = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
        jiff::fmt::strtime::format(&translated, &checked)
            .map_err(|e| ConfigError::new(format!("time format {format:?}: {e}")))?;
        Ok(TimeFormat::Strftime(translated.into()))
    }
    /// Formats a moment, in UTC.
    pub fn format(&self, time: SystemTime) -> String {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        match self {
            TimeFormat::Iso => iso(since.as_secs(), since.subsec_millis()),
            TimeFormat::Seconds => since.as_secs().to_string(),
            TimeFormat::Strftime(format) => jiff::Timestamp::try_from(time)
                .ok()
                .and_then(|t| jiff::fmt::strtime::format(&**format, &t.to_zoned(jiff::tz::TimeZone::UTC)).ok())
                .unwrap_or_default(),
        }
    }
}

/// Days to a civil date (Hinnant's algorithm), so that a log line costs no calendar library.
fn iso(secs: u64, millis: u32) -> String {
    let (days, second) = (secs / 86_400, secs % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn iso_agrees_with_the_general_formatter() {
        let general = TimeFormat::parse("%Y-%m-%dT%H:%M:%E3SZ").unwrap();
        for secs in [0u64, 951_782_399, 951_782_400, 1_709_251_199, 1_735_689_599, 4_102_444_800] {
            let t = UNIX_EPOCH + Duration::from_millis(secs * 1000 + 7);
            assert_eq!(TimeFormat::Iso.format(t), general.format(t));
        }
    }
}
