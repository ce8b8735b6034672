//! Values: what stands in a row, in the agent's own types.
//!
//! The surprising thing: text from the server is bytes. The statements of sessions in databases of other encodings
//! arrive raw, so text is decoded lossily and never fails a row. Infinite times are none.

use std::{borrow::Cow, cell::Cell as Place, net::IpAddr, str};

use bytes::BytesMut;
use smol_str::{SmolStr, ToSmolStr};
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::Error;
use crate::units::Time;

/// One row of an answer.
#[derive(Debug)]
pub struct Row {
    row: tokio_postgres::Row,
    /// Behind the column that was found last: mostly they are asked for in their order, and looking at all names each time
    /// took two fifths of the instructions of reading values (callgrind).
    next: Place<usize>,
}

impl Row {
    pub(super) fn new(row: tokio_postgres::Row) -> Self {
        Self { row, next: Place::new(0) }
    }

    /// The value of a column, by its name or its position.
    ///
    /// # Errors
    /// [`Error::Decode`] if there is no such column, or if it is NULL or of another kind and `T` cannot hold that.
    #[expect(clippy::needless_pass_by_value, reason = "names and positions are copied")]
    pub fn get<T: Cell>(&self, column: impl Column) -> Result<T, Error> {
        let wrong = || Error::Decode { column: column.name(), wanted: T::WANTED };
        let cell = self.raw(&column).ok_or_else(wrong)?;
        T::from_cell(cell).ok_or_else(wrong)
    }

    /// The text in a column as it lies there; `None` if it is NULL.
    ///
    /// # Errors
    /// As [`Row::get`].
    pub fn text(&self, column: &str) -> Result<Option<Cow<'_, str>>, Error> {
        let wrong = || Error::Decode { column: column.name(), wanted: String::WANTED };
        let cell = self.raw(&column).ok_or_else(wrong)?;
        if cell.bytes.is_none() { Ok(None) } else { cell.text().map(Some).ok_or_else(wrong) }
    }

    /// The records in a column that a statement put together by `string_agg(record_send(…), '')`; none if it is NULL.
    ///
    /// # Errors
    /// [`Error::Decode`] if there is no such column, or if it does not hold whole records.
    pub fn records(&self, column: &str) -> Result<Vec<Record<'_>>, Error> {
        let wrong = || Error::Decode { column: column.name(), wanted: "records" };
        let cell = self.raw(&column).ok_or_else(wrong)?;
        let mut rest = cell.bytes.filter(|_| *cell.kind == Type::BYTEA).unwrap_or_default();
        let mut records = Vec::new();
        while !rest.is_empty() {
            records.push(Record::read(&mut rest).ok_or_else(wrong)?);
        }
        Ok(records)
    }

    fn raw(&self, column: &impl Column) -> Option<Raw<'_>> {
        let at = column.position(self)?;
        let Bytes(bytes) = self.row.try_get(at).ok()?;
        Some(Raw { kind: self.row.columns().get(at)?.type_(), bytes })
    }

    fn position(&self, name: &str) -> Option<usize> {
        let columns = self.row.columns();
        let (before, behind) = columns.split_at_checked(self.next.get())?;
        let is = |column: &tokio_postgres::Column| column.name() == name;
        let behind = behind.iter().position(is).map(|at| before.len() + at);
        let found = behind.or_else(|| before.iter().position(is))?;
        self.next.set(found + 1);
        Some(found)
    }
}

/// Values by their position: of a row, or of a record inside of one.
pub trait Cells {
    /// The value at a position, from 0.
    ///
    /// # Errors
    /// As [`Row::get`].
    fn cell<T: Cell>(&self, at: usize) -> Result<T, Error>;
}

impl Cells for Row {
    fn cell<T: Cell>(&self, at: usize) -> Result<T, Error> {
        self.get(at)
    }
}

/// A row inside of a value.
#[derive(Debug)]
pub struct Record<'a>(Vec<(Type, Option<&'a [u8]>)>);

impl<'a> Record<'a> {
    /// Takes one from the front, in the form of `record_send`: how many columns, and of each its type, its length (-1
    /// for NULL) and its bytes.
    fn read(bytes: &mut &'a [u8]) -> Option<Self> {
        let columns = take_i32(bytes)?;
        let column = |_| {
            let kind = Type::from_oid(take_i32(bytes)?.cast_unsigned())?;
            let value = match take_i32(bytes)? {
                -1 => None,
                length => Some(bytes.split_off(..usize::try_from(length).ok()?)?),
            };
            Some((kind, value))
        };
        (0..columns).map(column).collect::<Option<Vec<_>>>().map(Self)
    }
}

fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(i32::from_be_bytes(*first))
}

impl Cells for Record<'_> {
    fn cell<T: Cell>(&self, at: usize) -> Result<T, Error> {
        let value = self.0.get(at).and_then(|(kind, bytes)| T::from_cell(Raw { kind, bytes: *bytes }));
        value.ok_or_else(|| Error::Decode { column: at.name(), wanted: T::WANTED })
    }
}

/// A column's name or position.
pub trait Column {
    /// For messages.
    fn name(&self) -> String;
    /// Where it stands in a row, if it is there.
    fn position(&self, row: &Row) -> Option<usize>;
}

impl Column for &str {
    fn name(&self) -> String {
        (*self).to_owned()
    }
    fn position(&self, row: &Row) -> Option<usize> {
        row.position(self)
    }
}

impl Column for usize {
    fn name(&self) -> String {
        self.to_string()
    }
    fn position(&self, _: &Row) -> Option<usize> {
        Some(*self)
    }
}

/// A value as it came over the wire: its type, and its bytes unless it is NULL.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    kind: &'a Type,
    bytes: Option<&'a [u8]>,
}

/// The bytes of a value of any type, unless it is NULL.
struct Bytes<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Bytes<'a> {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(bytes)))
    }
    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }
    fn accepts(_: &Type) -> bool {
        true
    }
}

impl<'a> Raw<'a> {
    /// Text of any kind, decoded lossily.
    fn text(&self) -> Option<Cow<'a, str>> {
        let is_text = matches!(
            *self.kind,
            Type::TEXT
                | Type::BYTEA
                | Type::NAME
                | Type::VARCHAR
                | Type::BPCHAR
                | Type::UNKNOWN
                | Type::CSTRING
                | Type::CHAR
        );
        // Lossily it goes character by character, and hardly any text needs that.
        let decode = |bytes| str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed);
        self.bytes.filter(|_| is_text).map(decode)
    }

    /// The value by the driver's own rules, if the type is one of theirs.
    fn plain<T: FromSql<'a>>(&self) -> Option<T> {
        Some(self.bytes?).filter(|_| T::accepts(self.kind)).and_then(|bytes| T::from_sql(self.kind, bytes).ok())
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

/// Text of any kind, decoded lossily, also one that the server sent as bytes; addresses too.
impl Cell for String {
    const WANTED: &'static str = "text";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        if *raw.kind == Type::INET {
            return raw.plain::<IpAddr>().map(|address| address.to_string());
        }
        raw.text().map(Cow::into_owned)
    }
}

/// As a `String`, and without one where it is short, as most are.
impl Cell for SmolStr {
    const WANTED: &'static str = String::WANTED;
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        if *raw.kind == Type::INET {
            return raw.plain::<IpAddr>().map(|address| address.to_smolstr());
        }
        raw.text().map(Self::from)
    }
}

impl Cell for bool {
    const WANTED: &'static str = "true or false";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        raw.plain()
    }
}

/// Any whole number: int2, int4, int8, oid, xid, cid, and a numeric that is whole.
fn whole(raw: &Raw<'_>) -> Option<i128> {
    match *raw.kind {
        Type::INT2 => raw.plain::<i16>().map(i128::from),
        Type::INT4 => raw.plain::<i32>().map(i128::from),
        Type::OID => raw.plain::<u32>().map(i128::from),
        // Without a sign, and the driver has no rule for it.
        Type::XID | Type::CID => Some(u32::from_be_bytes(raw.bytes?.try_into().ok()?).into()),
        Type::XID8 => Some(u64::from_be_bytes(raw.bytes?.try_into().ok()?).into()),
        Type::NUMERIC => whole_numeric(raw.bytes?),
        _ => raw.plain::<i64>().map(i128::from),
    }
}

macro_rules! whole_numbers {
    ($($kind:ty),*) => {$(
        impl Cell for $kind {
            const WANTED: &'static str = "a whole number that fits";
            fn from_cell(raw: Raw<'_>) -> Option<Self> {
                whole(&raw)?.try_into().ok()
            }
        }
    )*};
}
whole_numbers!(i32, i64, u32, u64);

/// Any number that has a float's precision or less, and whole ones.
impl Cell for f64 {
    const WANTED: &'static str = "a number";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        match *raw.kind {
            Type::FLOAT4 => raw.plain::<f32>().map(Self::from),
            Type::FLOAT8 => raw.plain(),
            _ => whole(&raw).map(|number| number as Self),
        }
    }
}

