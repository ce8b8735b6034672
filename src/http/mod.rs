//! What the agent shows of itself to whoever asks its port: health, metrics, and a page for people. Read only.
//!
//! Nobody logs in here, so it listens on loopback where nothing else is said, shows no secret, and a query's text only
//! where `privacy.query_text` is `raw`. Whoever asks costs little, however slow, large or odd the request: connections,
//! their time, the size of a head and of an answer are bounded. A page of somebody else's that leads a browser here by a
//! name of its own (DNS rebinding) is refused by that name.
//!
//! One task for all connections, and none of them can end it. A port that cannot be had stops this part alone.

mod door;
mod metrics;
mod view;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tracing::{error, info, warn};

use crate::{
    settings::{Reader, Section},
    spool::chain,
};
pub use view::{Current, Plan, View};

/// Connections at the same time; who comes later waits.
const CONNECTIONS: usize = 64;
/// A connection ends after so much time, whatever it does: who reads slowly holds its place no longer.
const CONNECTION: Duration = Duration::from_secs(30);
/// So long a request may take to arrive, and a connection may stand idle.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// A port that could not be had is tried again after so much time.
const AGAIN: Duration = Duration::from_secs(10);

/// The `[http]` table.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Names by which it may be asked, beside addresses, `localhost` and the host's own name.
    pub hosts: Vec<String>,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let address = |text: &String| match text.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                "an address and a port, such as \"127.0.0.1:9488\" or \"[::1]:9488\", or \"\" for none".to_owned()
            }),
        };
        let listen = reader.checked(
            "listen",
            "127.0.0.1:9488".to_owned(),
            "Where /healthz, /readyz, /metrics and the status page can be asked for, without a login. \"\" turns it off.",
            |text| address(text).map(drop),
        );
        let named = |names: &Vec<String>| {
            let plain = |name: &String| !name.is_empty() && !name.contains(['/', ':', ' ', '*']);
            names.iter().all(plain).then_some(()).ok_or_else(|| "host names, without scheme, port or path".to_owned())
        };
        let hosts = reader.checked(
            "hosts",
            Vec::new(),
            "Names by which http.listen may be asked, beside addresses, localhost and the host's own name. A browser that \
             was led here by another name is refused.",
            named,
        );
        // After a mistake nothing is started.
        Self { listen: address(&listen).ok().flatten(), hosts }
    }
}

/// What listens.
#[derive(Debug)]
pub struct Server {
    /// Where.
    pub listen: SocketAddr,
    /// By which names, beside `localhost`.
    pub hosts: Vec<String>,
    /// What it shows.
    pub view: View,
}

impl Server {
    /// Serves for as long as it is polled. A port that cannot be had is told once and tried again.
    pub async fn serve(self) {
        let mut told = None;
        loop {
            match TcpListener::bind(self.listen).await {
                Ok(listener) => {
                    let at = listener.local_addr().unwrap_or(self.listen);
                    info!(%at, "the status page can be asked for");
                    if !at.ip().is_loopback() {
                        warn!(%at, "the status page can be asked for from other hosts, without a login");
                    }
                    told = None;
                    self.listen_on(&listener).await;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if told.as_ref() != Some(&reason) {
                        error!(
                            at = %self.listen, reason,
                            "no status page, health or metrics: the port cannot be had; name another one in http.listen. \
                             Everything else runs, and it is tried again"
                        );
                        told = Some(reason);
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Serves until the port itself fails.
    async fn listen_on(&self, listener: &TcpListener) {
        let mut connections = FuturesUnordered::new();
        let mut refused: Option<Instant> = None;
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => connections.push(timeout(CONNECTION, self.connection(stream))),
                    Err(error) if is_passing(&error) => {
                        // Said once a minute: descriptors that are used up stay used up for a while.
                        if refused.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                            refused = Some(Instant::now());
                            warn!(reason = %error, "the status page cannot take a connection");
                        }
                        sleep(Duration::from_millis(200)).await;
                    }
                    Err(error) => {
                        error!(reason = chain(&error), "the status page's port failed; it is opened anew");
                        return;
                    }
                },
                Some(_ended) = connections.next() => {}
            }
        }
    }

    async fn connection(&self, stream: TcpStream) {
        let answer = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(self.answer(&request)) });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).half_close(false);
        // How a connection ended concerns its client alone: it went away, was too slow, or spoke no HTTP.
        let _ended = http.serve_connection(TokioIo::new(stream), answer).await;
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let answer = match door::refusal(request, &self.hosts) {
            Some((status, why)) => Answer::error(status, why),
            None => self.look(request.uri().path(), request.uri().query().unwrap_or_default()),
        };
        answer.into_response(request.method())
    }

    fn look(&self, path: &str, query: &str) -> Answer {
        let verdict = |verdict: &view::Verdict| {
            let status = if verdict.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Answer { status, ..Answer::json(verdict) }
        };
        match path {
            "/" => Answer::ok("text/html; charset=utf-8", include_str!("page/page.html")),
            "/page.css" => Answer::ok("text/css; charset=utf-8", include_str!("page/page.css")),
            "/page.js" => Answer::ok("text/javascript; charset=utf-8", include_str!("page/page.js")),
            "/healthz" => verdict(&self.view.health()),
            "/readyz" => verdict(&self.view.ready()),
            "/metrics" => Answer::ok(metrics::CONTENT_TYPE, metrics::text(&self.view)),
            "/status.json" => Answer::json(&self.view.status()),
            _ => match path.strip_prefix("/messages/").and_then(|name| name.strip_suffix(".json")) {
                Some(collector) => match self.view.message(collector, rows(query)) {
                    Some(message) => Answer::json(&message),
                    None => Answer::error(StatusCode::NOT_FOUND, "no message of this collector yet"),
                },
                None => Answer::error(
                    StatusCode::NOT_FOUND,
                    "there are /, /healthz, /readyz, /metrics, /status.json and /messages/COLLECTOR.json",
                ),
            },
        }
    }
}

