//! What is locked, as `pg_locks` tells it, and how an operator would write it. Pure.

use smol_str::{SmolStr, ToSmolStr, format_smolstr};

/// What somebody holds or waits for. Two locks are in each other's way only if these are the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Object {
    /// `relation`, `tuple`, `transactionid`, `advisory`, …
    pub locktype: SmolStr,
    /// The database's oid, 0 for what all databases share.
    pub database: Option<u32>,
    /// The relation that it is or belongs to.
    pub relation: Option<u32>,
    /// A page of the relation.
    pub page: Option<i32>,
    /// A tuple of the page.
    pub tuple: Option<i32>,
    /// A transaction that need not have an xid.
    pub virtualxid: Option<SmolStr>,
    /// A transaction that has one.
    pub transactionid: Option<u32>,
    /// A system catalog, or the upper half of an advisory key.
    pub classid: Option<u32>,
    /// An object in it, or the lower half of an advisory key.
    pub objid: Option<u32>,
    /// A column; of an advisory key, 1 if it is one number and 2 if it is two.
    pub objsubid: Option<i32>,
}

impl Object {
    /// What exactly is locked, where the relation does not say it.
    pub fn target(&self) -> Option<SmolStr> {
        let page = self.page.map(i32::cast_unsigned);
        match self.locktype.as_str() {
            "relation" | "extend" => None,
            "page" => page.map(|page| page.to_smolstr()),
            "tuple" => Some(format_smolstr!("({},{})", page?, self.tuple?)),
            "advisory" => self.advisory_key(),
            _ => self.others(),
        }
    }

    /// As it stands between the brackets of `pg_advisory_lock`: one number of 64 bits, or two of 32.
    fn advisory_key(&self) -> Option<SmolStr> {
        let (upper, lower) = (self.classid?, self.objid?);
        Some(if self.objsubid == Some(1) {
            (u64::from(upper) << 32 | u64::from(lower)).cast_signed().to_smolstr()
        } else {
            format_smolstr!("({}, {})", upper.cast_signed(), lower.cast_signed())
        })
    }

    /// All that is there, also of a kind that nobody has heard of yet: a transaction, or catalog and object.
    fn others(&self) -> Option<SmolStr> {
        let column = self.objsubid.filter(|column| *column != 0).map(|column| column.to_smolstr());
        let numbers = [self.transactionid, self.classid, self.objid].map(|number| number.map(|it| it.to_smolstr()));
        let parts: Vec<SmolStr> =
            [self.virtualxid.clone()].into_iter().chain(numbers).chain([column]).flatten().collect();
        if parts.is_empty() {
            // The oldest transaction of a database (frozenid).
            return self.database.map(|database| database.to_smolstr());
        }
        Some(parts.join("/").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(locktype: &str, object: Object, want: Option<&str>) {
        let object = Object { locktype: locktype.into(), database: Some(5), ..object };
        assert_eq!(object.target().as_deref(), want, "{object:?}");
    }

    #[test]
    fn a_target_is_written_as_an_operator_would_write_it() {
        let none = Object::default;
        check("relation", Object { relation: Some(16_384), ..none() }, None);
        check("extend", Object { relation: Some(16_384), ..none() }, None);
        check("page", Object { relation: Some(16_384), page: Some(-1), ..none() }, Some("4294967295"));
        check("tuple", Object { relation: Some(1), page: Some(7), tuple: Some(3), ..none() }, Some("(7,3)"));
        check("transactionid", Object { transactionid: Some(u32::MAX), ..none() }, Some("4294967295"));
        check("virtualxid", Object { virtualxid: Some("3/17".into()), ..none() }, Some("3/17"));
        check("spectoken", Object { transactionid: Some(745), objid: Some(2), ..none() }, Some("745/2"));
        check("frozenid", none(), Some("5"));
        check("object", Object { classid: Some(1262), objid: Some(5), objsubid: Some(0), ..none() }, Some("1262/5"));
        check("object", Object { classid: Some(1259), objid: Some(5), objsubid: Some(2), ..none() }, Some("1259/5/2"));
        check("of tomorrow", Object { objid: Some(9), ..none() }, Some("9"));
    }

    #[test]
    fn an_advisory_key_is_one_number_or_two() {
        let key = |classid, objid, objsubid| Object {
            classid: Some(classid),
            objid: Some(objid),
            objsubid: Some(objsubid),
            ..Object::default()
        };
        check("advisory", key(0, 42, 1), Some("42"));
        check("advisory", key(u32::MAX, u32::MAX, 1), Some("-1"));
        check("advisory", key(0x8000_0000, 0, 1), Some("-9223372036854775808"));
        check("advisory", key(1, 2, 2), Some("(1, 2)"));
        check("advisory", key(u32::MAX, 2, 2), Some("(-1, 2)"));
    }
}
