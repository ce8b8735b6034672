//! What a connection string means, against libpq itself: each case is run by libpq and by the agent's own code against
//! the same real servers, and both have to come to the same end: in, as the same role, in the same database of the same
//! server, with the same protection; or out, for the same kind of reason.
//!
//! `cases` is the table, `reasons` says which words mean the same. Variables and home folder are the case's own.

mod cases;
mod certificates;
mod judge;
mod parsers;
mod reasons;
mod stands;

use std::{collections::BTreeMap, time::Duration};

use postgres_agent::{
    backoff,
    postgres::{
        Config, Database,
        conninfo::{self, Environment},
    },
    settings::Reader,
};

use cases::{CASES, Case, DIFFERENT, Different};
use judge::Judge;
use stands::Stands;

/// The row that a connection brought, or why there is none.
type Outcome = Result<String, String>;

/// Who, where, on which server, and how protected.
const LOOK: &str = "SELECT concat_ws(' ', current_user, current_database(), inet_server_port(), pg_is_in_recovery(), \
                    coalesce(t.version, 'plain'), t.client_dn) \
                    FROM (VALUES (1)) v LEFT JOIN pg_stat_ssl t ON t.pid = pg_backend_pid() AND t.ssl";

/// The agent's own way, with a database of its own.
async fn connect(text: &str, environment: &BTreeMap<String, String>) -> Outcome {
    let environment = Environment {
        variables: environment.clone(),
        user: Some(stands::user()),
        home: environment.get("HOME").map(Into::into),
    };
    let conninfo = conninfo::resolve(text, &environment)?;
    let config = Config { conninfo, password_file: None, pool_size: 1, statement_timeout: Duration::from_secs(10) };
    let retry: backoff::Config = Reader::new(BTreeMap::new()).section("retry");
    let database = Database::new(&config, &retry).unwrap();
    let told = |error: postgres_agent::postgres::Error| error.to_string();
    let mut session = database.session("test").await.map_err(told)?;
    let rows = session.query("test", LOOK, &[]).await.map_err(told)?;
    rows[0].get::<String>(0).map_err(told)
}

/// What is wrong with an outcome that should be `want`: `in WORDS` of the row, or a reason.
fn wrong(who: &str, outcome: &Outcome, want: &str) -> Option<String> {
    let fits = match (outcome, want.strip_prefix("in")) {
        (Ok(row), Some(words)) => {
            words.split_whitespace().all(|word| row.split(' ').any(|part| part.starts_with(word)))
        }
        (Err(why), None) => reasons::is(want, who, why),
        _ => false,
    };
    (!fits).then(|| format!("{who}: {outcome:?} is not {want:?}"))
}

/// Both outcomes of a case, and all that is wrong with them.
async fn run(stands: &mut Stands, judge: &mut Judge, case: &Case) -> (Outcome, Outcome) {
    stands.show(case.shown);
    let text = stands.filled(case.text);
    let environment = stands.environment(case);
    (judge.connect(&text, &environment, LOOK), connect(&text, &environment).await)
}

/// What is wrong with a case that has to end the same way.
async fn same(stands: &mut Stands, judge: &mut Judge, case: &Case) -> Option<String> {
    let (judges, agents) = run(stands, judge, case).await;
    let mut found = vec![wrong("libpq", &judges, case.want), wrong("agent", &agents, case.want)];
    if judges.is_ok() && judges != agents {
        found.push(Some(format!("libpq: {judges:?}, agent: {agents:?}")));
    }
    if agents.as_ref().is_err_and(|why| why.contains('\n') || why.contains("secret")) {
        found.push(Some(format!("agent: {agents:?} is not one line without a secret")));
    }
    let found: Vec<_> = found.into_iter().flatten().collect();
    let Case { shown, text, variables, home, .. } = case;
    (!found.is_empty()).then(|| format!("[{shown}] {text:?} {variables:?} ~{home}\n    {}", found.join("\n    ")))
}

/// What is wrong with a case that has to end differently.
async fn different(stands: &mut Stands, judge: &mut Judge, different: &Different) -> Option<String> {
    let Different { case, agent, why } = different;
    let (judges, agents) = run(stands, judge, case).await;
    let found: Vec<_> =
        [wrong("libpq", &judges, case.want), wrong("agent", &agents, agent)].into_iter().flatten().collect();
    (!found.is_empty()).then(|| format!("{:?} ({why})\n    {}", case.text, found.join("\n    ")))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_as_with_libpq_itself_but_for_those_that_say_why_not() {
    let (mut stands, mut judge) = (Stands::start(), Judge::start());
    let mut complaints = Vec::new();
    for case in CASES {
        complaints.extend(same(&mut stands, &mut judge, case).await);
    }
    println!("figure: {} of {} cases end as with libpq", CASES.len() - complaints.len(), CASES.len());
    println!("figure: {} cases differ on purpose", DIFFERENT.len());
    for case in DIFFERENT {
        complaints.extend(different(&mut stands, &mut judge, case).await);
    }
    assert!(complaints.is_empty(), "{} cases:\n{}", complaints.len(), complaints.join("\n"));
    assert!(CASES.len() >= 120, "{} cases", CASES.len());
}
