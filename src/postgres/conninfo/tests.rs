//! What connection strings and variables mean together.

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        user: Some("me".into()),
        home: Some("/home/me".into()),
    }
}

#[track_caller]
fn resolved(text: &str, variables: &[(&str, &str)]) -> Conninfo {
    resolve(text, &environment(variables)).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// Hosts, user and database.
#[track_caller]
fn check(text: &str, variables: &[(&str, &str)], hosts: &[&str], user: &str, dbname: &str) {
    let got = resolved(text, variables);
    let got_hosts: Vec<String> = got.hosts.iter().map(Host::to_string).collect();
    assert_eq!(
        (got_hosts, got.user.as_str(), got.dbname.as_str()),
        (hosts.iter().map(|host| (*host).to_owned()).collect(), user, dbname)
    );
}

#[track_caller]
fn refused(text: &str, variables: &[(&str, &str)], want: &str) {
    let error = resolve(text, &environment(variables)).expect_err(text);
    assert!(error.contains(want), "{text:?}: {error:?} does not say {want:?}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn nothing_said_is_the_local_socket_and_the_users_own_name() {
    check("", &[], &["/var/run/postgresql/.s.PGSQL.5432", "/tmp/.s.PGSQL.5432"], "me", "me");
    check("", &[("PGPORT", "5433")], &["/var/run/postgresql/.s.PGSQL.5433", "/tmp/.s.PGSQL.5433"], "me", "me");
}

#[test]
fn the_string_wins_over_variables_and_an_empty_value_over_them_too() {
    let variables = [("PGHOST", "h"), ("PGUSER", "u"), ("PGDATABASE", "d")];
    check("", &variables, &["h:5432"], "u", "d");
    check("postgres://other:1/x", &variables, &["other:1"], "u", "x");
    check(
        "host='' user=me dbname=''",
        &variables,
        &["/var/run/postgresql/.s.PGSQL.5432", "/tmp/.s.PGSQL.5432"],
        "me",
        "me",
    );
    let password = resolved("password=a", &[("PGPASSWORD", "b")]).password.expect("said");
    assert_eq!(password.0.expose(), "a");
}

#[test]
fn several_hosts_share_one_port_or_have_one_each() {
    check("postgres://a,b:2,c/", &[], &["a:5432", "b:2", "c:5432"], "me", "me");
    check("host=a,b port=7", &[], &["a:7", "b:7"], "me", "me");
    check("host=a,b hostaddr=10.0.0.1,::1", &[], &["a (10.0.0.1):5432", "b (::1):5432"], "me", "me");
    check("hostaddr=10.0.0.1", &[], &["10.0.0.1:5432"], "me", "me");
    refused("host=a,b port=1,2,3", &[], "3 ports do not go with 2 hosts");
    refused("host=a,b hostaddr=::1", &[], "2 hosts do not go with 1 addresses");
    refused("port=0", &[], "1 to 65535");
    refused("port=65536", &[], "1 to 65535");
    refused("hostaddr=name", &[], "IP address");
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    refused("gssencmode=require", &[], "gssencmode is not supported, except as disable, prefer");
    refused("requirepeer=postgres sslcompression=1", &[], "requirepeer is not supported; sslcompression is not");
    refused("", &[("PGKRBSRVNAME", "pg")], "PGKRBSRVNAME is not supported, except as postgres");
    refused("sslpassword=hunter2", &[], "sslpassword is not supported");
    refused("ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1", &[], "except as TLSv1.2, TLSv1.3");
    refused("min_protocol_version=3.2", &[], "min_protocol_version is not supported");
    resolved("gssencmode=prefer requirepeer='' application_name=x", &[("PGAPPNAME", "y"), ("PGGSSENCMODE", "disable")]);
}

#[test]
fn values_of_closed_lists_are_checked() {
    refused("sslmode=maybe", &[], "sslmode has to be one of disable, allow");
    refused("sslmode=", &[("PGSSLMODE", "require")], "sslmode has to be one of");
    refused("target_session_attrs=any-thing", &[], "target_session_attrs has to be one of any, read-write");
    refused("connect_timeout=soon", &[], "connect_timeout has to be a whole number");
    refused("sslmode=require sslrootcert=system", &[], "verify-full");
    refused("sslmode=disable channel_binding=require", &[], "needs TLS");
    refused("sslnegotiation=direct", &[], "with sslnegotiation=direct");
    refused("require_auth=password,!md5", &[], "! before each method or before none");
    refused("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=tlsv1.2", &[], "at most");
    refused("load_balance_hosts=1", &[], "has to be one of disable, random");
}

#[test]
fn a_root_certificate_of_the_system_means_verify_full() {
    let tls = resolved("sslrootcert=system", &[("SSL_CERT_FILE", "/all")]).tls;
    let roots = Roots::System { file: Some("/all".into()), folder: None };
    assert_eq!((tls.mode, tls.roots), (SslMode::VerifyFull, roots));
    let tls = resolved("", &[("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", "/ca")]).tls;
    assert_eq!((tls.mode, tls.roots), (SslMode::VerifyCa, Roots::File("/ca".into())));
    let tls = resolved("", &[("PGREQUIRESSL", "1")]).tls;
    assert_eq!((tls.mode, tls.roots), (SslMode::Require, Roots::File("/home/me/.postgresql/root.crt".into())));
}

#[test]
fn files_lie_where_they_were_named_or_in_the_home_folder() {
    let tls = resolved("", &[]).tls;
    assert_eq!(tls.crl, Some("/home/me/.postgresql/root.crl".into()));
    assert_eq!(tls.key, Some("/home/me/.postgresql/postgresql.key".into()));
    let tls = resolved("sslcrldir=/crls sslkey=/key", &[]).tls;
    assert_eq!((tls.crl, tls.crl_folder, tls.key), (None, Some("/crls".into()), Some("/key".into())));
    assert_eq!(resolved("passfile=''", &[]).passfile, Some("/home/me/.pgpass".into()));
}

#[test]
fn an_address_is_a_name_too_where_it_was_given_as_a_host() {
    let place = |text| resolved(text, &[]).hosts.remove(0).place;
    assert_eq!(place("host=::1"), Place::Address(std::net::Ipv6Addr::LOCALHOST.into(), Some("::1".into())));
    assert_eq!(place("hostaddr=::1"), Place::Address(std::net::Ipv6Addr::LOCALHOST.into(), None));
    assert_eq!(place("host=@name"), Place::Socket("@name".into()));
    check("host=::1", &[], &["[::1]:5432"], "me", "me");
}

#[test]
fn a_service_stands_between_the_string_and_the_variables() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pg_service.conf");
    std::fs::write(&file, "[a]\nhost=s\nport=1\n\n[bad]\nsslmode=maybe\nhost\n[odd]\nsslmode=maybe\n")
        .expect("written");
    let path = file.to_str().expect("UTF-8");
    let variables = [("PGSERVICEFILE", path), ("PGSERVICE", "a"), ("PGHOST", "h"), ("PGUSER", "u")];
    check("port=2", &variables, &["s:2"], "u", "u");
    refused("service=b", &variables, "there is no [b]");
    refused("service=bad", &variables, &format!("lines of the form keyword=value: service file {path}, line 7"));
    refused("service=odd", &variables, &format!("sslmode (service file {path}, line 9) has to be one of"));
    refused("", &[("PGSERVICEFILE", "/none"), ("PGSERVICE", "a")], "/none: No such file");
    let folder = folder.path().to_str().expect("UTF-8");
    check("service=a", &[("PGSYSCONFDIR", folder)], &["s:1"], "me", "me");
}

#[test]
fn zero_and_less_to_connect_is_no_limit() {
    assert_eq!(resolved("connect_timeout=' +1 '", &[]).connect_timeout, Some(Duration::from_secs(1)));
    assert_eq!(resolved("", &[("PGCONNECT_TIMEOUT", "7")]).connect_timeout, Some(Duration::from_secs(7)));
    assert_eq!(resolved("connect_timeout=0", &[]).connect_timeout, None);
    assert_eq!(resolved("connect_timeout=-1", &[]).connect_timeout, None);
}

#[test]
fn no_password_is_printed() {
    let printed = format!("{:?}", resolved("password=hunter2", &[]));
    assert!(!printed.contains("hunter2"), "{printed}");
    let printed = format!("{:?}", environment(&[("PGPASSWORD", "hunter2")]));
    assert!(!printed.contains("hunter2"), "{printed}");
}

/// A text of pieces that mean something and of any characters, another one for each seed.
fn made_up(seed: u64, pieces: &[&str]) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut roll = |sides: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 11).expect("64 bits") % sides
    };
    let mut text = String::new();
    for _ in 0..roll(14) {
        match roll(8) {
            0 => text.extend(char::from_u32(u32::try_from(roll(0x11_0000)).expect("21 bits"))),
            _ => text.push_str(pieces[roll(pieces.len())]),
        }
    }
    text
}

