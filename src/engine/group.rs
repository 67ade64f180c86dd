//! A control group of a task's own, where the kernel's keeper lets this user make one: it holds the task to its memory and
//! cpus. Elsewhere memory is limited by `setrlimit`, for each process.
//!
//! Version 1 has a tree a controller, and a group may be made below this process's own where that is this user's. Version 2
//! has one tree, in which a group with processes hands no controllers on (cgroup-v2, "No Internal Process Constraint"):
//! the new one is made below the nearest group above that does, and [`make_room`] lets this process's own be that group.
//!
//! The task itself is in it too, so that no program runs before it is limited; the kernel kills the program first
//! (`memory::goes_first`). Under Slurm all of this is Slurm's, also where the run itself is in a job.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, Pid, access, geteuid};

use crate::workflow::Resources;

const GROUPS: &str = "/proc/self/cgroup";
const MOUNT: &str = "/sys/fs/cgroup";
/// What a process may reserve beside what its task asks for. `RLIMIT_DATA` counts memory that was reserved and never written,
/// which a control group does not: a program whose buffers stay empty must run with the memory that does under Slurm.
const RESERVED: u64 = 1 << 30;
/// Of a second, in microseconds: the kernel's usual period.
const PERIOD: u64 = 100_000;

/// The groups that this process was moved to. Left and removed when dropped.
#[derive(Debug)]
pub(super) struct Group {
    places: Vec<Place>,
    /// One of them limits memory, and counts what is killed for want of it.
    pub memory: bool,
}

/// One of them, and where this process was before.
#[derive(Debug, PartialEq)]
struct Place {
    folder: PathBuf,
    before: PathBuf,
}

/// Limits this process, and what it starts from now on, to `resources`. `None`: not by a group.
///
/// # Errors
/// A limit of memory that could be set in no way.
pub(super) fn limit(resources: &Resources) -> io::Result<Option<Group>> {
    let group = enter(resources);
    if let Some(memory) = resources.memory
        && !group.as_ref().is_some_and(|group| group.memory)
    {
        let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
        let memory = memory.0.saturating_add(RESERVED).min(most);
        setrlimit(Resource::RLIMIT_DATA, memory, memory)?;
    }
    Ok(group)
}

/// Room for groups below this process's own. When dropped this process is back in that, and it is as it was.
#[must_use]
pub struct Room(Option<Place>);

/// Lets groups be made below this process's own, where that is this user's (`systemd-run --user --scope -p Delegate=yes`),
/// by moving this process, the first of its run, one level down. Where it cannot be done all stays as it is.
pub fn make_room() -> Room {
    let groups = fs::read_to_string(GROUPS).unwrap_or_default();
    let place = unified(&groups, Path::new(MOUNT)).map(|(mount, own)| {
        let before = mount.join(own);
        let folder = before.join(name());
        Place { folder, before }
    });
    Room(place.filter(Place::move_down))
}

impl Place {
    fn move_down(&self) -> bool {
        let control = self.before.join("cgroup.subtree_control");
        if !has(&self.before.join("cgroup.controllers"), "memory") || has(&control, "memory") || fs::create_dir(&self.folder).is_err() {
            return false;
        }
        let moved = fs::write(self.folder.join("cgroup.procs"), "0");
        if moved.and_then(|()| fs::write(&control, "+memory")).is_err() {
            // Other processes are in it.
            self.leave();
            return false;
        }
        // Not handed down to everybody.
        fs::write(&control, "+cpu").unwrap_or_default();
        true
    }

