//! The rules, each a function from sources to complaints. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, is_rust};

/// Each file begins by saying what it is.
pub(super) fn docs(sources: &[Source]) -> Vec<String> {
    let bare = sources.iter().filter(|source| is_rust(&source.path) && !source.text.starts_with("//! "));
    bare.map(|source| format!("{}: does not begin with //! and what it is", source.path)).collect()
}

/// A module imports only from lower floors of the map in `lib.rs`, and each module is on it.
pub(super) fn floors(sources: &[Source]) -> Vec<String> {
    let map = map(sources);
    let mut complaints = Vec::new();
    let modules: BTreeSet<_> = sources.iter().filter_map(|source| source.module().into_iter().next()).collect();
    for module in modules.iter().filter(|module| !map.contains_key(*module)) {
        complaints.push(format!("lib.rs: {module} is not on the map"));
    }
    for module in map.keys().filter(|module| !modules.contains(*module) && *module != "main") {
        complaints.push(format!("lib.rs: {module} is on the map and nowhere else"));
    }
    for source in sources {
        let Some(own) = source.module().into_iter().next() else { continue };
        for (line, path) in &source.paths {
            let target = source.resolve(path).and_then(|path| path.into_iter().next());
            let Some(target) = target.filter(|target| *target != own) else { continue };
            // The main file stands outside the library and sees all of it.
            if let (Some(from), Some(to)) = (map.get(&own), map.get(&target))
                && from >= to
                && own != "main"
            {
                complaints.push(format!("{}:{line}: imports {target}, which is on no lower floor", source.path));
            }
        }
    }
    complaints
}

/// The floors in the crate's own documentation: a row of its table each, the highest first.
fn map(sources: &[Source]) -> BTreeMap<String, usize> {
    let lib = sources.iter().find(|source| source.path == "lib.rs").expect("there is a lib.rs");
    let rows = lib.text.lines().filter_map(|line| line.strip_prefix("//! |")).skip(2);
    let mut map = BTreeMap::new();
    for (floor, row) in rows.enumerate() {
        let modules = row.split('|').nth(1).unwrap_or_default();
        for module in modules.split('`').skip(1).step_by(2) {
            map.insert(module.trim_end_matches('/').to_owned(), floor);
        }
    }
    map
}

/// Files of one folder do not import each other in a circle. (A folder's `mod.rs` and its files may: they are one.)
pub(super) fn cycles(sources: &[Source]) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &Source> = sources.iter().map(|source| (source.module(), source)).collect();
    let edges = |source: &Source| {
        let own = source.module();
        let mut targets = BTreeSet::new();
        for (_, path) in &source.paths {
            let Some(path) = source.resolve(path) else { continue };
            let target = (1..=path.len()).rev().map(|len| &path[..len]).find(|path| modules.contains_key(*path));
            let family = |target: &&[String]| !own.starts_with(target) && !target.starts_with(&own);
            targets.extend(target.filter(family).map(<[String]>::to_vec));
        }
        targets
    };
    let graph: BTreeMap<_, _> = modules.iter().map(|(module, source)| (module.clone(), edges(source))).collect();
    let mut complaints = Vec::new();
    for start in graph.keys() {
        // Each cycle is told once: from its first module.
        if let Some(cycle) = way_back(&graph, start, vec![start.clone()])
            && cycle.iter().min() == Some(start)
        {
            let names: Vec<_> = cycle.iter().map(|module| modules[module].path.as_str()).collect();
            complaints.push(format!("files in a cycle: {} -> {}", names.join(" -> "), names[0]));
        }
    }
    complaints
}

type Graph = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

fn way_back(graph: &Graph, start: &Vec<String>, way: Vec<Vec<String>>) -> Option<Vec<Vec<String>>> {
    for next in &graph[way.last()?] {
        if next == start {
            return Some(way);
        }
        if !way.contains(next)
            && let Some(cycle) = way_back(graph, start, [way.clone(), vec![next.clone()]].concat())
        {
            return Some(cycle);
        }
    }
    None
}

/// Something that stands in a few places only.
struct Absence {
    complaint: &'static str,
    found: fn(&[&str]) -> bool,
    /// Files that begin so may have it.
    allowed: &'static [&'static str],
}

