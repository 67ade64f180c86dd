//! The command line, and the way from it to a command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use super::{
    apps, cancel, doctor, efficiency, exec, explain, fetch, hold, image, inspect, login, logout, logs, plan, preparation, profile, pull,
    push, rerun, run, run_app, runs, say, shell, shell_help, status, submit, tags, task, validate, wait, whoami, why,
};
use crate::engine::slurm::Hold;

/// Run containerised workflows from one file, on SLURM or on this machine.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a stage failed (exec, run-app, shell: the program's own status)
  2    usage, or a mistake in the workflow file
  3    infrastructure: network, registry, Slurm, disk
  4    not all that was asked could be submitted
  126  exec, run-app, shell: the program cannot be executed
  127  exec, run-app, shell: there is no such program
  130  interrupted

Examples:
  dvrun validate pipeline.yaml
  dvrun run pipeline.yaml --set shards=8
  dvrun submit pipeline.yaml && dvrun status";

/// The name of `--config FILE` among the arguments.
const CONFIG: &str = "config_file";

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Configuration file, instead of /etc/dvrun/config.yaml and ~/.config/dvrun/config.yaml
    // After the command, too: `command` sees to it.
    #[arg(id = CONFIG, long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Profile of the configuration to use
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Print errors and results only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Data as JSON on standard output, messages on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    Validate(validate::Arguments),
    Plan(plan::Arguments),
    Fetch(fetch::Arguments),
    Run(run::Arguments),
    Submit(submit::Arguments),
    Status(status::Arguments),
    Logs(logs::Arguments),
    Cancel(cancel::Arguments),
    Rerun(rerun::Arguments),
    /// Hold back the jobs that wait in the queue
    Hold(hold::Arguments),
    /// Let held jobs go
    Release(hold::Arguments),
    Explain(explain::Arguments),
    Why(why::Arguments),
    Runs(runs::Arguments),
    Wait(wait::Arguments),
    Efficiency(efficiency::Arguments),
    Profile(profile::Arguments),
    Pull(pull::Arguments),
    Push(push::Arguments),
    Inspect(inspect::Arguments),
    Tags(tags::Arguments),
    Login(login::Arguments),
    Logout(logout::Arguments),
    Whoami(whoami::Arguments),
    Exec(exec::Arguments),
    RunApp(run_app::Arguments),
    Shell(shell::Arguments),
    Apps(apps::Arguments),
    Image(image::Arguments),
    Doctor(doctor::Arguments),
    Completions(shell_help::Completions),
    Man(shell_help::Man),
    #[command(name = "__task", hide = true)]
    Task(task::Arguments),
    #[command(name = "__prepare", hide = true)]
    Prepare(preparation::Arguments),
}

/// The whole command line. `--config FILE` goes with every command but `inspect`, whose `--config` is the image's.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let config = command.get_arguments().find(|argument| argument.get_id() == CONFIG).cloned();
    command.mut_subcommands(|command| match command.get_name() {
        "inspect" => command,
        _ => command.args(&config).mut_subcommands(|command| command.args(&config)),
    })
}

fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(words)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let mut at = &matches;
    while let Some((_, after)) = at.subcommand() {
        // `inspect` has no such argument.
        if let Some(path) = after.try_get_one::<PathBuf>(CONFIG).ok().flatten() {
            cli.global.config = Some(path.clone());
        }
        at = after;
    }
    Ok(cli)
}

/// What is said to one of the commands that are started thousands of times: to describe all the others to the parser would take
/// longer than the rest of such a start. `None` for other commands, and for whatever is not plainly right: then the whole command
/// line says what is wrong with it.
fn quick(words: &[OsString]) -> Option<Cli> {
    fn of<T: Args>(words: &[OsString], wrap: fn(T) -> Command) -> Option<Cli> {
        let command = Global::augment_args(T::augment_args(clap::Command::new("dvrun")));
        let mut matches = command.try_get_matches_from(words).ok()?;
        Some(Cli {
            global: Global::from_arg_matches_mut(&mut matches).ok()?,
            command: wrap(T::from_arg_matches_mut(&mut matches).ok()?),
        })
    }
    let (name, words) = (words.get(1)?.to_str()?, &words[1..]);
    match name {
        "exec" => of(words, Command::Exec),
        "run-app" => of(words, Command::RunApp),
        "__task" => of(words, Command::Task),
        _ => None,
    }
}

