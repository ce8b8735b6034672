//! The `[amqp]` table: where the broker is, and what it is given.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};

use super::{
    Error, Limits,
    uri::{Auth, Uri},
};
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
    /// Whom to trust and who we are, as files.
    pub tls: Files,
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

/// PEM files for TLS. They win over those in a URL's parameters, and are read anew at each connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The only authorities that are trusted; else the host's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with what stands between it and its authority.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// The broker on this host, with the login that it accepts from this host only.
const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let (urls, password_file, tls) = nodes(reader);
        Self {
            urls,
            password_file,
            tls,
            exchange: reader.checked(
                "exchange",
                "postgres-agent".to_owned(),
                "A durable topic exchange.",
                |name: &String| {
                    if (1..=255).contains(&name.len()) { Ok(()) } else { Err("1 to 255 bytes".into()) }
                },
            ),
            declare: reader.key(
                "declare",
                true,
                "Whether the exchange is made where it does not exist; false expects it and needs no configure right.",
            ),
            routing_key: reader.key(
                "routing_key",
                RoutingKey("{collector}".into()),
                "What messages are routed by: {collector}, {agent} and {label.NAME} are filled in.",
            ),
            window: usize::try_from(reader.key_in("window", 256, 1..=65_535, "Messages in flight without a confirm."))
                .unwrap_or(256),
            window_bytes: usize::try_from(
                reader
                    .key_in(
                        "window_bytes",
                        Size(4 << 20),
                        Size(1 << 10)..=Size(1 << 30),
                        "Bytes in flight without a confirm; one message always fits.",
                    )
                    .0,
            )
            .unwrap_or(4 << 20),
            heartbeat: reader.key_in(
                "heartbeat",
                Duration::from_secs(10),
                Duration::from_millis(1)..=Duration::from_secs(3600),
                "Rounded up to whole seconds; a silent broker is left after two and a half of them.",
            ),
            confirm_timeout: reader.key_in(
                "confirm_timeout",
                Duration::from_secs(30),
                Duration::from_millis(100)..=Duration::from_secs(86_400),
                "A collector whose confirms take longer is tried again alone and gently.",
            ),
            unroutable: reader.key(
                "unroutable",
                Unroutable::Keep,
                "A message that no queue wants: keep it in the spool and try again, or discard it as a declared loss.",
            ),
            limits: Limits::default(),
        }
    }
}

/// Where the broker is, and how to log in.
fn nodes(reader: &mut Reader) -> (Vec<SecretUrl>, Option<PathBuf>, Files) {
    // Not told as a default: a file that says it would silence AMQP_URL.
    let url = reader.computed(
        "url",
        SecretUrl::new(DEFAULT_URL),
        "The broker: amqp[s]://user:password@host:port/vhost, special characters percent-encoded; behind a ? RabbitMQ's own parameters. Left out: AMQP_URL in the environment, else \"amqp://guest:guest@127.0.0.1:5672/%2f\".",
        |url| Uri::parse(url.expose()).map(drop),
    );
    let more: Vec<SecretUrl> = reader.checked(
        "urls",
        Vec::new(),
        "More nodes of the same cluster, tried in turn.",
        |urls: &Vec<SecretUrl>| {
            let wrong = urls.iter().find_map(|url| Uri::parse(url.expose()).err());
            wrong.map_or(Ok(()), |must_be| Err(format!("an array, each item {must_be}")))
        },
    );
    let urls: Vec<SecretUrl> = std::iter::once(url).chain(more).collect();
    let password_file = reader.optional(
        "password_file",
        "Holds the password: read anew at each connect, one trailing newline dropped; wins over one in the URL.",
    );
    let tls = Files {
        ca: reader.optional("ca_file", "The authorities that an amqps broker's certificate may be of, in PEM: only these are trusted. Left out: those that the host trusts."),
        cert: reader.optional("cert_file", "The agent's own certificate, in PEM. Where the URL has neither user nor password and there is no password_file, it is the login (SASL EXTERNAL)."),
        key: reader.optional("key_file", "The certificate's key, in PEM, readable by the agent alone."),
    };
    for (name, must_be) in contradictions(&urls, password_file.is_some(), &tls) {
        reader.mistake(name, &must_be);
    }
    (urls, password_file, tls)
}

