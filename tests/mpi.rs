//! Stages of several ranks: real MPI programs of Debian's, in containers, across the nodes of a real cluster.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use dvrun::state::RunDir;
use dvrun::workflow::StageName;

use crate::pipeline::apptainer;
use crate::support::{Sandbox, assert_ordinary_user, finish, lane, slurm, wait_until};

/// An OCI layout with LAMMPS (Open MPI) and `ring` (MPICH): `DVRUN_TEST_MPI`.
fn image() -> Option<PathBuf> {
    let layout = std::env::var_os("DVRUN_TEST_MPI").map(PathBuf::from);
    let there = layout.as_ref().is_some_and(|layout| layout.join("index.json").is_file());
    lane("MPI image: no OCI layout in DVRUN_TEST_MPI", there)
        .then_some(layout)
        .flatten()
}

/// LAMMPS' own benchmark of a melting crystal, smaller; the atoms' velocities do not depend on how many ranks share them.
const MELT: &str = "units lj\natom_style atomic\nlattice fcc 0.8442\nregion box block 0 6 0 6 0 6\ncreate_box 1 box\ncreate_atoms 1 box\n\
    mass 1 1.0\nvelocity all create 3.0 87287 loop geom\npair_style lj/cut 2.5\npair_coeff 1 1 1.0 1.0 2.5\nneighbor 0.3 bin\n\
    fix 1 all nve\nthermo 10\nrun 50\n";

fn flow(image: &std::path::Path) -> String {
    format!(
        "version: 1\nname: melt\nimages: {{mpi: \"oci:{}:mpi\"}}\ndefaults:\n  image: mpi\n  binds: [\"./melt.in:/melt.in:ro\"]\n  \
         resources: {{cpus: 1, memory: 400M, time: 10m}}\nstages:\n  \
         one: {{run: [lmp, -in, /melt.in, -log, work/one.log], outputs: [work/one.log]}}\n  \
         four:\n    run: [lmp, -in, /melt.in, -log, work/four.log]\n    outputs: [work/four.log]\n    resources: {{tasks: 4, nodes: 2}}\n  \
         near:\n    run: ring >work/near.$SLURM_PROCID\n    outputs: [work/near.1]\n    resources: {{tasks: 2, nodes: 1}}\n  \
         broken:\n    run: \"[ $SLURM_PROCID != 2 ] || exit 7; exec sleep 600\"\n    resources: {{tasks: 4, nodes: 2}}\n",
        image.display()
    )
}

/// The table of a log of LAMMPS', and the line that says how many ranks made it.
#[track_caller]
fn melted(sandbox: &Sandbox, name: &str) -> (Vec<String>, String) {
    let log = sandbox.read(name);
    let table = log.lines().skip_while(|line| !line.trim_start().starts_with("Step"));
    let table: Vec<String> = table.take_while(|line| !line.starts_with("Loop time")).map(str::to_owned).collect();
    assert_eq!(table.len(), 7, "{log}");
    let ranks = log.lines().find(|line| line.contains("MPI processor grid"));
    (table, ranks.unwrap_or_default().trim().to_owned())
}

fn sandbox(image: &std::path::Path) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("melt.in", MELT);
    sandbox.write("flow.yaml", flow(image));
    sandbox
}

