//! The `[amqp]` table: where the broker is, and what it is given.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use lapin::uri::AMQPUri;

use super::Limits;
use crate::{
    secret::{Secret, SecretUrl},
    settings::{Choice, Reader, Section, Size},
};

/// What becomes of a message that no queue wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unroutable {
    /// It stays in the spool and is tried again.
    Keep,
    /// It is declared lost.
    Discard,
}

impl Choice for Unroutable {
    const CHOICES: &'static [(&'static str, Self)] = &[("keep", Self::Keep), ("discard", Self::Discard)];
}

/// The `[amqp]` table.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker's nodes, tried in turn.
    pub urls: Vec<SecretUrl>,
    /// Holds the password, read anew at each connect; wins over one in the URL.
    pub password_file: Option<PathBuf>,
    /// The topic exchange.
    pub exchange: String,
    /// Whether the exchange is made where it does not exist.
    pub declare: bool,
    /// What messages are routed by.
    pub routing_key: RoutingKey,
    /// Messages in flight without a confirm.
    pub window: usize,
    /// Bytes in flight without a confirm.
    pub window_bytes: usize,
    /// Rounded up to whole seconds.
    pub heartbeat: Duration,
    /// A confirm that takes longer is overdue.
    pub confirm_timeout: Duration,
    /// What becomes of a message that no queue wants.
    pub unroutable: Unroutable,
    /// Time limits that are no configuration.
    pub limits: Limits,
}

/// The broker on this host, with the login that it accepts from this host only.
const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        // Not told as a default: a file that says it would silence AMQP_URL.
        let url = reader.computed(
            "url",
            SecretUrl::new(DEFAULT_URL),
            "The broker: amqp://user:password@host:port/vhost, the vhost percent-encoded. Left out: AMQP_URL in the environment, else \"amqp://guest:guest@127.0.0.1:5672/%2f\".",
            |url| parse(url.expose()).map(|_| ()),
        );
        let more: Vec<SecretUrl> = reader.checked(
            "urls",
            Vec::new(),
            "More nodes of the same cluster, tried in turn.",
            |urls: &Vec<SecretUrl>| {
                let wrong = urls.iter().find_map(|url| parse(url.expose()).err());
                wrong.map_or(Ok(()), |must_be| Err(format!("an array, each item {must_be}")))
            },
        );
        for name in ["ca_file", "cert_file", "key_file"] {
            reader.not_yet_optional::<PathBuf>(name, "TLS to the broker.");
        }
        Self {
            urls: std::iter::once(url).chain(more).collect(),
            password_file: reader.optional("password_file", "Holds the password: read anew at each connect, one trailing newline dropped; wins over one in the URL."),
            exchange: reader.checked("exchange", "postgres-agent".to_owned(), "A durable topic exchange.", |name: &String| {
                if (1..=255).contains(&name.len()) { Ok(()) } else { Err("1 to 255 bytes".into()) }
            }),
            declare: reader.key("declare", true, "Whether the exchange is made where it does not exist; false expects it and needs no configure right."),
            routing_key: reader.key("routing_key", RoutingKey("{collector}".into()), "What messages are routed by: {collector}, {agent} and {label.NAME} are filled in."),
            window: usize::try_from(reader.key_in("window", 256, 1..=65_535, "Messages in flight without a confirm.")).unwrap_or(256),
            window_bytes: usize::try_from(
                reader.key_in("window_bytes", Size(4 << 20), Size(1 << 10)..=Size(1 << 30), "Bytes in flight without a confirm; one message always fits.").0,
            )
            .unwrap_or(4 << 20),
            heartbeat: reader.key_in("heartbeat", Duration::from_secs(10), Duration::from_millis(1)..=Duration::from_secs(3600), "Rounded up to whole seconds; a silent broker is left after two and a half of them."),
            confirm_timeout: reader.key_in("confirm_timeout", Duration::from_secs(30), Duration::from_millis(100)..=Duration::from_secs(86_400), "A collector whose confirms take longer is tried again alone and gently."),
            unroutable: reader.key("unroutable", Unroutable::Keep, "A message that no queue wants: keep it in the spool and try again, or discard it as a declared loss."),
            limits: Limits::default(),
        }
    }
}

