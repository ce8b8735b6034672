//! Certificates, made on the spot by openssl, and a real RabbitMQ that speaks TLS with them.
//!
//! A start of a broker takes seconds, so tests share one; each bad certificate has a listener of its own on it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{Folder, free_port, must, rabbit::Broker};

/// Who signs certificates.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: Folder,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Valid {
    Now,
    /// Until a year that is over.
    Past,
    /// From a year that is far.
    Future,
}

impl Valid {
    fn span(self) -> (&'static str, &'static str) {
        match self {
            Self::Now => ("20200101000000Z", "20491231000000Z"),
            Self::Past => ("20200101000000Z", "20210101000000Z"),
            Self::Future => ("20480101000000Z", "20491231000000Z"),
        }
    }
}

/// What `openssl ca` wants to know of an authority.
const CONFIG: &str = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nnew_certs_dir = .\ncertificate = ca.crt\n\
                      private_key = ca.key\nrand_serial = yes\ndefault_md = sha256\nunique_subject = no\npolicy = any\n\
                      [any]\ncommonName = supplied\n";

/// Made in milliseconds.
const KEY: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let subject = format!("/CN={name}");
        let mut openssl = openssl(folder.path(), "req -x509 -nodes -days 2 -keyout ca.key -out ca.crt");
        must(openssl.args(KEY).args(["-subj", &subject]));
        fs::write(folder.path().join("ca.cnf"), CONFIG).unwrap();
        fs::write(folder.path().join("index"), "").unwrap();
        Self { folder }
    }

    /// Its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A certificate for the common name `subject` and for `names` such as `IP:127.0.0.1,DNS:mq.test`; the key is for the one
    /// who runs the tests alone.
    pub(crate) fn issue(&self, file: &str, subject: &str, names: &str, valid: Valid) -> Certificate {
        let at = self.folder.path();
        let (subject, request) =
            (format!("/CN={subject}"), format!("req -new -nodes -keyout {file}.key -out {file}.csr"));
        must(openssl(at, &request).args(KEY).args(["-subj", &subject]));
        let extensions = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
        fs::write(at.join(format!("{file}.ext")), extensions).unwrap();
        let sign = format!("ca -batch -notext -config ca.cnf -in {file}.csr -out {file}.crt -extfile {file}.ext");
        let (from, until) = valid.span();
        must(openssl(at, &sign).args(["-startdate", from, "-enddate", until]));
        let key = at.join(format!("{file}.key"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        Certificate { cert: at.join(format!("{file}.crt")), key }
    }
}

impl Certificate {
    /// Lets a server's own user read the key.
    pub(crate) fn for_a_server(self) -> Self {
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    /// Puts another in its place, as a renewal does.
    pub(crate) fn become_like(&self, other: &Self) {
        for (own, other) in [(&self.cert, &other.cert), (&self.key, &other.key)] {
            let fresh = own.with_extension("fresh");
            fs::copy(other, &fresh).unwrap();
            fs::rename(&fresh, own).unwrap();
        }
    }
}

fn openssl(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(folder);
    command
}

/// A broker that logs users in by name, and by certificate where one was shown: its common name is the user's.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(crate) broker: Broker,
    /// Signed what the broker shows, and whom it lets in.
    pub(crate) authority: Authority,
    /// One that neither end knows.
    pub(crate) stranger: Authority,
}

/// The broker with TLS that all tests of this run share.
pub(crate) fn shared() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    SECURED.get_or_init(|| {
        let logins = "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN\nauth_mechanisms.3 = EXTERNAL\n";
        // Each listener brings options of its own; the plugin looks at these, too.
        let settings = format!("{logins}ssl_cert_login_from = common_name\nssl_options.verify = verify_peer");
        Secured {
            broker: Broker::with_plugins(&["rabbitmq_auth_mechanism_ssl"], &settings),
            authority: Authority::new("authority"),
            stranger: Authority::new("stranger"),
        }
    })
}

impl Secured {
    /// Opens a further port that shows this certificate, which is read at each handshake. `more` are options of Erlang's
    /// ssl, such as `{fail_if_no_peer_cert, true}`.
    pub(crate) fn listen(&self, shows: &Certificate, more: &[&str]) -> u16 {
        let port = free_port();
        let mut options = vec![
            format!("{{cacertfile, {:?}}}", self.authority.file()),
            format!("{{certfile, {:?}}}", shows.cert),
            format!("{{keyfile, {:?}}}", shows.key),
            "{verify, verify_peer}".into(),
        ];
        options.extend(more.iter().map(ToString::to_string));
        let options = options.join(", ");
        self.broker.ctl(&[
            "eval",
            &format!("rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, [{options}], 2)."),
        ]);
        port
    }

    /// A port with a good certificate, for 127.0.0.1.
    pub(crate) fn good(&self) -> u16 {
        static PORT: OnceLock<u16> = OnceLock::new();
        *PORT.get_or_init(|| self.listen(&self.shown("good", "IP:127.0.0.1", Valid::Now), &[]))
    }

    /// A certificate for the broker to show.
    pub(crate) fn shown(&self, file: &str, names: &str, valid: Valid) -> Certificate {
        self.authority.issue(file, "broker", names, valid).for_a_server()
    }
}