/// A point in time that is not infinite.
impl Cell for Time {
    const WANTED: &'static str = "a time";
    fn from_cell(raw: Raw<'_>) -> Option<Self> {
        let micros = micros_since_2000(&raw)?;
        // From PostgreSQL's epoch to that of everybody else; its last years are beyond what microseconds reach then.
        Some(Self(micros.saturating_add(946_684_800_000_000)))
    }
}

fn micros_since_2000(raw: &Raw<'_>) -> Option<i64> {
    let bytes = raw.bytes.filter(|_| *raw.kind == Type::TIMESTAMPTZ)?;
    Some(i64::from_be_bytes(bytes.try_into().ok()?)).filter(|micros| !matches!(*micros, i64::MIN | i64::MAX))
}

fn is_infinite(raw: &Raw<'_>) -> bool {
    *raw.kind == Type::TIMESTAMPTZ && micros_since_2000(raw).is_none()
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
        let Kind::Array(kind) = raw.kind.kind() else { return None };
        let texts: Vec<Bytes<'_>> = raw.plain()?;
        texts.into_iter().map(|Bytes(bytes)| String::from_cell(Raw { kind, bytes })).collect()
    }
}

/// A whole numeric: four 16-bit words (digits, weight, sign, scale), then digits to the base of 10000.
fn whole_numeric(bytes: &[u8]) -> Option<i128> {
    let words: Vec<i16> = bytes.as_chunks::<2>().0.iter().map(|word| i16::from_be_bytes(*word)).collect();
    let [_, weight, sign, _, digits @ ..] = words.as_slice() else { return None };
    let mut number: i128 = 0;
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
    Longs(Longs<'a>),
    /// `oid[]`
    Oids(&'a [u32]),
    /// `text[]`
    Texts(&'a [String]),
}

/// Thousands of whole numbers. The driver writes any array into a buffer that grows meanwhile, and takes more than twice the
/// instructions (callgrind).
#[derive(Debug, Clone, Copy)]
pub struct Longs<'a>(pub &'a [i64]);

impl ToSql for Longs<'_> {
    /// As `array_recv` reads it: one dimension, no NULL, the type of its elements, how many, the first one's number; then of
    /// each its length and itself.
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        const BYTES: [u8; 4] = 8i32.to_be_bytes();
        let [dimensions, nulls, first] = [1i32, 0, 1];
        let count = i32::try_from(self.0.len())?;
        let head = [dimensions, nulls, Type::INT8.oid().cast_signed(), count, first];
        out.reserve(4 * head.len() + (BYTES.len() + 8) * self.0.len());
        for number in head {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for number in self.0 {
            out.extend_from_slice(&BYTES);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::INT8_ARRAY
    }

    to_sql_checked!();
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
        assert_eq!(T::from_cell(Raw { kind: &kind, bytes }), want, "{kind} {bytes:?}");
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
    fn whole_numbers_are_sent_as_the_driver_would_send_them() {
        for numbers in [&[][..], &[7], &[i64::MIN, -1, 0, i64::MAX]] {
            let (mut ours, mut drivers) = (BytesMut::new(), BytesMut::new());
            assert!(matches!(Longs(numbers).to_sql_checked(&Type::INT8_ARRAY, &mut ours), Ok(IsNull::No)));
            numbers.to_sql(&Type::INT8_ARRAY, &mut drivers).expect("an array");
            // Of none the driver says one dimension of length 0, and so do we.
            assert_eq!(ours, drivers, "{numbers:?}");
        }
        assert!(Longs(&[1]).to_sql_checked(&Type::INT4_ARRAY, &mut BytesMut::new()).is_err());
    }

    #[test]
    fn records_are_read_to_the_last_byte_or_not_at_all() {
        let one =
            [&[0, 0, 0, 2][..], &[0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 0, 7], &[0, 0, 0, 25, 255, 255, 255, 255]].concat();
        let two = [one.as_slice(), &one].concat();
        let mut rest = two.as_slice();
        for _ in 0..2 {
            let record = Record::read(&mut rest).expect("whole");
            assert_eq!(record.cell::<i64>(0), Ok(7));
            assert_eq!(record.cell::<Option<String>>(1), Ok(None));
            assert!(record.cell::<String>(1).is_err() && record.cell::<i64>(2).is_err());
        }
        assert!(rest.is_empty());
        for end in 0..one.len() {
            assert!(Record::read(&mut &one[..end]).is_none(), "{end} bytes");
        }
        assert!(Record::read(&mut &[255, 255, 255, 255][..]).is_some_and(|record| record.0.is_empty()));
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
