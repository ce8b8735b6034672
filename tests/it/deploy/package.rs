//! The Debian package: what is in it, and what its pages and completions are worth. `unit` installs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::file;
use crate::rig::{Folder, must, postgres::cache};

/// The package, made once in a run from the binary under test.
pub(super) fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let mut path = vec![cache().join("cargo/bin")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let mut make = Command::new(file("package.sh"));
        make.arg(env!("CARGO_BIN_EXE_postgres-agent")).arg("--fast").env("PATH", std::env::join_paths(path).unwrap());
        must(&mut make).lines().last().expect("the package's path").into()
    })
}

#[test]
fn it_holds_what_is_promised_under_debians_paths() {
    let told = must(Command::new("dpkg-deb").arg("-c").arg(package()));
    let held: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    let mode = |path: &str| {
        let line = held.iter().find(|line| line.get(5) == Some(&format!(".{path}").as_str()));
        line.unwrap_or_else(|| panic!("{path} is not in it: {told}"))[0]
    };
    assert_eq!(mode("/usr/bin/postgres-agent"), "-rwxr-xr-x");
    for path in [
        "/usr/lib/systemd/system/postgres-agent.service",
        "/usr/lib/sysusers.d/postgres-agent.conf",
        "/usr/lib/tmpfiles.d/postgres-agent.conf",
        "/etc/postgres-agent/agent.toml",
        "/usr/share/man/man1/postgres-agent.1.gz",
        "/usr/share/man/man1/postgres-agent-run.1.gz",
        "/usr/share/man/man1/postgres-agent-spool-replay.1.gz",
        "/usr/share/bash-completion/completions/postgres-agent",
        "/usr/share/zsh/vendor-completions/_postgres-agent",
        "/usr/share/fish/vendor_completions.d/postgres-agent.fish",
        "/usr/share/doc/postgres-agent/copyright",
        "/usr/share/doc/postgres-agent/changelog.gz",
        "/usr/share/doc/postgres-agent/examples/agent.toml",
        "/usr/share/doc/postgres-agent/examples/postgres.sql",
    ] {
        assert_eq!(mode(path), "-rw-r--r--", "{path}");
    }
    assert!(held.iter().all(|line| ["root/root", "0/0"].contains(&line[1])), "{told}");

    let control = must(Command::new("dpkg-deb").arg("-f").arg(package()));
    let depends = control.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    assert!(depends.contains("libc6 (>= ") && depends.contains("systemd"), "{control}");
    assert!(control.contains(&format!("Version: {}-1\n", env!("CARGO_PKG_VERSION"))), "{control}");
    let folder = Folder::new("control");
    must(Command::new("dpkg-deb").arg("-e").arg(package()).arg(folder.path()));
    let conffiles = fs::read_to_string(folder.path().join("conffiles")).unwrap();
    assert_eq!(conffiles.trim(), "/etc/postgres-agent/agent.toml");
    for script in ["postinst", "prerm", "postrm"] {
        must(Command::new("sh").arg("-n").arg(folder.path().join(script)));
    }
}

#[test]
fn its_linter_has_nothing_to_say_that_is_not_known() {
    let output = Command::new("lintian").args(["--fail-on", "error,warning"]).arg(package()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    // What is known: the maintainer's address is a fork's to fill in; nobody asked Debian for the package.
    let known = ["bogus-mail-host", "initial-upload-closes-no-bugs"];
    let complaints: Vec<_> = told
        .lines()
        .filter(|line| line.starts_with("E: ") || line.starts_with("W: "))
        .filter(|line| !known.iter().any(|known| line.contains(known)))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn each_man_page_is_rendered_without_a_warning_and_names_pages_that_are_there() {
    let folder = Folder::new("pages");
    must(Command::new("dpkg-deb").arg("-x").arg(package()).arg(folder.path()));
    let pages = folder.path().join("usr/share/man/man1");
    let mut count = 0;
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-P", "cat", "-l"])
            .arg(&path)
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "80");
        let output = man.output().unwrap();
        let (text, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && told.is_empty(), "{}: {told}", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap().trim_end_matches(".1").to_owned();
        assert!(text.to_lowercase().contains(&name), "{name}: {text}");
        let source = must(Command::new("zcat").arg(&path)).replace('\\', "");
        for other in source.lines().filter_map(|line| line.strip_suffix("(1)")) {
            assert!(pages.join(format!("{other}.1.gz")).exists(), "{name} names {other}");
        }
        count += 1;
    }
    assert!(count >= 12, "{count} pages");
}

#[test]
fn completions_load_and_complete() {
    let folder = Folder::new("completions");
    must(Command::new("dpkg-deb").arg("-x").arg(package()).arg(folder.path()));
    let script = folder.path().join("usr/share/bash-completion/completions/postgres-agent");
    let complete = "set -u; . \"$0\"; COMP_WORDS=(postgres-agent sp); COMP_CWORD=1; \
                    function=$(complete -p postgres-agent | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
                    $function postgres-agent sp postgres-agent; echo \"${COMPREPLY[*]}\"";
    assert_eq!(must(Command::new("bash").args(["--norc", "-c", complete]).arg(script)).trim(), "spool");
}
