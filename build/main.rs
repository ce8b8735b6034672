//! Hands the linker the list of functions that an agent at rest runs (`running.ld`).
//!
//! The kernel maps the 64 KiB around each page of a program that is touched. Where those functions lie scattered, that is
//! four fifths of the code; side by side, they are a third of it.

#![expect(clippy::print_stdout, reason = "that is how a build script speaks to cargo")]

use std::{env, path::Path};

fn main() {
    const LIST: &str = "build/running.ld";
    println!("cargo:rerun-if-changed=build/main.rs");
    println!("cargo:rerun-if-changed={LIST}");
    let is = |name, value: &str| env::var(name).is_ok_and(|found| found == value);
    // GNU's and LLVM's linkers know such scripts; whoever chose another one gets a program that takes more memory. Nobody
    // measures a debug build.
    let chosen = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("fuse-ld="));
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && !chosen {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{}", Path::new(&folder).join(LIST).display());
    }
}
