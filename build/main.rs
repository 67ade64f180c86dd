//! Has the linker lay the functions of a container's start side by side (`start.ld`): scattered over twelve megabytes of code, they
//! cost a tenth of the start in page faults. A linker that does not take the script builds the same program without it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn main() {
    println!("cargo:rerun-if-changed=build/main.rs");
    println!("cargo:rerun-if-changed=build/start.ld");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/start.ld");
    // Without optimisation nobody measures, and each function is many.
    let optimised = variable("OPT_LEVEL") != "0";
    if optimised && links_with(&script) {
        println!("cargo:rustc-link-arg-bin=dvrun=-T{}", script.display());
    }
}

/// Whether a program can be linked with `script`, by the compiler, its flags and the linker that are used here.
fn links_with(script: &Path) -> bool {
    let out = PathBuf::from(variable("OUT_DIR"));
    let source = out.join("probe.rs");
    if fs::write(&source, "fn main() {}\n").is_err() {
        return false;
    }
    let mut compiler = Command::new(variable("RUSTC"));
    compiler
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(out.join("probe"))
        .arg(source);
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    compiler.args(flags.to_string_lossy().split('\x1f').filter(|flag| !flag.is_empty()));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = OsString::from("-Clinker=");
        argument.push(linker);
        compiler.arg(argument);
    }
    compiler.arg(format!("-Clink-arg=-T{}", script.display()));
    compiler.stdout(Stdio::null()).stderr(Stdio::null());
    compiler.status().is_ok_and(|status| status.success())
}

/// What cargo says to a build script; it always does.
fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_default()
}
