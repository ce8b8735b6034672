//! The broker: login, TLS, the exchange, and with `--probe` whether it takes messages and a queue is bound for each routing
//! key. With `amqp.declare` an exchange that is missing is ok: `run` makes it, this does not.

use std::collections::BTreeSet;

use super::{
    Finding, Mend,
    words::{text, word},
};
use crate::{
    amqp::{self, Connection, Error, Probed, Unroutable},
    config::Config,
    spool::chain,
};

pub(super) async fn look(config: &Config, probing: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in 0..config.amqp.urls.len().max(1) {
        let make = Make::at(config, node);
        match Connection::login(&config.amqp, node).await {
            Ok(connection) => {
                findings
                    .push(Finding::ok(&numbered("amqp.login", node), format!("logged in to {}", connection.node())));
                findings.push(version(&numbered("amqp.version", node), connection.server()));
                findings.push(make.way(connection.protection()));
                // Nodes of one cluster have one exchange: the first that answers tells.
                if !findings.iter().any(|finding| finding.id.starts_with(EXCHANGE)) {
                    findings.push(exchange(&connection, config, &make).await);
                    if probing {
                        findings.extend(routes(&connection, config, &make).await);
                    }
                }
                connection.close().await;
            }
            Err(error) => {
                let (id, mend) = make.mend(&error);
                findings.push(Finding::failure(&numbered(id, node), chain(&error), mend));
            }
        }
    }
    findings
}

/// Of further nodes the findings bear their number.
fn numbered(id: &str, node: usize) -> String {
    if node == 0 { id.to_owned() } else { format!("{id}.{node}") }
}

/// Whether a queue is bound for each routing key; nothing more once the broker takes no messages.
async fn routes(connection: &Connection, config: &Config, make: &Make<'_>) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("amqp.alarm", "the broker takes messages")];
    for key in routing_keys(config) {
        match connection.probe(&config.amqp, &key).await {
            Ok(Probed::Blocked(reason)) => return vec![alarm(&reason)],
            probed => findings.push(route(&key, probed, make)),
        }
    }
    findings
}

/// The broker takes no messages, and said why.
fn alarm(reason: &str) -> Finding {
    // What RabbitMQ itself begins with.
    let mend = if reason.contains("disk") {
        "rabbitmqctl set_disk_free_limit 50MB"
    } else {
        "rabbitmqctl set_vm_memory_high_watermark 0.4"
    };
    let cause = format!("the broker takes no messages for now ({reason}); what comes waits in the spool");
    Finding::failure("amqp.alarm", cause, Mend::Shell(mend.into()))
}

/// The oldest RabbitMQ whose confirms and quorum queues are what the agent counts on.
const OLDEST: (u32, u32) = (3, 8);

/// What the broker says of itself.
fn version(id: &str, server: Option<(String, String)>) -> Finding {
    let Some((product, version)) = server else { return Finding::ok(id, "the broker does not say") };
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let known = numbers.next().zip(numbers.next());
    let seen = format!("{product} {version}");
    if product == "RabbitMQ" && known.is_some_and(|known| known < OLDEST) {
        let words = format!("upgrade RabbitMQ to {}.{} or later", OLDEST.0, OLDEST.1);
        return Finding::warning(id, format!("{seen} is older than what the agent was tried on"), Mend::Words(words));
    }
    Finding::ok(id, seen)
}

const EXCHANGE: &str = "amqp.exchange";

