//! Folders and files of the host in a container.

use std::fs;
use std::os::unix::fs::symlink;

use dvrun::runtime::{Kernel, RuntimeError, Writable};

use super::fixture::*;
use crate::support::overlays;

/// Every way in which a root is made.
const WAYS: [Kernel; 2] = [
    Kernel {
        overlay: true,
        mount_attributes: true,
        pivot_root: true,
    },
    Kernel {
        overlay: false,
        mount_attributes: false,
        pivot_root: false,
    },
];

#[test]
fn folders_and_files_at_targets_that_exist_or_not() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::write(fixture.on_host("file"), "of the host\n").unwrap();
    fs::create_dir(fixture.on_host("folder")).unwrap();
    fs::write(fixture.on_host("folder/inner"), "inner\n").unwrap();
    for kernel in WAYS {
        for target in [
            "/data",
            "/usr/share",
            "/new",
            "/usr/new",
            "/new/a/b/c",
            "/tmp/x",
            "/home/user/x",
            "/data/x y",
        ] {
            let mut container = fixture.shell(&format!("cat '{target}/inner'"));
            container.binds = vec![bind(fixture.on_host("folder"), target)];
            assert_prints_with(&container, kernel, "inner\n");
        }
        for target in [
            "/data/file",
            "/data/new",
            "/new-file",
            "/new/a/file",
            "/tmp/file",
            "/dev/file",
            "/etc/passwd",
        ] {
            let mut container = fixture.container(&["cat", target]);
            container.binds = vec![bind(fixture.on_host("file"), target)];
            assert_prints_with(&container, kernel, "of the host\n");
        }
        // What was not bound over is still there.
        let mut container = fixture.shell("cat /data/file; ls /data /usr");
        container.binds = vec![
            bind(fixture.on_host("folder"), "/data/sub"),
            bind(fixture.on_host("file"), "/usr/f"),
        ];
        assert_prints_with(&container, kernel, "of the image\n/data:\nfile\nsub\n\n/usr:\nbin\nf\nshare\n");
    }
    assert_eq!(fs::read_dir(fixture.root()).unwrap().count(), 4, "the image is as it was");
}

#[test]
fn a_folder_is_no_file() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::write(fixture.on_host("file"), "").unwrap();
    for kernel in WAYS {
        for (source, target, errno) in [
            ("file", "/data", libc::EISDIR),
            ("", "/data/file", libc::ENOTDIR),
            ("", "/data/file/x", libc::ENOTDIR),
        ] {
            let mut container = fixture.container(&["true"]);
            container.binds = vec![bind(fixture.on_host(source), target)];
            let error = refused_with(&container, kernel);
            assert!(
                matches!(&error, RuntimeError::MountPoint { source, .. } if source.0 == errno),
                "{target}: {error:?}"
            );
            assert!(error.hint().is_some());
        }
    }
}

#[test]
fn read_only_is_real_and_read_write_writes() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::write(fixture.on_host("file"), "before\n").unwrap();
    for kernel in WAYS {
        let mut container =
            fixture.shell("echo x > /new/file; echo x > /new/other; rm /new/file; chmod 600 /new; touch /new; cat /new/file");
        container.binds = vec![bind_read_only(fixture.host(), "/new")];
        let done = run_with(&container, kernel);
        assert_eq!((done.code, done.out.as_str()), (0, "before\n"));
        assert_eq!(done.err.matches("Read-only file system").count(), 5, "{}", done.err);

        let mut container = fixture.shell("echo after > /new/file && echo x > /new/other && rm /new/other");
        container.binds = vec![bind(fixture.host(), "/new")];
        assert_prints_with(&container, kernel, "");
        assert_eq!(fs::read_to_string(fixture.on_host("file")).unwrap(), "after\n");
        fs::write(fixture.on_host("file"), "before\n").unwrap();
    }
    assert_eq!(fs::read_dir(fixture.host()).unwrap().count(), 1);
}

#[test]
fn read_only_holds_for_what_is_mounted_below() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for kernel in WAYS {
        // The host's own mounts below a source: /dev/shm is writable for everyone there.
        let mut container = fixture.shell("touch /host/shm/x");
        container.binds = vec![bind_read_only("/dev", "/host")];
        let done = run_with(&container, kernel);
        assert_eq!(done.code, 1);
        assert!(done.err.contains("Read-only file system"), "{}", done.err);
    }
}

#[test]
fn sources_may_be_links() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir(fixture.on_host("real")).unwrap();
    fs::write(fixture.on_host("real/file"), "through a link\n").unwrap();
    symlink("real", fixture.on_host("relative")).unwrap();
    symlink(fixture.on_host("relative"), fixture.on_host("absolute")).unwrap();
    symlink("real/file", fixture.on_host("to-file")).unwrap();
    let mut container = fixture.shell("cat /new/file /single");
    container.binds = vec![
        bind(fixture.on_host("absolute"), "/new"),
        bind(fixture.on_host("to-file"), "/single"),
    ];
    assert_prints(&container, "through a link\nthrough a link\n");
    symlink("nothing", fixture.on_host("dangling")).unwrap();
    container.binds = vec![bind(fixture.on_host("dangling"), "/new")];
    let error = refused(&container);
    assert_eq!(
        error,
        RuntimeError::BindSourceMissing {
            path: fixture.on_host("dangling"),
            target: "/new".into()
        }
    );
    assert!(error.hint().unwrap().contains("dangling"));
}

