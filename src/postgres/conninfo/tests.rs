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
    check("host=/run user='' dbname=''", &variables, &["/run/.s.PGSQL.5432"], "me", "me");
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
    refused("service=x", &[], "service is not supported");
    refused("", &[("PGSERVICE", "x")], "PGSERVICE is not supported");
    refused("gssencmode=require", &[], "gssencmode is not supported, except as disable, prefer");
    refused("sslcrl=/x load_balance_hosts=random", &[], "as disable; sslcrl is not supported");
    refused("load_balance_hosts=random", &[], "load_balance_hosts is not supported, except as disable");
    refused("", &[("PGREQUIREAUTH", "scram-sha-256")], "PGREQUIREAUTH");
    refused("sslnegotiation=direct", &[], "sslnegotiation");
    refused("sslpassword=hunter2", &[], "sslpassword is not supported");
    refused("host=@abstract", &[], "abstract");
    resolved("gssencmode=prefer sslnegotiation=postgres service='' application_name=x", &[("PGAPPNAME", "y")]);
}

#[test]
fn values_of_closed_lists_are_checked() {
    refused("sslmode=maybe", &[], "sslmode has to be one of disable, allow");
    refused("target_session_attrs=any-thing", &[], "target_session_attrs has to be one of any, read-write");
    refused("connect_timeout=soon", &[], "connect_timeout has to be a whole number");
    refused("sslmode=require sslrootcert=system", &[], "verify-full");
    refused("sslmode=disable channel_binding=require", &[], "needs TLS");
}

#[test]
fn a_root_certificate_of_the_system_means_verify_full() {
    let tls = resolved("sslrootcert=system", &[]).tls;
    assert_eq!((tls.mode, tls.roots), (SslMode::VerifyFull, Roots::System));
    let tls = resolved("", &[("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", "/ca")]).tls;
    assert_eq!((tls.mode, tls.roots), (SslMode::VerifyCa, Roots::File("/ca".into())));
    let tls = resolved("", &[]).tls;
    assert_eq!((tls.mode, tls.roots), (SslMode::Prefer, Roots::Usual("/home/me/.postgresql/root.crt".into())));
}

#[test]
fn one_second_to_connect_is_made_two_and_zero_is_none() {
    assert_eq!(resolved("connect_timeout=1", &[]).connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(resolved("", &[("PGCONNECT_TIMEOUT", "7")]).connect_timeout, Some(Duration::from_secs(7)));
    assert_eq!(resolved("connect_timeout=0", &[]).connect_timeout, None);
}

#[test]
fn no_password_is_printed() {
    let printed = format!("{:?}", resolved("password=hunter2", &[]));
    assert!(!printed.contains("hunter2"), "{printed}");
    let printed = format!("{:?}", environment(&[("PGPASSWORD", "hunter2")]));
    assert!(!printed.contains("hunter2"), "{printed}");
}
