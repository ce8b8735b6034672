//! The broker's URI: `amqp[s]://user:password@host:port/vhost?parameters`, as RabbitMQ publishes it.
//!
//! Its query parameters are those of RabbitMQ's own clients; one that is not supported is refused by name, never ignored.
//! The client library's own parser takes `[::1]` for `localhost` and knows neither certificates nor what it does not know.
//!
//! Pure. No error holds a part of the URI that could be a secret: each follows "must be".

use std::{fmt, path::PathBuf, time::Duration};

use crate::secret::Secret;

/// A broker's URI, understood.
#[derive(Debug, Clone, Default)]
pub(super) struct Uri {
    /// `amqps`.
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    /// A name or an address, an IPv6 one without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    pub(super) query: Query,
}

/// What follows the `?`.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    /// Seconds, from 1.
    pub(super) heartbeat: Option<u16>,
    /// Written in milliseconds.
    pub(super) connection_timeout: Option<Duration>,
    /// 0 is unlimited.
    pub(super) channel_max: Option<u16>,
    /// Bytes.
    pub(super) frame_max: Option<u32>,
    pub(super) auth: Option<Auth>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    /// What the broker's certificate has to be for, where that is not the host.
    pub(super) server_name: Option<String>,
}

/// How a login proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    /// By user and password.
    Plain,
    /// By the client certificate.
    External,
}

const FORM: &str = "a URL such as \"amqps://user:password@host:5671/vhost\", special characters percent-encoded";
const PARAMETERS: &str = "heartbeat, connection_timeout, channel_max, frame_max, auth_mechanism, cacertfile, certfile, \
                          keyfile, verify, server_name_indication";

impl Uri {
    /// # Errors
    /// What it must be.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(format!("{FORM}: amqp or amqps")),
        };
        if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("{FORM}: without spaces and control characters"));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end).ok_or(FORM)?;
        // A password with one of these in it ends too early, and the rest of it would be taken for something else.
        if tail.contains(['@', '#']) {
            return Err(format!("{FORM}: /, ?, # and @ in a password are written %2F, %3F, %23 and %40"));
        }
        let (userinfo, place) =
            authority.rsplit_once('@').map_or((None, authority), |(info, place)| (Some(info), place));
        let (user, password) = credentials(userinfo.unwrap_or_default())?;
        let (host, port) = host_and_port(place, if tls { 5671 } else { 5672 })?;
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        // Without a path it is the default one; with nothing behind the slash it is the one without a name.
        let vhost = path.strip_prefix('/').map_or_else(|| Ok("/".to_owned()), decode)?;
        Ok(Self { tls, user, password, host, port, vhost, query: Query::parse(query, tls)? })
    }
}

impl fmt::Display for Uri {
    /// Host and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn credentials(userinfo: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(user, rest)| (user, Some(rest)));
    let user = Some(decode(user)?).filter(|user| !user.is_empty());
    Ok((user, password.map(decode).transpose()?.map(Secret::new)))
}

fn host_and_port(place: &str, usual: u16) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(|| format!("{FORM}: [ without ]"))?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| format!("{FORM}: an IPv6 address in brackets"))?;
        (address.to_owned(), port)
    } else {
        let (host, port) = place.split_at_checked(place.find(':').unwrap_or(place.len())).ok_or(FORM)?;
        (decode(host)?, port)
    };
    if host.is_empty() {
        return Err(format!("{FORM}: with a host"));
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => usual,
        Some("") => usual,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{FORM}: a port from 1 to 65535"))?
        }
        _ => return Err(format!("{FORM}: a port from 1 to 65535")),
    };
    Ok((host, port))
}

