//! On a cluster of files (`tests/support/fake_slurm`): what a real one cannot be made to show at will.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use dvrun::engine::slurm::{
    Hold, Limits, Missing, SlurmProfile, SubmitError, Submitter, cancel, check, given_up, hold, intents, scripts, wait,
};
use dvrun::engine::{RunState, TaskState, status};
use dvrun::plan::TaskSet;
use dvrun::state::{Event, Journal, Outcome};
use dvrun::workflow::StageName;

use super::fake::{Fake, name, submit_elsewhere};
use super::{Work, record, stage};

#[test]
fn what_goes_wrong_with_one_submission_submits_exactly_once() {
    for (fault, process) in [
        ("banner", "here"),
        ("submitted-timeout", "here"),
        ("submitted-error", "here"),
        ("submitted-garbage", "here"),
        ("submitted-hang", "here"),
        ("timeout", "here"),
        ("down", "here"),
        ("kill", "elsewhere"),
        ("submitted-kill", "elsewhere"),
    ] {
        let work = Work::new([stage("a", &[], Some(3))]);
        let fake = Fake::new(&work);
        fake.faults("sbatch", &[fault]);
        match process {
            "here" => {
                let submission = work.submit(&fake.slurm).unwrap();
                assert!(submission.stopped.is_none(), "{fault}: {submission:?}");
            }
            _ => assert!(!submit_elsewhere(&work, &fake), "{fault}: not killed"),
        }
        let again = work.submit(&fake.slurm).unwrap();
        assert!(again.stopped.is_none() && again.missing.is_empty(), "{fault}: {again:?}");
        let jobs = fake.jobs();
        assert_eq!(jobs.len(), 1, "{fault}: {jobs:?}");
        assert_eq!(again.stages[0].jobs, [jobs[0].id.clone()], "{fault}");
        assert_eq!(jobs[0].comment, format!("dvrun:{}", jobs[0].token));
    }
}

#[test]
fn refusals_and_limits_stop_and_say_how_far_it_got() {
    for (fault, limit) in [("limit", true), ("reject", false)] {
        let work = Work::new([stage("a", &[], None), stage("b", &[], None), stage("c", &["a"], None)]);
        let fake = Fake::new(&work);
        fake.faults("sbatch", &["ok", fault]);
        let stopped = work.submit(&fake.slurm).unwrap();
        assert_eq!(stopped.stages.len(), 1);
        assert_eq!(stopped.missing, [(name("b"), Missing::Stopped), (name("c"), Missing::Stopped)]);
        match stopped.stopped.unwrap() {
            SubmitError::Limit { stage, message } if limit => assert!(stage == name("b") && message.contains("QOSMaxSubmit")),
            SubmitError::Rejected { stage, message } if !limit => assert!(stage == name("b") && message.contains("Invalid account")),
            error => panic!("{error}"),
        }
        assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 3);
        assert_eq!(fake.jobs().len(), 3);
    }
}

#[test]
fn two_calls_are_under_way_at_once_and_a_stage_waits_for_the_ids_that_it_needs() {
    let work = Work::new([
        stage("a", &[], None),
        stage("b", &[], None),
        stage("third", &[], None),
        stage("last", &["b"], None),
    ]);
    let mut fake = Fake::new(&work);
    fake.at_once(2);
    fake.faults("sbatch", &["meet", "meet"]);
    let submission = work.submit(&fake.slurm).unwrap();
    assert!(submission.stopped.is_none() && submission.missing.is_empty(), "{submission:?}");
    let jobs = fake.jobs();
    let id = |stage: &str| jobs.iter().find(|job| job.stage == stage).unwrap().id.clone();
    let last = jobs.iter().find(|job| job.stage == "last").unwrap();
    assert_eq!(last.dependency, format!("afterok:{}", id("b")));
}

#[test]
fn a_refusal_stops_the_submission_and_what_was_under_way_with_it_counts() {
    let work = Work::new([stage("a", &[], None), stage("b", &[], None), stage("c", &[], None)]);
    let mut fake = Fake::new(&work);
    fake.at_once(2);
    // Whichever comes first is refused; the other is taken.
    fake.faults("sbatch", &["limit", "ok"]);
    let stopped = work.submit(&fake.slurm).unwrap();
    assert!(matches!(stopped.stopped, Some(SubmitError::Limit { .. })), "{stopped:?}");
    assert_eq!((stopped.stages.len() + stopped.missing.len(), open(&work)), (3, 0));
    assert_eq!(stopped.stages.len(), fake.jobs().len());
    assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 3);
    assert_eq!(fake.jobs().len(), 3);
}

