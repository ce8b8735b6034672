//! TLS to the broker that fails while the agent runs: the outage is told as what it is, and whatever is renewed on either
//! side is picked up without a restart.

use std::{fs, path::Path, time::Instant};

use serde_json::Value;

use super::{
    layout::waits,
    scene::{BOUND, Scene, nothing},
};
use crate::rig::{
    agent::command,
    proxy::{Line, Proxy},
    tls::{Secured, Valid, shared},
    wait_for,
};

/// Waits for a status, also one that had to wait itself, that tells of this trouble.
async fn told(scene: &Scene, trouble: &str) {
    let start = Instant::now();
    loop {
        match scene.get(&scene.statuses()).await {
            Some(message) => {
                let body: Value = rmp_serde::from_slice(&message.delivery.data).unwrap();
                let told = &body["events"][0]["data"]["delivery"]["trouble"];
                if told.as_str().is_some_and(|told| told.contains(trouble)) {
                    return;
                }
            }
            None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
        assert!(start.elapsed() < BOUND, "waited in vain for a status that tells of {trouble:?}\n{}", scene.log());
    }
}

/// Waits until the log tells why nothing gets through, and statuses wait that were numbered since.
fn is_out(scene: &Scene, trouble: &str) {
    wait_for(trouble, BOUND, || scene.log().contains(trouble));
    let before = waits(&scene.spool(), "agent_status");
    wait_for("statuses of the outage wait", BOUND, || waits(&scene.spool(), "agent_status") >= before + 2);
}

/// A line that begins anew: the handshakes of now.
fn begin_anew(line: &Proxy) {
    line.set(Line::Cut);
    line.set(Line::Open);
}

/// What `check` says of the login while it is out.
fn checked(folder: &Path) -> String {
    let output = command(["check", "--json", "--config"]).arg(folder.join("agent.toml")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find(|line| line.contains("\"amqp.tls.certificate\"")).unwrap_or_default().to_owned()
}

fn user(secured: &Secured, name: &str) {
    let add = format!("rabbit_auth_backend_internal:add_user(<<\"{name}\">>, <<\"hunter2\">>, <<\"rig\">>)");
    let all = "<<\".*\">>, <<\".*\">>, <<\".*\">>";
    let let_in = format!("rabbit_auth_backend_internal:set_permissions(<<\"{name}\">>, <<\"/\">>, {all}, <<\"rig\">>)");
    tokio::task::block_in_place(|| secured.broker.ctl(&["eval", &format!("{add}, {let_in}, ok.")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_certificates_are_an_outage_and_renewed_ones_are_picked_up_without_a_restart() {
    let secured = tokio::task::block_in_place(shared);
    let name = "tls";
    let scene = Scene::new(name, &secured.broker.url(), &["#"]).await;
    let scene = scene.of(43, "certificates expired, foreign, renewed, of another authority").times(3);
    user(secured, "rotating");
    let shown = secured.shown("rotating", "IP:127.0.0.1", Valid::Now);
    let good = secured.shown("renewed", "IP:127.0.0.1", Valid::Now);
    let port = tokio::task::block_in_place(|| secured.listen(&shown, &["{fail_if_no_peer_cert, true}"]));
    let line = Proxy::to(port).await;
    let own = secured.authority.issue("own", "rotating", "DNS:agent", Valid::Now);
    let trusted = scene.path().join("trusted.pem");
    fs::copy(secured.authority.file(), &trusted).unwrap();
    let more = format!(
        "amqp.ca_file = '{}'\namqp.cert_file = '{}'\namqp.key_file = '{}'\n",
        trusted.display(),
        own.cert.display(),
        own.key.display()
    );
    // Neither user nor password: the certificate is the login.
    let agent = scene.start(&format!("amqps://127.0.0.1:{}/%2f", line.port()), &more);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;

    // The broker's certificate expires, and is renewed.
    shown.become_like(&secured.shown("expired-2", "IP:127.0.0.1", Valid::Past));
    begin_anew(&line);
    let expired = "has a certificate that is expired (2021-01-01T00:00:00Z)";
    is_out(&scene, expired);
    let said = tokio::task::block_in_place(|| checked(scene.path()));
    assert!(said.contains(expired) && said.contains("\"failure\""), "{said}");
    shown.become_like(&good);
    told(&scene, expired).await;
    scene.all_delivered().await;

    // The broker moves to another authority; the agent is told of it later.
    let moved = secured.stranger.issue("moved", "broker", "IP:127.0.0.1", Valid::Now).for_a_server();
    shown.become_like(&moved);
    begin_anew(&line);
    is_out(&scene, "an authority that is not trusted here");
    let fresh = trusted.with_extension("fresh");
    fs::copy(secured.stranger.file(), &fresh).unwrap();
    fs::rename(&fresh, &trusted).unwrap();
    told(&scene, "an authority that is not trusted here").await;
    scene.all_delivered().await;

    // The agent's own certificate expires, and is renewed.
    own.become_like(&secured.authority.issue("own-expired", "rotating", "DNS:agent", Valid::Past));
    begin_anew(&line);
    let expired = "finds the client certificate expired";
    is_out(&scene, expired);
    own.become_like(&secured.authority.issue("own-renewed", "rotating", "DNS:agent", Valid::Now));
    told(&scene, expired).await;

    let log = scene.log();
    assert_eq!(log.matches(" started").count(), 1, "one run: {log}");

    // What a dead host left is replayed by the same way in.
    line.set(Line::Cut);
    wait_for("something waits", BOUND, || waits(&scene.spool(), "agent_status") >= 2);
    agent.kill();
    line.set(Line::Open);
    let mut replay = command(["spool", "replay", "--json", "--config"]);
    let replay = tokio::task::block_in_place(|| replay.arg(scene.path().join("agent.toml")).output().unwrap());
    assert!(replay.status.success(), "{replay:?}");
    let agent = scene.start(&format!("amqps://127.0.0.1:{}/%2f", line.port()), &more);
    assert_eq!(scene.end(agent).await, nothing());
}
