//! The root: the image itself, an overlay, or a tmpfs of its parts.

use std::fs;
use std::os::unix::fs::symlink;

use dvrun::runtime::{Container, Kernel, RuntimeError, User, Writable};

use super::fixture::*;
use crate::support::{lane, overlays};

const SYNTHETIC: Kernel = Kernel {
    overlay: false,
    mount_attributes: true,
    pivot_root: true,
};

/// What is mounted at `/`, by mountinfo: which folder of which type of file system, and how.
pub const TYPE_OF_ROOT: &str = "while read -r a b c folder point options rest; do
    if [ \"$point\" = / ]; then echo \"${rest#*- }\" | { read -r type x; echo \"$folder $type ${options%%,*}\"; }; fi
done < /proc/self/mountinfo";

#[test]
fn a_complete_image_is_bound_and_others_get_what_they_lack() {
    if !ready() {
        return;
    }
    let complete = Fixture::complete();
    let bare = Fixture::new();
    let done = run(&complete.shell(TYPE_OF_ROOT));
    let mut words = done.out.split_whitespace();
    assert!(
        words.next().is_some_and(|folder| folder.ends_with("/root")) && words.nth(1) == Some("ro"),
        "{done:?}"
    );
    assert_prints(
        &bare.shell(TYPE_OF_ROOT),
        if overlays() { "/ overlay ro\n" } else { "/ tmpfs ro\n" },
    );
    assert_prints_with(&bare.shell(TYPE_OF_ROOT), SYNTHETIC, "/ tmpfs ro\n");
    let mut writable = complete.shell(TYPE_OF_ROOT);
    writable.writable = Writable::Tmpfs;
    if overlays() {
        assert_prints(&writable, "/ overlay rw\n");
    }
}

#[test]
fn an_empty_folder_that_lacks_a_mount_point_is_covered_and_a_full_one_is_not() {
    if !ready() {
        return;
    }
    let fixture = Fixture::complete();
    let home = fixture.root().join("home");
    fs::remove_dir(home.join("user")).unwrap();
    set_mode(&home, 0o711);
    let script = format!(
        "{TYPE_OF_ROOT}; stat -c %a /home; touch /home/user/new && echo own; touch /home/new 2>/dev/null || echo closed; \
         test -e /home/other && echo other; :"
    );
    let answer = |kernel| run_with(&fixture.shell(&script), kernel).out;
    let ways = [true, false].map(|mount_attributes| Kernel {
        mount_attributes,
        ..Kernel::default()
    });
    for kernel in ways {
        let out = answer(kernel);
        assert!(!out.contains("overlay") && out.ends_with(" ro\n711\nown\nclosed\n"), "{out}");
    }
    assert!(fs::read_dir(&home).unwrap().next().is_none(), "nothing is made in the image");
    fs::write(home.join("other"), "").unwrap();
    let root = if overlays() { "overlay" } else { "tmpfs" };
    for kernel in ways {
        assert_eq!(answer(kernel), format!("/ {root} ro\n711\nown\nclosed\nother\n"));
    }
}

#[test]
fn all_roots_look_alike() {
    if !ready() {
        return;
    }
    let bare = Fixture::new();
    symlink("usr/share", bare.root().join("link")).unwrap();
    fs::create_dir_all(bare.root().join("usr/share/deep/er")).unwrap();
    fs::write(bare.root().join("usr/share/deep/file"), "x").unwrap();
    set_mode(&bare.root().join("usr/share/deep"), 0o750);
    fs::write(bare.on_host("bound"), "b\n").unwrap();
    let script = "ls /; ls -l /usr/share/deep | wc -l; stat -c '%a %F' /link /usr/share/deep /tmp /data/file; readlink /link; cat /usr/share/deep/er/f";
    let mut container = bare.shell(script);
    container.binds = vec![bind(bare.on_host("bound"), "/link/deep/er/f")];
    let expected = "bin\ndata\ndev\netc\nhome\nlink\nproc\nsys\ntmp\nusr\nvar\n3\n777 symbolic link\n750 directory\n1777 directory\n644 regular file\nusr/share\nb\n";
    for mount_attributes in [true, false] {
        for overlay in [true, false] {
            assert_prints_with(
                &container,
                Kernel {
                    overlay,
                    mount_attributes,
                    pivot_root: overlay,
                },
                expected,
            );
        }
    }
}

fn writes(container: &mut Container) {
    container.argv[2] = "for at in / /data /etc /usr/bin /dev /sys /proc/sys/kernel /home; do touch $at/new 2>/dev/null && echo $at; done; \
        echo x > /data/file && echo changed; rm /data/file && echo removed; for at in /tmp /var/tmp /home/user /dev/shm; do touch $at/new && echo $at; done; :"
        .into();
}

#[test]
fn only_private_folders_are_writable() {
    if !ready() {
        return;
    }
    for fixture in [Fixture::new(), Fixture::complete()] {
        for overlay in [true, false] {
            for mount_attributes in [true, false] {
                let mut container = fixture.shell("");
                writes(&mut container);
                let done = run_with(
                    &container,
                    Kernel {
                        overlay,
                        mount_attributes,
                        pivot_root: overlay,
                    },
                );
                assert_eq!(done.out, "/tmp\n/var/tmp\n/home/user\n/dev/shm\n", "{}", done.err);
                assert_eq!(done.err.matches("Read-only file system").count(), 2, "{}", done.err);
            }
        }
        assert_eq!(fs::read_to_string(fixture.root().join("data/file")).unwrap(), "of the image\n");
    }
}

#[test]
fn a_writable_root_forgets() {
    if !ready() {
        return;
    }
    let fixture = Fixture::complete();
    let script =
        "echo new > /data/new; echo changed > /data/file; rm -r /usr/share; mkdir /opt; cat /data/file /data/new; ls -d /opt /usr/share";
    let mut container = fixture.shell(script);
    container.writable = Writable::Tmpfs;
    // Without overlays there is no such root, and that is said.
    let says_so = |error: RuntimeError| assert!(matches!(error, RuntimeError::Overlay { .. }) && error.hint().is_some(), "{error:?}");
    says_so(refused_with(&container, SYNTHETIC));
    if !overlays() {
        return says_so(refused(&container));
    }
    let done = run(&container);
    assert_eq!(done.out, "changed\nnew\n/opt\n", "{done:?}");
    let mut again = fixture.shell("cat /data/*; ls -d /usr/share; test ! -e /opt");
    again.writable = Writable::Tmpfs;
    assert_prints(&again, "of the image\n/usr/share\n");
}

#[test]
fn dev_proc_and_etc_are_what_programs_expect() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    assert_prints(
        &fixture.shell("ls /dev; echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; ls /dev/pts/ptmx"),
        "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n4\n4\n/dev/pts/ptmx\n",
    );
    let done = run(&fixture.shell("echo out > /dev/stdout; echo err > /dev/stderr"));
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "out\n", "err\n"));
    let full = run(&fixture.shell("echo x > /dev/full"));
    assert!(full.code == 1 && full.err.contains("No space left"), "{full:?}");
    // The first process is dvrun's own, the shell the second.
    assert_prints(&fixture.shell("echo $$; cat /proc/keys; exec readlink /proc/self"), "2\n2\n");
    assert_prints(
        &fixture.shell("test -r /etc/hosts && test -e /sys/kernel && cat /proc/self/comm"),
        "cat\n",
    );
}

