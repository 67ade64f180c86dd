//! Which of a host's GPUs are meant: by variables, as Slurm, CUDA and ROCm have them. Pure.
//!
//! A device file's number is not what CUDA calls its device: the files are all bound, and the variable chooses. Where a site
//! keeps jobs apart (Slurm's `ConstrainDevices`), the kernel refuses the others.

/// Variables that say which GPUs a program may use, of NVIDIA's and of AMD's libraries.
const VARIABLES: [&str; 4] = [
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
];
const ORDER: &str = "CUDA_DEVICE_ORDER";
/// What Slurm says of a job where it sets none of the others.
const SLURM: [&str; 2] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];

/// The variables that an environment has a program choose GPUs by, as they are to be in its container.
pub fn chosen(value: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let set: Vec<_> = VARIABLES
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), value(name)?)))
        .collect();
    let mut set = match set.is_empty() {
        false => set,
        true => {
            let slurm = SLURM.into_iter().find_map(&value).filter(|list| !list.is_empty());
            slurm.map_or_else(Vec::new, |list| visible(&list))
        }
    };
    if set.iter().any(|(name, _)| name == "CUDA_VISIBLE_DEVICES") {
        // CUDA's own order is by speed: its numbers would mean other devices than Slurm's and nvidia-smi's.
        set.push((ORDER.to_owned(), value(ORDER).unwrap_or_else(|| "PCI_BUS_ID".to_owned())));
    }
    set
}

/// The variables that show a program the GPUs `list` and no others: numbers as `nvidia-smi` has them, or UUIDs, with commas.
pub fn visible(list: &str) -> Vec<(String, String)> {
    ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
        .map(|name| (name.to_owned(), list.to_owned()))
        .into()
}

/// The variable of `chosen` that leaves no GPU: CUDA sees none where the first of the list is none.
pub(super) fn none(chosen: &[(String, String)]) -> Option<&(String, String)> {
    chosen.iter().find(|(name, value)| {
        let first = value.split(',').next().unwrap_or_default().trim();
        name == "CUDA_VISIBLE_DEVICES" && (first.is_empty() || first.starts_with('-') || first == "NoDevFiles")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &[(&str, &str)]) -> Vec<String> {
        let value = |name: &str| env.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        chosen(value).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn what_slurm_and_the_user_chose_is_kept() {
        assert_eq!(of(&[]), Vec::<String>::new());
        let both = [("CUDA_VISIBLE_DEVICES", "0"), ("GPU_DEVICE_ORDINAL", "0"), ("SLURM_JOB_GPUS", "3")];
        let kept = ["CUDA_VISIBLE_DEVICES=0", "GPU_DEVICE_ORDINAL=0", "CUDA_DEVICE_ORDER=PCI_BUS_ID"];
        assert_eq!(of(&both), kept);
        let own = [("CUDA_VISIBLE_DEVICES", "1"), ("CUDA_DEVICE_ORDER", "FASTEST_FIRST")];
        assert_eq!(of(&own), ["CUDA_VISIBLE_DEVICES=1", "CUDA_DEVICE_ORDER=FASTEST_FIRST"]);
        assert_eq!(of(&[("ROCR_VISIBLE_DEVICES", "1,2")]), ["ROCR_VISIBLE_DEVICES=1,2"]);
        let slurm = [
            "CUDA_VISIBLE_DEVICES=2,3",
            "ROCR_VISIBLE_DEVICES=2,3",
            "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        ];
        assert_eq!(of(&[("SLURM_JOB_GPUS", "2,3")]), slurm);
        assert_eq!(of(&[("SLURM_JOB_GPUS", "")]), Vec::<String>::new());
    }

    #[test]
    fn none_at_all_is_found_out() {
        let is_none = |value: &str| none(&[("CUDA_VISIBLE_DEVICES".to_owned(), value.to_owned())]).is_some();
        assert!(["", "-1", "NoDevFiles", " ,0"].into_iter().all(is_none));
        assert!(!["0", "1,-1", "GPU-8932f937", "MIG-GPU-1/2/3"].into_iter().any(is_none));
    }
}
