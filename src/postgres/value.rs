//! Values: what stands in a row, in the agent's own types.
//!
//! The surprising thing: text from the server is bytes. The statements of sessions in databases of other encodings
//! arrive raw, so text is decoded lossily and never fails a row. Infinite times are none.

use std::net::IpAddr;

use tokio_postgres::types::{FromSql, ToSql, Type};

use super::Error;
use crate::units::Time;

/// One row of an answer.
#[derive(Debug)]
pub struct Row(pub(super) tokio_postgres::Row);

impl Row {
    /// The value of a column, by its name or its position (faster with thousands of rows).
    ///
    /// # Errors
    /// [`Error::Decode`] if there is no such column, or if it is NULL or of another kind and `T` cannot hold that.
    #[expect(clippy::needless_pass_by_value, reason = "names and positions are copied")]
    pub fn get<T: Cell>(&self, column: impl Column) -> Result<T, Error> {
        let wrong = || Error::Decode { column: column.name(), wanted: T::WANTED };
        let cell: Raw<'_> = column.raw(&self.0).ok_or_else(wrong)?;
        T::from_cell(cell).ok_or_else(wrong)
    }

    /// Whether the answer has this column.
    pub fn has(&self, column: &str) -> bool {
        self.0.columns().iter().any(|other| other.name() == column)
    }
}

/// A column's name or position.
pub trait Column: sealed::Raw {
    /// For messages.
    fn name(&self) -> String;
}

impl Column for &str {
    fn name(&self) -> String {
        (*self).to_owned()
    }
}

impl Column for usize {
    fn name(&self) -> String {
        self.to_string()
    }
}

mod sealed {
    pub trait Raw {
        fn raw<'a>(&self, row: &'a tokio_postgres::Row) -> Option<super::Raw<'a>>;
    }
    impl Raw for &str {
        fn raw<'a>(&self, row: &'a tokio_postgres::Row) -> Option<super::Raw<'a>> {
            row.try_get(*self).ok()
        }
    }
    impl Raw for usize {
        fn raw<'a>(&self, row: &'a tokio_postgres::Row) -> Option<super::Raw<'a>> {
            row.try_get(*self).ok()
        }
    }
}

/// A value as it came over the wire: its type, and its bytes unless it is NULL.
#[derive(Debug)]
pub struct Raw<'a> {
    kind: Type,
    bytes: Option<&'a [u8]>,
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(kind: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self { kind: kind.clone(), bytes: Some(bytes) })
    }
    fn from_sql_null(kind: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self { kind: kind.clone(), bytes: None })
    }
    fn accepts(_: &Type) -> bool {
        true
    }
}

impl<'a> Raw<'a> {
    /// The value by the driver's own rules, if the type is one of theirs.
    fn plain<T: FromSql<'a>>(&self) -> Option<T> {
        Some(self.bytes?).filter(|_| T::accepts(&self.kind)).and_then(|bytes| T::from_sql(&self.kind, bytes).ok())
    }
}

/// What a cell can be read as.
pub trait Cell: Sized {
    /// What was expected, in words that follow "does not hold".
    const WANTED: &'static str;
    /// `None` if the value is of another kind, or NULL.
    fn from_cell(raw: Raw<'_>) -> Option<Self>;
}

/// NULL, and an infinite time, is `None`.
impl<T: Cell> Cell for Option<T> {
    const WANTED: &'static str = T::WANTED;
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        if raw.bytes.is_none() || is_infinite(&raw) { Some(None) } else { T::from_cell(raw).map(Some) }
    }
}

/// Text of any kind, decoded lossily; addresses too.
impl Cell for String {
    const WANTED: &'static str = "text";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        if raw.kind == Type::INET {
            return raw.plain::<IpAddr>().map(|address| address.to_string());
        }
        let texts = [Type::TEXT, Type::NAME, Type::VARCHAR, Type::BPCHAR, Type::UNKNOWN, Type::CSTRING, Type::CHAR];
        let bytes = raw.bytes.filter(|_| texts.contains(&raw.kind))?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl Cell for bool {
    const WANTED: &'static str = "true or false";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        raw.plain()
    }
}

