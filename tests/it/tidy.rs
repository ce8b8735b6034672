//! The rules of the house, held by reading its sources: the map in `src/lib.rs` is not a wish.
//!
//! `rules` decides and is pure, `source` reads Rust as tokens, so that text in strings and comments never counts and
//! paths inside macros do. Tests inside of sources (`#[cfg(test)]`) may do what the house may not.

mod rules;
mod source;

use std::{fs, path::Path};

use source::Source;

/// All sources below a folder of the repository, their paths from there.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            let name = path.strip_prefix(root).expect("below the root").to_str().expect("a UTF-8 name").to_owned();
            found.push(Source::new(&name, &fs::read_to_string(&path).expect("UTF-8 text")));
        }
    }
}

#[track_caller]
fn check(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn each_source_says_what_it_is() {
    check(&rules::docs(&sources("src")));
    check(&rules::docs(&sources("tests/it")));
}

#[test]
fn imports_go_downward_only() {
    check(&rules::floors(&sources("src")));
}

#[test]
fn files_of_one_folder_form_no_cycle() {
    check(&rules::cycles(&sources("src")));
}

#[test]
fn what_is_absent_stays_absent() {
    check(&rules::absences(&sources("src")));
}

#[test]
fn functions_fit_on_a_screen() {
    check(&rules::lengths(&sources("src")));
    check(&rules::lengths(&sources("tests/it")));
}

#[test]
fn names_say_something() {
    check(&rules::names(&sources("src")));
}

#[test]
fn each_test_that_the_table_of_faults_names_is_there() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md")).expect("a README");
    let table = readme.split("## The faults").nth(1).expect("the table of faults");
    let (inside, beside) = (sources("tests/it"), sources("src"));
    // The path of a test, as `a_file::a_name` or `spool::a_module::a_name`: its name stands in some source.
    let is_there = |name: &str| inside.iter().chain(&beside).any(|source| source.text.contains(&format!("fn {name}(")));
    let named = table.split('`').skip(1).step_by(2).filter(|text| text.contains("::") && !text.ends_with("::"));
    let named: Vec<&str> = named.collect();
    assert!(named.len() > 60, "{} tests are named", named.len());
    let gone: Vec<String> = named
        .iter()
        .filter(|path| !is_there(path.rsplit("::").next().unwrap()))
        .map(|path| format!("{path} is no test"))
        .collect();
    check(&gone);
}

#[test]
fn no_file_is_forgotten() {
    check(&rules::forgotten(&sources("src")));
    check(&rules::forgotten(&sources("tests/it")));
}

#[test]
fn each_dependency_says_what_it_is_for() {
    check(&rules::dependencies(include_str!("../../Cargo.toml")));
}

/// Made-up sources: each rule must speak where it is broken, once for each break.
mod made_up {
    use super::{
        Source,
        rules::{absences, cycles, dependencies, docs, floors, forgotten, lengths, names},
    };

    const MAP: &str = "//! | floor | modules | knows |\n//! |---|---|---|\n//! | edge | `main`, [`cli`] | x |\n\
                       //! | work | [`intake`], [`publisher`] | x |\n//! | base | [`units`] | x |\n\
                       pub mod cli; pub mod intake; pub mod publisher; pub mod units;\n";

    #[track_caller]
    fn check(rule: fn(&[Source]) -> Vec<String>, files: &[(&str, &str)], want: &[&str]) {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        let got = rule(&sources);
        assert_eq!(got.len(), want.len(), "{got:#?}");
        for (got, want) in got.iter().zip(want) {
            assert!(got.contains(want), "{got:?} says {want:?}");
        }
    }

    #[test]
    fn a_source_without_its_doc_is_told() {
        check(docs, &[("a.rs", "//! What it is.\n")], &[]);
        check(docs, &[("a.rs", "use b;\n"), ("a.sql", "select 1")], &["a.rs"]);
    }

    #[test]
    fn an_import_upward_or_sideways_is_told() {
        let lib = ("lib.rs", MAP);
        let rest = [("cli/mod.rs", ""), ("publisher/mod.rs", ""), ("units.rs", "")];
        let with = |path, text| [&[lib, (path, text)], &rest[..]].concat();
        check(
            floors,
            &with("intake.rs", "use crate::units; use std::fmt; fn f() { crate::units::g(); super::units::h(); }"),
            &[],
        );
        check(floors, &with("intake.rs", "#[cfg(test)] mod tests { use crate::cli; }"), &[]);
        check(floors, &with("intake.rs", "use crate::{units, cli::x};"), &["intake.rs:1: imports cli"]);
        check(floors, &with("intake.rs", "use super::publisher::x;"), &["imports publisher"]);
        check(
            floors,
            &with("intake.rs", "fn f() {\n    info!(a = crate::cli::x());\n}"),
            &["intake.rs:2: imports cli"],
        );
        check(floors, &with("intake/deep.rs", "use super::super::cli;"), &["intake/deep.rs:1: imports cli"]);
        check(floors, &with("intake/deep.rs", "use super::cli;"), &[]);
    }

