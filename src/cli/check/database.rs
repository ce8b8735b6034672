//! PostgreSQL: login, version, clock, and one look of each collector that is enabled.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::Finding;
use crate::{
    collectors::{CollectError, Context, Plan},
    config::Config,
    event::status,
    health::Health,
    postgres::{Database, Error, Session},
    spool::chain,
    units::Time,
};

/// The oldest and the newest major version that the agent was tried on.
const VERSIONS: (u32, u32) = (13, 18);

/// Clocks further apart make times of one host useless beside those of the other.
const CLOCKS_APART: Duration = Duration::from_secs(5);

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    const LOGIN: &str = "postgres.login";
    let retry = "set postgres.url, or the PG* variables, to a server that answers";
    let database = match Database::new(&config.postgres, &config.retry) {
        Ok(database) => database,
        Err(error) => return vec![Finding::failure(LOGIN, chain(&error), retry)],
    };
    let mut findings = Vec::new();
    let reached = match database.session("check").await {
        Ok(session) => {
            findings.extend(server(&session));
            true
        }
        Err(error) => {
            findings.push(Finding::failure(LOGIN, chain(&error), mend(&error, &config.postgres.conninfo.user)));
            false
        }
    };
    let context = Context { postgres: database, texts: config.privacy.clone(), health: Arc::new(Health::default()) };
    let deadline = config.postgres.statement_timeout * 2 + Duration::from_secs(10);
    let plans = config.collectors.plans.iter().filter(|plan| plan.enabled && plan.name != status::COLLECTOR);
    for plan in plans {
        match timeout(deadline, collector(plan, &context)).await {
            // That the server is away is told above, once.
            Ok(Err(CollectError::Postgres(_))) if !reached => {}
            Ok(looked) => findings.push(judge(plan, looked)),
            Err(_) => findings.push(judge(plan, Ok(Some("the look did not finish in time".into())))),
        }
    }
    findings
}

fn server(session: &Session) -> Vec<Finding> {
    let identity = session.identity();
    let role = identity.role.replace('"', "\"\"");
    let place = if identity.in_recovery { "a standby" } else { "a primary" };
    let mut findings = vec![Finding::ok(
        "postgres.login",
        format!("role {} in database {}, {place}", identity.role, identity.database),
    )];
    let (major, minor) = (identity.version_num / 10_000, identity.version_num % 10_000);
    let version = format!("PostgreSQL {major}.{minor}");
    findings.push(if major < VERSIONS.0 {
        Finding::failure("postgres.version", version, format!("upgrade to PostgreSQL {} or later", VERSIONS.0))
    } else if major > VERSIONS.1 {
        Finding::warning("postgres.version", format!("{version} is newer than this agent"), "upgrade the agent")
    } else {
        Finding::ok("postgres.version", version)
    });
    findings.push(if identity.sees_all {
        Finding::ok("postgres.rights", "sees all sessions and statements")
    } else {
        let cause = format!("what other roles do is hidden from the role {}", identity.role);
        Finding::warning("postgres.rights", cause, format!("GRANT pg_monitor TO \"{role}\";"))
    });
    if identity.pooled {
        let cause = "a pooler stands between, and passes the agent's limits on for one transaction at a time only";
        let mend = "name the server's own host and port in postgres.url";
        findings.push(Finding::warning("postgres.pooler", cause, mend));
    }
    let apart = Duration::from_micros(session.clock().0.abs_diff(Time::now().0));
    findings.push(if apart > CLOCKS_APART {
        let cause = format!("the server's clock and this host's are {} s apart", apart.as_secs());
        Finding::warning("clocks", cause, "timedatectl set-ntp true  # on the host whose clock is wrong")
    } else {
        Finding::ok("clocks", "the server's clock and this host's agree")
    });
    findings
}

/// Why a look brought less than it could, if it did.
async fn collector(plan: &Plan, context: &Context) -> Result<Option<String>, CollectError> {
    Ok(plan.make().look(context, usize::MAX).await?.degraded)
}

fn judge(plan: &Plan, looked: Result<Option<String>, CollectError>) -> Finding {
    let id = format!("collector.{}", plan.name);
    match looked {
        Ok(None) => Finding::ok(&id, "took a look"),
        Ok(Some(reason)) | Err(CollectError::Absent(reason)) => {
            let mend = statements(&reason).unwrap_or_else(|| "see the cause".into());
            Finding::warning(&id, reason, mend)
        }
        Err(error) => Finding::failure(&id, chain(&error), "see the cause, and the server's log"),
    }
}

/// The SQL in a reason that tells what mends it: from its first word to its last semicolon.
fn statements(reason: &str) -> Option<String> {
    let words = ["GRANT ", "CREATE EXTENSION", "ALTER "];
    let start = words.iter().filter_map(|word| reason.find(word)).min()?;
    let rest = reason.get(start..)?;
    Some(rest.rsplit_once(';').map_or(rest, |(sql, _)| sql).to_owned() + ";")
}

/// What mends a login that failed.
fn mend(error: &Error, role: &str) -> String {
    let role = role.replace('"', "\"\"");
    if error.to_string().contains("postgres.password_file") {
        return "make the file readable for the agent's user, or correct postgres.password_file".into();
    }
    match error.sqlstate() {
        Some("28P01") => "put the right password into postgres.password_file, PGPASSFILE or postgres.url",
        Some("28000") if error.to_string().contains("does not exist") => {
            return format!("CREATE ROLE \"{role}\" LOGIN; GRANT pg_monitor TO \"{role}\";");
        }
        Some("28000") if error.to_string().contains("not permitted to log in") => {
            return format!("ALTER ROLE \"{role}\" LOGIN;");
        }
        Some("28000") => "let the role in by a line in pg_hba.conf, then SELECT pg_reload_conf();",
        Some("3D000") => "name an existing database in postgres.url",
        Some("53300") => "raise max_connections, or close connections that nobody needs",
        Some("57P03") => "wait until the server has started",
        _ => "start the server, or set postgres.url or the PG* variables to one that answers",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: &str, want: Option<&str>) {
        assert_eq!(statements(reason).as_deref(), want, "{reason}");
    }

    #[test]
    fn the_sql_that_mends_is_found_in_a_reason() {
        check("hidden; as a superuser: GRANT pg_monitor TO \"a;b\";", Some("GRANT pg_monitor TO \"a;b\";"));
        check("missing: CREATE EXTENSION pg_stat_statements; and more", Some("CREATE EXTENSION pg_stat_statements;"));
        check("2 rows could not be read", None);
    }
}