#[test]
fn nested_in_any_order() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for folder in ["outer/mid", "mid/inner", "inner"] {
        fs::create_dir_all(fixture.on_host(folder)).unwrap();
    }
    fs::write(fixture.on_host("inner/file"), "innermost\n").unwrap();
    let all = [
        bind_read_only(fixture.on_host("outer"), "/a"),
        bind(fixture.on_host("mid"), "/a/mid"),
        bind_read_only(fixture.on_host("inner"), "/a/mid/inner"),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for kernel in WAYS {
            let mut container = fixture.shell("cat /a/mid/inner/file; touch /a/mid/w && rm /a/mid/w; touch /a/w /a/mid/inner/w");
            container.binds = order.map(|i: usize| all[i].clone()).to_vec();
            let done = run_with(&container, kernel);
            assert_eq!(done.out, "innermost\n", "{order:?} {}", done.err);
            assert_eq!(done.err.matches("Read-only file system").count(), 2, "{}", done.err);
        }
    }
}

#[test]
fn a_mount_point_in_a_bind_is_made_where_the_bind_is_writable() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir(fixture.on_host("outer")).unwrap();
    let mut container = fixture.container(&["true"]);
    container.binds = vec![bind_read_only(fixture.on_host("outer"), "/a"), bind("/etc", "/a/missing")];
    let error = refused(&container);
    assert!(matches!(&error, RuntimeError::MountPoint { target, source } if target.ends_with("missing") && source.0 == libc::EROFS));
    assert!(error.hint().unwrap().contains("bound read-only"));
    assert!(!fixture.on_host("outer/missing").exists());
    container.binds[0].read_only = false;
    assert_prints(&container, "");
    assert!(fixture.on_host("outer/missing").is_dir());
}

#[test]
fn of_two_binds_at_one_target_the_first_holds_and_defaults_give_way() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for name in ["one", "two"] {
        fs::create_dir(fixture.on_host(name)).unwrap();
        fs::write(fixture.on_host(name).join("name"), format!("{name}\n")).unwrap();
    }
    symlink("/var/here", fixture.root().join("there")).unwrap();
    for target in ["/new", "/tmp", "/home/user", "/var/tmp", "/there"] {
        let mut container = fixture.shell(&format!("cat {target}/name"));
        container.binds = vec![bind(fixture.on_host("one"), target), bind(fixture.on_host("two"), target)];
        assert_prints(&container, "one\n");
    }
    // One target by two names.
    let mut container = fixture.shell("cat /there/name");
    container.binds = vec![bind(fixture.on_host("one"), "/there"), bind(fixture.on_host("two"), "/var/here")];
    assert_prints(&container, "one\n");
}

#[test]
fn links_of_the_image_as_targets_stay_inside() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let outside = fixture.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(fixture.on_host("file"), "bound\n").unwrap();
    let root = fixture.root();
    symlink(&outside, root.join("absolute")).unwrap();
    symlink("../../../../../../../..", root.join("data/up")).unwrap();
    symlink("data", root.join("inner")).unwrap();
    symlink("/proc/1/root", root.join("magic")).unwrap();
    let from_root = outside.strip_prefix("/").unwrap().display().to_string();
    for kernel in WAYS {
        for (target, seen) in [
            (
                "/absolute/new".to_owned(),
                format!("/{}/new/file", outside.strip_prefix("/").unwrap().display()),
            ),
            (format!("/data/up/{from_root}/new"), format!("{}/new/file", outside.display())),
            (
                format!("/data/../../../..{}/new", outside.display()),
                format!("{}/new/file", outside.display()),
            ),
            ("/inner/new".to_owned(), "/data/new/file".to_owned()),
        ] {
            let mut container = fixture.container(&["cat", &seen]);
            container.binds = vec![bind(fixture.host(), &target)];
            assert_prints_with(&container, kernel, "bound\n");
        }
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside of the root");
    symlink("loop", root.join("loop")).unwrap();
    let mut container = fixture.container(&["true"]);
    container.binds = vec![bind(fixture.host(), "/loop")];
    assert!(matches!(refused(&container), RuntimeError::MountPoint { source, .. } if source.0 == libc::ELOOP));
    container.binds = vec![bind(fixture.host(), "/data/..")];
    assert!(matches!(refused(&container), RuntimeError::Invalid { .. }), "the root itself");
}

#[test]
fn relative_paths_are_refused_before_anything_starts() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for (source, target) in [("relative", "/data"), ("/etc", "data")] {
        let mut container = fixture.container(&["true"]);
        container.binds = vec![bind(source, target)];
        assert!(matches!(refused(&container), RuntimeError::Invalid { .. }));
    }
}

#[test]
fn scratch_is_tmp_and_stays() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.shell("echo kept > /tmp/file; cat /var/tmp/file");
    container.scratch = Some(fixture.host());
    assert_prints(&container, "kept\n");
    assert_eq!(fs::read_to_string(fixture.on_host("file")).unwrap(), "kept\n");
    if overlays() {
        container.writable = Writable::Tmpfs;
        assert_prints(&container, "kept\n");
    }
}

#[test]
fn devices_bound_by_name_work_and_others_do_not() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.shell("head -c 3 /data/zero | wc -c; cat /all/zero");
    container.binds = vec![bind("/dev/zero", "/data/zero"), bind("/dev", "/all")];
    let done = run(&container);
    assert_eq!((done.code, done.out.as_str()), (1, "3\n"));
    assert!(done.err.contains("Permission denied"), "{}", done.err);
}
