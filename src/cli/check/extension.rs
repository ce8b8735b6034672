//! The extension `pg_stat_statements`: loaded, created, usable, of the server's version, counting, and large enough.

use super::{
    Finding, Mend,
    words::{psql, word},
};
use crate::postgres::{Circumstances, Identity};

/// The view is full enough to throw entries away when it holds so many of a hundred.
const FULL_PERCENT: i64 = 90;

/// What is found of an extension that is there. `evictions`: entries in the view, and how often some were thrown away.
pub(super) fn look(identity: &Identity, seen: &Circumstances, evictions: Option<(i64, i64)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (Some(installed), Some(schema)) = (&seen.extension_version, &seen.extension_schema) else { return findings };
    findings.push(match seen.extension_available.as_ref().filter(|available| *available != installed) {
        None => Finding::ok("postgres.extension", format!("pg_stat_statements {installed} in schema {schema}")),
        Some(available) => {
            let cause = format!(
                "pg_stat_statements is of version {installed} in this database, and the server's is {available}"
            );
            let sql = "ALTER EXTENSION pg_stat_statements UPDATE;";
            Finding::warning("postgres.extension.version", cause, on_primary(identity, sql))
        }
    });
    if seen.statements_track.as_deref() == Some("none") {
        let sql = "ALTER SYSTEM SET pg_stat_statements.track = 'top';\nSELECT pg_reload_conf();";
        let cause = "pg_stat_statements.track is none: no statement is counted";
        findings.push(Finding::warning("postgres.extension.track", cause, Mend::Sql(sql.into())));
    }
    if let (Some(most), Some((entries, evicted))) = (seen.statements_max, evictions) {
        findings.push(size(most, entries, evicted));
    }
    findings
}

fn size(most: i64, entries: i64, evicted: i64) -> Finding {
    const ID: &str = "postgres.extension.size";
    if evicted > 0 && entries * 100 >= most * FULL_PERCENT {
        let cause = format!(
            "pg_stat_statements holds {entries} of {most} entries and threw some away {evicted} times: what they counted is lost"
        );
        let sql = format!("ALTER SYSTEM SET pg_stat_statements.max = {}", most.saturating_mul(2));
        return Finding::warning(ID, cause, Mend::Shell(format!("{} && systemctl restart postgresql", psql(&sql))));
    }
    Finding::ok(ID, format!("{entries} of {most} entries"))
}

/// On a standby the primary has to be told.
fn on_primary(identity: &Identity, sql: &str) -> Mend {
    if identity.in_recovery { Mend::Words(format!("on the primary: {sql}")) } else { Mend::Sql(sql.into()) }
}

/// What the collector says of an extension that it cannot use.
pub(super) fn absent(reason: &str) -> Finding {
    let ids = [
        ("is not installed", "postgres.extension.installed"),
        ("is not loaded", "postgres.extension.preloaded"),
        ("does not exist in the database", "postgres.extension"),
        ("may not use the schema", "postgres.extension.rights"),
        ("may not call", "postgres.extension.rights"),
    ];
    let id = ids.iter().find(|(words, _)| reason.contains(words)).map_or("collector.pg_statements", |(_, id)| id);
    let mend = match statement(reason) {
        _ if reason.contains("on the primary") => Mend::Words(reason.to_owned()),
        Some(sql) if id == "postgres.extension.preloaded" => {
            Mend::Shell(format!("psql -Xqc {} && systemctl restart postgresql", word(sql.trim_end_matches(';'))))
        }
        Some(sql) => Mend::Sql(sql),
        None => Mend::Words("see the cause".into()),
    };
    Finding::warning(id, reason, mend)
}

/// The SQL in a reason that tells what mends it: from its first word to its last semicolon.
fn statement(reason: &str) -> Option<String> {
    let words = ["GRANT ", "CREATE EXTENSION", "ALTER "];
    let start = words.iter().filter_map(|word| reason.find(word)).min()?;
    let rest = reason.get(start..)?;
    Some(rest.rsplit_once(';').map_or(rest, |(sql, _)| sql).to_owned() + ";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: &str, id: &str, want: &str, place: Option<&str>) {
        let finding = absent(reason);
        let mend = finding.mend.expect("it is not ok");
        assert_eq!((finding.id.as_str(), mend.text(), mend.place()), (id, want, place));
    }

    #[test]
    fn what_the_extension_lacks_is_a_finding_with_the_statement_that_mends_it() {
        let preloaded = "pg_stat_statements is not loaded; as a superuser: ALTER SYSTEM SET shared_preload_libraries = \
                         'auto_explain', 'pg_stat_statements'; and restart the server";
        let shell = r"psql -Xqc 'ALTER SYSTEM SET shared_preload_libraries = '\''auto_explain'\'', '\''pg_stat_statements'\''' && systemctl restart postgresql";
        check(preloaded, "postgres.extension.preloaded", shell, Some("shell"));
        let created = "the extension pg_stat_statements does not exist in the database \"d\"; there, as a superuser: \
                       CREATE EXTENSION pg_stat_statements;";
        check(created, "postgres.extension", "CREATE EXTENSION pg_stat_statements;", Some("psql"));
        let usage = "the role may not use the schema of pg_stat_statements; as its owner: GRANT USAGE ON SCHEMA \"a;b\" TO \"r\";";
        check(usage, "postgres.extension.rights", "GRANT USAGE ON SCHEMA \"a;b\" TO \"r\";", Some("psql"));
        check("2 rows could not be read", "collector.pg_statements", "see the cause", None);
    }

    #[test]
    fn a_view_that_is_full_and_throws_away_is_too_small() {
        assert_eq!(size(100, 95, 0).mend, None);
        assert_eq!(size(100, 50, 7).mend, None, "what was thrown away was so before it was made larger");
        let full = size(100, 95, 7).mend.expect("too small");
        assert_eq!(
            full.text(),
            "psql -Xqc 'ALTER SYSTEM SET pg_stat_statements.max = 200' && systemctl restart postgresql"
        );
    }
}