/// Any whole number: int2, int4, int8, oid, xid, cid, and a numeric that is whole.
impl Cell for i64 {
    const WANTED: &'static str = "a whole number";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        match raw.kind {
            Type::INT2 => raw.plain::<i16>().map(Self::from),
            Type::INT4 => raw.plain::<i32>().map(Self::from),
            Type::OID => raw.plain::<u32>().map(Self::from),
            // 32 bits without a sign, for which the driver has no rule.
            Type::XID | Type::CID => Some(Self::from(u32::from_be_bytes(raw.bytes?.try_into().ok()?))),
            Type::XID8 => i64::from_be_bytes(raw.bytes?.try_into().ok()?).into(),
            Type::NUMERIC => whole_numeric(raw.bytes?),
            _ => raw.plain(),
        }
    }
}

macro_rules! narrower {
    ($($kind:ty),*) => {$(
        impl Cell for $kind {
            const WANTED: &'static str = "a whole number that fits";
            fn from_cell(raw: Raw<'_>) -> Option<Self> {
                i64::from_cell(raw).and_then(|number| number.try_into().ok())
            }
        }
    )*};
}
narrower!(i32, u32, u64);

/// Any number that has a float's precision or less, and whole ones.
impl Cell for f64 {
    const WANTED: &'static str = "a number";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        match raw.kind {
            Type::FLOAT4 => raw.plain::<f32>().map(Self::from),
            Type::FLOAT8 => raw.plain(),
            _ => i64::from_cell(raw).map(|number| number as Self),
        }
    }
}

/// A point in time that is not infinite.
impl Cell for Time {
    const WANTED: &'static str = "a time";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        let micros = micros_since_2000(&raw)?;
        // From PostgreSQL's epoch to that of everybody else.
        micros.checked_add(946_684_800_000_000).map(Self)
    }
}

fn micros_since_2000(raw: &Raw<'_>) -> Option<i64> {
    let bytes = raw.bytes.filter(|_| raw.kind == Type::TIMESTAMPTZ)?;
    Some(i64::from_be_bytes(bytes.try_into().ok()?)).filter(|micros| !matches!(*micros, i64::MIN | i64::MAX))
}

fn is_infinite(raw: &Raw<'_>) -> bool {
    raw.kind == Type::TIMESTAMPTZ && micros_since_2000(raw).is_none()
}

impl Cell for Vec<i32> {
    const WANTED: &'static str = "whole numbers";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        raw.plain()
    }
}

impl Cell for Vec<String> {
    const WANTED: &'static str = "texts";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        let texts: Vec<Raw<'_>> = raw.plain()?;
        texts.into_iter().map(String::from_cell).collect()
    }
}

/// A whole numeric: four 16-bit words (digits, weight, sign, scale), then digits to the base of 10000.
fn whole_numeric(bytes: &[u8]) -> Option<i64> {
    let words: Vec<i16> = bytes.as_chunks::<2>().0.iter().map(|word| i16::from_be_bytes(*word)).collect();
    let [_, weight, sign, _, digits @ ..] = words.as_slice() else { return None };
    let mut number: i64 = 0;
    for at in 0..=usize::try_from(*weight).unwrap_or(0) {
        let digit = if *weight < 0 { 0 } else { digits.get(at).copied().unwrap_or(0) };
        number = number.checked_mul(10_000)?.checked_add(digit.into())?;
    }
    let fraction = digits.iter().skip(usize::try_from(weight + 1).unwrap_or(0));
    match sign {
        _ if fraction.into_iter().any(|digit| *digit != 0) => None,
        0 => Some(number),
        0x4000 => number.checked_neg(),
        _ => None,
    }
}

