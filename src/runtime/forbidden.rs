//! Which setting of the host keeps ordinary users from making namespaces.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What stands in the way, as far as the host tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forbidden {
    /// A sysctl has a value that forbids it.
    Sysctl { name: String, value: String, wanted: String },
    /// The kernel was built without user namespaces.
    NotBuilt,
    /// As many user namespaces as allowed exist, or they are nested too deep.
    Limit,
    /// No setting explains it: a seccomp filter (a surrounding Docker or Kubernetes container), a security module, or a chroot.
    Sandbox,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Forbidden::Sysctl { name, value, .. } => write!(f, "{name} is {value}"),
            Forbidden::NotBuilt => f.write_str("its kernel has no user namespaces"),
            Forbidden::Limit => f.write_str("no more user namespaces may be made"),
            Forbidden::Sandbox => f.write_str("a sandbox around this process forbids user namespaces"),
        }
    }
}

impl Forbidden {
    /// What can be done, and what can be used instead.
    pub fn hint(&self) -> String {
        let cure = match self {
            Forbidden::Sysctl { name, wanted, .. } => {
                format!("ask the administrator for `sysctl -w {name}={wanted}` on every node")
            }
            Forbidden::NotBuilt => "ask the administrator for a kernel with CONFIG_USER_NS".to_owned(),
            Forbidden::Limit => "ask the administrator to raise user.max_user_namespaces".to_owned(),
            Forbidden::Sandbox => {
                "run outside the surrounding container or chroot, or let it allow user namespaces (Docker: --security-opt seccomp=unconfined)"
                    .to_owned()
            }
        };
        format!("{cure}; or run the stage with an Apptainer that is installed setuid, or with `image: none`")
    }
}

/// Explains `errno` of the refused call from the host's settings; `read` gives the text of a file under `/proc/sys`.
pub fn explain(errno: Errno, read: impl Fn(&str) -> Option<String>) -> Forbidden {
    // Debian's switch, Red Hat's usual way, Ubuntu's since 23.10.
    let switches = [
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("user/max_user_namespaces", "0", "15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    for (file, forbidding, wanted) in switches {
        if read(file).is_some_and(|value| value.trim() == forbidding) {
            return Forbidden::Sysctl {
                name: file.replace('/', "."),
                value: forbidding.to_owned(),
                wanted: wanted.to_owned(),
            };
        }
    }
    match errno {
        Errno::EINVAL if read("user/max_user_namespaces").is_none() => Forbidden::NotBuilt,
        Errno::ENOSPC | Errno::EUSERS => Forbidden::Limit,
        _ => Forbidden::Sandbox,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host<'a>(files: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| files.iter().find(|(file, _)| *file == name).map(|(_, text)| format!("{text}\n"))
    }

    #[test]
    fn the_forbidding_setting_is_named() {
        let sysctl = |name: &str, value: &str| match explain(Errno::EPERM, host(&[(name, value), ("user/max_user_namespaces", "0")])) {
            Forbidden::Sysctl { name, wanted, .. } => format!("{name}={wanted}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            sysctl("kernel/unprivileged_userns_clone", "0"),
            "kernel.unprivileged_userns_clone=1"
        );
        assert_eq!(sysctl("kernel/unprivileged_userns_clone", "1"), "user.max_user_namespaces=15000");
        let ubuntu = explain(
            Errno::EACCES,
            host(&[
                ("user/max_user_namespaces", "96365"),
                ("kernel/apparmor_restrict_unprivileged_userns", "1"),
            ]),
        );
        assert_eq!(ubuntu.to_string(), "kernel.apparmor_restrict_unprivileged_userns is 1");
        assert!(ubuntu.hint().contains("kernel.apparmor_restrict_unprivileged_userns=0"));
    }

    #[test]
    fn without_a_setting_the_error_number_tells() {
        let open = [("user/max_user_namespaces", "100"), ("kernel/unprivileged_userns_clone", "1")];
        assert_eq!(explain(Errno::EPERM, host(&open)), Forbidden::Sandbox);
        assert_eq!(explain(Errno::ENOSPC, host(&open)), Forbidden::Limit);
        assert_eq!(explain(Errno::EINVAL, host(&[])), Forbidden::NotBuilt);
        assert_eq!(explain(Errno::EINVAL, host(&open)), Forbidden::Sandbox);
    }
}
