//! The broker: login, the exchange, and with `--probe` a queue for each routing key. With `amqp.declare` an exchange that is
//! missing is ok: `run` makes it, this does not.

use std::collections::BTreeSet;

use super::Finding;
use crate::{
    amqp::{self, Connection, Error, Probed, Unroutable},
    config::Config,
    spool::chain,
};

pub(super) async fn look(config: &Config, probing: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in 0..config.amqp.urls.len().max(1) {
        let id = if node == 0 { "amqp.login".to_owned() } else { format!("amqp.login.{node}") };
        let make = Make::at(config, node);
        match Connection::login(&config.amqp, node).await {
            Ok(connection) => {
                findings.push(logged_in(&id, connection.node(), config.amqp.is_overheard(node)));
                // Nodes of one cluster have one exchange: the first that answers tells.
                if !findings.iter().any(|finding| finding.id == EXCHANGE) {
                    findings.push(exchange(&connection, config, &make).await);
                    for key in routing_keys(config).iter().filter(|_| probing) {
                        findings.push(route(&connection, key, &make).await);
                    }
                }
                connection.close().await;
            }
            Err(error) => findings.push(Finding::failure(&id, chain(&error), make.mend(&error))),
        }
    }
    findings
}

fn logged_in(id: &str, node: &str, overheard: bool) -> Finding {
    let cause = format!("logged in to {node}");
    if overheard {
        let cause = format!("{cause}, and the password and all messages go there in plain text");
        return Finding::warning(id, cause, "write amqps://… in amqp.url");
    }
    Finding::ok(id, cause)
}

const EXCHANGE: &str = "amqp.exchange";

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
        Err(error) if error.to_string().contains("ACCESS_REFUSED") => {
            Finding::failure(EXCHANGE, chain(&error), make.rights())
        }
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
    /// `None` where the client certificate logs in: its name is the broker's to say.
    user: Option<String>,
}

impl<'a> Make<'a> {
    /// At node number `node`.
    fn at(config: &'a Config, node: usize) -> Self {
        // A URL that cannot be read was refused before.
        let (vhost, user) = config.amqp.login(node).unwrap_or_else(|_| ("/".into(), None));
        Self { config, vhost, user }
    }

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

    /// No more than the agent needs: to write to its exchange, and to declare it where it is to.
    fn rights(&self) -> String {
        let exchange = format!("^{}$", regex::escape(&self.config.amqp.exchange));
        let declare = if self.config.amqp.declare { exchange.as_str() } else { "" };
        let (vhost, user) = (word(&self.vhost), self.user());
        format!("rabbitmqctl set_permissions -p {vhost} {user} {} {} ''", word(declare), word(&exchange))
    }

    fn user(&self) -> String {
        word(self.user.as_deref().unwrap_or("<the certificate's name, as the broker's log says it>"))
    }

    /// What mends a login that failed.
    fn mend(&self, error: &Error) -> String {
        match error {
            Error::Tls { reason, .. } if reason == amqp::SPEAKS_TLS => "write amqps://… in amqp.url".into(),
            Error::Tls { .. } => tls(self.config),
            Error::Refused { reason, .. } => self.mend_login(reason),
            Error::Config(_) => "make the file usable for the agent, or correct the [amqp] table".into(),
            _ => "start the broker, or set amqp.url to one that answers".into(),
        }
    }

    fn mend_login(&self, reason: &str) -> String {
        if reason.contains(&format!("vhost {} not found", self.vhost)) {
            return match self.vhost.as_str() {
                "" => "end amqp.url with /%2f: that is the vhost \"/\"".into(),
                vhost => format!("rabbitmqctl add_vhost {} && {}", word(vhost), self.rights()),
            };
        }
        let user = self.user();
        match &self.user {
            Some(_) if reason.contains("ACCESS_REFUSED") => format!(
                "rabbitmqctl change_password {user} <password>  # the one in amqp.url or amqp.password_file, or put the \
                 right one there; add_user where {user} does not exist"
            ),
            None if reason.contains("ACCESS_REFUSED") => format!(
                "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl && echo 'auth_mechanisms.1 = EXTERNAL' >> \
                 rabbitmq.conf && rabbitmqctl add_user {user} '' && {}",
                self.rights()
            ),
            _ => self.rights(),
        }
    }
}

/// Where to look when TLS fails: the cause says which end is wrong.
fn tls(config: &Config) -> String {
    let trusted = match &config.amqp.tls.ca {
        Some(path) => format!("amqp.ca_file ({})", path.display()),
        None => "the host's trusted certificates, or name its authority in amqp.ca_file".into(),
    };
    format!(
        "see the cause; the broker's certificate has to be valid, for the host in amqp.url, and of an authority in \
         {trusted}; the agent's own is in amqp.cert_file and amqp.key_file"
    )
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
    fn check(user: Option<&str>, reason: &str, want: &str) {
        let mut config = crate::config::load_from(None, &[], None).expect("the defaults").config;
        config.amqp.exchange = "a.b".into();
        let make = Make { config: &config, vhost: "v w".into(), user: user.map(Into::into) };
        let got = make.mend_login(reason);
        assert!(got.starts_with(want), "{reason}: {got}");
    }

    #[test]
    fn each_refusal_has_the_command_that_mends_it() {
        let rights = r"rabbitmqctl set_permissions -p 'v w' u '^a\.b$' '^a\.b$' ''";
        let user = Some("u");
        check(user, "530 NOT_ALLOWED - vhost v w not found", &format!("rabbitmqctl add_vhost 'v w' && {rights}"));
        check(user, "530 NOT_ALLOWED - access to vhost 'v w' refused", rights);
        check(user, "ACCESS_REFUSED - Login was refused using", "rabbitmqctl change_password u ");
        check(None, "ACCESS_REFUSED - Login was refused using", "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl");
    }

    #[test]
    fn a_word_of_a_shell_is_one_word() {
        assert_eq!([word("a.b-1"), word("a b"), word("it's"), word("#")], ["a.b-1", "'a b'", r"'it'\''s'", "'#'"]);
    }
}
