//! Hands the linker the list of functions that an agent at rest runs (`running.ld`).
//!
//! The kernel maps the 64 KiB around each page of a program that is touched. Where those functions lie scattered, that is
//! four fifths of the code; side by side, they are a third of it. The list knows them by names as `.cargo/config.toml` has
//! the compiler make them.

#![expect(clippy::print_stdout, reason = "that is how a build script speaks to cargo")]

use std::{env, path::Path};

fn main() {
    const LIST: &str = "build/running.ld";
    println!("cargo:rerun-if-changed=build/main.rs");
    println!("cargo:rerun-if-changed={LIST}");
    let is = |name, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Nobody measures a debug build.
    if !is("PROFILE", "release") || !is("CARGO_CFG_TARGET_OS", "linux") {
        return;
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    // GNU's and LLVM's linkers know such scripts, others may not.
    if flags.contains("fuse-ld=") || !flags.contains("symbol-mangling-version=v0") {
        println!(
            "cargo:warning=the agent will take 4 MiB more memory at rest: RUSTFLAGS, or rustflags in a configuration of \
             cargo's, keep build/running.ld from use; say -C symbol-mangling-version=v0 there too, and choose no linker"
        );
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-T{}", Path::new(&folder).join(LIST).display());
}