    /// Back to where this process was.
    fn leave(&self) {
        // A group that it cannot leave goes with it, but for its folder.
        if fs::write(self.before.join("cgroup.procs"), "0").is_ok() {
            remove(&self.folder);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(place) = &self.0 {
            // A group that hands controllers on takes no process. What was not handed on need not be taken back.
            for controller in ["-cpu", "-memory"] {
                fs::write(place.before.join("cgroup.subtree_control"), controller).unwrap_or_default();
            }
            place.leave();
        }
    }
}

/// Whether a task that this process starts is held to its memory by a group, as far as can be seen without making one.
pub fn is_delegated() -> bool {
    let groups = fs::read_to_string(GROUPS).unwrap_or_default();
    let may_write = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let Some((tree, own)) = unified(&groups, Path::new(MOUNT)) else {
        return separate(&groups, Path::new(MOUNT), "memory").is_some_and(|(tree, own)| may_write(&tree.join(own)));
    };
    let own = tree.join(own);
    let takes = |folder: &Path| may_write(folder) && may_write(&folder.join("cgroup.procs"));
    let hands_on = |folder: &&Path| folder.starts_with(&tree) && has(&folder.join("cgroup.subtree_control"), "memory");
    own.ancestors().find(hands_on).is_some_and(takes) || takes(&own) && has_room(&own)
}

/// Whether controllers can be handed on in a group of version 2, as soon as this process is out of it: there is no other in it.
fn has_room(own: &Path) -> bool {
    let processes = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    has(&own.join("cgroup.controllers"), "memory") && processes.trim() == Pid::this().to_string()
}

fn name() -> String {
    format!("{}{}", prefix(), Pid::this())
}

fn prefix() -> String {
    format!("dvrun-{}-", geteuid())
}

/// Into a new group of each kind that limits something, all or none.
fn enter(resources: &Resources) -> Option<Group> {
    let groups = fs::read_to_string(GROUPS).ok()?;
    let mut group = Group {
        places: Vec::new(),
        memory: false,
    };
    for (settings, place) in wanted(&groups, Path::new(MOUNT), resources) {
        sweep(place.folder.parent()?);
        let needed = settings.iter().any(|setting| setting.needed);
        match made(&place, &settings) {
            Ok(()) => {
                group.places.push(place);
                group.memory |= needed;
            }
            // Whoever may not have cpus limited may still have memory.
            Err(_) if !needed => remove(&place.folder),
            Err(_) => {
                remove(&place.folder);
                return None;
            }
        }
    }
    (!group.places.is_empty()).then_some(group)
}

struct Setting {
    file: &'static str,
    value: String,
    /// Without this the group is of no use.
    needed: bool,
}

/// Each group to make, with what is to be written into it, in that order.
fn wanted(groups: &str, mount: &Path, resources: &Resources) -> Vec<(Vec<Setting>, Place)> {
    let setting = |file, value: String, needed| Setting { file, value, needed };
    let memory = resources.memory.map(|memory| memory.0.to_string());
    let quota = PERIOD * u64::from(resources.cpus.max(1)) * u64::from(resources.tasks.unwrap_or(1));
    let place = |tree: &Path, own: &Path, below: &Path| Place {
        folder: tree.join(below).join(name()),
        before: tree.join(own),
    };
    if let Some((tree, own)) = unified(groups, mount)
        && let Some(above) = own
            .ancestors()
            .find(|above| has(&tree.join(above).join("cgroup.subtree_control"), "memory"))
    {
        let mut settings = vec![setting("cpu.max", format!("{quota} {PERIOD}"), false)];
        if let Some(memory) = memory {
            settings.push(setting("memory.swap.max", "0".to_owned(), false));
            settings.push(setting("memory.max", memory, true));
        }
        return vec![(settings, place(&tree, &own, above))];
    }
    let mut wanted = Vec::new();
    if let (Some(memory), Some((tree, own))) = (memory, separate(groups, mount, "memory")) {
        let settings = vec![
            setting("memory.limit_in_bytes", memory.clone(), true),
            setting("memory.memsw.limit_in_bytes", memory, false),
        ];
        wanted.push((settings, place(&tree, &own, &own)));
    }
    if let Some((tree, own)) = separate(groups, mount, "cpu") {
        let settings = vec![setting("cpu.cfs_quota_us", quota.to_string(), false)];
        wanted.push((settings, place(&tree, &own, &own)));
    }
    wanted
}

/// The one tree of version 2 with this process's group in it.
fn unified(groups: &str, mount: &Path) -> Option<(PathBuf, PathBuf)> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some((mount.to_owned(), PathBuf::from(own))).filter(|(tree, _)| tree.join("cgroup.controllers").exists())
}

/// The tree of one of version 1's controllers, as [`unified`]. Not where the group is that of a Slurm step, which is the user's as
/// well: when Slurm kills a run, nobody is left to remove the run's groups, and Slurm could not remove its own around them.
fn separate(groups: &str, mount: &Path, controller: &str) -> Option<(PathBuf, PathBuf)> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, own) = (fields.next()?, fields.next()?.strip_prefix('/')?);
        let is_it = controllers.split(',').any(|name| name == controller);
        let trees = [mount.join(controllers), mount.join(controller)];
        let tree = trees.into_iter().find(|tree| is_it && tree.is_dir())?;
        if own.starts_with("slurm") {
            return None;
        }
        Some((tree, PathBuf::from(own)))
    })
}

fn has(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|other| other == word))
}

