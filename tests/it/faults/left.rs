//! What a killed agent leaves behind: a folder with a backlog.

use std::path::PathBuf;

use super::{
    evidence::Evidence,
    layout::{COLLECTORS, Record, is_given, records, segments, waits},
    scene::{BOUND, Scene},
};
use crate::rig::{
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// A folder with a backlog of every log, whose agent was killed.
pub(super) struct Left {
    pub(super) scene: Scene,
    pub(super) line: Proxy,
    pub(super) more: String,
}

impl Left {
    pub(super) async fn behind(name: &'static str, fault: (u32, &'static str), more: &str, records: usize) -> Self {
        let line = Proxy::to(rabbit::shared().port()).await;
        let scene = Scene::new(name, &rabbit::shared().url(), &["#"]).await.of(fault.0, fault.1);
        let left = Self { scene, line, more: more.to_owned() };
        left.run_and_die(records).await;
        left
    }

    /// Another run that delivers something, leaves a backlog and is killed.
    pub(super) async fn run_and_die(&self, records: usize) {
        self.line.set(Line::Open);
        let agent = self.scene.start(&self.line.url(), &self.more);
        self.scene.status("it flows", |status| status.counts("confirmed") > 5).await;
        self.line.set(Line::Cut);
        let spool = self.scene.spool();
        // The last one's number too: a kill between the two would make tests of what is kept differ by one.
        let kept = |name: &str| waits(&spool, name) >= records && is_given(&spool, name);
        wait_for("a backlog of every log", BOUND, || COLLECTORS.iter().all(|name| kept(name)));
        agent.kill();
    }

    pub(super) fn spool(&self) -> PathBuf {
        self.scene.spool()
    }

    /// The newest segment of a log, and its records.
    pub(super) fn newest(&self, collector: &str) -> (PathBuf, Vec<Record>) {
        let segment = segments(&self.spool(), collector).pop().unwrap();
        let records = records(&segment);
        (segment, records)
    }

    /// The next agent delivers what there is, and the judges find no undeclared gap.
    pub(super) async fn goes_on(&self) -> Evidence {
        self.line.set(Line::Open);
        let agent = self.scene.start(&self.line.url(), &self.more);
        self.scene.finish(agent).await.1
    }
}
