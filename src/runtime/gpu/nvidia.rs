//! NVIDIA: its devices, and of the host's files those that come with the driver and match the kernel's module.

use std::collections::BTreeSet;
use std::path::Path;

use super::find::{BINARIES, GpuError, Gpus, LIBRARIES, device, entries, host};
use super::ldcache::Library;
use crate::runtime::Mount;

/// The driver's libraries by the beginning of their names, beside all of `libnvidia-*` (NVIDIA's driver README, "Installed
/// components").
const DRIVER: [&str; 13] = [
    "libcuda.so",
    "libcudadebugger.so",
    "libnvcuvid.so",
    "libnvoptix.so",
    "libnvcucompat.so",
    "libGLX_nvidia.so",
    "libEGL_nvidia.so",
    "libGLESv1_CM_nvidia.so",
    "libGLESv2_nvidia.so",
    "libvdpau_nvidia.so",
    "libnvidia-ml.so",
    "libnvidia-ptxjitcompiler.so",
    "libnvidia-nvvm.so",
];
/// The container tools' own: of no use inside.
const NOT_DRIVER: &str = "libnvidia-container";
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/opt/bin"];
/// By which programs talk to daemons of the host.
const SOCKETS: [&str; 2] = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"];

/// Whether `name` in `/dev` is a GPU.
pub fn is_gpu(name: &str) -> bool {
    name.strip_prefix("nvidia")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_driver(name: &str) -> bool {
    (name.starts_with("libnvidia-") && name.contains(".so") || DRIVER.iter().any(|start| name.starts_with(start)))
        && !name.starts_with(NOT_DRIVER)
}

/// Devices, libraries, programs and sockets.
pub fn add(root: &Path, cache: &[Library], gpus: &mut Gpus) -> Result<(), GpuError> {
    let dev = entries(&root.join("dev"))?;
    for needed in ["nvidiactl", "nvidia-uvm"] {
        if !dev.iter().any(|name| name == needed) {
            return Err(GpuError::NoDeviceFile(Path::new("/dev").join(needed)));
        }
    }
    let also = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
    for name in dev.iter().filter(|name| is_gpu(name) || also.contains(&name.as_str())) {
        device(root, &Path::new("/dev").join(name), gpus)?;
    }
    for folder in ["/dev/nvidia-caps", "/dev/nvidia-caps-imex-channels"] {
        for name in entries(&host(root, Path::new(folder)))? {
            // Rights to parts of a GPU (MIG) and to channels between hosts: whoever has none does without.
            match device(root, &Path::new(folder).join(name), gpus) {
                Err(GpuError::NotPermitted { .. }) => {}
                done => done?,
            }
        }
    }
    libraries(root, cache.iter().filter(|library| is_driver(&library.name)), gpus);
    if !gpus
        .binds
        .iter()
        .any(|bind| bind.target == Path::new(LIBRARIES).join("libcuda.so.1"))
    {
        return Err(GpuError::NoLibrary("libcuda.so.1"));
    }
    for program in PROGRAMS {
        let places = PROGRAM_FOLDERS.iter().map(|folder| host(root, &Path::new(folder).join(program)));
        if let Some(source) = places.filter_map(|place| place.canonicalize().ok()).find(|place| place.is_file()) {
            gpus.bind(source, &Path::new(BINARIES).join(program));
        }
    }
    for socket in SOCKETS {
        if let Ok(source) = host(root, Path::new(socket)).canonicalize() {
            gpus.binds.push(Mount {
                source,
                target: socket.into(),
                read_only: false,
            });
        }
    }
    Ok(())
}

/// Each library by its name, in the folder that the container's loader is told of. A cache may be older than the files: what
/// is not there any more is left out.
pub fn libraries<'c>(root: &Path, libraries: impl Iterator<Item = &'c Library>, gpus: &mut Gpus) {
    let mut names = BTreeSet::new();
    for library in libraries {
        if let Ok(source) = host(root, &library.path).canonicalize()
            && names.insert(&library.name)
        {
            gpus.bind(source, &Path::new(LIBRARIES).join(&library.name));
            gpus.libraries = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_own_and_nothing_of_the_c_library() {
        let ours = [
            "libcuda.so.1",
            "libnvidia-ml.so.1",
            "libnvidia-glcore.so.550.54.14",
            "libGLX_nvidia.so.0",
        ];
        assert!(ours.into_iter().all(is_driver));
        let others = [
            "libc.so.6",
            "libcudart.so.12",
            "libnvidia-container.so.1",
            "libcublas.so.12",
            "libpthread.so.0",
            "libGLX.so.0",
        ];
        assert!(!others.into_iter().any(is_driver));
        assert!(is_gpu("nvidia0") && is_gpu("nvidia12") && !is_gpu("nvidiactl") && !is_gpu("nvidia") && !is_gpu("nvidia0x"));
    }
}
