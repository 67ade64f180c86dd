//! AMD: the devices alone. ROCm's libraries talk to the kernel themselves, and come with the image.

use std::path::Path;

use super::find::{GpuError, Gpus, device, entries};

/// The compute interface and the render nodes.
pub fn add(root: &Path, gpus: &mut Gpus) -> Result<(), GpuError> {
    device(root, Path::new("/dev/kfd"), gpus)?;
    for name in entries(&root.join("dev/dri"))? {
        if name.starts_with("renderD") || name.starts_with("card") {
            let path = Path::new("/dev/dri").join(&name);
            // A card is for screens, and often not for everybody.
            match device(root, &path, gpus) {
                Err(GpuError::NotPermitted { .. }) if name.starts_with("card") => {}
                done => done?,
            }
        }
    }
    Ok(())
}
