//! Units as people write them: durations such as `250ms` and sizes such as `16MiB`, and times on the wire.
//!
//! Pure. A value prints as the shortest text that parses back to it.

use std::{borrow::Cow, fmt, str, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// A point in time: microseconds since 1970-01-01 UTC, written as RFC 3339 in UTC with six digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

impl Time {
    /// The host's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// Whole seconds since 1970, as AMQP's `timestamp` property wants them; 0 for times before.
    pub fn seconds(self) -> u64 {
        u64::try_from(self.0.div_euclid(1_000_000)).unwrap_or(0)
    }
}

impl Time {
    /// As it is written.
    fn text(self, text: &mut [u8; 27]) -> &str {
        // RFC 3339 has the years 1 to 9999 only; of times beyond, the nearest one that it has is told.
        let clamped = self.0.clamp(-62_135_596_800_000_000, 253_402_207_199_999_999);
        let time = jiff::Timestamp::from_microsecond(clamped).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let time = jiff::tz::Offset::UTC.to_datetime(time);
        let numbers = [
            (0..4, i32::from(time.year())),
            (5..7, time.month().into()),
            (8..10, time.day().into()),
            (11..13, time.hour().into()),
            (14..16, time.minute().into()),
            (17..19, time.second().into()),
            (20..26, time.subsec_nanosecond() / 1000),
        ];
        *text = *b"0000-00-00T00:00:00.000000Z";
        for (place, mut number) in numbers {
            for digit in text.get_mut(place).unwrap_or_default().iter_mut().rev() {
                *digit += u8::try_from(number % 10).unwrap_or(0);
                number /= 10;
            }
        }
        str::from_utf8(text).unwrap_or_default()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; 27]))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Hundreds of them stand in a message: by way of `Display` each would be a `String` first.
        serializer.serialize_str(self.text(&mut [0; 27]))
    }
}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

/// Reads a duration: a whole or decimal number and one of `us`, `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// What is allowed, for a text that is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const ALLOWED: &str = "a number and a unit: us, ms, s, m, h or d, such as \"250ms\" or \"10s\"";
    let (number, unit) = split_unit(text).ok_or(ALLOWED)?;
    let micros = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        "h" => 3_600e6,
        "d" => 86_400e6,
        _ => return Err(ALLOWED.into()),
    };
    let micros = number * micros;
    // A century: far above every key's range, and far below where arithmetic on instants overflows.
    if micros > 3.2e15 {
        return Err(ALLOWED.into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3.2e15, checked above")]
    Ok(Duration::from_micros(micros.round() as u64))
}

/// Writes a duration so that [`parse_duration`] reads it back.
pub fn duration(value: Duration) -> String {
    let micros = value.as_micros();
    let units = [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    match units.iter().find(|(_, size)| micros >= *size && micros.is_multiple_of(*size)) {
        // Minutes and hours only where they are what a person would write: 60s stays 60s.
        Some((unit, size)) if *unit != "m" || micros / size >= 2 => format!("{}{unit}", micros / size),
        Some((_, _)) => format!("{}s", micros / 1_000_000),
        None if micros == 0 => "0s".into(),
        None => format!("{micros}us"),
    }
}

/// Reads a size in bytes: a number and nothing, `B`, `KiB`, `MiB`, `GiB` or `TiB`.
///
/// # Errors
/// What is allowed, for a text that is none.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const ALLOWED: &str = "a number of bytes, or one with B, KiB, MiB, GiB or TiB, such as \"16MiB\" or \"0\"";
    let (number, unit) = split_unit(text).ok_or(ALLOWED)?;
    let factor = match unit {
        "" | "B" => 1u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(ALLOWED.into()),
    };
    let bytes = number * factor as f64;
    if bytes > 9e18 || bytes.fract() != 0.0 {
        return Err(ALLOWED.into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and 0 to 9e18, checked above")]
    Ok(bytes as u64)
}

/// Writes a size so that [`parse_size`] reads it back.
pub fn size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}

/// Splits `1.5GiB` into 1.5 and `GiB`; `None` where no plain decimal number stands first.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, want: Option<Duration>) {
        assert_eq!(parse_duration(text).ok(), want, "{text:?}");
        if let Some(want) = want {
            assert_eq!(parse_duration(&duration(want)), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        check_duration("250ms", Some(Duration::from_millis(250)));
        check_duration("0s", Some(Duration::ZERO));
        check_duration("0.5s", Some(Duration::from_millis(500)));
        check_duration("7d", Some(Duration::from_secs(7 * 86_400)));
        check_duration("60s", Some(Duration::from_secs(60)));
        for bad in ["", "10", "s", "-1s", "1e3s", "1 week", "10sec", "1.2.3s", "99999999999d"] {
            check_duration(bad, None);
        }
    }

    #[track_caller]
    fn check_size(text: &str, want: Option<u64>) {
        assert_eq!(parse_size(text).ok(), want, "{text:?}");
        if let Some(want) = want {
            assert_eq!(parse_size(&size(want)), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_a_number_and_perhaps_a_unit() {
        check_size("0", Some(0));
        check_size("16MiB", Some(16 << 20));
        check_size("1.5KiB", Some(1536));
        check_size("1000", Some(1000));
        for bad in ["", "MiB", "16MB", "16M", "-1", "0.5", "99999999TiB"] {
            check_size(bad, None);
        }
    }

    #[test]
    fn times_have_six_digits_and_never_fail() {
        assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(Time(1_500_000).to_string(), "1970-01-01T00:00:01.500000Z");
        assert_eq!(Time(i64::MAX).to_string(), "9999-12-30T21:59:59.999999Z");
        assert_eq!(Time(i64::MIN).to_string(), "0001-01-01T00:00:00.000000Z");
    }
}