/// The command line, from the arguments to the exit code.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match quick(&words).map_or_else(|| parse(&words), Ok) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors: they go to standard output with status 0.
            let code = if error.use_stderr() { exit::USAGE } else { exit::DONE };
            error.print().unwrap_or_default();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli).and_then(|code| say::finish().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{}", failure.text());
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let global = &cli.global;
    // Not for all: a wrong configuration keeps nobody from reading the manual.
    let settings = || Settings::load(global);
    match cli.command {
        Command::Validate(arguments) => validate::run(&arguments, global),
        Command::Plan(arguments) => plan::run(&arguments, global, &settings()?),
        Command::Fetch(arguments) => fetch::run(&arguments, global, &settings()?),
        Command::Run(arguments) => run::run(&arguments, global, &settings()?),
        Command::Submit(arguments) => submit::run(&arguments, global, &settings()?),
        Command::Status(arguments) => status::run(&arguments, global, &settings()?),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments, global, &settings()?),
        Command::Wait(arguments) => wait::run(&arguments, global, &settings()?),
        Command::Efficiency(arguments) => efficiency::run(&arguments, global),
        Command::Cancel(arguments) => cancel::run(&arguments, global, &settings()?),
        Command::Rerun(arguments) => rerun::run(&arguments, global, &settings()?),
        Command::Hold(arguments) => hold::run(&arguments, Hold::Hold, global, &settings()?),
        Command::Release(arguments) => hold::run(&arguments, Hold::Release, global, &settings()?),
        Command::Explain(arguments) => explain::run(&arguments, global, &settings()?),
        Command::Why(arguments) => why::run(&arguments, global, &settings()?),
        Command::Runs(arguments) => runs::run(&arguments, global, &settings()?),
        Command::Pull(arguments) => pull::run(&arguments, global, &settings()?),
        Command::Push(arguments) => push::run(&arguments, global, &settings()?),
        Command::Inspect(arguments) => inspect::run(&arguments, global, &settings()?),
        Command::Tags(arguments) => tags::run(&arguments, global, &settings()?),
        Command::Login(arguments) => login::run(&arguments, global, &settings()?),
        Command::Logout(arguments) => logout::run(&arguments, global, &settings()?),
        Command::Whoami(arguments) => whoami::run(&arguments, global, &settings()?),
        Command::Exec(arguments) => exec::run(&arguments, global, &settings()?),
        Command::RunApp(arguments) => run_app::run(&arguments, global, &settings()?),
        Command::Shell(arguments) => shell::run(&arguments, global, &settings()?),
        Command::Doctor(arguments) => doctor::run(&arguments, global, &settings()?),
        Command::Apps(arguments) => apps::run(&arguments, global, &settings()?),
        Command::Image(arguments) => image::run(&arguments, global, &settings()?),
        Command::Completions(arguments) => shell_help::completions(&arguments),
        Command::Man(arguments) => shell_help::man(&arguments),
        Command::Task(arguments) => task::run(&arguments, &settings()?),
        Command::Prepare(arguments) => preparation::run(&arguments, global, &settings()?),
    }
}

/// Runs async work to its end; the runtime is gone afterwards. Ctrl-C ends it with [`exit::INTERRUPTED`].
///
/// # Errors
/// What the work gives, or that it was interrupted.
pub fn block_on<T, E: Into<Failure>>(work: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => result.map_err(Into::into),
            interrupted = tokio::signal::ctrl_c() => Err(match interrupted {
                Ok(()) => Failure::message(exit::INTERRUPTED, "interrupted; what was fetched is kept, and the next call goes on from there"),
                Err(error) => Failure::new(exit::INFRASTRUCTURE, &error, None),
            }),
        }
    });
    match result {
        // Its threads end now: a container may then be this process's own child (`runtime::run_here`).
        Ok(_) => drop(runtime),
        // A conversion that is cut short may still be writing; what it leaves is swept by the next one.
        Err(_) => runtime.shutdown_background(),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_quick_way_understands_what_the_whole_one_does() {
        let words = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
        for line in [
            "dvrun exec image.sif -- /bin/true",
            "dvrun exec --bind /a:/b:ro image.sif --env A=1 --config c.yaml -- sh -c --help",
            "dvrun exec -q --gpus=0 --profile p --user root image.sif",
            "dvrun run-app --bind /a image.sif call --help --config x",
        ] {
            let (quick, whole) = (quick(&words(line)).expect(line), parse(&words(line)).expect(line));
            assert_eq!(format!("{:?}", quick.global), format!("{:?}", whole.global), "{line}");
            match (quick.command, whole.command) {
                (Command::Exec(quick), Command::Exec(whole)) => assert_eq!(format!("{quick:?}"), format!("{whole:?}"), "{line}"),
                (Command::RunApp(quick), Command::RunApp(whole)) => assert_eq!(format!("{quick:?}"), format!("{whole:?}"), "{line}"),
                _ => panic!("another command than {line}"),
            }
        }
        for line in [
            "dvrun",
            "dvrun exec",
            "dvrun exec --help",
            "dvrun --quiet exec image.sif",
            "dvrun exec --nosuch i",
            "dvrun plan",
        ] {
            assert!(quick(&words(line)).is_none(), "{line}");
        }
    }
}
