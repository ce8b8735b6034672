//! `spool replay`: delivers what waits in the folder of an agent that is gone.

use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    super::{Failure, complain, run::ask_to_stop, runtime, say},
    Outcome, failed, head_json, headline,
    progress::{Progress, Unit},
    remarks,
};
use crate::{
    agent::{self, Replayed},
    config::Config,
    spool::{
        chain,
        log::Log,
        outside::{self, Outside},
    },
};

pub(super) fn run(config: &Config, json: bool) -> Outcome {
    let dir = &config.spool.dir;
    // Also because opening makes a folder where there is none.
    let outside = outside::look(dir).map_err(failed)?;
    let total = outside.logs.values().map(Log::messages).sum();
    complain(&format!("{total} messages wait in {}{}", headline(dir, &outside), remarks(&outside)));
    let progress = Progress::of(total, Unit::Messages);
    let mut trouble = None;
    let tell = |delivery: &agent::Progress| {
        if trouble != delivery.trouble {
            trouble.clone_from(&delivery.trouble);
            progress.clear();
            complain(trouble.as_deref().unwrap_or("messages are delivered"));
        }
        progress.reach(total.saturating_sub(delivery.waiting));
    };
    let runtime = runtime()?;
    let replayed = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        tokio::select! {
            replayed = agent::replay(config, stopped, tell) => replayed,
            never = signals(stop) => match never {},
        }
    });
    progress.clear();
    // Nothing that still waits for a network may keep the process: what matters is in the spool.
    runtime.shutdown_background();
    let replayed = replayed.map_err(|failure| match failure {
        agent::Error::Spool(error) => failed(error),
        other => Failure::Failed(chain(&other)),
    })?;
    let ours = replayed.delivered.saturating_sub(u64::from(replayed.told));
    let lost = total.saturating_sub(ours + replayed.left) + missing(&outside);
    let whole = replayed.left == 0 && replayed.told && lost == 0;
    say(&if json { object(dir, &outside, &replayed, lost) } else { text(&replayed, lost) })?;
    if whole { Ok(()) } else { Err(Failure::Told) }
}

/// Messages that the dead agent had numbered, and whose records are no longer there.
fn missing(outside: &Outside) -> u64 {
    let closed = outside.found.iter().filter_map(|loss| Some(1 + loss.last?.saturating_sub(loss.first)));
    closed.sum()
}

fn text(replayed: &Replayed, lost: u64) -> String {
    let Replayed { delivered, left, told, trouble } = replayed;
    let trouble = trouble.as_ref().map(|trouble| format!("given up: {trouble}\n")).unwrap_or_default();
    let told = if *told { "" } else { "the closing agent_status is not delivered: begin again\n" };
    format!("{delivered} messages delivered, {lost} lost and declared, {left} still wait\n{trouble}{told}")
}

fn object(dir: &std::path::Path, outside: &Outside, replayed: &Replayed, lost: u64) -> String {
    let parts = [
        ("delivered", json!(replayed.delivered)),
        ("left", json!(replayed.left)),
        ("told", json!(replayed.told)),
        ("trouble", json!(replayed.trouble)),
        ("lost", json!(lost)),
    ];
    let mut object = head_json(dir, outside);
    object.extend(parts.map(|(name, part)| (name.to_owned(), part)));
    format!("{}\n", Value::Object(object))
}

enum Never {}

/// The first SIGINT or SIGTERM stops the replay, the second one ends the process.
async fn signals(stop: watch::Sender<bool>) -> Never {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        complain("cannot listen to signals; the replay can only be killed, which loses nothing");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        ask_to_stop(&stop);
    }
}