impl Query {
    fn parse(text: &str, tls: bool) -> Result<Self, String> {
        let mut query = Self::default();
        let mut seen: Vec<String> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            query.set(&name, &value)?;
            if ["cacertfile", "certfile", "keyfile", "verify", "server_name_indication"].contains(&name.as_str())
                && !tls
            {
                return Err(format!("an amqps URL where it has {name}: amqp is plain text"));
            }
            if seen.contains(&name) {
                return Err(format!("a URL with {name} in it once"));
            }
            seen.push(name);
        }
        Ok(query)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let path =
            || Some(PathBuf::from(value)).filter(|_| !value.is_empty()).ok_or(format!("a URL with a path in {name}"));
        match name {
            "heartbeat" => self.heartbeat = Some(number(name, value, 1, 3600)?),
            "connection_timeout" => {
                let milliseconds: u32 = number(name, value, 100, 600_000)?;
                self.connection_timeout = Some(Duration::from_millis(milliseconds.into()));
            }
            "channel_max" => self.channel_max = Some(number(name, value, 0, u16::MAX)?),
            "frame_max" => self.frame_max = Some(number(name, value, 4096, 131_072)?),
            "auth_mechanism" => {
                self.auth = Some(match value.to_ascii_lowercase().as_str() {
                    "plain" => Auth::Plain,
                    "external" => Auth::External,
                    _ => return Err("a URL whose auth_mechanism is plain or external".into()),
                });
            }
            "cacertfile" => self.ca = Some(path()?),
            "certfile" => self.cert = Some(path()?),
            "keyfile" => self.key = Some(path()?),
            "server_name_indication" if value.is_empty() || value == "disable" => {
                return Err("a URL with a name in server_name_indication: the certificate is checked for it".into());
            }
            "server_name_indication" => self.server_name = Some(value.to_owned()),
            "verify" if value == "verify_peer" => {}
            "verify" => {
                return Err(
                    "a URL without verify, or with verify_peer: whom to trust is in amqp.ca_file, never everybody"
                        .into(),
                );
            }
            "password" => return Err("a URL without a password of the key: keys with one are not supported".into()),
            "depth" | "fail_if_no_peer_cert" => return Err(format!("a URL without {name}, which is not supported")),
            _ if plain(name) => return Err(format!("a URL without {name}: known are {PARAMETERS}")),
            _ => return Err(format!("a URL without unknown parameters: known are {PARAMETERS}")),
        }
        Ok(())
    }
}

/// Whether it looks like the name of a parameter, so that it may be told.
fn plain(name: &str) -> bool {
    name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn number<T: std::str::FromStr + PartialOrd + fmt::Display + Copy>(
    name: &str,
    value: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|number: &T| digits && *number >= least && *number <= most);
    number.ok_or_else(|| format!("a URL whose {name} is a number from {least} to {most}"))
}