    #[test]
    fn a_module_that_is_not_on_the_map_is_told() {
        let rest = [("cli/mod.rs", ""), ("intake.rs", ""), ("publisher/mod.rs", ""), ("units.rs", "")];
        check(floors, &[&[("lib.rs", MAP), ("new.rs", "")], &rest[..]].concat(), &["new is not on the map"]);
        check(floors, &[&[("lib.rs", MAP)], &rest[1..]].concat(), &["cli is on the map"]);
    }

    #[test]
    fn a_cycle_of_files_is_told() {
        let files = [("a/mod.rs", "mod x; mod y; use x::f;"), ("a/x.rs", "use super::y::g;")];
        check(cycles, &[&files[..], &[("a/y.rs", "use super::Shared;")]].concat(), &[]);
        check(cycles, &[&files[..], &[("a/y.rs", "use crate::a::x::f;")]].concat(), &["a/x.rs -> a/y.rs -> a/x.rs"]);
    }

    #[test]
    fn what_must_be_absent_is_told() {
        let found = |path, text, want: &[&str]| check(absences, &[(path, text)], want);
        found("amqp/wire.rs", "use lapin::Connection;", &[]);
        found("publisher/link.rs", "use lapin::Connection;", &["lapin"]);
        found("collectors/pg_locks.rs", "fn f(row: &tokio_postgres::Row) {}", &["tokio_postgres"]);
        found("intake.rs", "fn f() { tokio::spawn(g()); }", &["spawn"]);
        found("intake.rs", "fn f() { set.spawn(g()); }", &["spawn"]);
        found("agent.rs", "fn f() { tokio::spawn(g()); }", &[]);
        found("cli/tap.rs", "fn f() { fs::write(p, b); File::create(p); }", &["writes", "writes"]);
        found("cli/tap.rs", "fn f() { fs::read(p); File::open(p); }", &[]);
        found("spool/folder.rs", "fn f() { fs::write(p, b); }", &[]);
        found("cli/tap.rs", "fn f() { g(\"SELECT 1\"); }", &["SQL"]);
        found("cli/tap.rs", "/// SELECT 1\nfn f() { g(\"so it is\"); }", &[]);
        found("postgres/session.rs", "fn f() { g(\"SELECT 1\"); }", &[]);
        found("intake.rs", "fn f() { mpsc::unbounded_channel(); }", &["bound"]);
        found("settings/mod.rs", "fn f() { Instant::now(); }", &["clock"]);
        found("cli/tap.rs", "fn f() { std::process::exit(1); }", &["exit"]);
        found("cli/tap.rs", "#[cfg(test)] mod tests { fn f() { fs::write(p, b); } }", &[]);
        found("cli/tap/tests.rs", "fn f() { fs::write(p, b); }", &[]);
    }

    #[test]
    fn a_function_that_is_too_long_is_told() {
        let long = |lines: usize| format!("fn f() {{\n{}\n}}\n", vec!["    g();"; lines].join("\n"));
        check(lengths, &[("a.rs", &long(68))], &[]);
        check(lengths, &[("a.rs", &long(69))], &["a.rs:1: f has 71 lines"]);
        check(lengths, &[("a.rs", &long(69).replacen("g();", "// why", 1))], &[]);
    }

    #[test]
    fn a_name_that_says_nothing_is_told() {
        let named = |text, want: &[&str]| check(names, &[("a.rs", text)], want);
        named("struct SpoolManager; fn do_it() {} mod util {}", &["SpoolManager", "do_it", "util"]);
        named("struct Spool; fn done() {} fn domain() {} struct Mine { data: u8 }", &[]);
        check(names, &[("spool/helpers.rs", "")], &["helpers"]);
    }

    #[test]
    fn a_forgotten_file_is_told() {
        let lib = ("lib.rs", "mod a;");
        check(
            forgotten,
            &[lib, ("a/mod.rs", "mod b;"), ("a/b.rs", "const S: &str = include_str!(\"b.sql\");"), ("a/b.sql", "")],
            &[],
        );
        check(forgotten, &[lib, ("a.rs", ""), ("b.rs", ""), ("a.sql", "")], &["b.rs", "a.sql"]);
    }

    #[test]
    fn a_dependency_without_its_line_is_told() {
        let told = |text: &str| dependencies(text).len();
        assert_eq!(
            told("[dependencies]\n# Why.\na = \"1\"\n# Why.\nb = { version = \"2\" }\n[lints.rust]\nc = \"d\"\n"),
            0
        );
        assert_eq!(told("[dependencies]\n# Why.\na = \"1\"\nb = \"2\"\n[dev-dependencies]\nc = \"3\"\n"), 2);
    }
}
