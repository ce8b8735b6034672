//! The host: the spool's folder and space, descriptors, `/proc`, paths, and the status page's port.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use super::config;
use crate::rig::{disk::Disk, free_port, operator::Operator, postgres::shared};

#[test]
fn whatever_the_spool_lacks_is_told_with_what_mends_it() {
    let operator = Operator::new(shared(18), None, &config(shared(18)));
    let spool = operator.at("spool");
    operator.breaks_and_mends("spool.folder", "failure", || fs::write(&spool, "somebody's").unwrap());
    assert_eq!(fs::read_to_string(operator.at("spool.aside")).unwrap(), "somebody's", "it is kept");
    operator.breaks_and_mends("spool.mode", "warning", || {
        fs::set_permissions(&spool, fs::Permissions::from_mode(0o755)).unwrap();
    });
    operator.breaks_and_mends("spool.space", "warning", || operator.set("spool.min_free = '16TiB'"));
    operator.set("spool.min_free = '0'");
    operator.breaks_and_mends("spool.space", "warning", || operator.set("spool.max_bytes = '16TiB'"));
    operator.set("spool.max_bytes = '1GiB'");
    operator.breaks_and_mends("spool.outage", "warning", || {
        operator.set("spool.max_bytes = '1MiB'\ncollectors.pg_activity.interval = '100ms'\ncollectors.pg_locks.interval = '100ms'");
    });
    let Some(memory) = Disk::memory("check", 64 << 20) else { return };
    operator.breaks_and_mends("spool.file_system", "warning", || {
        operator.set(&format!("spool.dir = '{}'", memory.path().join("spool").display()));
    });
}

#[test]
fn a_folder_that_the_agents_user_may_not_write_to_is_given_to_it() {
    if !crate::rig::is_root() {
        println!("left out: only root can be somebody else");
        return;
    }
    let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];
    let operator = Operator::new(shared(18), None, &config(shared(18))).under(&user);
    let own = |name: &str| {
        let folder = operator.at("spool");
        std::process::Command::new("chown").arg(name).arg(folder).status().unwrap();
    };
    fs::create_dir(operator.at("spool")).unwrap();
    own("postgres");
    operator.breaks_and_mends("spool.rights", "failure", || fs::remove_dir(operator.at("spool")).unwrap());
    operator.breaks_and_mends("spool.rights", "failure", || own("root"));
}

#[test]
fn what_the_agent_needs_of_its_host_is_told_with_what_gives_it() {
    let port = free_port();
    let operator = Operator::new(shared(18), None, &config(shared(18)));
    // What is typed raises the shell's own limit; what comes behind it inherits that.
    let bash = Operator::new(shared(18), None, &config(shared(18)));
    bash.type_first("ulimit -Sn 64");
    let found = bash.check();
    assert_eq!(found["host.descriptors"]["status"], "warning", "{found:#?}");
    bash.apply(&found["host.descriptors"]);
    assert_eq!(bash.check()["host.descriptors"]["status"], "ok");
    operator.breaks_and_mends("host.proc", "failure", || operator.set("collectors.system_metrics.proc = '/host/proc'"));
    operator.breaks_and_mends("host.disk_paths", "warning", || {
        operator.set("collectors.system_metrics.disk_paths = ['/no/such', '/path']");
    });
    operator.set(&format!("http.listen = '127.0.0.1:{port}'"));
    let mut taken = None;
    operator
        .breaks_and_mends("http.listen", "warning", || taken = Some(TcpListener::bind(("127.0.0.1", port)).unwrap()));
    operator.breaks_and_mends("http.exposed", "warning", || {
        operator.set(&format!("http.listen = '0.0.0.0:{}'", free_port()));
    });
    operator.breaks_and_mends("postgres.url", "warning", || {
        operator.set("postgres.url = 'postgres://agent:hunter2@127.0.0.1:1/postgres'");
    });
    let found = operator.check();
    assert!(!format!("{found:?}").contains("hunter2"));
}
