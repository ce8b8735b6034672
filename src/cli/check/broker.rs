//! The broker: login, the exchange, and with `--probe` a queue for each routing key. With `amqp.declare` an exchange that is
//! missing is ok: `run` makes it, this does not.

use std::collections::BTreeSet;

use super::Finding;
use crate::{
    amqp::{Connection, Error, Probed, Unroutable},
    config::Config,
    spool::chain,
};

pub(super) async fn look(config: &Config, probing: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in 0..config.amqp.urls.len().max(1) {
        let id = if node == 0 { "amqp.login".to_owned() } else { format!("amqp.login.{node}") };
        match Connection::login(&config.amqp, node).await {
            Ok(connection) => {
                findings.push(Finding::ok(&id, format!("logged in to {}", connection.node())));
                // Nodes of one cluster have one exchange: the first that answers tells.
                if !findings.iter().any(|finding| finding.id == EXCHANGE) {
                    let make = Make { config, vhost: vhost(config, node) };
                    findings.push(exchange(&connection, config, &make).await);
                    for key in routing_keys(config).iter().filter(|_| probing) {
                        findings.push(route(&connection, key, &make).await);
                    }
                }
                connection.close().await;
            }
            Err(error) => findings.push(Finding::failure(&id, chain(&error), mend(&error))),
        }
    }
    findings
}

const EXCHANGE: &str = "amqp.exchange";

fn vhost(config: &Config, node: usize) -> String {
    config.amqp.node(node).map_or_else(|_| "/".into(), |uri| uri.vhost)
}

async fn exchange(connection: &Connection, config: &Config, make: &Make<'_>) -> Finding {
    let name = &config.amqp.exchange;
    match connection.has_exchange(&config.amqp).await {
        Ok(true) => {}
        Ok(false) if config.amqp.declare => return Finding::ok(EXCHANGE, format!("{name:?} will be declared")),
        Ok(false) => return Finding::failure(EXCHANGE, format!("{name:?} does not exist"), make.exchange()),
        Err(error) => return Finding::failure(EXCHANGE, chain(&error), make.exchange()),
    }
    // It is there: declaring it again changes nothing, and tells whether it is the one that is meant.
    match connection.see_exchange(&config.amqp).await {
        Ok(()) => Finding::ok(EXCHANGE, format!("{name:?} is there")),
        Err(error) => Finding::failure(EXCHANGE, chain(&error), "see the cause; or name another one in amqp.exchange"),
    }
}

/// What the messages of the enabled collectors are routed by, each once.
fn routing_keys(config: &Config) -> BTreeSet<String> {
    // A configuration whose routing key cannot be filled in was refused before.
    let key = config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels);
    let key = key.unwrap_or_else(|_| config.amqp.routing_key.clone());
    config.collectors.plans.iter().filter(|plan| plan.enabled).map(|plan| key.of(plan.name)).collect()
}

/// Whether a queue is bound for a routing key.
async fn route(connection: &Connection, key: &str, make: &Make<'_>) -> Finding {
    let id = format!("amqp.route.{key}");
    let config = &make.config.amqp;
    match connection.probe(config, key).await {
        Ok(Probed::Bound) => Finding::ok(&id, "a queue is bound"),
        Ok(Probed::Unbound) => {
            let fate = match config.unroutable {
                Unroutable::Keep => "its messages wait in the spool",
                Unroutable::Discard => "its messages are declared lost",
            };
            let cause = format!("no queue is bound to exchange {:?} for it: {fate}", config.exchange);
            Finding::failure(&id, cause, make.queue(key))
        }
        Ok(Probed::Refused) => {
            let mend = "make room in the queue: consume from it, or raise its max-length";
            Finding::failure(&id, "the broker refused the probe (nack): a queue is full, or has failed", mend)
        }
        Err(error) if error.code() == Some(404) => {
            let cause = format!("exchange {:?} does not exist, so no queue is bound to it", config.exchange);
            Finding::failure(&id, cause, format!("{} && {}", make.exchange(), make.queue(key)))
        }
        Err(error) if error.code() == Some(403) => Finding::failure(&id, chain(&error), make.rights()),
        Err(error) => Finding::failure(&id, chain(&error), "see the cause, and the broker's log"),
    }
}

/// The commands that make what is missing.
struct Make<'a> {
    config: &'a Config,
    vhost: String,
}

impl Make<'_> {
    fn admin(&self) -> String {
        if self.vhost == "/" { "rabbitmqadmin".into() } else { format!("rabbitmqadmin --vhost={}", word(&self.vhost)) }
    }

    fn exchange(&self) -> String {
        format!("{} declare exchange name={} type=topic durable=true", self.admin(), word(&self.config.amqp.exchange))
    }

    /// A queue and its binding; who has a queue already leaves the first half out.
    fn queue(&self, key: &str) -> String {
        let (admin, source, key) = (self.admin(), word(&self.config.amqp.exchange), word(key));
        format!(
            "{admin} declare queue name=postgres-agent durable=true && {admin} declare binding source={source} \
             destination_type=queue destination=postgres-agent routing_key={key}"
        )
    }

    fn rights(&self) -> String {
        let user = self.config.amqp.node(0).map_or_else(|_| "<user>".into(), |uri| uri.authority.userinfo.username);
        set_permissions(&self.vhost, &user)
    }
}

/// What mends a login that failed.
fn mend(error: &Error) -> String {
    match error {
        Error::Refused { vhost, user, reason, .. } if reason.contains(&format!("vhost {vhost} not found")) => {
            format!("rabbitmqctl add_vhost {} && {}", word(vhost), set_permissions(vhost, user))
        }
        Error::Refused { user, reason, .. } if reason.contains("ACCESS_REFUSED") => {
            let user = word(user);
            format!(
                "rabbitmqctl change_password {user} <password>  # the one in amqp.url or amqp.password_file, or put the \
                 right one there; add_user where {user} does not exist"
            )
        }
        Error::Refused { vhost, user, .. } => set_permissions(vhost, user),
        Error::Config(_) => "make the file readable for the agent, or correct the [amqp] table".into(),
        _ => "start the broker, or set amqp.url to one that answers".into(),
    }
}

fn set_permissions(vhost: &str, user: &str) -> String {
    format!("rabbitmqctl set_permissions -p {} {} \"\" \".*\" \".*\"", word(vhost), word(user))
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: &str, want: &str) {
        let refused = Error::Refused { node: "n".into(), user: "u".into(), vhost: "v w".into(), reason: reason.into() };
        let got = mend(&refused);
        assert!(got.starts_with(want), "{reason}: {got}");
    }

    #[test]
    fn each_refusal_has_the_command_that_mends_it() {
        check("530 NOT_ALLOWED - vhost v w not found", "rabbitmqctl add_vhost 'v w' && rabbitmqctl set_permissions");
        check("530 NOT_ALLOWED - access to vhost 'v w' refused", "rabbitmqctl set_permissions -p 'v w' u");
        check("ACCESS_REFUSED - Login was refused using", "rabbitmqctl change_password u ");
    }

    #[test]
    fn a_word_of_a_shell_is_one_word() {
        assert_eq!([word("a.b-1"), word("a b"), word("it's"), word("#")], ["a.b-1", "'a b'", r"'it'\''s'", "'#'"]);
    }
}
