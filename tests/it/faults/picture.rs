//! What an operator sees at night: what is wrong, since when, how much waits, how long the disk lasts, and that it is over.

use std::time::Duration;

use serde_json::Value;

use super::scene::{BOUND, Scene, nothing};
use crate::rig::{
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// The newest status that waits in the scene's folder.
fn newest_status(scene: &Scene) -> Option<Value> {
    let mut bodies = scene.dump();
    bodies.retain(|body| body["collector"] == "agent_status");
    let mut newest = bodies.pop()?;
    Some(newest["events"][0]["data"].take())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_at_its_begin_while_it_lasts_and_at_its_end() {
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene = Scene::new("picture", &rabbit::shared().url(), &["#"]).await;
    let agent = scene.start(&line.url(), "");
    let before = scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    for name in ["trouble", "trouble_since"] {
        assert_eq!(before.data["delivery"][name], Value::Null);
    }
    assert_eq!(before.data["spool"]["lasts_s"], Value::Null, "nothing grows");
    line.set(Line::Cut);
    wait_for("the outage is told at once", BOUND, || scene.log().contains("no way to the broker"));
    wait_for("a status that waits knows of it", BOUND, || {
        newest_status(&scene).is_some_and(|status| status["delivery"]["trouble_since"].is_string())
    });
    // Growth is known after half a minute; the log tells it after one.
    wait_for("it is told again", Duration::from_secs(100), || {
        scene.log().contains("messages still do not get through")
    });
    let status = newest_status(&scene).unwrap();
    let (delivery, spool) = (&status["delivery"], &status["spool"]);
    assert!(delivery["trouble"].is_string() && delivery["trouble_since"].is_string(), "{delivery}");
    // A gibibyte at some kilobytes a second.
    assert!((3600.0..1e8).contains(&spool["lasts_s"].as_f64().unwrap()), "{spool}");
    let log = scene.log();
    let told = log.lines().find(|line| line.contains("messages still do not get through")).unwrap();
    for part in ["trouble=", "since=", "lasts=", "waiting=", "bytes=", "disk_lasts="] {
        assert!(told.contains(part), "{part} is not told: {told}");
    }
    assert!(!told.contains("it does not grow"), "{told}");
    line.set(Line::Open);
    wait_for("its end is told", BOUND, || scene.log().contains("messages get through again"));
    wait_for("the end of the backlog is told", BOUND, || scene.log().contains("all that waited is delivered"));
    let after = scene.status("nothing is wrong any more", |status| status.data["delivery"]["trouble"].is_null()).await;
    assert_eq!(after.data["delivery"]["trouble_since"], Value::Null);
    assert_eq!(scene.end(agent).await, nothing());
}