/// A graph of independent stages whose submission was killed at the third job: the fourth to the last were never tried.
fn killed_at_the_third() -> (Work, Fake) {
    let work = Work::new((0..40).map(|number| stage(&format!("s{number}"), &[], None)));
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["ok", "ok", "submitted-kill"]);
    assert!(!submit_elsewhere(&work, &fake));
    assert_eq!((fake.jobs().len(), open(&work)), (3, 38));
    (work, fake)
}

fn open(work: &Work) -> usize {
    intents(&Journal::read(&work.run.journal_path()).unwrap()).len()
}

#[test]
fn all_that_was_meant_is_asked_after_at_once() {
    let (work, fake) = killed_at_the_third();
    // What has ended is in the accounts alone.
    fake.set_state("103", "COMPLETED");
    fake.forget("103");
    let status = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    let said = status.problems.join("\n");
    assert_eq!(
        said,
        "stages s2, s3, s4 and 35 more: whether a job was submitted is not known yet; submitting again finds out"
    );
    let before = (fake.calls("squeue"), fake.calls("sacct"));
    let again = work.submit(&fake.slurm).unwrap();
    assert!(again.stopped.is_none() && again.missing.is_empty(), "{again:?}");
    assert!(fake.calls("squeue") - before.0 < 10 && fake.calls("sacct") - before.1 < 5);
    assert_eq!((fake.jobs().len(), open(&work)), (40, 0));
    assert_eq!(again.stages[2].jobs, ["103"]);
}

#[test]
fn what_was_never_tried_is_not_looked_for() {
    let work = Work::new((0..9).map(|number| stage(&format!("s{number}"), &[], None)));
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["ok", "limit"]);
    assert!(work.submit(&fake.slurm).unwrap().stopped.is_some());
    assert_eq!(open(&work), 0);
    let sacct = fake.calls("sacct");
    assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 9);
    assert_eq!((fake.jobs().len(), fake.calls("sacct")), (9, sacct));
}

#[test]
fn whoever_cancels_or_holds_says_nothing_of_what_another_is_about_to_submit() {
    let (work, fake) = killed_at_the_third();
    let all: BTreeSet<StageName> = work.plan.stages.keys().cloned().collect();
    hold(&work.run, &fake.slurm, &all, Hold::Release).unwrap();
    assert_eq!(open(&work), 37, "the third is there, and may be held");
    let patience = Duration::from_secs(10);
    let cancelled = cancel(&work.run, &fake.slurm, &all, Submitter::Perhaps, patience).unwrap();
    assert_eq!((cancelled.jobs.len(), cancelled.to_come, open(&work)), (3, 37, 37));
    let cancelled = cancel(&work.run, &fake.slurm, &all, Submitter::Gone, patience).unwrap();
    assert_eq!((cancelled.jobs.len(), cancelled.to_come, open(&work)), (0, 0, 0));
}

#[test]
fn an_answer_that_cannot_be_had_stops_before_anything_is_submitted_twice() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["submitted-timeout"]);
    fake.faults("squeue", &["down", "down", "down"]);
    fake.faults("sacct", &["down"]);
    let stopped = work.submit(&fake.slurm).unwrap();
    assert!(matches!(stopped.stopped, Some(SubmitError::Unknown { .. })), "{stopped:?}");
    // The queue answers by now; what it says is not in doubt.
    let status = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    assert!(
        status.problems.iter().any(|problem| problem.contains("not known yet")),
        "{status:#?}"
    );
    assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 1);
    assert_eq!(fake.jobs().len(), 1);
}

#[test]
fn a_job_that_ran_and_was_forgotten_is_known_by_its_record() {
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], None)]);
    let fake = Fake::new(&work);
    fs::remove_file(fake.dir.join("accounts")).unwrap();
    fake.faults("sbatch", &["submitted-kill"]);
    assert!(!submit_elsewhere(&work, &fake));
    let job = fake.jobs().remove(0);
    work.run.records(&name("a")).write(0, &record(Outcome::Ok, Some(&job.id))).unwrap();
    fake.forget(&job.id);
    let rest = work.submit(&fake.slurm).unwrap();
    assert_eq!(rest.stages[0].jobs, [job.id]);
    let jobs = fake.jobs();
    assert_eq!((jobs.len(), jobs[1].dependency.as_str()), (2, ""));
}

