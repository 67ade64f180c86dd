//! What is executed, and in which environment: the image's configuration and the caller's wishes become words. Pure.

use std::path::Path;

use crate::oci::Execution;

/// Where programs are looked for when an image says nothing.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables by which numerical libraries choose how many threads to start; unset, they take the whole machine.
const THREADS: [&str; 6] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
];

/// Why there is nothing to execute.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error("the image has neither an entry point nor a default command, and no arguments are given")]
    NothingToRun,
}

impl LaunchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            LaunchError::NothingToRun => Some("say what to run: `run: [program, argument, …]`".to_owned()),
        }
    }
}

/// The whole environment of a program: defaults, then the image's, then `declared`; of a name, the last one counts.
///
/// `home` is the container's; `cpus` sets how many threads numerical libraries start, unless the image or `declared` do.
/// Nothing comes from the host.
pub fn environment(image: &Execution, declared: &[(String, String)], home: &Path, cpus: Option<u32>) -> Vec<(String, String)> {
    let mut env = Environment(Vec::new());
    for (name, value) in image.env_pairs() {
        env.set(name, value);
    }
    // These describe this container: what an image says of them was about another.
    env.set("HOME", &home.to_string_lossy());
    env.set("TMPDIR", "/tmp");
    for (name, value) in declared {
        env.set(name, value);
    }
    env.default("PATH", DEFAULT_PATH);
    env.default("PYTHONNOUSERSITE", "1");
    if !env.has("LANG") {
        env.default("LC_ALL", "C.UTF-8");
    }
    if let Some(cpus) = cpus {
        for name in THREADS {
            env.default(name, &cpus.to_string());
        }
    }
    env.0
}

struct Environment(Vec<(String, String)>);

impl Environment {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(other, _)| other == name)
    }

    /// An image may contain entries that name nothing; they are no variables.
    fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return;
        }
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn default(&mut self, name: &str, value: &str) {
        if !self.has(name) {
            self.set(name, value);
        }
    }
}

/// The image's own program (OCI image spec, "config": Entrypoint and Cmd): `args`, if any, take the place of Cmd.
pub fn entrypoint(image: &Execution, args: &[String]) -> Result<Vec<String>, LaunchError> {
    let tail = if args.is_empty() { &image.cmd } else { args };
    let argv: Vec<String> = image.entrypoint.iter().chain(tail).cloned().collect();
    if argv.is_empty() {
        return Err(LaunchError::NothingToRun);
    }
    Ok(argv)
}

/// A shell script, run by the image's `/bin/sh`; it ends at the first command that fails (`-e`) and at the first variable
/// that is not set (`-u`).
///
/// The last word is `$0`: the shell's own messages begin with it and the line's number in the script.
pub fn script(text: &str) -> Vec<String> {
    ["/bin/sh", "-eu", "-c", text, "script"].map(str::to_owned).to_vec()
}

/// The same for a script in a file, which the program sees at `path`.
pub fn script_file(path: &str) -> Vec<String> {
    ["/bin/sh", "-eu", path].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(env: &[&str], entrypoint: &[&str], cmd: &[&str]) -> Execution {
        let words = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Execution {
            env: words(env),
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..Execution::default()
        }
    }

    fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
        env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn env(image_env: &[&str], declared: &[(&str, &str)], cpus: Option<u32>) -> Vec<(String, String)> {
        environment(&image(image_env, &[], &[]), &pairs(declared), Path::new("/home/ada"), cpus)
    }

    #[test]
    fn an_image_without_an_environment_gets_a_usable_one() {
        let expected = [
            ("HOME", "/home/ada"),
            ("TMPDIR", "/tmp"),
            ("PATH", DEFAULT_PATH),
            ("PYTHONNOUSERSITE", "1"),
            ("LC_ALL", "C.UTF-8"),
        ];
        assert_eq!(env(&[], &[], None), pairs(&expected));
    }

    #[test]
    fn the_image_wins_over_defaults_and_the_declared_over_the_image() {
        let image = [
            "PATH=/opt/bin:/bin",
            "LANG=de_DE.UTF-8",
            "HOME=/root",
            "A=1=2",
            "EMPTY",
            "OMP_NUM_THREADS=2",
            "=x",
        ];
        let declared = [("A", "3"), ("TMPDIR", "/scratch"), ("MKL_NUM_THREADS", "1")];
        let expected = [
            ("PATH", "/opt/bin:/bin"),
            ("LANG", "de_DE.UTF-8"),
            ("HOME", "/home/ada"),
            ("A", "3"),
            ("EMPTY", ""),
            ("OMP_NUM_THREADS", "2"),
            ("TMPDIR", "/scratch"),
            ("MKL_NUM_THREADS", "1"),
            ("PYTHONNOUSERSITE", "1"),
            ("OPENBLAS_NUM_THREADS", "8"),
            ("BLIS_NUM_THREADS", "8"),
            ("NUMEXPR_NUM_THREADS", "8"),
            ("VECLIB_MAXIMUM_THREADS", "8"),
        ];
        assert_eq!(env(&image, &declared, Some(8)), pairs(&expected));
    }

    #[test]
    fn arguments_take_the_place_of_cmd() {
        let argv = |entrypoint: &[&str], cmd: &[&str], args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            entrypoint_of(&image(&[], entrypoint, cmd), &args)
        };
        assert_eq!(argv(&["e", "x"], &["c"], &[]), "e|x|c");
        assert_eq!(argv(&["e", "x"], &["c"], &["a", "b c"]), "e|x|a|b c");
        assert_eq!(argv(&["e"], &[], &["a"]), "e|a");
        assert_eq!(argv(&[], &["c", "d"], &[]), "c|d");
        assert_eq!(argv(&[], &["c"], &["a"]), "a");
        assert_eq!(entrypoint(&image(&[], &[], &[]), &[]), Err(LaunchError::NothingToRun));
    }

    fn entrypoint_of(image: &Execution, args: &[String]) -> String {
        entrypoint(image, args).unwrap().join("|")
    }
}
