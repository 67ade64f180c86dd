//! Where the project's own files and its binary lie.

use std::env;
use std::path::PathBuf;

/// The folder of `Cargo.toml`. At run time Cargo's variable wins over the one of compile time: `tests/run` copies
/// what an ordinary user could not reach, and sets it.
pub fn checkout() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// The built program; the same rule.
pub fn binary() -> PathBuf {
    env::var_os("CARGO_BIN_EXE_dvrun").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_dvrun")), PathBuf::from)
}