/// A parameter of a statement.
#[derive(Debug, Clone, Copy)]
pub enum Param<'a> {
    /// `int8`
    Int(i64),
    /// `float8`
    Float(f64),
    /// `bool`
    Bool(bool),
    /// `text`
    Text(&'a str),
    /// `int4[]`
    Ints(&'a [i32]),
    /// `int8[]`
    Longs(&'a [i64]),
    /// `oid[]`
    Oids(&'a [u32]),
    /// `text[]`
    Texts(&'a [String]),
}

impl<'a> Param<'a> {
    /// As the driver wants it.
    pub(super) fn typed(&'a self) -> (&'a (dyn ToSql + Sync), Type) {
        match self {
            Self::Int(value) => (value, Type::INT8),
            Self::Float(value) => (value, Type::FLOAT8),
            Self::Bool(value) => (value, Type::BOOL),
            Self::Text(value) => (value, Type::TEXT),
            Self::Ints(value) => (value, Type::INT4_ARRAY),
            Self::Longs(value) => (value, Type::INT8_ARRAY),
            Self::Oids(value) => (value, Type::OID_ARRAY),
            Self::Texts(value) => (value, Type::TEXT_ARRAY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "cases read better without ampersands")]
    fn check<T: Cell + PartialEq + std::fmt::Debug>(kind: Type, bytes: Option<&[u8]>, want: Option<T>) {
        assert_eq!(T::from_cell(Raw { kind: kind.clone(), bytes }), want, "{kind} {bytes:?}");
    }

    #[test]
    fn text_of_another_encoding_is_text() {
        check(Type::TEXT, Some(b"caf\xe9"), Some("caf\u{fffd}".to_owned()));
        check(Type::NAME, Some(b"x"), Some("x".to_owned()));
        check(Type::INT4, Some(&[0, 0, 0, 1]), None::<String>);
        check(Type::TEXT, None, None::<String>);
        check(Type::TEXT, None, Some(None::<String>));
        check(Type::INET, Some(&[2, 32, 0, 4, 10, 0, 0, 1]), Some("10.0.0.1".to_owned()));
    }

    #[test]
    fn infinite_times_are_none() {
        check(Type::TIMESTAMPTZ, Some(&0i64.to_be_bytes()), Some(Some(Time(946_684_800_000_000))));
        check(Type::TIMESTAMPTZ, Some(&i64::MAX.to_be_bytes()), Some(None::<Time>));
        check(Type::TIMESTAMPTZ, Some(&i64::MIN.to_be_bytes()), Some(None::<Time>));
        check(Type::TIMESTAMPTZ, Some(&i64::MAX.to_be_bytes()), None::<Time>);
    }

    #[test]
    fn whole_numbers_of_all_kinds_are_numbers() {
        check(Type::INT2, Some(&[255, 255]), Some(-1i64));
        check(Type::OID, Some(&[255, 255, 255, 255]), Some(4_294_967_295i64));
        check(Type::XID, Some(&[255, 255, 255, 255]), Some(4_294_967_295u64));
        check(Type::INT8, Some(&[0, 0, 0, 1, 0, 0, 0, 0]), None::<i32>);
        check(Type::INT4, Some(&[0, 0, 0, 7]), Some(7.0f64));
        check(Type::FLOAT4, Some(&0.5f32.to_be_bytes()), Some(0.5f64));
    }

    #[test]
    fn a_whole_numeric_is_a_number_and_another_is_none() {
        let numeric = |words: &[i16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        check(Type::NUMERIC, Some(&numeric(&[0, 0, 0, 0])), Some(0i64));
        check(Type::NUMERIC, Some(&numeric(&[2, 1, 0, 0, 1, 2345])), Some(12_345i64));
        check(Type::NUMERIC, Some(&numeric(&[1, 2, 0, 0, 3])), Some(300_000_000i64));
        check(Type::NUMERIC, Some(&numeric(&[1, 0, 0x4000, 0, 7])), Some(-7i64));
        check(Type::NUMERIC, Some(&numeric(&[2, 0, 0, 1, 7, 5000])), None::<i64>);
        check(Type::NUMERIC, Some(&numeric(&[1, -1, 0, 1, 5000])), None::<i64>);
        check(Type::NUMERIC, Some(&numeric(&[1, 9, 0, 0, 1])), None::<i64>);
        check(Type::NUMERIC, Some(&[1]), None::<i64>);
    }
}
