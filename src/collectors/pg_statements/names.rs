//! Names of the roles and databases that statements ran as and in.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;

use super::entries::Key;
use crate::postgres::{Error, Param, Session};

const NAMES: &str = include_str!("names.sql");

/// Names of roles and databases by their oids.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) roles: BTreeMap<u32, SmolStr>,
    pub(super) databases: BTreeMap<u32, SmolStr>,
}

impl Names {
    pub(super) async fn read(session: &mut Session, keys: &[Key]) -> Result<Self, Error> {
        let distinct = |oid: fn(&Key) -> u32| keys.iter().map(oid).collect::<BTreeSet<u32>>().into_iter().collect();
        let (roles, databases): (Vec<u32>, Vec<u32>) = (distinct(|key| key.userid), distinct(|key| key.dbid));
        let params = [Param::Oids(&roles), Param::Oids(&databases)];
        let mut names = Self::default();
        for row in session.query("pg_statements.names", NAMES, &params).await? {
            let of = if row.get::<String>("kind")? == "role" { &mut names.roles } else { &mut names.databases };
            of.insert(row.get("oid")?, row.get("name")?);
        }
        Ok(names)
    }
}
