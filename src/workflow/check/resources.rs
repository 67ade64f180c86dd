//! `resources`, `retry` and `slurm`: how much of a machine, how often, and what has no name here.

use super::super::problem::{Problems, suggest};
use super::super::raw::{Kind, Node};
use super::super::{Resources, Retry, RetryCause, Scale, SlurmOptions};
use super::fields::{self, Fields, list, shown, whole};
use super::stage::Around;
use super::templates;

const RESOURCES: [&str; 7] = ["cpus", "memory", "time", "gpus", "nodes", "tasks", "scratch"];

/// Field by field, the stage's own over the defaults.
pub fn resources(default: Option<&Node>, own: Option<&Node>, around: &Around<'_>, problems: &mut Problems) -> Resources {
    let mut resources = Resources::default();
    for node in [default, own].into_iter().flatten() {
        let Some(fields) = Fields::read(node, "`resources`", &RESOURCES, problems) else {
            continue;
        };
        let number = |name: &str, least: u32, problems: &mut Problems| {
            let node = fields.get(name)?;
            let text = templates::text(node, &format!("`{name}`"), "4", around.text, &around.declared, problems)?;
            whole(node, &text, &format!("`{name}`"), least..=1_000_000, problems)
        };
        resources.cpus = number("cpus", 1, problems).unwrap_or(resources.cpus);
        resources.gpus = number("gpus", 0, problems).unwrap_or(resources.gpus);
        resources.nodes = number("nodes", 1, problems).or(resources.nodes);
        resources.tasks = number("tasks", 1, problems).or(resources.tasks);
        resources.memory = unit(&fields, "memory", "4G", around, problems).or(resources.memory);
        resources.scratch = unit(&fields, "scratch", "20G", around, problems).or(resources.scratch);
        resources.time = unit(&fields, "time", "2:00:00", around, problems).or(resources.time);
    }
    resources
}

/// A size or a time.
fn unit<T>(fields: &Fields<'_>, name: &str, example: &str, around: &Around<'_>, problems: &mut Problems) -> Option<T>
where
    T: std::str::FromStr<Err = super::super::units::UnitError>,
{
    let node = fields.get(name)?;
    let text = templates::text(node, &format!("`{name}`"), example, around.text, &around.declared, problems)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            problems.hint(node.span.clone(), format!("`{name}`: {error}"), error.hint());
            None
        }
    }
}

/// `retry`: a number, or `{max, when, scale}`.
pub fn retry(node: Option<&Node>, around: &Around<'_>, problems: &mut Problems) -> Retry {
    let mut retry = Retry::default();
    let Some(node) = node else { return retry };
    let max = |node: &Node, problems: &mut Problems| {
        let text = templates::text(node, "`retry`", "2", around.text, &around.declared, problems)?;
        whole(node, &text, "the number of retries", 0..=100, problems)
    };
    if let Kind::Scalar { .. } = &node.kind {
        retry.max = max(node, problems).unwrap_or(0);
        return retry;
    }
    let Some(fields) = Fields::read(node, "`retry`", &["max", "when", "scale"], problems) else {
        return retry;
    };
    match fields.get("max") {
        Some(node) => retry.max = max(node, problems).unwrap_or(0),
        None => problems.hint(node.span.clone(), "`retry` does not say how often", "add `max: 2`".to_owned()),
    }
    for node in fields
        .get("when")
        .map_or(&[][..], |node| list(node, "`when`", "[oom, timeout, node_fail]", problems))
    {
        const CAUSES: [(&str, RetryCause); 4] = [
            ("oom", RetryCause::Oom),
            ("timeout", RetryCause::Timeout),
            ("node_fail", RetryCause::NodeFail),
            ("preempted", RetryCause::Preempted),
        ];
        let Some(text) = fields::text(node, "a cause", "oom", problems) else {
            continue;
        };
        let known = CAUSES.iter().find(|(name, _)| *name == text).map(|(_, cause)| cause.clone());
        let exit = text.parse().ok().filter(|exit| (1..=255).contains(exit)).map(RetryCause::Exit);
        match known.or(exit) {
            Some(cause) => retry.when.push(cause),
            None => problems.hint(
                node.span.clone(),
                format!("`{}` is no cause to retry for", shown(text)),
                suggest(text, CAUSES.iter().map(|(name, _)| *name)).map(|hint| format!("{hint} (or an exit status from 1 to 255)")),
            ),
        }
    }
    if let Some(node) = fields.get("scale")
        && let Some(fields) = Fields::read(node, "`scale`", &["memory", "time"], problems)
    {
        let factor = |name: &str, problems: &mut Problems| {
            let node = fields.get(name)?;
            let text = templates::text(node, &format!("`{name}`"), "1.5", around.text, &around.declared, problems)?;
            let factor = text.parse::<f64>().ok().filter(|factor| (1.0..=100.0).contains(factor));
            if factor.is_none() {
                problems.add(
                    node.span.clone(),
                    format!("`{name}` is a factor from 1 to 100, not `{}`", shown(&text)),
                );
            }
            factor
        };
        retry.scale = Scale {
            memory: factor("memory", problems).unwrap_or(1.0),
            time: factor("time", problems).unwrap_or(1.0),
        };
    }
    retry
}

/// The partition of the stage, else of the defaults; the options of both.
pub fn slurm(default: Option<&Node>, own: Option<&Node>, around: &Around<'_>, problems: &mut Problems) -> SlurmOptions {
    let mut options = SlurmOptions::default();
    for node in [default, own].into_iter().flatten() {
        let Some(fields) = Fields::read(node, "`slurm`", &["partition", "args"], problems) else {
            continue;
        };
        if let Some(node) = fields.get("partition")
            && let Some(partition) = templates::text(node, "`partition`", "main", around.text, &around.declared, problems)
        {
            match partition.contains(|c: char| c.is_whitespace() || c.is_control()) {
                true => problems.add(node.span.clone(), format!("`{}` is no name of a partition", shown(&partition))),
                false => options.partition = Some(partition),
            }
        }
        for node in fields
            .get("args")
            .map_or(&[][..], |node| list(node, "`args`", "[--constraint=avx]", problems))
        {
            let Some(option) = templates::text(
                node,
                "an option of sbatch",
                "--constraint=avx",
                around.text,
                &around.declared,
                problems,
            ) else {
                continue;
            };
            // Each is one line `#SBATCH OPTION` of a script.
            match option.starts_with('-') && !option.contains(char::is_control) {
                true => options.args.push(option),
                false => problems.hint(
                    node.span.clone(),
                    format!("`{}` is no option of sbatch", shown(&option)),
                    "one option an entry, as in `--constraint=avx`".to_owned(),
                ),
            }
        }
    }
    options
}
