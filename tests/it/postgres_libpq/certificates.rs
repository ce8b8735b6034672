//! Certificates made on the spot: two authorities, a server's in all the ways that go right or wrong, a client's.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use crate::rig::{Folder, is_root, must};

/// Leaf certificates for the server: name, subject and what `openssl ca` is told of it. All have the key `server.key`
/// and are of the authority `ca`.
const LEAVES: [(&str, &str, &str, &str); 11] = [
    ("db", "/CN=nobody", "subjectAltName=DNS:other.test,DNS:db.test", ""),
    ("wild", "/CN=nobody", "subjectAltName=DNS:*.test", ""),
    ("ip", "/CN=db.test", "subjectAltName=IP:127.0.0.1", ""),
    ("cn", "/CN=db.test", "basicConstraints=CA:FALSE", ""),
    ("wildcn", "/CN=*.test", "basicConstraints=CA:FALSE", ""),
    ("cnip", "/CN=127.0.0.1", "subjectAltName=DNS:db.test", ""),
    ("expired", "/CN=x", "subjectAltName=DNS:db.test", "-startdate 20200101000000Z -enddate 20200201000000Z"),
    ("early", "/CN=x", "subjectAltName=DNS:db.test", "-startdate 20480101000000Z -enddate 20490101000000Z"),
    ("revoked", "/CN=revoked", "subjectAltName=DNS:db.test", ""),
    ("purpose", "/CN=x", "subjectAltName=DNS:db.test\nextendedKeyUsage=clientAuth", ""),
    ("leafca", "/CN=leafca", "subjectAltName=DNS:db.test\nbasicConstraints=CA:TRUE", ""),
];

const CONFIG: &str = "
[ca]
default_ca = here
[here]
database = index.txt
serial = serial
crlnumber = crlnumber
new_certs_dir = .
default_md = sha256
default_days = 2
default_crl_days = 2
policy = any
unique_subject = no
crl_extensions = crl
[any]
commonName = supplied
[crl]
authorityKeyIdentifier = keyid
";

const EC: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

fn openssl(folder: &Path, arguments: &str) {
    must(Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder));
}