/// What no single key could see: keys, and what each must be.
fn contradictions(urls: &[SecretUrl], password_file: bool, tls: &Files) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    // One that cannot be read is told elsewhere.
    let uris: Vec<Uri> = urls.iter().filter_map(|url| Uri::parse(url.expose()).ok()).collect();
    if uris.iter().any(|uri| uri.tls) && uris.iter().any(|uri| !uri.tls) {
        wrong.push((
            "urls",
            "amqps throughout, amqp.url too, or amqp throughout: TLS never falls back to plain text".into(),
        ));
    }
    for (name, file) in [("ca_file", &tls.ca), ("cert_file", &tls.cert), ("key_file", &tls.key)] {
        if file.is_some() && uris.iter().all(|uri| !uri.tls) {
            wrong.push((name, "left out with amqp, which is plain text; write amqps in amqp.url".into()));
        }
    }
    for uri in uris.iter().filter(|uri| uri.tls) {
        let files = tls.over(uri);
        let must_be = match (&files.cert, &files.key) {
            (Some(_), None) => ("key_file", "given beside a client certificate"),
            (None, Some(_)) => ("cert_file", "given beside its key"),
            (None, None) if auth(uri, &files, password_file) == Auth::External => {
                ("cert_file", "given with auth_mechanism=external: the certificate is the login")
            }
            _ => continue,
        };
        wrong.push((must_be.0, must_be.1.into()));
        break;
    }
    if uris.iter().any(|uri| !uri.tls && uri.query.auth == Some(Auth::External)) {
        wrong.push(("url", "an amqps URL where it has auth_mechanism=external".into()));
    }
    wrong
}

impl Files {
    /// These, and where they are left out those that a URL names.
    fn over(&self, uri: &Uri) -> Self {
        let query = &uri.query;
        let or = |own: &Option<PathBuf>, other: &Option<PathBuf>| own.clone().or_else(|| other.clone());
        // A certificate and its key come from the same place.
        let own = self.cert.is_some() || self.key.is_some();
        let (cert, key) = if own { (&self.cert, &self.key) } else { (&query.cert, &query.key) };
        Self { ca: or(&self.ca, &query.ca), cert: cert.clone(), key: key.clone() }
    }
}

/// What was asked for; else the certificate where there is one and nothing else to log in with.
fn auth(uri: &Uri, files: &Files, password_file: bool) -> Auth {
    let nothing_else = uri.user.is_none() && uri.password.is_none() && !password_file;
    uri.query.auth.unwrap_or(if files.cert.is_some() && nothing_else { Auth::External } else { Auth::Plain })
}

/// A node ready to connect to, with its secrets as they are now.
pub(super) struct Node {
    /// Host and port, for people.
    pub(super) at: String,
    /// What TCP connects to.
    pub(super) host: String,
    pub(super) port: u16,
    /// What the certificate has to be for, and the files; `None` without TLS.
    pub(super) tls: Option<(String, Files)>,
    /// Who logs in: `None` is the certificate.
    pub(super) user: Option<String>,
    /// Until TCP connects, and again until each handshake is over.
    pub(super) limit: Duration,
    /// For the library.
    pub(super) uri: AMQPUri,
}

impl Node {
    /// It did not finish something within its limit.
    pub(super) fn too_slow(&self, what: &'static str) -> Error {
        Error::Timeout { node: self.at.clone(), what, limit: self.limit }
    }
}

