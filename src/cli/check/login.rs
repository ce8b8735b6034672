//! Why nobody could log in to PostgreSQL, and what mends it: each of the server's refusals is a finding of its own.

use std::path::Path;

use super::{
    Finding, Mend,
    words::{name, psql, user, word},
};
use crate::{
    postgres::{Config, Error},
    secret::Secret,
    spool::chain,
};

/// What a login that failed says.
pub(super) fn finding(error: &Error, config: &Config) -> Finding {
    let cause = chain(error);
    if let Some(finding) = config.password_file.as_ref().and_then(|file| unreadable(file)) {
        return finding;
    }
    let (id, mend) = match error {
        Error::Refused { message, sqlstate, .. } => refused(message, sqlstate, config),
        _ if cause.contains("has no TLS") => {
            ("postgres.tls", Mend::Sql("ALTER SYSTEM SET ssl = on;\nSELECT pg_reload_conf();".into()))
        }
        _ if cause.contains("TLS:") || cause.contains("certificate") => {
            let words = "see the cause: name the authority of the server's certificate by sslrootcert in postgres.url, the \
                         host that it is for, or renew it";
            ("postgres.tls.certificate", Mend::Words(words.into()))
        }
        _ if ["refused", "No such file"].iter().any(|why| cause.contains(why)) => {
            ("postgres.reachable", Mend::Shell("systemctl start postgresql".into()))
        }
        _ => {
            let words = "see whether host and port in postgres.url, or in the PG* variables, are those of the server, and \
                         whether something between drops packets";
            ("postgres.reachable", Mend::Words(words.into()))
        }
    };
    Finding::failure(id, cause, mend)
}

/// The password file, if it cannot be read.
fn unreadable(file: &Path) -> Option<Finding> {
    let error = Secret::from_file(file).err()?;
    let shown = word(&file.display().to_string());
    let mend = if file.exists() {
        Mend::Shell(format!("chown {} {shown} && chmod 0600 {shown}", user()))
    } else {
        Mend::Words(format!("write the role's password into {}", file.display()))
    };
    Some(Finding::failure("postgres.password_file", format!("{}: {error}", file.display()), mend))
}

fn refused(message: &str, sqlstate: &str, config: &Config) -> (&'static str, Mend) {
    let user = &config.conninfo.user;
    let role = name(user);
    match sqlstate {
        "28P01" => ("postgres.login", password(&role, config)),
        "28000" if message.contains("does not exist") => {
            ("postgres.role", Mend::Sql(format!("CREATE ROLE {role} LOGIN;\nGRANT pg_monitor TO {role};")))
        }
        "28000" if message.contains("not permitted to log in") => {
            ("postgres.role", Mend::Sql(format!("ALTER ROLE {role} LOGIN;")))
        }
        "28000" if message.contains("pg_hba.conf") => ("postgres.hba", Mend::Shell(rule(message, user, config))),
        "3D000" => {
            let sql = format!("CREATE DATABASE {};", name(&config.conninfo.dbname));
            ("postgres.database", Mend::Shell(format!("{} postgres", psql(&sql))))
        }
        "53300" if message.contains("too many connections for role") => {
            let limit = config.pool_size + 1;
            ("postgres.connections", Mend::Sql(format!("ALTER ROLE {role} CONNECTION LIMIT {limit};")))
        }
        "53300" => ("postgres.connections", Mend::Shell(more_connections())),
        "57P03" => ("postgres.reachable", Mend::Words("wait until the server has started".into())),
        _ => ("postgres.login", Mend::Words("see the cause, and the server's log".into())),
    }
}

/// Doubles what all roles together may have.
pub(super) fn more_connections() -> String {
    "psql -Xqc \"ALTER SYSTEM SET max_connections = $(( $(psql -XAtc 'SHOW max_connections') * 2 ))\" && systemctl restart \
     postgresql"
        .into()
}

/// Sets the role's password to the one in the file, without showing it to anybody.
fn password(role: &str, config: &Config) -> Mend {
    match &config.password_file {
        Some(file) => {
            let (sql, file) = (word(&format!("ALTER ROLE {role} PASSWORD :'word'")), word(&file.display().to_string()));
            Mend::Shell(format!("echo {sql} | psql -Xq -v word=\"$(cat {file})\""))
        }
        None => Mend::Words(format!(
            "put the right password into postgres.password_file, PGPASSFILE or postgres.url; or set another one in psql by \
             \\password {role}"
        )),
    }
}

/// Lets the role in, before any line that would keep it out.
fn rule(message: &str, user: &str, config: &Config) -> String {
    let quoted =
        |begin: &str| message.split_once(begin).and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| name);
    let from = match quoted("for host \"") {
        Some(host) if host.parse::<std::net::IpAddr>().is_ok() => {
            format!(
                "host {} {} {host}/{} scram-sha-256",
                name(&config.conninfo.dbname),
                name(user),
                if host.contains(':') { 128 } else { 32 }
            )
        }
        _ => format!("local {} {} peer", name(&config.conninfo.dbname), name(user)),
    };
    format!(
        "sed -i {} \"$(psql -XAtc 'SHOW hba_file')\" && psql -XAtc 'SELECT pg_reload_conf()'",
        word(&format!("1i {from}"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: &str, sqlstate: &str, id: &str, want: &str) {
        let config =
            crate::config::load_from(None, &[("PGX".into(), "".into())], None).expect("the defaults").config.postgres;
        let (got, mend) = refused(message, sqlstate, &config);
        assert_eq!(got, id, "{message}");
        assert!(mend.text().contains(want), "{message}: {mend:?}");
    }

    #[test]
    fn each_refusal_has_a_finding_and_what_mends_it() {
        check("role \"x\" does not exist", "28000", "postgres.role", "CREATE ROLE \"");
        check("role \"x\" is not permitted to log in", "28000", "postgres.role", " LOGIN;");
        let host = "no pg_hba.conf entry for host \"10.0.0.7\", user \"x\", database \"y\", no encryption";
        check(host, "28000", "postgres.hba", "10.0.0.7/32 scram-sha-256");
        check("pg_hba.conf rejects connection for host \"::1\", user \"x\"", "28000", "postgres.hba", "::1/128 ");
        check("no pg_hba.conf entry for host \"[local]\", user \"x\"", "28000", "postgres.hba", "local ");
        check("database \"x\" does not exist", "3D000", "postgres.database", "CREATE DATABASE \"");
        check("too many connections for role \"x\"", "53300", "postgres.connections", "CONNECTION LIMIT 3;");
        check("sorry, too many clients already", "53300", "postgres.connections", "max_connections");
        check("the database system is starting up", "57P03", "postgres.reachable", "wait");
    }
}
