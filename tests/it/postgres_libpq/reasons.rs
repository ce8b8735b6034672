//! Which words of libpq's, of the agent's and of a server's mean the same.

/// All that libpq says of a certificate that it does not trust; the agent says why.
const VERIFY: &[&str] = &["certificate verify failed"];

/// A kind of reason, what libpq says of it and what the agent says; one of each is enough. Words of the server's are
/// the same for both.
const REASONS: &[(&str, &[&str], &[&str])] = &[
    (
        "nobody",
        &["Connection refused", "No such file or directory\tIs the server", "No such file"],
        &["Connection refused", "No such file"],
    ),
    ("no such host", &["could not translate host name"], &["failed to lookup address"]),
    ("timeout", &["timeout expired"], &["no answer within"]),
    (
        "stranger",
        &["received invalid response to SSL negotiation", "expected authentication request"],
        &["no PostgreSQL server"],
    ),
    ("closed", &["closed the connection unexpectedly"], &["closed the connection", "Connection reset"]),
    (
        "setting",
        &[
            "invalid ",
            "weak sslmode",
            "could not match",
            "missing ",
            "unterminated",
            "more than once",
            "cannot be mixed",
            "unexpected",
            "could not parse network address",
            "extra key/value",
            "forbidden value",
            "end of string",
        ],
        &["a connection that can be made", "a URI", "key=value pairs", "known keywords"],
    ),
    ("no service", &["definition of service"], &["there is no ["]),
    ("service file", &["service file"], &["service file"]),
    ("hba", &["no pg_hba.conf entry"], &["no pg_hba.conf entry"]),
    ("rejected", &["pg_hba.conf rejects"], &["pg_hba.conf rejects"]),
    ("wrong password", &["password authentication failed"], &["password authentication failed"]),
    ("no password", &["no password supplied"], &["asks for a password, and there is none"]),
    ("peer", &["Peer authentication failed"], &["Peer authentication failed"]),
    ("no role", &["role \""], &["role \""]),
    ("no database", &["database \""], &["database \""]),
    ("no TLS", &["server does not support SSL"], &["the server has no TLS"]),
    ("expired", VERIFY, &["has expired at"]),
    ("too early", VERIFY, &["is not valid before"]),
    ("issuer", VERIFY, &["of no authority among", "self-signed and not among"]),
    ("purpose", VERIFY, &["is not for servers"]),
    ("name", &["does not match host name"], &[", not for host"]),
    ("no name", &["host name must be specified"], &["needs the name that the certificate is for"]),
    ("revoked", VERIFY, &["was revoked"]),
    ("list", VERIFY, &["may be revoked", "sslcrldir has no list"]),
    ("root", &["root certificate file"], &["root certificate"]),
    ("key permissions", &["has group or world access"], &["others may read it"]),
    (
        "key",
        &["could not load private key file", "does not match private key file", "is not a regular file"],
        &["client key"],
    ),
    ("no key", &["but not private key file"], &["client key"]),
    ("certificate file", &["could not read certificate file"], &["client certificate"]),
    ("certificate wanted", &["requires a valid client certificate"], &["requires a valid client certificate"]),
    ("foreign", &["alert unknown ca"], &["alert UnknownCA"]),
    ("stale", &["alert certificate expired"], &["alert CertificateExpired"]),
    (
        "certificate unshown",
        &["did not request an SSL certificate", "without a valid SSL certificate"],
        &["sslcertmode is require"],
    ),
    ("method", &["authentication method requirement"], &["and require_auth is"]),
    ("binding", &["channel binding required", "channel binding is required"], &["channel_binding is require"]),
    ("read-only", &["session is read-only"], &["it is read-only"]),
    ("not read-only", &["session is not read-only"], &["it is not read-only"]),
    ("standby", &["server is in hot standby mode"], &["it is a standby"]),
    ("no standby", &["server is not in hot standby mode"], &["it is no standby"]),
    ("TLS version", &["unsupported protocol", "protocol version"], &["alert ProtocolVersion"]),
    (
        "direct",
        &["direct SSL", "SSL error", "SSL SYSCALL error", "closed the connection unexpectedly", "Connection reset"],
        &["TLS: "],
    ),
    ("list file", &[], &["no certificate revocation list"]),
    ("certificate", &[], &["the server's certificate cannot be used"]),
    ("no Kerberos", &["GSSAPI encryption required"], &[]),
    ("LDAP", &["invalid LDAP URL"], &[]),
    ("keepalive", &["setsockopt(TCP_KEEPIDLE) failed"], &[]),
    ("unsupported", &[], &["is not supported"]),
];

/// Whether a message gives this reason.
pub(super) fn is(reason: &str, who: &str, message: &str) -> bool {
    let found = REASONS.iter().find(|(name, ..)| *name == reason);
    let (_, libpq, agent) = found.unwrap_or_else(|| panic!("{reason:?} is no reason"));
    let words = if who == "libpq" { libpq } else { agent };
    words.iter().any(|words| message.contains(words))
}
