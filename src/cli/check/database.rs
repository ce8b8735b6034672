//! PostgreSQL: login, TLS, version, clock, rights and limits, and one look of each collector that is enabled.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Finding, Mend, extension, login, settings, words::name};
use crate::{
    collectors::{CollectError, Context, Looked, Plan},
    config::Config,
    event::{Payload, status},
    health::Health,
    postgres::{Circumstances, Database, Session},
    spool::chain,
    units::Time,
};

/// The oldest and the newest major version that the agent was tried on.
const VERSIONS: (u32, u32) = (13, 18);

/// Clocks further apart make times of one host useless beside those of the other.
const CLOCKS_APART: Duration = Duration::from_secs(5);

/// What a message has beside its events, and one of `agent_status` in all: bytes, about.
const ENVELOPE: usize = 600;
const STATUS: usize = 4_000;

/// What is found, and how many bytes of messages a second all collectors together would make.
pub(super) async fn look(config: &Config) -> (Vec<Finding>, f64) {
    let database = match Database::new(&config.postgres, &config.retry) {
        Ok(database) => database,
        Err(error) => return (vec![login::finding(&error, &config.postgres)], 0.0),
    };
    let mut findings = Vec::new();
    let reached = match database.session("check").await {
        Ok(mut session) => {
            findings.extend(server(&mut session, config).await);
            true
        }
        Err(error) => {
            findings.push(login::finding(&error, &config.postgres));
            false
        }
    };
    let context = Context { postgres: database, texts: config.privacy.clone(), health: Arc::new(Health::default()) };
    let deadline = config.postgres.statement_timeout * 2 + Duration::from_secs(10);
    let mut rate = 0.0;
    for plan in config.collectors.plans.iter().filter(|plan| plan.enabled) {
        if plan.name == status::COLLECTOR {
            rate += STATUS as f64 / plan.interval.as_secs_f64();
            continue;
        }
        let looked = match timeout(deadline, plan.make().look(&context, usize::MAX)).await {
            // That the server is away is told above, once.
            Ok(Err(CollectError::Postgres(_))) if !reached => continue,
            Ok(looked) => looked,
            Err(_) => {
                let cause = "the look did not finish in time";
                let mend =
                    Mend::Words("see what keeps the server from answering, in pg_stat_activity and its log".into());
                findings.push(Finding::warning(&id(plan), cause, mend));
                continue;
            }
        };
        rate += looked.as_ref().map_or(0.0, |looked| bytes(looked) as f64 / plan.interval.as_secs_f64());
        findings.push(judge(plan, looked));
    }
    (findings, rate)
}

fn bytes(looked: &Looked) -> usize {
    match &looked.payload {
        Payload::Events(events) => ENVELOPE + events.iter().map(Vec::len).sum::<usize>(),
        Payload::Status(_) => STATUS,
    }
}

async fn server(session: &mut Session, config: &Config) -> Vec<Finding> {
    let identity = session.identity().clone();
    let clock = session.clock();
    let mut findings = vec![
        Finding::ok("postgres.login", format!("role {} in database {}", identity.role, identity.database)),
        version(identity.version_num),
    ];
    findings.push(if identity.sees_all {
        Finding::ok("postgres.rights", "sees all sessions and statements")
    } else {
        let cause = format!("what other roles do is hidden from the role {}", identity.role);
        Finding::warning("postgres.rights", cause, Mend::Sql(format!("GRANT pg_monitor TO {};", name(&identity.role))))
    });
    findings.push(clocks(clock));
    match Circumstances::read(session).await {
        Ok(seen) => {
            findings.extend(settings::look(&identity, &seen, config));
            let evictions = seen.evictions(session).await;
            if config.collectors.plans.iter().any(|plan| plan.enabled && plan.name == "pg_statements") {
                findings.extend(extension::look(&identity, &seen, evictions));
            }
        }
        Err(error) => {
            let mend = Mend::Words("see the cause; what the server is set to could not be read".into());
            findings.push(Finding::warning("postgres.settings", chain(&error), mend));
        }
    }
    findings
}

fn version(version_num: u32) -> Finding {
    const ID: &str = "postgres.version";
    let (major, minor) = (version_num / 10_000, version_num % 10_000);
    let version = format!("PostgreSQL {major}.{minor}");
    if major < VERSIONS.0 {
        let words = format!("upgrade to PostgreSQL {} or later", VERSIONS.0);
        Finding::failure(ID, version, Mend::Words(words))
    } else if major > VERSIONS.1 {
        Finding::warning(ID, format!("{version} is newer than this agent"), Mend::Words("upgrade the agent".into()))
    } else {
        Finding::ok(ID, version)
    }
}

fn clocks(servers: Time) -> Finding {
    let apart = Duration::from_micros(servers.0.abs_diff(Time::now().0));
    if apart <= CLOCKS_APART {
        return Finding::ok("clocks", "the server's clock and this host's agree");
    }
    let cause = format!("the server's clock and this host's are {} s apart", apart.as_secs());
    // On the host whose clock is wrong.
    Finding::warning("clocks", cause, Mend::Shell("timedatectl set-ntp true".into()))
}

fn id(plan: &Plan) -> String {
    format!("collector.{}", plan.name)
}

/// What a look says of its collector. What it lacks of the extension, of rights or because of a pooler is told by findings
/// of their own.
fn judge(plan: &Plan, looked: Result<Looked, CollectError>) -> Finding {
    let id = id(plan);
    let told = |reason: &str| ["GRANT pg_monitor", "a pooler stands between"].iter().any(|what| reason.contains(what));
    match looked.map(|looked| looked.degraded) {
        Ok(None) => Finding::ok(&id, "took a look"),
        Ok(Some(reason)) if told(&reason) => Finding::ok(&id, format!("took a look; {reason}")),
        Ok(Some(reason)) => Finding::warning(&id, reason, Mend::Words("see the cause".into())),
        Err(CollectError::Absent(reason)) => extension::absent(&reason),
        Err(error) => {
            let mend = Mend::Words("see the cause, and the server's log".into());
            Finding::failure(&id, chain(&error), mend)
        }
    }
}