#[test]
fn four_ranks_on_two_nodes_give_the_numbers_of_one() {
    assert_ordinary_user();
    let (Some(image), Some(_)) = (image(), slurm()) else { return };
    let sandbox = sandbox(&image);
    // Nodes find it under one path, and other users' daemons go through it.
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.config("profiles: {openmpi: {slurm: {mpi: pmix}}, mpich: {slurm: {mpi: pmi2}}}\n");
    let submit = |profile: &str, stages: &[&str]| {
        let mut command = sandbox.dvrun();
        command.args(["--profile", profile, "submit", "--wait", "flow.yaml"]);
        command.args(stages.iter().flat_map(|stage| ["--only", stage]));
        finish(&mut command)
    };
    submit("openmpi", &["one", "four"]).ok();
    let (one, four) = (melted(&sandbox, "work/one.log"), melted(&sandbox, "work/four.log"));
    assert_eq!(one.0, four.0);
    assert!(
        one.1.starts_with("1 by 1 by 1") && !four.1.starts_with("1 by 1 by 1"),
        "{} {}",
        one.1,
        four.1
    );
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    let record = run.records(&StageName("four".into())).read_one(0).unwrap().unwrap();
    // Of the ranks, and not of srun.
    assert!(
        record.memory > Some(10 << 20) && record.cpu > Some(0) && record.written > Some(1000),
        "{record:?}"
    );

    // The nodes of a test's cluster are one machine, which UCX sees: of several it would look for the others' memory in its own.
    submit("mpich", &["near"]).ok();
    assert_eq!(sandbox.read("work/near.1"), "ranks 2, token 1, sum 1.500000, in one memory 2\n");
    submit("mpich", &["broken"]).exits(1);
    finish(sandbox.dvrun().args(["explain", "broken"])).ok().says("exit status 7");
    let left = || -> Vec<String> {
        ["/dev/shm", "/tmp"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| {
                // JOB-STEP-NODE, and not PROCESS-NAME as a task's own.
                let rest = name.strip_prefix(&format!("dvrun-{}-", nix::unistd::geteuid())).unwrap_or_default();
                rest.split('-').count() == 3
            })
            .collect()
    };
    // Another test's ranks may have theirs at this moment.
    wait_until("no folder is left that ranks of a node share", Duration::from_secs(120), || {
        left().is_empty()
    });
}

/// The same by Apptainer, where a site demands it: a container a rank under `srun --mpi=pmix`, and `mpirun` of the image here.
#[test]
fn ranks_by_apptainer_give_the_numbers_of_one() {
    assert_ordinary_user();
    let (Some(image), Some(_)) = (image(), slurm()) else { return };
    let Some(sandbox) = apptainer::demanding() else { return };
    sandbox.write("melt.in", MELT);
    sandbox.write("flow.yaml", flow(&image));
    let submit = |profile: &str, stages: &[&str]| {
        let mut command = apptainer::dvrun(&sandbox, profile);
        command.args(["submit", "--wait", "flow.yaml"]);
        command.args(stages.iter().flat_map(|stage| ["--only", stage]));
        finish(&mut command)
    };
    submit("site", &["one", "four"]).ok();
    let (one, four) = (melted(&sandbox, "work/one.log"), melted(&sandbox, "work/four.log"));
    assert_eq!(one.0, four.0);
    assert!(!four.1.starts_with("1 by 1 by 1"), "{}", four.1);
    submit("mpich", &["near"]).ok();
    assert_eq!(sandbox.read("work/near.1"), "ranks 2, token 1, sum 1.500000, in one memory 2\n");
    submit("mpich", &["broken"]).exits(1);
    finish(apptainer::dvrun(&sandbox, "mpich").args(["explain", "broken"]))
        .ok()
        .says("exit status 7");

    std::fs::remove_file(sandbox.work().join("work/four.log")).unwrap();
    finish(apptainer::dvrun(&sandbox, "site").args(["run", "flow.yaml", "--only", "four"])).ok();
    assert_eq!(melted(&sandbox, "work/four.log").0, one.0);
}

#[test]
fn on_this_machine_the_images_mpirun_starts_them() {
    assert_ordinary_user();
    let Some(image) = image() else { return };
    let sandbox = sandbox(&image);
    finish(sandbox.dvrun().args(["run", "flow.yaml", "--only", "one", "--only", "four"])).ok();
    let (one, four) = (melted(&sandbox, "work/one.log"), melted(&sandbox, "work/four.log"));
    assert_eq!(one.0, four.0);
    assert!(!four.1.starts_with("1 by 1 by 1"), "{}", four.1);
}
