//! `dvrun doctor`: what this host allows, and what to do about what it does not.

mod checks;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::settings::Settings;

/// Say what this host allows, and what to do about the rest
///
/// Each line is ok, warn (it works, but not as well as it could) or fail (nothing will run). The exit status is 1 when a
/// line says fail. Compute nodes may differ from the host that jobs are submitted on: `srun dvrun doctor` asks one.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun doctor\n  srun -N1 dvrun doctor --json")]
pub struct Arguments {}

/// What was found about one thing.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

impl Finding {
    fn ok(name: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            name,
            state: State::Ok,
            what: what.into(),
            hint: None,
        }
    }

    fn warn(name: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding {
            state: State::Warn,
            hint: Some(hint.into()),
            ..Finding::ok(name, what)
        }
    }

    fn fail(name: &'static str, what: impl Into<String>, hint: Option<String>) -> Finding {
        Finding {
            state: State::Fail,
            hint,
            ..Finding::ok(name, what)
        }
    }
}

pub fn run(_: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let findings = checks::all(settings);
    let failed = findings.iter().any(|finding| finding.state == State::Fail);
    if global.json {
        println!("{:#}", json!({"host": settings.host, "ok": !failed, "checks": findings}));
    } else {
        for finding in &findings {
            let state = match finding.state {
                State::Ok => "ok",
                State::Warn => "warn",
                State::Fail => "FAIL",
            };
            println!("{state:<5} {:<16} {}", finding.name, finding.what);
            if let Some(hint) = &finding.hint {
                println!("{:<22} → {hint}", "");
            }
        }
    }
    Ok(if failed { exit::FAILED } else { exit::DONE })
}