#[test]
fn the_caller_is_known_by_name() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let uid = nix::unistd::getuid();
    let gid = nix::unistd::getgid();
    let name = nix::unistd::User::from_uid(uid).unwrap().unwrap().name;
    assert_prints(
        &fixture.shell("id -u; id -g; whoami; cat /etc/passwd /etc/group"),
        &format!(
            "{uid}\n{gid}\n{name}\nroot:x:0:0:root:/root:/bin/sh\n{name}:x:{uid}:{gid}::/home/user:/bin/sh\nroot:x:0:\n{name}:x:{gid}:\n"
        ),
    );
    let mut root = fixture.shell("id -u; id -g; whoami; touch /tmp/x; stat -c %u:%g /tmp/x /data/file; cat /etc/passwd");
    root.user = User::Root;
    assert_prints(&root, "0\n0\nroot\n0:0\n0:0\nroot:x:0:0::/home/user:/bin/sh\n");
}

#[test]
fn host_files_and_host_name() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut container = fixture.shell("cat /etc/hosts");
    assert_prints(&container, &hosts);
    container.argv = ["hostname".into()].to_vec();
    container.hostname = Some("node-in-a-box".into());
    assert_prints(&container, "node-in-a-box\n");
}

#[test]
fn an_image_s_link_for_local_time_keeps_its_zone_file() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root().join("usr/share/zoneinfo")).unwrap();
    fs::write(fixture.root().join("usr/share/zoneinfo/UTC"), "utc").unwrap();
    symlink("/usr/share/zoneinfo/UTC", fixture.root().join("etc/localtime")).unwrap();
    assert_prints(&fixture.shell("cat /usr/share/zoneinfo/UTC"), "utc");
}

/// Most tools and stores keep a folder's group for what is made in it: the image's files then belong to a group that has
/// no number in the container's user namespace.
#[test]
fn an_image_of_another_group_gets_its_mount_points() {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    let own = nix::unistd::getegid();
    let other = groups.into_iter().find(|&group| group != own);
    if !ready() || !lane("a user with a supplementary group", other.is_some()) {
        return;
    }
    let fixture = Fixture::new();
    let paths = ["", "etc", "data", "usr", "usr/share", "etc/passwd"].map(|path| fixture.root().join(path));
    for path in &paths {
        nix::unistd::chown(path, None, other).unwrap();
    }
    set_mode(&fixture.root().join("data"), 0o750);
    let mut container = fixture.shell("cat /data/file /usr/share/new/x/file; stat -c %a /data; touch /opt /tmp/y 2>/dev/null; ls /opt");
    fs::write(fixture.on_host("file"), "bound\n").unwrap();
    container.binds = vec![bind(fixture.host(), "/usr/share/new/x")];
    for kernel in [Kernel::default(), SYNTHETIC] {
        let done = run_with(&container, kernel);
        assert_eq!(done.out, "of the image\nbound\n750\n", "{}", done.err);
    }
    if !overlays() {
        return;
    }
    container.writable = Writable::Tmpfs;
    let done = run(&container);
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "of the image\nbound\n750\n/opt\n"),
        "{}",
        done.err
    );
}
