//! The binary: re-entry points before any thread exists, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = dvrun::runtime::reenter(std::env::args_os()) {
        return code;
    }
    dvrun::cli::main()
}