/// As many texts as `LIBPQ_RANDOM` says.
fn all_made_up(pieces: &'static [&'static str]) -> impl Iterator<Item = String> {
    let often = std::env::var("LIBPQ_RANDOM").map_or(20_000, |text| text.parse().expect("LIBPQ_RANDOM is a number"));
    (0..often).map(|seed| made_up(seed, pieces))
}

const WORDS: &[&str] = &[
    "postgres://",
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "require_auth",
    "service",
    "connect_timeout",
    "sslrootcert",
    "ssl_max_protocol_version",
    "sslnegotiation",
    "target_session_attrs",
    "=",
    "=",
    "=",
    "'",
    "\\",
    " ",
    " ",
    "\n",
    "%",
    "%41",
    "%00",
    "@",
    ":",
    "/",
    "?",
    "&",
    ",",
    "[",
    "]",
    "::1",
    "127.0.0.1",
    "5432",
    "require",
    "system",
    "direct",
    "!password",
    "TLSv1.2",
    "hunter2",
    "é",
    "*",
];

const LINES: &[&str] =
    &["[a]", "[", "]", "a", "#", "=", "host", "port", "ldap", "service", "\n", "\r\n", " ", "\t", "x", "é", "\0"];

const FIELDS: &[&str] =
    &["h:", "5432:", "db:", "me:", "*:", "*:", "*:", "*", ":", "::", "\\", "\\:", "#", "\n", "\r\n", "pass", "é", "\0"];

#[test]
fn no_connection_string_is_too_strange() {
    let environment = environment(&[("PGSYSCONFDIR", "/nowhere")]);
    let mut accepted = 0;
    for text in all_made_up(WORDS) {
        match resolve(&text, &environment) {
            Ok(_) => accepted += 1,
            Err(told) => assert!(!told.contains(char::is_control), "{text:?}: {told:?}"),
        }
    }
    assert!(accepted > 0);
}

#[test]
fn no_service_file_is_too_strange() {
    for text in all_made_up(LINES) {
        let lines = text.split('\n').count();
        match service::read(&text, "a") {
            Ok(found) => assert!(found.is_none_or(|settings| settings.len() < lines), "{text:?}"),
            Err((line, _)) => assert!((1..=lines).contains(&line), "{text:?}: {line}"),
        }
    }
}

#[test]
fn no_password_file_is_too_strange() {
    let host = Host { place: Place::Name("h".into()), port: 5432 };
    let mut found = 0;
    for text in all_made_up(FIELDS) {
        let password = passfile::lookup(&text, &host, "db", "me");
        assert!(password.as_ref().is_none_or(|password| !password.expose().is_empty()), "{text:?}");
        found += usize::from(password.is_some());
    }
    assert!(found > 0);
}
