//! Apptainer in the place of this runtime, for sites that demand it: the same [`Container`] as `apptainer exec`.
//!
//! The same are binds, environment, working directory, `/tmp`, HOME and exit status. What Apptainer adds is its own: some
//! variables (`APPTAINER_NAME`, `SINGULARITY_NAME`, `PS1`), and a writable layer of 64 MiB unless its administrator says
//! otherwise (`sessiondir max size`).

use std::path::Path;
use std::process::Command;

use super::container::{Container, Root, Writable};
use super::error::RuntimeError;
use super::mounts;

/// How Apptainer is called.
#[derive(Clone, Copy, Debug)]
pub struct Apptainer<'a> {
    pub program: &'a Path,
    /// An empty folder of the host, seen as HOME.
    pub home: &'a Path,
    /// Apptainer's own environment: who the caller is, where its tools are.
    pub environment: &'a [(String, String)],
    /// One of several processes that share the host's IPC namespace.
    pub rank: bool,
}

/// The command that runs `container`; its standard streams are the caller's to set.
///
/// # Errors
/// [`RuntimeError::Invalid`] for what Apptainer cannot be told.
pub fn apptainer(how: &Apptainer<'_>, container: &Container) -> Result<Command, RuntimeError> {
    mounts::check(container)?;
    let mut command = Command::new(how.program);
    command.env_clear().envs(how.environment.iter().map(|(name, value)| (name, value)));
    // Nothing of the host but what is asked for, and no word of an argument or a variable evaluated once more.
    command.args(["--quiet", "exec", "--contain", "--cleanenv", "--no-eval", "--pid", "--no-umask"]);
    if !how.rank {
        command.arg("--ipc");
    }
    if container.writable == Writable::Tmpfs {
        command.arg("--writable-tmpfs");
    }
    if container.as_root {
        command.arg("--fakeroot");
    }
    if let Some(name) = &container.hostname {
        command.arg("--uts").arg("--hostname").arg(name);
    }
    let home = field("a path", &format!("{}:{}", text(how.home)?, text(&container.home)?), &[','])?;
    command.arg("--home").arg(home);
    command.arg("--pwd").arg(&container.cwd);
    let mut binds: Vec<(&Path, &Path, bool)> = Vec::new();
    let own = container
        .binds
        .iter()
        .map(|bind| (bind.source.as_path(), bind.target.as_path(), bind.read_only));
    let scratch = container
        .scratch
        .iter()
        .flat_map(|scratch| ["/tmp", "/var/tmp"].map(|path| (scratch.as_path(), Path::new(path), false)));
    for bind in own.chain(scratch) {
        // Of two at one place the first counts; an outer one goes before an inner one.
        if !binds.iter().any(|(_, target, _)| *target == bind.1) {
            binds.push(bind);
        }
    }
    binds.sort_by(|a, b| a.1.cmp(b.1));
    for (source, target, read_only) in binds {
        let fields = [
            "type=bind".to_owned(),
            quoted(&format!("source={}", text(source)?))?,
            quoted(&format!("destination={}", text(target)?))?,
        ];
        let read_only = if read_only { ",ro" } else { "" };
        command.arg("--mount").arg(format!("{}{read_only}", fields.join(",")));
    }
    for (name, value) in container.env.iter().filter(|(name, _)| name != "HOME") {
        command.env(format!("APPTAINERENV_{name}"), value);
    }
    command.arg(match &container.root {
        Root::Folder(folder) => folder,
        Root::Squashfs { file, .. } => file,
    });
    command.args(&container.argv);
    Ok(command)
}

fn text(path: &Path) -> Result<&str, RuntimeError> {
    path.to_str()
        .ok_or_else(|| RuntimeError::invalid(format!("{} is not UTF-8: Apptainer cannot be told of it", path.display())))
}

/// A field of comma-separated values (RFC 4180), as `--mount` has them.
fn quoted(text: &str) -> Result<String, RuntimeError> {
    let text = field("a bind", text, &['\n', '\r'])?;
    Ok(match text.contains([',', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    })
}

fn field(what: &str, text: &str, without: &[char]) -> Result<String, RuntimeError> {
    match text.contains(without) {
        true => Err(RuntimeError::invalid(format!(
            "Apptainer cannot be told of {what} like {}",
            text.escape_debug()
        ))),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::Mount;
    use super::*;

    fn container() -> Container {
        let bind = |source: &str, target: &str, read_only| Mount {
            source: source.into(),
            target: target.into(),
            read_only,
        };
        Container {
            root: Root::Folder("/store/image/rootfs".into()),
            writable: Writable::Tmpfs,
            binds: vec![bind("/w/a,\"b", "/w/inner", true), bind("/w", "/w", false), bind("/x", "/w", true)],
            env: vec![("A".into(), "$(x) , =".into()), ("HOME".into(), "/home/user".into())],
            cwd: "/w".into(),
            argv: vec!["sh".into(), "-c".into(), "echo $A".into()],
            as_root: false,
            scratch: Some("/scratch/1".into()),
            home: "/home/user".into(),
            hostname: None,
        }
    }

    fn words(container: &Container, rank: bool) -> Result<Vec<String>, RuntimeError> {
        let how = Apptainer {
            program: Path::new("apptainer"),
            home: Path::new("/scratch/2"),
            environment: &[("PATH".to_owned(), "/bin".to_owned())],
            rank,
        };
        let command = apptainer(&how, container)?;
        let env = command
            .get_envs()
            .map(|(name, value)| format!("{}={}", name.display(), value.unwrap_or_default().display()));
        let args = command.get_args().map(|arg| arg.display().to_string());
        Ok(env.chain(args).collect())
    }

    #[test]
    fn everything_is_said() {
        let expected = "APPTAINERENV_A=$(x) , =|PATH=/bin|--quiet|exec|--contain|--cleanenv|--no-eval|--pid|--no-umask|--ipc|--writable-tmpfs|\
            --home|/scratch/2:/home/user|--pwd|/w|--mount|type=bind,source=/scratch/1,destination=/tmp|\
            --mount|type=bind,source=/scratch/1,destination=/var/tmp|--mount|type=bind,source=/w,destination=/w|\
            --mount|type=bind,\"source=/w/a,\"\"b\",destination=/w/inner,ro|/store/image/rootfs|sh|-c|echo $A";
        assert_eq!(words(&container(), false).unwrap().join("|"), expected);
        assert!(!words(&container(), true).unwrap().contains(&"--ipc".to_owned()));
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let mut odd = container();
        odd.binds[0].source = "/w/a\nb".into();
        assert!(words(&odd, false).unwrap_err().to_string().contains("cannot be told of a bind"));
        let mut none = container();
        none.argv.clear();
        words(&none, false).unwrap_err();
    }
}