/// Percent-decoding; what follows a `%` has to be two hexadecimal digits, and the whole UTF-8.
fn decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{FORM}: a % is followed by two hexadecimal digits, and is written %25 itself");
    let digit = |byte: Option<u8>| {
        byte.and_then(|byte| char::from(byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (digit(bytes.next()).ok_or_else(wrong)?, digit(bytes.next()).ok_or_else(wrong)?);
            out.push(high * 16 + low);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).map_err(|_| format!("{FORM}: of UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `user:password@host:port vhost`, with TLS marked by a star.
    #[track_caller]
    fn check(text: &str, want: &str) {
        let uri = Uri::parse(text).unwrap_or_else(|must_be| panic!("{text}: {must_be}"));
        let user = uri.user.as_deref().unwrap_or("-");
        let password = uri.password.as_ref().map_or("-", Secret::expose);
        let tls = if uri.tls { "*" } else { "" };
        assert_eq!(format!("{tls}{user}:{password}@{uri} {}", uri.vhost), want, "{text}");
    }

    #[test]
    fn a_uri_means_what_it_means_to_rabbitmqs_own_clients() {
        check("amqp://h", "-:-@h:5672 /");
        check("amqps://h", "*-:-@h:5671 /");
        check("AMQPS://h:5", "*-:-@h:5 /");
        check("amqp://h/", "-:-@h:5672 ");
        check("amqp://h/%2f", "-:-@h:5672 /");
        check("amqp://h/%2Fa%2fb", "-:-@h:5672 /a/b");
        check("amqp://h/a/b", "-:-@h:5672 a/b");
        check("amqp://h:/v?heartbeat=5", "-:-@h:5672 v");
        check("amqp://user%61:%61pass@ho%61st:10000/v%2fhost", "usera:apass@hoast:10000 v/host");
        check("amqp://u:p%40%2F%3A%25:@h", "u:p@/:%:@h:5672 /");
        check("amqp://u:p@ss@h", "u:p@ss@h:5672 /");
        check("amqp://u:@h", "u:@h:5672 /");
        check("amqp://u@h", "u:-@h:5672 /");
        check("amqp://:secret@h", "-:secret@h:5672 /");
        check("amqps://u:p@[::1]:7/v", "*u:p@[::1]:7 v");
        check("amqp://\u{fc}ser:pässwörd@h/%C3%A4", "üser:pässwörd@h:5672 ä");
    }

    #[test]
    fn parameters_are_understood() {
        let uri = Uri::parse(
            "amqps://h?heartbeat=7&connection_timeout=1500&channel_max=0&frame_max=8192&auth_mechanism=EXTERNAL\
             &cacertfile=/a%20b&certfile=c&keyfile=k&verify=verify_peer&server_name_indication=mq",
        );
        let query = uri.expect("all known").query;
        assert_eq!((query.heartbeat, query.channel_max, query.frame_max), (Some(7), Some(0), Some(8192)));
        assert_eq!(query.connection_timeout, Some(Duration::from_millis(1500)));
        assert_eq!((query.auth, query.server_name.as_deref()), (Some(Auth::External), Some("mq")));
        assert_eq!(query.ca, Some("/a b".into()));
        assert_eq!((query.cert, query.key), (Some("c".into()), Some("k".into())));
    }

    #[track_caller]
    fn refused(text: &str, want: &str) {
        let must_be = Uri::parse(text).expect_err(text);
        assert!(must_be.contains(want), "{text}: {must_be}");
        assert!(!must_be.contains("hunter2") && !must_be.contains('\n'), "{must_be}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name_and_without_secrets() {
        for bad in ["", "h", "amqp:h", "amqp:/u:hunter2@h", "://u:hunter2@h"] {
            refused(bad, "such as");
        }
        refused("http://u:hunter2@h/", "amqp or amqps");
        refused("amqp://u:hunter2@h:99999/", "a port");
        refused("amqp://u:hunter2@h:0", "a port");
        refused("amqp://u:hunter2@h:+1", "a port");
        refused("amqp://u:hunter2/x@h", "%2F");
        refused("amqp://u:hunter2?x@h", "%3F");
        refused("amqp://u?hunter2@h", "%3F");
        refused("amqp://u:hunter2#x@h", "%23");
        refused("amqp://u:hunter2@", "a host");
        refused("amqp://u:hunter2@[::1", "[ without ]");
        refused("amqp://u:hunter2@[h]", "IPv6");
        refused("amqp://u:hunter2%@h", "%25");
        refused("amqp://u:hunter2%ff@h", "UTF-8");
        refused("amqp://u:hunter2 x@h", "spaces");
        refused("amqp://h?heartbeat=0", "heartbeat is a number from 1 to 3600");
        refused("amqp://h?frame_max=+5000", "frame_max is a number from 4096");
        refused("amqps://h?verify=verify_none", "amqp.ca_file");
        refused("amqp://h?cacertfile=/a", "amqps URL where it has cacertfile");
        refused("amqps://h?depth=3", "without depth");
        refused("amqps://h?password=hunter2", "password of the key");
        refused("amqps://h?heartbeet=3", "without heartbeet: known are heartbeat,");
        refused("amqps://h?Hunter=hunter2", "unknown parameters");
        refused("amqps://h?heartbeat=3&heartbeat=4", "once");
        refused("amqps://h?auth_mechanism=amqplain", "plain or external");
        refused("amqps://h?server_name_indication=disable", "a name");
    }

    /// What a URI is made of, and what it is not.
    const PIECES: &str = "amqp|amqps|://|:|/|?|#|@|&|=|%|%2|%2f|%ff|%c3%a4|[|]|::1|h|u|5671|65536|-1|+| |\0|\n|ä|€|\u{202e}|\
                          heartbeat|channel_max|frame_max|auth_mechanism|external|cacertfile|verify|verify_none|disable|\
                          server_name_indication|password|connection_timeout|99999999999999999999";

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: std::env::var("PARSER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2000),
            ..ProptestConfig::default()
        })]

        #[test]
        fn whatever_is_given_it_is_read_or_refused(pieces in prop::collection::vec(0_usize..64, 0..20)) {
            let known: Vec<&str> = PIECES.split('|').collect();
            let text: String = pieces.into_iter().map(|piece| known[piece % known.len()]).collect();
            if let Err(must_be) = Uri::parse(&text) {
                prop_assert!(!must_be.is_empty() && !must_be.contains('\n'));
            }
        }

        #[test]
        fn what_is_encoded_is_what_is_meant(user in "\\PC{1,12}", password in "\\PC{0,12}", vhost in "\\PC{0,12}") {
            let encode = |text: &str| text.bytes().fold(String::new(), |out, byte| format!("{out}%{byte:02x}"));
            let text = format!("amqps://{}:{}@h/{}", encode(&user), encode(&password), encode(&vhost));
            let uri = Uri::parse(&text).map_err(TestCaseError::fail)?;
            prop_assert_eq!((uri.user, uri.vhost), (Some(user), vhost));
            prop_assert_eq!(uri.password.as_ref().map(Secret::expose), Some(password.as_str()));
        }
    }
}