async fn exchange(connection: &Connection, config: &Config, make: &Make<'_>) -> Finding {
    let name = &config.amqp.exchange;
    match connection.has_exchange(&config.amqp).await {
        Ok(true) => {}
        Ok(false) if config.amqp.declare => {
            return match connection.may_declare(&config.amqp).await {
                Ok(()) => Finding::ok(EXCHANGE, format!("{name:?} will be declared")),
                Err(error) => Finding::failure("amqp.rights", chain(&error), Mend::Shell(make.rights())),
            };
        }
        Ok(false) => {
            return Finding::failure(EXCHANGE, format!("{name:?} does not exist"), Mend::Shell(make.exchange()));
        }
        Err(error) => return Finding::failure(EXCHANGE, chain(&error), Mend::Shell(make.exchange())),
    }
    // It is there: declaring it again changes nothing, and tells whether it is the one that is meant.
    match connection.see_exchange(&config.amqp).await {
        Ok(()) => Finding::ok(EXCHANGE, format!("{name:?} is there")),
        Err(error) if error.to_string().contains("ACCESS_REFUSED") => {
            Finding::failure("amqp.rights", chain(&error), Mend::Shell(make.rights()))
        }
        // RabbitMQ's own are not to be deleted.
        Err(error) if error.to_string().contains("PRECONDITION_FAILED") && !name.starts_with("amq.") => {
            Finding::failure("amqp.exchange.type", chain(&error), Mend::Shell(make.other_exchange()))
        }
        Err(error) => {
            let words = "name another one in amqp.exchange: a durable topic exchange";
            Finding::failure("amqp.exchange.type", chain(&error), Mend::Words(words.into()))
        }
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
fn route(key: &str, probed: Result<Probed, Error>, make: &Make<'_>) -> Finding {
    let id = format!("amqp.route.{key}");
    let config = &make.config.amqp;
    match probed {
        Ok(Probed::Bound) => Finding::ok(&id, "a queue is bound"),
        Ok(Probed::Unbound) => {
            let fate = match config.unroutable {
                Unroutable::Keep => "its messages wait in the spool",
                Unroutable::Discard => "its messages are declared lost",
            };
            let cause = format!("no queue is bound to exchange {:?} for it: {fate}", config.exchange);
            Finding::failure(&id, cause, Mend::Shell(make.queue(key)))
        }
        Ok(Probed::Refused) => {
            let cause = format!("the broker refused a probe under {key:?} (nack): a queue is full, or has failed");
            let words = "consume from the queue, or raise its max-length; rabbitmqctl list_queues name messages arguments \
                         policy shows which one it is";
            Finding::failure("amqp.queue.full", cause, Mend::Words(words.into()))
        }
        Ok(Probed::Blocked(reason)) => alarm(&reason),
        Err(error) if error.code() == Some(404) => {
            let cause = format!("exchange {:?} does not exist, so no queue is bound to it", config.exchange);
            Finding::failure(&id, cause, Mend::Shell(format!("{} && {}", make.exchange(), make.queue(key))))
        }
        Err(error) if error.code() == Some(403) => {
            Finding::failure("amqp.rights", chain(&error), Mend::Shell(make.rights()))
        }
        Err(error) => Finding::failure(&id, chain(&error), Mend::Words("see the cause, and the broker's log".into())),
    }
}

/// The commands that make what is missing at one node.
struct Make<'a> {
    config: &'a Config,
    node: usize,
    vhost: String,
    /// `None` where the client certificate logs in: its name is the broker's to say.
    user: Option<String>,
}

impl<'a> Make<'a> {
    /// At node number `node`.
    fn at(config: &'a Config, node: usize) -> Self {
        // A URL that cannot be read was refused before.
        let (vhost, user) = config.amqp.login(node).unwrap_or_else(|_| ("/".into(), None));
        Self { config, node, vhost, user }
    }

    /// Whether what is said can be overheard.
    fn way(&self, protection: Option<&str>) -> Finding {
        let id = numbered("amqp.tls", self.node);
        if self.config.amqp.is_overheard(self.node) {
            let cause = "the password and all messages go over the network in plain text";
            return Finding::warning(&id, cause, self.with_tls());
        }
        Finding::ok(&id, protection.unwrap_or("plain text, and it does not leave this host"))
    }

    /// The same URL with TLS. One that holds a password is not shown.
    fn with_tls(&self) -> Mend {
        match self.config.amqp.with_tls(self.node) {
            Some(url) if self.node == 0 => Mend::setting("amqp", "url", &text(&url)),
            _ => Mend::Words("write amqps://… in amqp.url".into()),
        }
    }

    fn admin(&self) -> String {
        if self.vhost == "/" { "rabbitmqadmin".into() } else { format!("rabbitmqadmin --vhost={}", word(&self.vhost)) }
    }

    fn exchange(&self) -> String {
        format!("{} declare exchange name={} type=topic durable=true", self.admin(), word(&self.config.amqp.exchange))
    }

    /// In the place of one of another kind.
    fn other_exchange(&self) -> String {
        let (admin, name) = (self.admin(), word(&self.config.amqp.exchange));
        format!("{admin} delete exchange name={name} && {}", self.exchange())
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

    /// Which finding a login that failed is, and what mends it.
    fn mend(&self, error: &Error) -> (&'static str, Mend) {
        match error {
            Error::Tls { reason, .. } if reason == amqp::SPEAKS_TLS => ("amqp.tls", self.with_tls()),
            Error::Tls { .. } => ("amqp.tls.certificate", Mend::Words(tls(self.config))),
            Error::Refused { reason, .. } => self.mend_login(reason),
            Error::Config(_) => {
                let words = "make the file usable for the agent, or correct the [amqp] table";
                ("amqp.login", Mend::Words(words.into()))
            }
            _ => ("amqp.reachable", Mend::Shell("systemctl start rabbitmq-server".into())),
        }
    }

    fn mend_login(&self, reason: &str) -> (&'static str, Mend) {
        if reason.contains(&format!("vhost {} not found", self.vhost)) {
            let mend = match self.vhost.as_str() {
                "" => Mend::Words("end amqp.url with /%2f: that is the vhost \"/\"".into()),
                vhost => Mend::Shell(format!("rabbitmqctl add_vhost {} && {}", word(vhost), self.rights())),
            };
            return ("amqp.vhost", mend);
        }
        if !reason.contains("ACCESS_REFUSED") {
            return ("amqp.vhost.rights", Mend::Shell(self.rights()));
        }
        let (user, rights) = (self.user(), self.rights());
        let mend = match (&self.user, &self.config.amqp.password_file) {
            (Some(_), Some(file)) => {
                let word = format!("\"$(cat {})\"", word(&file.display().to_string()));
                Mend::Shell(format!(
                    "rabbitmqctl change_password {user} {word} || {{ rabbitmqctl add_user {user} {word} && {rights}; }}"
                ))
            }
            (Some(_), None) => Mend::Words(format!(
                "rabbitmqctl change_password {user} <the password in amqp.url>, or put the right one there; add_user where \
                 {user} does not exist"
            )),
            (None, _) => Mend::Words(format!(
                "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl && echo 'auth_mechanisms.1 = EXTERNAL' >> \
                 rabbitmq.conf && rabbitmqctl add_user {user} '' && {rights}"
            )),
        };
        ("amqp.login", mend)
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

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[track_caller]
    fn check(user: Option<&str>, reason: &str, want: &str) {
        let mut config = crate::config::load_from(None, &[], None).expect("the defaults").config;
        config.amqp.exchange = "a.b".into();
        let make = Make { config: &config, node: 0, vhost: "v w".into(), user: user.map(Into::into) };
        let (_, got) = make.mend_login(reason);
        assert!(got.text().starts_with(want), "{reason}: {got:?}");
    }

    #[test]
    fn a_broker_that_is_too_old_is_told_and_one_that_says_nothing_is_not() {
        let of = |product: &str, number: &str| version("v", Some((product.into(), number.into()))).status;
        assert_eq!([of("RabbitMQ", "3.7.28"), of("RabbitMQ", "3.10.8")], [Status::Warning, Status::Ok]);
        assert_eq!([of("RabbitMQ", "4.1.0"), of("LavinMQ", "1.2"), of("RabbitMQ", "?")], [Status::Ok; 3]);
        assert_eq!(version("v", None).status, Status::Ok);
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
}
