//! Finding the extension: where it is, or what is missing and the exact statement that mends it.

use crate::{
    collectors::CollectError,
    postgres::{Identity, Row, Session},
};

const FIND: &str = include_str!("find.sql");
const COUNTERS: &str = include_str!("counters.sql");
const NO_INFO: &str = include_str!("no_info.sql");

/// The extension in the session's database.
#[derive(Debug, Clone)]
pub(super) struct Extension {
    /// Quoted where it needs to be.
    schema: String,
    /// Whether it tells of evictions and resets.
    info: bool,
    /// Such as 1.11; independent of the server's.
    version: String,
}

impl Extension {
    /// # Errors
    /// [`CollectError::Absent`] with what mends it.
    pub(super) async fn find(session: &mut Session) -> Result<Self, CollectError> {
        let rows = session.query("pg_statements.find", FIND, &[]).await?;
        let row = rows.first().ok_or_else(|| CollectError::Absent("the catalogs tell nothing".into()))?;
        let found = Found::read(row)?;
        found.missing(session.identity()).map_or(Ok(()), |what| Err(CollectError::Absent(what)))?;
        let version = row.get("version")?;
        Ok(Self { info: found.info, schema: found.schema.unwrap_or_default(), version })
    }

    /// Whether it is still the same: with another version come other keys.
    pub(super) fn is_version(&self, version: &str) -> bool {
        self.version == version
    }

    /// A statement with the extension's places put in.
    pub(super) fn fill(&self, sql: &str) -> String {
        let info = if self.info { format!("{}.pg_stat_statements_info()", self.schema) } else { NO_INFO.to_owned() };
        sql.replace("{counters}", COUNTERS).replace("{info}", &info).replace("{schema}", &self.schema)
    }
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "as the statement answers; each is a question of its own")]
struct Found {
    loaded: bool,
    preloaded: Option<String>,
    installed: bool,
    schema: Option<String>,
    usage: bool,
    executes: bool,
    info: bool,
}

impl Found {
    fn read(row: &Row) -> Result<Self, CollectError> {
        let known = |column: &str| row.get::<Option<bool>>(column).map(|value| value.unwrap_or(false));
        Ok(Self {
            loaded: known("loaded")?,
            preloaded: row.get("preloaded")?,
            installed: known("installed")?,
            schema: row.get("schema")?,
            usage: known("usage")?,
            executes: known("executes")?,
            info: known("info")?,
        })
    }

    /// What keeps the role from the extension, and what mends that.
    fn missing(&self, identity: &Identity) -> Option<String> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let (role, database) = (quoted(&identity.role), quoted(&identity.database));
        let primary = if identity.in_recovery { "on the primary, " } else { "" };
        if !self.installed {
            let major = identity.version_num / 10_000;
            return Some(format!(
                "pg_stat_statements is not installed on the server; it comes with PostgreSQL's contrib modules \
                 (postgresql-contrib, or postgresql{major}-contrib)"
            ));
        }
        if !self.loaded {
            let list = self.preloaded.as_deref().unwrap_or_default();
            let libraries = list.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
            let list: Vec<_> = libraries.chain(["pg_stat_statements"]).map(|name| format!("'{name}'")).collect();
            let unknown = match self.preloaded {
                Some(_) => "",
                None => " (with the libraries that are there already, which this role may not see)",
            };
            return Some(format!(
                "pg_stat_statements is not loaded; as a superuser: ALTER SYSTEM SET shared_preload_libraries = {}; \
                 and restart the server{unknown}",
                list.join(", ")
            ));
        }
        let Some(schema) = &self.schema else {
            return Some(format!(
                "the extension pg_stat_statements does not exist in the database {database}; {primary}there, as a \
                 superuser: CREATE EXTENSION pg_stat_statements;"
            ));
        };
        if !self.usage {
            return Some(format!(
                "the role may not use the schema of pg_stat_statements; {primary}as its owner: GRANT USAGE ON SCHEMA \
                 {schema} TO {role};"
            ));
        }
        (!self.executes).then(|| {
            format!(
                "the role may not call pg_stat_statements; {primary}as its owner: GRANT EXECUTE ON ALL FUNCTIONS IN \
                 SCHEMA {schema} TO {role};"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Time;

    const ALL: Found = Found {
        loaded: true,
        preloaded: Some(String::new()),
        installed: true,
        schema: None,
        usage: true,
        executes: true,
        info: true,
    };

    #[track_caller]
    fn check(found: &Found, in_recovery: bool, want: Option<&str>) {
        let identity = Identity {
            system_identifier: "1".into(),
            timeline: 1,
            version_num: 170_004,
            in_recovery,
            database: "shop".into(),
            postmaster_start: Time(0),
            checkpointer_start: None,
            stats_reset: None,
            role: "the agent".into(),
            sees_all: true,
            pooled: false,
        };
        let told = found.missing(&identity);
        match want {
            None => assert_eq!(told, None),
            Some(want) => assert!(told.as_ref().is_some_and(|told| told.contains(want)), "{told:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_mends_it() {
        let schema = Some("public".to_owned());
        let there = Found { schema, ..ALL };
        check(&there, false, None);
        check(&Found { installed: false, ..ALL }, false, Some("postgresql-contrib"));
        check(&Found { loaded: false, ..ALL }, false, Some("shared_preload_libraries = 'pg_stat_statements';"));
        let preloaded = Some("auto_explain, \"$libdir/x\"".to_owned());
        check(&Found { loaded: false, preloaded, ..ALL }, false, {
            Some("= 'auto_explain', '$libdir/x', 'pg_stat_statements';")
        });
        check(&Found { loaded: false, preloaded: None, ..ALL }, false, Some("which this role may not see"));
        check(&ALL, false, Some("database \"shop\"; there, as a superuser: CREATE EXTENSION pg_stat_statements;"));
        check(&ALL, true, Some("; on the primary, there, as a superuser: CREATE EXTENSION"));
        let usage = Found { usage: false, ..there.clone() };
        check(&usage, false, Some("GRANT USAGE ON SCHEMA public TO \"the agent\";"));
        check(&Found { executes: false, ..there }, false, Some("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public"));
    }
}