/// Makes a group, limits it, and moves this process there.
fn made(place: &Place, settings: &[Setting]) -> io::Result<()> {
    fs::create_dir(&place.folder)?;
    for setting in settings {
        match fs::write(place.folder.join(setting.file), &setting.value) {
            Err(error) if setting.needed => return Err(error),
            // A kernel without an account of swap, a controller that is not handed down.
            Ok(()) | Err(_) => {}
        }
    }
    fs::write(place.folder.join("cgroup.procs"), "0")
}

/// Groups of tasks that were killed. The kernel removes none that has processes.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix())?.parse::<i32>().ok());
        // Its maker may not have moved there yet. A group of this process's number is of another that had it before.
        if pid.is_some_and(|pid| pid == Pid::this().as_raw() || !is_alive(pid)) {
            remove(&entry.path());
        }
    }
}

/// Not so is one that has ended and whom nobody has waited for yet.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `PID (NAME) STATE …`, with any bytes in the name (proc(5)).
    let end = stat.iter().rposition(|&byte| byte == b')');
    end.and_then(|end| stat.get(end + 2)).is_some_and(|state| !b"ZX".contains(state))
}

fn remove(folder: &Path) {
    // One that has never been made, or that something still runs in: the next task sweeps it.
    fs::remove_dir(folder).unwrap_or_default();
}

impl Drop for Group {
    fn drop(&mut self) {
        self.places.iter().for_each(Place::leave);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::units::Bytes;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn of(groups: &str, mount: &Path, memory: Option<u64>) -> Vec<String> {
        let resources = Resources {
            cpus: 2,
            memory: memory.map(Bytes),
            ..Resources::default()
        };
        let wanted = wanted(groups, mount, &resources);
        let line = |(settings, place): &(Vec<Setting>, Place)| {
            let folder = place.folder.strip_prefix(mount).unwrap().parent().unwrap().display().to_string();
            let settings: Vec<_> = settings
                .iter()
                .map(|setting| format!("{}={}", setting.file, setting.value))
                .collect();
            format!("{folder}: {}", settings.join(" "))
        };
        wanted.iter().map(line).collect()
    }

    #[test]
    fn version_two_below_the_nearest_group_that_hands_memory_on() {
        let root = tempfile::tempdir().unwrap();
        let groups = "0::/user.slice/app.slice/run.scope\n";
        let mount = root.path();
        assert_eq!(of(groups, mount, Some(1024)), Vec::<String>::new());
        file(&mount.join("cgroup.controllers"), "cpu memory\n");
        file(&mount.join("cgroup.subtree_control"), "cpu\n");
        file(&mount.join("user.slice/app.slice/cgroup.subtree_control"), "cpu memory pids\n");
        file(&mount.join("user.slice/app.slice/run.scope/cgroup.subtree_control"), "");
        let limits = "cpu.max=200000 100000 memory.swap.max=0 memory.max=1024";
        assert_eq!(of(groups, mount, Some(1024)), [format!("user.slice/app.slice: {limits}")]);
        assert_eq!(of(groups, mount, None), ["user.slice/app.slice: cpu.max=200000 100000"]);
    }

    #[test]
    fn version_one_below_its_own_in_each_tree() {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path();
        for tree in ["memory", "cpu,cpuacct"] {
            fs::create_dir(mount.join(tree)).unwrap();
        }
        let groups = "9:memory:/user/7\n4:cpu,cpuacct:/\n1:name=systemd:/x\n0::/\n";
        let memory = "memory/user/7: memory.limit_in_bytes=1024 memory.memsw.limit_in_bytes=1024";
        assert_eq!(of(groups, mount, Some(1024)), [memory, "cpu,cpuacct: cpu.cfs_quota_us=200000"]);
        let slurms = "9:memory:/slurm_node1/uid_1000/job_7/step_batch/task_0\n4:cpu,cpuacct:/slurm/uid_1000/job_7/step_0\n";
        assert_eq!(of(slurms, mount, Some(1024)), Vec::<String>::new());
        assert_eq!(of("nonsense\n1:memory\n", mount, Some(1)), Vec::<String>::new());
    }

    #[test]
    fn groups_of_the_dead_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let groups = [dead.id(), std::process::id(), 1].map(|pid| root.path().join(format!("{}{pid}", prefix())));
        groups.iter().for_each(|group| fs::create_dir(group).unwrap());
        // It is not waited for.
        while is_alive(dead.id() as i32) {
            std::thread::yield_now();
        }
        sweep(root.path());
        assert_eq!(groups.map(|group| group.exists()), [false, false, true]);
        dead.wait().unwrap();
    }
}