impl Config {
    /// Node number `attempt` in turn, ready to connect to, with the password as it is now.
    ///
    /// # Errors
    /// Why the password file cannot be read, or the URL not be understood.
    pub(super) fn node(&self, attempt: usize) -> Result<Node, String> {
        let uri = self.uri(attempt)?;
        let files = self.tls.over(&uri);
        let external = auth(&uri, &files, self.password_file.is_some()) == Auth::External;
        let name = uri.query.server_name.clone().unwrap_or_else(|| uri.host.clone());
        Ok(Node {
            at: uri.to_string(),
            tls: uri.tls.then_some((name, files)),
            user: (!external).then(|| user(&uri)),
            limit: uri.query.connection_timeout.unwrap_or(self.limits.connect),
            uri: self.for_the_library(&uri, external)?,
            host: uri.host,
            port: uri.port,
        })
    }

    /// Virtual host of node number `attempt` in turn, and who logs in: nobody by name where that is the certificate.
    ///
    /// # Errors
    /// As [`Config::node`].
    pub fn login(&self, attempt: usize) -> Result<(String, Option<String>), String> {
        let uri = self.uri(attempt)?;
        let external = auth(&uri, &self.tls.over(&uri), self.password_file.is_some()) == Auth::External;
        let user = (!external).then(|| user(&uri));
        Ok((uri.vhost, user))
    }

    /// Whether passwords and messages go to another host in plain text, at node number `attempt` in turn.
    pub fn is_overheard(&self, attempt: usize) -> bool {
        self.uri(attempt).is_ok_and(|uri| {
            let address = uri.host.parse::<std::net::IpAddr>().ok();
            let own = address.map_or(uri.host == "localhost", |address| address.is_loopback());
            !uri.tls && !own
        })
    }

    /// The URL of node number `attempt` in turn with TLS; `None` where it holds a password, which is not shown.
    pub fn with_tls(&self, attempt: usize) -> Option<String> {
        let uri = self.uri(attempt).ok().filter(|uri| uri.password.is_none())?;
        let url = self.urls.get(attempt % self.urls.len().max(1)).map_or(DEFAULT_URL, SecretUrl::expose);
        let rest = url.strip_prefix("amqp://").filter(|_| !uri.tls)?;
        Some(format!("amqps://{rest}"))
    }

    fn uri(&self, attempt: usize) -> Result<Uri, String> {
        let url = self.urls.get(attempt % self.urls.len().max(1)).map_or(DEFAULT_URL, SecretUrl::expose);
        Uri::parse(url).map_err(|must_be| format!("amqp.url must be {must_be}"))
    }

    fn for_the_library(&self, uri: &Uri, external: bool) -> Result<AMQPUri, String> {
        let password = match &self.password_file {
            _ if external => Secret::default(),
            Some(path) => {
                Secret::from_file(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?
            }
            // What every client of RabbitMQ takes where nothing is said.
            None => uri.password.clone().unwrap_or_else(|| Secret::new("guest")),
        };
        let heartbeat = self.heartbeat.as_secs() + u64::from(self.heartbeat.subsec_nanos() > 0);
        let userinfo = AMQPUserInfo {
            username: if external { String::new() } else { user(uri) },
            password: password.expose().to_owned(),
        };
        Ok(AMQPUri {
            // The sockets are ours, with TLS or without.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo, host: uri.host.clone(), port: uri.port },
            vhost: uri.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: uri.query.heartbeat.or(Some(u16::try_from(heartbeat).unwrap_or(u16::MAX))),
                channel_max: uri.query.channel_max,
                // lapin has buffers of 64 frames for each connection. With RabbitMQ's 128 KiB a reconnect costs 13 MiB of
                // memory, with this 2; a message of 1 MiB goes in 64 frames, which costs it 512 bytes.
                frame_max: uri.query.frame_max.or(Some(16_384)),
                auth_mechanism: Some(if external { SASLMechanism::External } else { SASLMechanism::Plain }),
                ..AMQPQueryString::default()
            },
        })
    }
}