#[test]
fn a_submission_that_was_given_up_is_marked_so_that_its_job_can_tell() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["timeout"]);
    work.submit(&fake.slurm).unwrap();
    let events = Journal::read(&work.run.journal_path()).unwrap();
    let lost = events.iter().find_map(|event| match event {
        Event::NotSubmitted { token, .. } => Some(token.clone()),
        _ => None,
    });
    assert!(given_up(&events, &format!("test_flow.a.{}", lost.unwrap()), &name("a"), 0));
    assert!(!given_up(&events, &format!("test_flow.a.{}", fake.jobs()[0].token), &name("a"), 0));
}

#[test]
fn dependencies_name_every_job_of_what_is_needed() {
    let mut same = stage("same", &["wide"], Some(10));
    same.stage.needs[0].same_shard = true;
    let mut odd = stage("odd", &["wide"], Some(10));
    odd.stage.needs[0].same_shard = true;
    odd.todo = [1, 9].into_iter().collect();
    let mut always = stage("always", &["wide", "same"], None);
    always.stage.always = true;
    let mut done = stage("done", &[], None);
    done.todo = TaskSet::default();
    let work = Work::new([
        done,
        stage("wide", &["done"], Some(10)),
        same,
        odd,
        always,
        stage("last", &["wide"], None),
    ]);
    let fake = Fake::new(&work);
    fs::write(fake.dir.join("array_size"), "4").unwrap();
    work.submit(&fake.slurm).unwrap();
    let of = |stage: &str| -> Vec<String> {
        let jobs = fake.jobs().into_iter().filter(|job| job.stage == stage);
        jobs.map(|job| job.dependency).collect()
    };
    assert_eq!(of("wide"), ["", "", ""]);
    assert_eq!(of("same"), ["aftercorr:101", "aftercorr:102", "aftercorr:103"]);
    assert_eq!(of("odd"), ["afterok:101", "afterok:103"]);
    assert_eq!(of("always"), ["afterany:101:102:103,afterany:104:105:106"]);
    assert_eq!(of("last"), ["afterok:101:102:103"]);
    assert!(of("done").is_empty());
}

#[test]
fn status_of_a_hundred_thousand_shards_is_two_calls_and_a_few_lines() {
    let work = Work::new([stage("wide", &[], Some(100_000))]);
    let fake = Fake::new(&work);
    let submission = work.submit(&fake.slurm).unwrap();
    assert_eq!((submission.stages[0].jobs.len(), fake.calls("sbatch")), (100, 100));
    for job in fake.jobs() {
        fs::write(fake.dir.join("reason").join(job.id), "Priority").unwrap();
    }
    work.run
        .records(&name("wide"))
        .write(77_777, &record(Outcome::Failed { exit: 9 }, Some("178_700")))
        .unwrap();
    // What ended waits no more.
    let job = fake.dir.join("jobs/178");
    let waiting = fs::read_to_string(&job).unwrap().replace("|0-1000", "|0-699,701-1000");
    assert!(waiting.contains("|0-699,"), "{waiting}");
    fs::write(job, waiting).unwrap();
    let status = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    assert_eq!((fake.calls("squeue"), fake.calls("sacct")), (1, 0));
    let wide = &status.stages[&name("wide")];
    assert_eq!(wide.counts, BTreeMap::from([(TaskState::Waiting, 99_999), (TaskState::Failed, 1)]));
    assert_eq!(wide.waiting, BTreeMap::from([("other jobs go first".to_owned(), 99_999)]));
    assert_eq!(
        (wide.failed.ranges(), wide.problems[0].exit),
        ([(77_777, 77_777)].as_slice(), Some(9))
    );
    assert!(serde_json::to_string(&status).unwrap().len() < 10_000);
}

