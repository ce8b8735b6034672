//! The door: who is let in. Pure.
//!
//! The port has no login, and a browser on this host reaches it for any page that it shows. A page cannot read what comes
//! from another origin; but its name can be made to lead here once it is loaded (DNS rebinding), and then this is its own
//! origin. What it cannot do is to change the name that the browser sends: so names must be known. An address is no name.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::{Method, Request, StatusCode, Version, header};

/// Why a request is refused, if it is. `hosts`: names that may lead here, beside `localhost`.
pub(super) fn refusal<B>(request: &Request<B>, hosts: &[String]) -> Option<(StatusCode, &'static str)> {
    let named = request.headers().get_all(header::HOST).iter().collect::<Vec<_>>();
    // A request line may name the host too.
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    let names = match named.as_slice() {
        // Clients of HTTP/1.0 are no browsers.
        [] if request.version() < Version::HTTP_11 => Vec::new(),
        [] => return Some((StatusCode::BAD_REQUEST, "a request names its host")),
        [one] => vec![one.to_str().unwrap_or_default()],
        _ => return Some((StatusCode::BAD_REQUEST, "a request names its host once")),
    };
    if !names.into_iter().chain(authority).all(|name| is_known(name, hosts)) {
        return Some((StatusCode::MISDIRECTED_REQUEST, "this name is not known here; add it to http.hosts"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "there is nothing to change here"));
    }
    None
}

/// Whether a host, perhaps with a port, is an address, `localhost` or one of `hosts`.
fn is_known(host: &str, hosts: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => return is_port(port) && address.parse::<Ipv6Addr>().is_ok(),
        None => match host.split_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut known = ["localhost"].into_iter().chain(hosts.iter().map(String::as_str));
    name.parse::<Ipv4Addr>().is_ok() || known.any(|known| known.eq_ignore_ascii_case(name))
}

fn is_port(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, version: Version, hosts: &[&str], want: Option<u16>) {
        let mut request = Request::builder().method(method).version(version).uri("/metrics");
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let got = refusal(&request.body(()).expect("a request"), &["db1.example".to_owned()]);
        assert_eq!(got.map(|(status, _)| status.as_u16()), want, "{method} {hosts:?}");
    }

    #[test]
    fn addresses_and_known_names_are_let_in_and_other_names_are_not() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9488",
            "10.1.2.3:80",
            "[::1]:9488",
            "[::1]",
            "localhost:9488",
            "LOCALHOST",
            "db1.example:1",
            "DB1.example.",
        ] {
            check("GET", Version::HTTP_11, &[host], None);
        }
        for host in [
            "evil.example",
            "evil.example:9488",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "[evil]",
            "[::1]x",
            "127.0.0.1:x",
            "a:b:c",
            "1.2.3.4@evil",
        ] {
            check("GET", Version::HTTP_11, &[host], Some(421));
        }
    }

    #[test]
    fn a_host_is_named_once_and_nothing_is_changed() {
        check("GET", Version::HTTP_11, &[], Some(400));
        check("GET", Version::HTTP_11, &["localhost", "localhost"], Some(400));
        check("GET", Version::HTTP_10, &[], None);
        check("GET", Version::HTTP_10, &["evil.example"], Some(421));
        check("HEAD", Version::HTTP_11, &["localhost"], None);
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "BREW"] {
            check(method, Version::HTTP_11, &["localhost"], Some(405));
        }
    }
}
