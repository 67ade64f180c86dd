//! GPUs without one: a host's root made up of the real loader's cache, stub libraries and files in the place of devices, seen
//! by a real container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::runtime::{GpuError, Gpus, chosen_gpus, count_gpus, find_gpus};

use crate::runtime::fixture::{Fixture, run};
use crate::support::{Sandbox, assert_ordinary_user, finish, lane};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A host that has the driver's files, below a folder.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    /// With these devices, and the driver's libraries in the cache that `ldconfig` makes. `None` where there are no tools for it.
    fn new(devices: &[&str]) -> Option<Host> {
        let host = Host {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        for device in devices {
            host.file(&format!("dev/{device}"), &format!("{device}\n"));
        }
        host.file("etc/ld.so.conf", "/usr/lib/x86_64-linux-gnu\n");
        let tools = [("cc", "--version"), ("/sbin/ldconfig", "--version")];
        let there = tools
            .iter()
            .all(|(tool, word)| Command::new(tool).arg(word).output().is_ok_and(|output| output.status.success()));
        if !lane("cc and ldconfig", there) {
            return None;
        }
        let (source, libraries) = (host.file("stub.c", "int stub;\n"), host.root().join(LIBRARIES));
        fs::create_dir_all(&libraries).expect("the folder is writable");
        for (name, file) in [
            ("libcuda.so.1", "libcuda.so.550.54"),
            ("libnvidia-ml.so.1", "libnvidia-ml.so.550.54"),
            ("libnvidia-container.so.1", "libnvidia-container.so.1.14"),
            ("libc.so.6", "libc.so.6"),
        ] {
            let named = format!("-Wl,-soname,{name}");
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-nostdlib", "-fPIC", &named, "-o"])
                .arg(libraries.join(file))
                .arg(&source);
            finish(&mut cc).ok();
        }
        finish(Command::new("/sbin/ldconfig").arg("-r").arg(host.root())).ok();
        Some(host)
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("the folder is writable");
        fs::write(&path, text).expect("the folder is writable");
        path
    }

    fn find(&self, env: &[(&str, &str)]) -> Result<Gpus, GpuError> {
        let value = |name: &str| env.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        find_gpus(self.root(), chosen_gpus(value))
    }

    #[track_caller]
    fn refused(&self) -> String {
        let error = self.find(&[]).expect_err("something is missing");
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    }
}

/// What a script prints in a container with these GPUs.
#[track_caller]
fn inside(gpus: Gpus, script: &str) -> String {
    let fixture = Fixture::complete();
    let mut container = fixture.shell(script);
    container.env.push(("LD_LIBRARY_PATH".into(), "/opt/lib".into()));
    gpus.add_to(&mut container);
    let done = run(&container);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{script}");
    done.out
}

const NVIDIA: [&str; 5] = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"];