#[test]
fn what_ended_badly_and_is_in_the_queue_again_has_not_ended() {
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], None)]);
    let fake = Fake::new(&work);
    // Only `a` gets there.
    fake.faults("sbatch", &["ok", "limit"]);
    work.submit(&fake.slurm).unwrap();
    let job = fake.jobs().remove(0).id;
    let end = |outcome: Outcome| work.run.records(&name("a")).write(0, &record(outcome, Some(&job))).unwrap();
    let seen = || status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    for (word, reason, outcome, expected) in [
        ("PENDING", "BeginTime", Outcome::Cancelled, TaskState::Waiting),
        ("PENDING", "BeginTime", Outcome::Failed { exit: 137 }, TaskState::Waiting),
        // Its next attempt has written nothing yet; or it has told of its end before Slurm knows.
        ("RUNNING", "None", Outcome::Cancelled, TaskState::Running),
        ("COMPLETING", "None", Outcome::Cancelled, TaskState::Cancelled),
        ("FAILED", "None", Outcome::OutOfMemory, TaskState::OutOfMemory),
        (
            "PENDING",
            "DependencyNeverSatisfied",
            Outcome::UpstreamFailed,
            TaskState::UpstreamFailed,
        ),
    ] {
        fake.set_state(&job, word);
        fs::write(fake.dir.join("reason").join(&job), reason).unwrap();
        end(outcome.clone());
        let status = seen();
        assert_eq!(
            status.stages[&name("a")].counts,
            BTreeMap::from([(expected, 1)]),
            "{word} {outcome:?}"
        );
        let goes_on = matches!(expected, TaskState::Waiting | TaskState::Running);
        assert_eq!(status.state == RunState::Active, goes_on, "{word} {outcome:?}");
    }
    // A controller that is gone, or has forgotten the job, leaves what the record says.
    end(Outcome::Failed { exit: 9 });
    fake.set_state(&job, "PENDING");
    fs::write(fake.dir.join("reason").join(&job), "BeginTime").unwrap();
    fake.faults("squeue", &["down"]);
    let unsure = seen();
    assert_eq!(unsure.stages[&name("a")].counts, BTreeMap::from([(TaskState::Failed, 1)]));
    // Whoever waits asks again.
    assert!(unsure.unanswered);
    // What needs it waits for its next attempt.
    let rest = work.submit(&fake.slurm).unwrap();
    assert!(rest.missing.is_empty() && rest.stopped.is_none(), "{rest:?}");
    assert_eq!(fake.jobs()[1].dependency, format!("afterok:{job}"));
    fake.forget(&job);
    assert_eq!(seen().stages[&name("a")].counts, BTreeMap::from([(TaskState::Failed, 1)]));
}

#[test]
fn states_that_are_odd_or_new_are_neither_well_nor_badly_ended() {
    for (word, expected) in [
        ("HIBERNATING", TaskState::Unknown),
        ("NODE_FAIL", TaskState::NodeFail),
        ("PREEMPTED", TaskState::Preempted),
        ("TIMEOUT", TaskState::TimedOut),
        ("OUT_OF_MEMORY", TaskState::OutOfMemory),
        ("CONFIGURING", TaskState::Running),
        ("CANCELLED by 77", TaskState::Cancelled),
        ("COMPLETED", TaskState::Broken),
    ] {
        let work = Work::new([stage("a", &[], Some(2))]);
        let fake = Fake::new(&work);
        work.submit(&fake.slurm).unwrap();
        let job = fake.jobs().remove(0).id;
        fake.set_state(&job, word);
        let seen = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
        assert_eq!(seen.stages[&name("a")].counts, BTreeMap::from([(expected, 2)]), "{word}");
        // The same from the accounts alone, but that nothing runs there that the queue does not know.
        fake.forget(&job);
        let seen = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
        let expected = if expected == TaskState::Running {
            TaskState::Unknown
        } else {
            expected
        };
        assert_eq!(
            seen.stages[&name("a")].counts,
            BTreeMap::from([(expected, 2)]),
            "{word} in the accounts"
        );
    }
}