/// Rows of each event that are asked for: 20 if not said, 1,000 at the most.
fn rows(query: &str) -> usize {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("rows=")?.parse().ok());
    asked.unwrap_or(20).min(1_000)
}

/// Whether the next connection may well be taken.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, OutOfMemory};
    let full = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOBUFS];
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | OutOfMemory)
        || error.raw_os_error().is_some_and(|code| full.iter().any(|errno| errno.raw_os_error() == code))
}

/// What is answered.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Answer {
    fn ok(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type, body: body.into() }
    }

    fn json(value: &impl serde::Serialize) -> Self {
        // Maps with texts for keys always have a JSON form.
        Self::ok("application/json", serde_json::to_vec(value).unwrap_or_default())
    }

    fn error(status: StatusCode, why: &str) -> Self {
        Self { status, ..Self::json(&serde_json::json!({ "error": why })) }
    }

    fn into_response(self, method: &Method) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        for (name, value) in HEADERS {
            headers.insert(name.clone(), HeaderValue::from_static(value));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            // What else was sent is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// With each answer: the page runs what comes from here and nothing else, and nobody else's page may hold it.
const HEADERS: [(header::HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_bounded_whatever_is_asked_for() {
        for (query, want) in [("", 20), ("rows=5", 5), ("a=b&rows=0", 0), ("rows=-1", 20), ("rows=99999999", 1_000)] {
            assert_eq!(rows(query), want, "{query}");
        }
    }

    #[track_caller]
    fn check(key: &str, value: &str, want: Result<Option<&str>, &str>) {
        let name = std::ffi::OsString::from(format!("POSTGRES_AGENT_HTTP__{key}"));
        let loaded = crate::config::load_from(None, &[(name, value.into())], None);
        let got =
            loaded.map(|loaded| loaded.config.http.listen.map(|at| at.to_string())).map_err(|error| error.to_string());
        match want {
            Ok(want) => assert_eq!(got.as_ref().map(Option::as_deref), Ok(want), "{value}"),
            Err(want) => assert!(got.as_ref().is_err_and(|got| got.contains(want)), "{value}: {got:?}"),
        }
    }

    #[test]
    fn where_it_listens_is_an_address_or_nothing() {
        check("LISTEN", "", Ok(None));
        check("LISTEN", "[::1]:80", Ok(Some("[::1]:80")));
        check("LISTEN", "0.0.0.0:0", Ok(Some("0.0.0.0:0")));
        check(
            "LISTEN",
            ":80",
            Err("http.listen ($POSTGRES_AGENT_HTTP__LISTEN) is \":80\", but must be an address and a port"),
        );
        check("HOSTS", "['db1.example']", Ok(Some("127.0.0.1:9488")));
        check("HOSTS", "['http://db1']", Err("but must be host names"));
    }
}
