//! Has the linker lay the functions of a container's start side by side (`start.ld`): scattered over twelve megabytes of code, they
//! cost a tenth of the start in page faults. With a linker that does not take the script the same program is built without it, and
//! it is said why. So it is of a program that comes out other than `.cargo/config.toml` asks for.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build/main.rs");
    println!("cargo:rerun-if-changed=build/start.ld");
    // Without optimisation nobody measures, and each function is many.
    if variable("OPT_LEVEL") == "0" {
        return;
    }
    let features = variable("CARGO_CFG_TARGET_FEATURE");
    if !features.to_string_lossy().split(',').any(|feature| feature == "crt-static") {
        println!(
            "cargo:warning=dvrun will not be static, and run only where the C library is this one or a later one: flags of the \
             environment (RUSTFLAGS) take the place of those in .cargo/config.toml"
        );
    }
    match script() {
        Ok(script) => println!("cargo:rustc-link-arg-bin=dvrun=-T{}", script.display()),
        Err(why) => println!("cargo:warning=containers will start a tenth more slowly, for want of build/start.ld: {why}"),
    }
}

/// The script, if a program can be linked with it by the compiler, its flags and the linker that are used here. Beside what is built:
/// there it stays when another checkout has built in the same folder, and is gone.
fn script() -> Result<PathBuf, String> {
    let out = PathBuf::from(variable("OUT_DIR"));
    let (script, source, said) = (out.join("start.ld"), out.join("probe.rs"), out.join("probe.log"));
    let unwritten = |error: io::Error| format!("cannot write in {}: {error}", out.display());
    let original = Path::new(&variable("CARGO_MANIFEST_DIR")).join("build/start.ld");
    fs::copy(&original, &script).map_err(|error| format!("cannot copy {} to {}: {error}", original.display(), script.display()))?;
    fs::write(&source, "fn main() {}\n").map_err(unwritten)?;
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
    let output = compiler.output().map_err(|error| format!("cannot run {compiler:?}: {error}"))?;
    if output.status.success() {
        return Ok(script);
    }
    fs::write(&said, output.stderr).map_err(unwritten)?;
    Err(format!("the linker does not take it, see {}", said.display()))
}

/// What cargo says to a build script; it always does.
fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_default()
}