const ABSENCES: &[Absence] = &[
    Absence {
        complaint: "lapin stays in amqp/",
        found: |path| matches!(path, ["lapin" | "tokio_util" | "async_rs", ..]),
        allowed: &["amqp/"],
    },
    Absence {
        complaint: "TLS is spoken by the two links only",
        found: |path| matches!(path, ["tokio_rustls", ..]),
        allowed: &["amqp/", "postgres/"],
    },
    Absence {
        complaint: "tokio_postgres stays in postgres/",
        found: |path| matches!(path, ["tokio_postgres" | "deadpool_postgres", ..]),
        allowed: &["postgres/"],
    },
    Absence {
        complaint: "tasks are spawned in agent only (and where a connection's driver needs one), so that a death is seen",
        found: |path| matches!(path, [.., "spawn" | "spawn_blocking" | "spawn_local"]),
        // A file system that hangs must hold a thread of its own.
        allowed: &["agent.rs", "agent/", "postgres/", "amqp/", "collectors/system_metrics/"],
    },
    Absence {
        complaint: "only spool/ writes to the disk",
        found: |path| {
            let functions = ["write", "rename", "copy", "hard_link", "set_permissions"];
            let makes =
                |name: &&str| name.starts_with("create") || name.starts_with("remove_") || functions.contains(name);
            match path {
                [.., "fs", name] => makes(name),
                [.., "File", name] => name.starts_with("create") || *name == "options",
                [.., "OpenOptions" | "DirBuilder", _] => true,
                _ => false,
            }
        },
        allowed: &["spool/"],
    },
    Absence {
        complaint: "every channel has a bound",
        found: |path| matches!(path, [.., "unbounded_channel" | "unbounded"]),
        allowed: &[],
    },
    Absence {
        complaint: "a command ends by returning, never by exit(), which runs no destructor",
        found: |path| matches!(path, [.., "process", "exit" | "abort"]),
        // A second signal stops at once.
        allowed: &["cli/run.rs"],
    },
];

/// Modules that decide and never look at a clock: tests drive them with made-up time.
const PURE: &[&str] = &["batch", "settings/", "text", "publisher/delivery.rs", "publisher/pace.rs", "event/"];

/// What keeps the house simple by not being there.
pub(super) fn absences(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let within = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
        let mut complain = |line: usize, what: &str| complaints.push(format!("{}:{line}: {what}", source.path));
        for (line, path) in &source.paths {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            for absence in ABSENCES.iter().filter(|absence| !within(absence.allowed) && (absence.found)(&path)) {
                complain(*line, absence.complaint);
            }
            if within(PURE) && matches!(path.as_slice(), [.., "Instant" | "SystemTime" | "Timestamp" | "Time", "now"]) {
                complain(*line, "looks at a clock, but decides only");
            }
        }
        let words = ["SELECT ", "WITH ", "SHOW ", "SET ", "BEGIN", "COMMIT", "INSERT ", "UPDATE ", "DELETE "];
        let sql = |text: &str| words.iter().any(|word| text.trim_start().starts_with(word));
        for (line, _) in source.literals.iter().filter(|(_, text)| !within(&["postgres/"]) && sql(text)) {
            complain(*line, "SQL stays in collectors/*.sql and postgres/");
        }
    }
    complaints
}

const LINES_MAX: usize = 70;

/// A function that does not fit on a screen is two functions. Comments and empty lines do not count.
pub(super) fn lengths(sources: &[Source]) -> Vec<String> {
    let all = sources.iter().flat_map(|source| source.functions.iter().map(move |function| (source, function)));
    let long = all.filter(|(_, (_, _, lines))| *lines > LINES_MAX);
    long.map(|(source, (line, name, lines))| format!("{}:{line}: {name} has {lines} lines", source.path)).collect()
}

/// Words that fit anything and so say nothing. (A process is a thing here, with a pid; `inner` is what a wrapper
/// calls what it wraps, as in std.)
const BANNED: &[&str] =
    &["manager", "handler", "helper", "helpers", "util", "utils", "common", "misc", "data", "info", "do", "my", "new2"];

/// Names of modules, types and functions use none of them.
pub(super) fn names(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let own = source.module().last().cloned().map(|name| (1, name));
        for (line, name) in source.names.iter().chain(&own) {
            if let Some(word) = words(name).iter().find(|word| BANNED.contains(&word.as_str())) {
                complaints.push(format!("{}:{line}: {name}: the word {word:?} says nothing", source.path));
            }
        }
    }
    complaints
}

/// `SpoolFolder` and `spool_folder` are `spool` and `folder`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.extend(c.to_lowercase());
        }
    }
    words
}

/// Each file is somebody's module, or is included by one.
pub(super) fn forgotten(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let known = if is_rust(&source.path) {
            let module = source.module();
            module.split_last().is_none_or(|(name, outer)| {
                let root = |other: &Source| outer.is_empty() && other.path == "main.rs";
                let parent = |other: &&Source| is_rust(&other.path) && (other.module() == outer || root(other));
                *name == "main" || sources.iter().filter(parent).any(|parent| parent.files.contains(name))
            })
        } else {
            let name = source.path.rsplit('/').next().unwrap_or_default();
            sources.iter().any(|other| other.literals.iter().any(|(_, text)| text.contains(name)))
        };
        if !known {
            complaints.push(format!("{}: no module knows it", source.path));
        }
    }
    complaints
}

/// Each dependency has the line above it that says what it is for.
pub(super) fn dependencies(manifest: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let (mut within, mut above) = (false, "");
    for line in manifest.lines() {
        if line.starts_with('[') {
            within = line.ends_with("dependencies]");
        } else if within && line.contains('=') && !line.starts_with('#') && !above.starts_with("# ") {
            complaints.push(format!("Cargo.toml: {line}: the line above does not say what it is for"));
        }
        above = line;
    }
    complaints
}