/// Reads a broker's URL. The error follows "must be" and holds nothing of the URL.
fn parse(url: &str) -> Result<AMQPUri, String> {
    const ALLOWED: &str = "a URL such as \"amqp://user:password@host:5672/vhost\", special characters percent-encoded";
    if url.starts_with("amqps:") {
        return Err("an amqp URL: amqps is not built yet".into());
    }
    url.parse::<AMQPUri>().ok().filter(|uri| !uri.authority.host.is_empty()).ok_or_else(|| ALLOWED.into())
}

impl Config {
    /// Node number `attempt` in turn, ready to connect to, with the password as it is now.
    ///
    /// # Errors
    /// Why the password file cannot be read, or the URL not be understood.
    pub fn node(&self, attempt: usize) -> Result<AMQPUri, String> {
        let url = self.urls.get(attempt % self.urls.len().max(1)).map_or(DEFAULT_URL, SecretUrl::expose);
        let mut uri = parse(url)?;
        if let Some(path) = &self.password_file {
            let password =
                Secret::from_file(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            password.expose().clone_into(&mut uri.authority.userinfo.password);
        }
        let heartbeat = self.heartbeat.as_secs() + u64::from(self.heartbeat.subsec_nanos() > 0);
        uri.query.heartbeat = Some(u16::try_from(heartbeat).unwrap_or(u16::MAX));
        // lapin has buffers of 64 frames for each connection. With RabbitMQ's 128 KiB a reconnect costs 13 MiB of memory, with
        // this 2; a message of 1 MiB goes in 64 frames, which costs it 512 bytes.
        uri.query.frame_max = uri.query.frame_max.or(Some(16_384));
        Ok(uri)
    }
}

/// A routing key with places to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey(String);

impl RoutingKey {
    /// Fills in what is the same for all messages of a run. The collector is filled in by [`RoutingKey::of`].
    ///
    /// # Errors
    /// Which placeholder is unknown, or which label is not there; it follows "must be".
    pub fn fill(&self, agent: &str, labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut out = String::new();
        let mut rest = self.0.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let (name, tail) = after.split_once('}').ok_or("a text in which every { is closed by a }")?;
            match name.strip_prefix("label.") {
                Some(label) => out.push_str(
                    labels.get(label).ok_or_else(|| format!("without {{{name}}}: agent.labels has no {label:?}"))?,
                ),
                None if name == "agent" => out.push_str(agent),
                None if name == "collector" => out.push_str("{collector}"),
                None => {
                    return Err(format!(
                        "without {{{name}}}: only {{collector}}, {{agent}} and {{label.NAME}} are known"
                    ));
                }
            }
            rest = tail;
        }
        out.push_str(rest);
        // The longest collector's name has 60 bytes; a routing key is a short string of 255.
        if out.len() > 255 - 60 + "{collector}".len() {
            return Err("shorter: with its places filled in it has more than 255 bytes".into());
        }
        Ok(Self(out))
    }

    /// The routing key of a collector's messages.
    pub fn of(&self, collector: &str) -> String {
        self.0.replace("{collector}", collector)
    }
}

impl crate::settings::Value for RoutingKey {
    fn allowed() -> String {
        "a text".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
    fn show(&self) -> String {
        self.0.show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(key: &str, want: Result<&str, &str>) {
        let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
        let got = RoutingKey(key.to_owned()).fill("db1", &labels).map(|key| key.of("pg_locks"));
        match (&got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} of {key:?}"),
            _ => panic!("{key:?} gives {got:?}, not {want:?}"),
        }
    }

    #[test]
    fn a_routing_key_is_filled_in_or_refused() {
        check("{collector}", Ok("pg_locks"));
        check("pg.{label.env}.{agent}.{collector}.v1", Ok("pg.prod.db1.pg_locks.v1"));
        check("all", Ok("all"));
        check("{label.dc}", Err("no \"dc\""));
        check("{host}", Err("{host}"));
        check("{collector", Err("closed"));
        check(&"x".repeat(250), Err("255"));
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_without_its_password() {
        assert!(
            parse("amqp://u:p%40ss@h:5672/%2f")
                .is_ok_and(|uri| uri.authority.userinfo.password == "p@ss" && uri.vhost == "/")
        );
        for bad in
            ["", "h", "http://u:hunter2@h/", "amqp://u:hunter2@h:99999/", "amqps://u:hunter2@h/", "amqp://u:hunter2@"]
        {
            let refusal = parse(bad).expect_err(bad);
            assert!(!refusal.contains("hunter2"), "{refusal}");
        }
    }
}