#[test]
fn devices_libraries_and_programs_of_the_driver_are_seen_and_no_c_library() {
    assert_ordinary_user();
    let Some(host) = Host::new(&NVIDIA) else { return };
    let smi = host.file("usr/bin/nvidia-smi", "#!/bin/sh\necho two GPUs\n");
    fs::set_permissions(&smi, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let gpus = host.find(&[("CUDA_VISIBLE_DEVICES", "1")]).unwrap();
    let script = "cat /dev/nvidia1 /dev/nvidia-caps/nvidia-cap1; nvidia-smi; ls /usr/local/nvidia/lib64; \
                  echo $LD_LIBRARY_PATH $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER; echo x 2>/dev/null >/usr/local/nvidia/lib64/libcuda.so.1 || echo read-only";
    assert_eq!(
        inside(gpus, script),
        "nvidia1\nnvidia-caps/nvidia-cap1\ntwo GPUs\nlibcuda.so.1\nlibnvidia-ml.so.1\n/usr/local/nvidia/lib64:/opt/lib 1 PCI_BUS_ID\nread-only\n"
    );
    assert_eq!(count_gpus(host.root()), 2);
}

#[test]
fn what_is_missing_is_named() {
    assert_ordinary_user();
    let Some(host) = Host::new(&[]) else { return };
    assert!(host.refused().contains("this host has no GPU"));
    host.file("dev/nvidia0", "");
    assert_eq!(host.refused(), "there is no /dev/nvidiactl");
    host.file("dev/nvidiactl", "");
    assert_eq!(host.refused(), "there is no /dev/nvidia-uvm");
    let uvm = host.file("dev/nvidia-uvm", "");
    fs::set_permissions(&uvm, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    assert_eq!(host.refused(), "/dev/nvidia-uvm may not be used by this user");
    fs::set_permissions(&uvm, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    host.find(&[]).unwrap();
    let none = host.find(&[("CUDA_VISIBLE_DEVICES", "-1")]).unwrap_err();
    assert_eq!(none.to_string(), "CUDA_VISIBLE_DEVICES leaves no GPU: it is `-1`");
    // The cache is older than what was removed.
    fs::remove_file(host.root().join(LIBRARIES).join("libcuda.so.550.54")).unwrap();
    assert_eq!(host.refused(), "libcuda.so.1 is not in /etc/ld.so.cache");
    host.file("etc/ld.so.cache", "glibc-ld.so.cache1.1 and nothing");
    host.refused();
    host.file("etc/ld.so.cache", "no cache");
    assert!(host.refused().ends_with("is no cache of libraries"));
}

#[test]
fn amd_has_devices_alone() {
    assert_ordinary_user();
    let Some(host) = Host::new(&["kfd", "dri/renderD128", "dri/renderD129"]) else {
        return;
    };
    let gpus = host.find(&[("ROCR_VISIBLE_DEVICES", "0")]).unwrap();
    let script =
        "cat /dev/kfd /dev/dri/renderD129; echo $ROCR_VISIBLE_DEVICES $LD_LIBRARY_PATH; ls -d /usr/local/nvidia 2>/dev/null || echo none";
    assert_eq!(inside(gpus, script), "kfd\ndri/renderD129\n0 /opt/lib\nnone\n");
    assert_eq!(count_gpus(host.root()), 2);
}

#[test]
fn a_cdi_specification_goes_before_and_its_hooks_are_named() {
    assert_ordinary_user();
    let Some(host) = Host::new(&NVIDIA) else { return };
    host.file("opt/driver/nvidia-smi", "smi\n");
    let specification = format!(
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes: [{{path: /dev/nvidia0}}]\n\
         - name: all\n  containerEdits:\n    deviceNodes: [{{path: /dev/nvidia0}}, {{path: /dev/gpu-one, hostPath: /dev/nvidia1}}]\n\
         containerEdits:\n  env: [NVIDIA_VISIBLE_DEVICES=void]\n  deviceNodes: [{{path: /dev/nvidiactl}}]\n  \
         hooks: [{{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, update-ldcache]}}]\n  mounts:\n  \
         - {{hostPath: /{LIBRARIES}/libcuda.so.550.54, containerPath: /{LIBRARIES}/libcuda.so.550.54, options: [ro, nosuid]}}\n  \
         - {{hostPath: /opt/driver/nvidia-smi, containerPath: /usr/bin/nvidia-smi}}\n  - {{hostPath: /gone, containerPath: /gone}}\n"
    );
    host.file(
        "etc/cdi/nvidia.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: [{name: \"9\"}]\n",
    );
    host.file("etc/cdi/network.json", r#"{"kind": "example.org/nic", "devices": [{"name": "0"}]}"#);
    host.file("var/run/cdi/nvidia.yaml", &specification);
    let gpus = host.find(&[]).unwrap();
    assert_eq!(
        gpus.notes,
        ["the hooks of the CDI specification of nvidia.com/gpu are not run: /usr/bin/nvidia-cdi-hook"]
    );
    let script =
        "cat /dev/gpu-one /usr/bin/nvidia-smi; ls /usr/local/nvidia/lib64; ls /usr/lib/x86_64-linux-gnu; echo $NVIDIA_VISIBLE_DEVICES";
    assert_eq!(
        inside(gpus, script),
        "nvidia1\nsmi\nlibcuda.so.1\nlibcuda.so.550.54\nlibcuda.so.550.54\nvoid\n"
    );
    host.file("var/run/cdi/broken.json", "{");
    assert!(host.refused().contains("broken.json: "));
}

#[test]
fn a_host_without_gpus_says_so_before_anything_runs() {
    assert_ordinary_user();
    if count_gpus(Path::new("/")) > 0 {
        return;
    }
    let sandbox = Sandbox::new();
    let image = crate::support::checkout().join("workflows/quickstart/image");
    let exec = |flag: &str| {
        finish(
            sandbox
                .dvrun()
                .args(["exec", flag])
                .arg(format!("oci:{}:1.0", image.display()))
                .args(["--", "true"]),
        )
    };
    exec("--gpus").exits(3).complains("this host has no GPU").complains("hint: ");
    exec("--gpus=-1").exits(3).complains("CUDA_VISIBLE_DEVICES leaves no GPU");
    let file = sandbox.write(
        "flow.yaml",
        format!(
            "version: 1\nname: flow\nimages: {{toolbox: \"oci:{}:1.0\"}}\nstages:\n  a:\n    image: toolbox\n    run: touch work/a\n    \
             outputs: [work/a]\n    resources: {{gpus: 1}}\n",
            image.display()
        ),
    );
    finish(sandbox.dvrun().arg("run").arg(&file)).exits(3).complains("asks for 1 GPUs");
    // What the environment promises is not there.
    finish(sandbox.dvrun().arg("run").arg(&file).env("CUDA_VISIBLE_DEVICES", "0"))
        .exits(3)
        .complains("this host has no GPU");
    assert!(!sandbox.work().join("work/a").exists());
}

#[test]
fn each_task_on_this_machine_gets_gpus_of_its_own() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    // Each waits until the other has started: they run at the same time, on different GPUs.
    let file = sandbox.write(
        "flow.yaml",
        "version: 1\nname: flow\ndefaults: {image: none}\nstages:\n  a:\n    array: 2\n    outputs: [\"work/a${{ array.index }}\"]\n    \
         resources: {gpus: 2}\n    run: |\n      echo $CUDA_VISIBLE_DEVICES >work/a${{ array.index }}\n      \
         while ! [ -e work/a0 ] || ! [ -e work/a1 ]; do sleep 0.02; done\n  \
         b: {needs: [a], run: \"echo ${CUDA_VISIBLE_DEVICES-none} >work/b\", outputs: [work/b], resources: {gpus: 3}}\n",
    );
    finish(sandbox.dvrun().arg("run").arg(&file).env("CUDA_VISIBLE_DEVICES", "4,GPU-5,6,7")).ok();
    let mut all: Vec<String> = ["work/a0", "work/a1"]
        .iter()
        .flat_map(|name| sandbox.read(name).trim().split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    all.sort();
    assert_eq!(all, ["4", "6", "7", "GPU-5"]);
    assert_eq!(sandbox.read("work/b").trim().split(',').count(), 3);
}