/// All of it, in one folder.
pub(super) fn make() -> Folder {
    let folder = Folder::new("certificates");
    let at = folder.path();
    for (name, text) in [("ca.cnf", CONFIG), ("index.txt", ""), ("serial", "1000\n"), ("crlnumber", "10\n")] {
        fs::write(at.join(name), text).unwrap();
    }
    for name in ["ca", "other"] {
        openssl(at, &format!("req -x509 {EC} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(at, &format!("req -new {EC} -subj /CN=old -keyout old.key -out old.csr"));
    fs::write(at.join("ca.ext"), "basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n").unwrap();
    let past = "-startdate 20200101000000Z -enddate 20200201000000Z";
    openssl(
        at,
        &format!(
            "ca -batch -config ca.cnf -selfsign -keyfile old.key -extfile ca.ext {past} -in old.csr \
             -out old.crt -notext"
        ),
    );
    openssl(at, "ecparam -name prime256v1 -genkey -noout -out server.key");
    servers(at);
    clients(at);
    lists(at);
    folder
}

fn request(at: &Path, name: &str, subject: &str, key: &str) {
    openssl(at, &format!("req -new -key {key} -subj {subject} -out {name}.csr"));
}

/// Signs the request `name` as an authority does that keeps books.
fn sign(at: &Path, name: &str, authority: &str, extensions: &str, more: &str) {
    fs::write(at.join(format!("{name}.ext")), extensions).unwrap();
    openssl(
        at,
        &format!(
            "ca -batch -config ca.cnf -cert {authority}.crt -keyfile {authority}.key -extfile {name}.ext {more} \
             -in {name}.csr -out {name}.crt -notext"
        ),
    );
}

fn servers(at: &Path) {
    for (name, subject, extensions, more) in LEAVES {
        request(at, name, subject, "server.key");
        sign(at, name, "ca", extensions, more);
    }
    // Its own authority, as PostgreSQL's manual makes it.
    openssl(at, "req -x509 -key server.key -days 2 -subj /CN=db.test -addext subjectAltName=DNS:db.test -out self.crt");
    // Of version 1: no extensions at all.
    request(at, "v1", "/CN=db.test", "server.key");
    openssl(at, "x509 -req -in v1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out v1.crt");
    let text = must(Command::new("openssl").args(["x509", "-text", "-noout", "-in", "v1.crt"]).current_dir(at));
    assert!(text.contains("Version: 1"), "{text}");
    request(at, "aged", "/CN=x", "server.key");
    sign(at, "aged", "old", "subjectAltName=DNS:db.test", "");
    // One between the authority and the server.
    openssl(at, &format!("req -new {EC} -subj /CN=between -keyout between.key -out between.csr"));
    sign(at, "between", "ca", "basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash", "");
    request(at, "far", "/CN=x", "server.key");
    sign(at, "far", "between", "subjectAltName=DNS:db.test", "");
    let chain = ["far.crt", "between.crt"].map(|name| fs::read_to_string(at.join(name)).unwrap()).concat();
    fs::write(at.join("chain.crt"), chain).unwrap();
    let both = ["other.crt", "ca.crt"].map(|name| fs::read_to_string(at.join(name)).unwrap()).concat();
    fs::write(at.join("both.crt"), both).unwrap();
}

fn clients(at: &Path) {
    openssl(at, "genrsa -out client.key 2048");
    openssl(at, "rsa -traditional -in client.key -out pkcs1.key");
    openssl(at, "pkcs8 -topk8 -in client.key -passout pass:x -out locked.key");
    openssl(at, "ecparam -name prime256v1 -genkey -out ec.key");
    for (name, authority, key) in
        [("client", "ca", "client.key"), ("foreign", "other", "client.key"), ("ec", "ca", "ec.key")]
    {
        request(at, name, "/CN=certy", key);
        sign(at, name, authority, "extendedKeyUsage=clientAuth", "");
    }
    request(at, "stale", "/CN=certy", "client.key");
    sign(at, "stale", "ca", "basicConstraints=CA:FALSE", "-startdate 20200101000000Z -enddate 20200201000000Z");
    for (name, mode) in [("loose.key", 0o644), ("tight.key", 0o400)] {
        fs::copy(at.join("client.key"), at.join(name)).unwrap();
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    // Not root's, where there is a root: then the group may not read it.
    fs::copy(at.join("client.key"), at.join("group.key")).unwrap();
    if is_root() {
        std::os::unix::fs::chown(at.join("group.key"), Some(1), None).unwrap();
    }
    fs::set_permissions(at.join("group.key"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(at.join("broken"), "-----BEGIN CERTIFICATE-----\n\u{1}no base64\n-----END CERTIFICATE-----\n").unwrap();
    fs::write(at.join("garbage"), "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").unwrap();
    fs::set_permissions(at.join("garbage"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    fs::create_dir(at.join("folder.key")).unwrap();
}

fn lists(at: &Path) {
    openssl(at, "ca -config ca.cnf -cert ca.crt -keyfile ca.key -revoke revoked.crt");
    openssl(at, "ca -config ca.cnf -cert ca.crt -keyfile ca.key -gencrl -out ca.crl");
    openssl(at, "ca -config ca.cnf -cert other.crt -keyfile other.key -gencrl -out other.crl");
    let past = "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200201000000Z";
    openssl(at, &format!("ca -config ca.cnf -cert ca.crt -keyfile ca.key -gencrl {past} -out old.crl"));
    for name in ["ca", "other"] {
        let folder = at.join(format!("{name}.crls"));
        fs::create_dir(&folder).unwrap();
        let hash = Command::new("openssl")
            .args(["crl", "-hash", "-noout", "-in"])
            .arg(at.join(format!("{name}.crl")))
            .output();
        let hash = String::from_utf8(hash.unwrap().stdout).unwrap();
        symlink(at.join(format!("{name}.crl")), folder.join(format!("{}.r0", hash.trim()))).unwrap();
    }
    fs::create_dir(at.join("none.crls")).unwrap();
}
