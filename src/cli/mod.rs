//! One file a command: arguments → settings → library call → output. The only place that reads the environment,
//! prints, and turns an error into a message, a hint and an exit code.

// First: its macros are for all that follow.
#[macro_use]
mod say;

mod apps;
mod args;
mod cancel;
mod container;
mod credentials;
mod doctor;
mod efficiency;
mod exec;
mod explain;
mod extract;
mod failure;
mod fetch;
mod file;
mod hold;
mod image;
mod images;
mod inspect;
mod inspect_file;
mod login;
mod logout;
mod logs;
mod machine;
mod plan;
mod preparation;
mod prepare;
mod profile;
mod progress;
mod pull;
mod push;
mod rerun;
mod run;
mod run_app;
mod runs;
mod select;
mod settings;
mod shell;
mod shell_help;
mod show;
mod status;
mod submit;
mod tags;
mod task;
mod validate;
mod verify;
mod wait;
mod whoami;
mod why;

pub use args::main;
pub use failure::exit;