/// `guest` is what every client of RabbitMQ takes where nothing is said.
fn user(uri: &Uri) -> String {
    uri.user.clone().unwrap_or_else(|| "guest".into())
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

    /// How the first node is logged in to, and with what, or what is wrong with its configuration.
    #[track_caller]
    fn login(settings: &[(&str, &str)], want: Result<&str, &str>) {
        use crate::settings::{Given, Origin, Raw};
        let given = settings.iter().map(|(name, text)| {
            let origin = Origin::Variable((*name).to_owned());
            (format!("amqp.{name}"), Given { raw: Raw::Text((*text).to_owned()), origin })
        });
        let mut reader = Reader::new(given.collect());
        let config = reader.table("amqp", Config::read);
        let (mistakes, _) = reader.finish();
        let told = mistakes.iter().map(|mistake| mistake.0.as_str()).collect::<Vec<_>>().join("; ");
        match want {
            Err(want) => assert!(told.contains(want), "{settings:?}: {told}"),
            Ok(want) => {
                assert_eq!(told, "", "{settings:?}");
                let node = config.node(0).expect("a node");
                let (user, query) = (node.user.as_deref().unwrap_or("by certificate"), node.uri.query);
                let tls = node.tls.map(|(name, files)| format!("{name} {files:?}")).unwrap_or_default();
                let got = format!("{user} {:?} {:?} {tls}", node.uri.authority.userinfo.password, query.auth_mechanism);
                assert!(got.replace("Some(", "").replace(')', "").contains(want), "{settings:?}: {got}");
            }
        }
    }

    #[test]
    fn only_plain_text_to_another_host_can_be_overheard() {
        let overheard = |url: &str| {
            let mut config = Reader::default().table("amqp", Config::read);
            config.urls = vec![SecretUrl::new(url)];
            config.is_overheard(0)
        };
        assert!(["amqp://h", "amqp://10.0.0.1", "amqp://[fe80::1]"].into_iter().all(overheard));
        assert!(!["amqps://h", "amqp://localhost", "amqp://127.0.0.2", "amqp://[::1]"].into_iter().any(overheard));
    }

    #[test]
    fn the_login_is_what_a_user_would_expect() {
        let cert = [("cert_file", "c"), ("key_file", "k")];
        let with = |url: &'static str| [&[("url", url)], &cert[..]].concat();
        login(&[("url", "amqps://u:p@h")], Ok("u \"p\" Plain h Files { ca: None, cert: None"));
        login(&[("url", "amqps://h")], Ok("guest \"guest\" Plain"));
        login(&with("amqps://u:p@h"), Ok("u \"p\" Plain"));
        login(&with("amqps://h"), Ok("by certificate \"\" External h Files { ca: None, cert: \"c\", key: \"k\""));
        login(&with("amqps://h?auth_mechanism=plain"), Ok("guest \"guest\" Plain"));
        login(&with("amqps://u:p@h?auth_mechanism=external"), Ok("by certificate \"\" External"));
        login(&with("amqps://h?certfile=x&keyfile=y&cacertfile=z"), Ok("ca: \"z\", cert: \"c\", key: \"k\""));
        login(&[("url", "amqps://h?certfile=x&keyfile=y")], Ok("External h Files { ca: None, cert: \"x\", key: \"y\""));
        login(&[("url", "amqps://u:p@h?server_name_indication=mq")], Ok("u \"p\" Plain mq Files"));
        login(&[("url", "amqps://h?auth_mechanism=external")], Err("must be given with auth_mechanism"));
        login(&[("url", "amqps://h"), ("cert_file", "c")], Err("must be given beside a client certificate"));
        login(&[("url", "amqps://h"), ("key_file", "k")], Err("must be given beside its key"));
        login(&[("url", "amqp://h"), ("ca_file", "c")], Err("plain text; write amqps"));
        login(&[("url", "amqp://h?auth_mechanism=external")], Err("an amqps URL"));
        login(&[("url", "amqps://h"), ("urls", "['amqp://g']")], Err("never falls back"));
        login(&[("urls", "['amqps://g']")], Err("never falls back"));
        login(&[("url", "amqps://u:hunter2@h?verify=verify_none")], Err("amqp.ca_file"));
    }
}