/// From 20.11 to 26.05: what each calls itself, and the words that came with it.
#[test]
fn each_version_is_told_and_its_words_are_understood() {
    let script = std::env::temp_dir();
    for (version, known, words) in [
        ("19.05.8", false, &[("RUNNING", TaskState::Running)][..]),
        (
            "20.11.9",
            true,
            &[("RESV_DEL_HOLD", TaskState::Waiting), ("CANCELLED", TaskState::Cancelled)],
        ),
        (
            "21.08.8-2",
            true,
            &[("REQUEUE_HOLD", TaskState::Waiting), ("DEADLINE", TaskState::TimedOut)],
        ),
        (
            "23.02.7",
            true,
            &[("REQUEUED", TaskState::Waiting), ("BOOT_FAIL", TaskState::NodeFail)],
        ),
        (
            "23.11.0-0rc1",
            true,
            &[("POWER_UP_NODE", TaskState::Running), ("STAGE_OUT", TaskState::Running)],
        ),
        (
            "24.05.3",
            true,
            &[("LAUNCH_FAILED", TaskState::Broken), ("RECONFIG_FAIL", TaskState::Broken)],
        ),
        (
            "25.11.0",
            true,
            &[("EXPEDITING", TaskState::Running), ("REVOKED", TaskState::Unknown)],
        ),
        (
            "26.05.0",
            true,
            &[("SPECIAL_EXIT", TaskState::Waiting), ("A_WORD_OF_2027", TaskState::Unknown)],
        ),
    ] {
        let work = Work::new([stage("a", &[], Some(2))]);
        let fake = Fake::new(&work);
        fs::write(fake.dir.join("version"), version).unwrap();
        let findings = check(&SlurmProfile::default(), &fake.slurm, 0, &script);
        let said = &findings[0];
        assert_eq!((said.what.as_str(), said.found.is_ok()), ("slurm", known), "{said:?}");
        fake.faults("sbatch", &["banner"]);
        work.submit(&fake.slurm).unwrap();
        let job = fake.jobs().remove(0).id;
        for (word, expected) in words {
            fake.set_state(&job, word);
            let seen = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
            assert_eq!(
                seen.stages[&name("a")].counts,
                BTreeMap::from([(*expected, 2)]),
                "{version}: {word}"
            );
        }
    }
}

#[test]
fn neither_accounts_nor_queue_nor_record_is_unknown() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fs::remove_file(fake.dir.join("accounts")).unwrap();
    work.submit(&fake.slurm).unwrap();
    fake.forget(&fake.jobs()[0].id);
    let seen = wait(&work.run, &work.plan, &fake.slurm, |_| {}).unwrap();
    assert_eq!((seen.state, seen.problems.len()), (RunState::Incomplete, 0), "{seen:#?}");
    assert_eq!(seen.stages[&name("a")].problems[0].state, TaskState::Unknown);
}

#[test]
fn cancel_ends_what_an_interrupted_submission_left_behind() {
    let work = Work::new([stage("a", &[], Some(2))]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["submitted-kill"]);
    assert!(!submit_elsewhere(&work, &fake));
    fake.faults("scancel", &["down"]);
    let cancelled = cancel(
        &work.run,
        &fake.slurm,
        &BTreeSet::from([name("a")]),
        Submitter::Gone,
        Duration::ZERO,
    );
    assert!(cancelled.is_err(), "{cancelled:?}");
    let cancelled = cancel(
        &work.run,
        &fake.slurm,
        &BTreeSet::from([name("a")]),
        Submitter::Gone,
        Duration::from_secs(10),
    )
    .unwrap();
    assert_eq!((cancelled.jobs.len(), cancelled.tasks), (1, 2), "{cancelled:?}");
    let seen = status(&work.run, &work.plan, None).unwrap();
    assert_eq!(seen.stages[&name("a")].counts, BTreeMap::from([(TaskState::Cancelled, 2)]));
}

#[test]
fn the_scripts_of_a_plan_are_those_that_are_submitted() {
    let work = Work::new([stage("a", &[], Some(1200))]);
    let fake = Fake::new(&work);
    let profile = SlurmProfile {
        account: Some("lab 7".into()),
        ..SlurmProfile::default()
    };
    let shown = scripts(
        &work.run,
        &work.plan,
        &work.plan.stages[0],
        &TaskSet::all(1200),
        &profile,
        &work.program().into(),
        Limits::default(),
    )
    .unwrap();
    work.submit_as(&fake.slurm, &profile).unwrap();
    assert_eq!(shown.len(), 2);
    for script in shown {
        assert_eq!(fs::read_to_string(&script.path).unwrap(), script.text);
        assert!(script.text.contains("#SBATCH '--account=lab 7'\n"), "{}", script.text);
    }
}
