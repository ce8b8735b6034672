//! Settings, limits and the way to the server, as far as they decide how much the agent can see.

use std::net::IpAddr;

use super::{
    Finding, Mend, login,
    words::{name, text},
};
use crate::{
    config::Config,
    postgres::{Circumstances, Identity},
};

/// Bytes of a statement that should be kept: the usual 1,024 cut what frameworks write.
const QUERY_SIZE: i64 = 4_096;

pub(super) fn look(identity: &Identity, seen: &Circumstances, config: &Config) -> Vec<Finding> {
    let mut findings = vec![way(seen), place(identity, seen)];
    if identity.pooled {
        findings.push(pooler(identity, seen));
    }
    if seen.superuser {
        let role = name(&identity.role);
        let sql = format!("ALTER ROLE {role} NOSUPERUSER;\nGRANT pg_monitor TO {role};");
        let cause = format!("the role {} is a superuser: it may do more than look", identity.role);
        findings.push(Finding::warning("postgres.superuser", cause, Mend::Sql(sql)));
    }
    findings.push(connections(identity, seen, config));
    findings.extend(tracking(seen));
    findings
}

/// Whether what is said can be overheard.
fn way(seen: &Circumstances) -> Finding {
    const ID: &str = "postgres.tls";
    let own = |address: &String| address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match (&seen.client_address, seen.tls) {
        (_, true) => {
            let words = [&seen.tls_version, &seen.tls_cipher].map(|word| word.as_deref().unwrap_or_default());
            Finding::ok(ID, format!("{} with {}", words[0], words[1]))
        }
        (None, false) => Finding::ok(ID, "a socket of this host"),
        (Some(address), false) if own(address) => Finding::ok(ID, "plain text, and it does not leave this host"),
        (Some(_), false) => {
            let mend =
                "sslmode=verify-full in postgres.url, and ssl = on in postgresql.conf where the server has no TLS";
            Finding::warning(ID, "texts of queries come over the network in plain text", Mend::Words(mend.into()))
        }
    }
}

fn place(identity: &Identity, seen: &Circumstances) -> Finding {
    const ID: &str = "postgres.recovery";
    match (identity.in_recovery, seen.replay_paused) {
        (false, _) => Finding::ok(ID, "a primary"),
        (true, false) => Finding::ok(ID, "a standby"),
        (true, true) => {
            let mend = Mend::Sql(Circumstances::RESUME_REPLAY.into());
            Finding::warning(ID, "a standby that has stopped to replay: what it shows grows old", mend)
        }
    }
}

fn pooler(identity: &Identity, seen: &Circumstances) -> Finding {
    let cause = "a pooler stands between, and passes the agent's limits on for one transaction at a time only";
    // A socket of the server's may be out of reach from here; its address is what the pooler itself uses.
    let socket = seen.socket_directories.as_deref().and_then(|all| all.split(',').next()).map(str::trim);
    let host = seen.server_address.as_deref().or(socket.filter(|folder| !folder.is_empty()));
    let mend = match host {
        Some(host) => {
            let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
            let (host, database, role) = (quoted(host), quoted(&identity.database), quoted(&identity.role));
            let url = format!("host={host} port={} dbname={database} user={role}", seen.port);
            Mend::setting("postgres", "url", &text(&url))
        }
        None => Mend::Words("name the server's own host and port in postgres.url".into()),
    };
    Finding::warning("postgres.pooler", cause, mend)
}

fn connections(identity: &Identity, seen: &Circumstances, config: &Config) -> Finding {
    const ID: &str = "postgres.connections";
    let wanted = i64::try_from(config.postgres.pool_size).unwrap_or(i64::MAX);
    if (0..wanted).contains(&seen.role_limit) {
        let cause = format!(
            "the role {} may have {} connections, and postgres.pool_size is {wanted}",
            identity.role, seen.role_limit
        );
        let sql = format!("ALTER ROLE {} CONNECTION LIMIT {};", name(&identity.role), wanted + 1);
        return Finding::warning(ID, cause, Mend::Sql(sql));
    }
    let free = seen.connections_max - seen.connections;
    if free < wanted {
        let cause =
            format!("{} of {} connections are in use: the agent may find none", seen.connections, seen.connections_max);
        return Finding::warning(ID, cause, Mend::Shell(login::more_connections()));
    }
    Finding::ok(ID, format!("{} of {} are in use", seen.connections, seen.connections_max))
}

/// What the server does not keep of statements.
fn tracking(seen: &Circumstances) -> Vec<Finding> {
    let reload = |sql: &str| Mend::Sql(format!("ALTER SYSTEM SET {sql};\nSELECT pg_reload_conf();"));
    let mut findings = vec![
        if seen.track_activities {
            Finding::ok("postgres.track_activities", "on")
        } else {
            let cause = "track_activities is off: nobody sees what sessions do";
            Finding::warning("postgres.track_activities", cause, reload("track_activities = on"))
        },
        if seen.track_io_timing {
            Finding::ok("postgres.track_io_timing", "on")
        } else {
            let cause = "track_io_timing is off: the times of reads and writes are all 0";
            Finding::warning("postgres.track_io_timing", cause, reload("track_io_timing = on"))
        },
        if seen.query_size >= QUERY_SIZE {
            Finding::ok("postgres.query_size", format!("{} bytes of a statement are kept", seen.query_size))
        } else {
            let cause = format!("track_activity_query_size is {}: what is longer is cut", seen.query_size);
            let shell = format!(
                "psql -Xqc 'ALTER SYSTEM SET track_activity_query_size = {QUERY_SIZE}' && systemctl restart postgresql"
            );
            Finding::warning("postgres.query_size", cause, Mend::Shell(shell))
        },
    ];
    match seen.compute_query_id.as_deref() {
        Some("off") => {
            let cause = "compute_query_id is off: sessions cannot be joined with their statements, and none is counted";
            findings.push(Finding::warning("postgres.query_id", cause, reload("compute_query_id = 'auto'")));
        }
        Some(value) => findings.push(Finding::ok("postgres.query_id", format!("compute_query_id is {value}"))),
        None => {}
    }
    findings
}
