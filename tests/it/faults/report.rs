//! The report: one line of JSON for each fault that was run, printed, and appended to the file that `FAULT_REPORT` names
//! (no `POSTGRES_AGENT_…`: to the library in this process that would be a key of the configuration).

use std::{fs, io::Write};

use serde_json::{Value, json};

use super::evidence::Evidence;

/// A row of the matrix of faults.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Its number.
    pub(crate) row: u32,
    /// What was done.
    pub(crate) name: &'static str,
}

/// Tells of a fault that ended well: the judges have spoken.
pub(crate) fn tell(fault: Fault, runs: u32, evidence: &Evidence) {
    let gone = evidence.gone().count();
    write(&json!({
        "row": fault.row,
        "fault": fault.name,
        "runs": runs,
        "accepted": evidence.received.len() + gone,
        "delivered": evidence.received.len(),
        "duplicates": evidence.duplicates(),
        "declared": evidence.declared.len(),
        "lost": gone,
        // A gap would have failed the scene.
        "gaps": 0,
        "longest_stall_ms": evidence.longest_stall().as_millis(),
        "rss_bytes": evidence.statuses.values().map(|told| told.rss).max(),
    }));
}

/// The same with what the checker counted, where nobody looked at single messages.
pub(crate) fn tell_counted(fault: Fault, runs: u32, total: &Value) {
    write(&json!({
        "row": fault.row,
        "fault": fault.name,
        "runs": runs,
        "accepted": total["messages"].as_u64().unwrap() + total["declared_and_not_received"].as_u64().unwrap(),
        "delivered": total["messages"],
        "duplicates": total["duplicates"],
        "declared": total["declared"],
        "lost": total["declared_and_not_received"],
        "gaps": total["missing"],
    }));
}

/// A fault in which there was nothing to deliver.
pub(crate) fn tell_none(row: u32, name: &'static str) {
    let none = json!({
        "messages": 0, "declared_and_not_received": 0, "duplicates": 0, "declared": 0, "missing": 0,
    });
    tell_counted(Fault { row, name }, 1, &none);
}

fn write(line: &Value) {
    println!("{line}");
    if let Some(path) = std::env::var_os("FAULT_REPORT") {
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        // One write, so that lines of several tests do not mix.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
