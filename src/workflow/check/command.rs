//! What a stage runs: an app, a script, an exact command, or the image's own entry point.

use indexmap::IndexMap;

use super::super::problem::Problems;
use super::super::raw::{Key, Kind, Node};
use super::super::template;
use super::super::{Command, Template};
use super::fields::{self, Fields, shown};
use super::stage::{Around, templates};
use super::templates::{self, Reach};

/// The command of a stage, and the environment that comes with it.
pub fn command(
    key: &Key,
    fields: &Fields<'_>,
    image: Option<&str>,
    reach: Reach<'_>,
    around: &Around<'_>,
    problems: &mut Problems,
) -> (Command, IndexMap<String, Template>) {
    let args: Vec<Template> = match fields.get("args") {
        Some(node) => templates(node, "`args`", "[--reads, x.bam]", around.text, reach, &around.declared, problems)
            .into_iter()
            .map(Template)
            .collect(),
        None => Vec::new(),
    };
    let host = fields
        .get("image")
        .or(around.default("image"))
        .is_some_and(|node| matches!(&node.kind, Kind::Scalar { text, .. } if text == "none"));
    let name = shown(&key.text);
    match (fields.get("app"), fields.get("run")) {
        (Some(_), Some(_)) => {
            let place = fields.key("app").unwrap_or_else(|| key.span.clone());
            problems.add(place, format!("stage `{name}` has both `app` and `run`: it runs one thing"));
        }
        (Some(node), None) => {
            if host {
                problems.add(node.span.clone(), "the host has no apps: write `run`");
            }
            if let Some(app) = fields::text(node, "`app`", "make_examples", problems) {
                return app_command(node, app, image, args, reach, around, problems);
            }
        }
        (None, Some(node)) => {
            if let Some(place) = fields.key("args") {
                problems.add(
                    place,
                    "`args` goes with `app` or with the image's own entry point: write them into `run`",
                );
            }
            return (run(node, reach, around, problems), IndexMap::new());
        }
        (None, None) if host => {
            problems.hint(
                key.span.clone(),
                format!("stage `{name}` runs nothing"),
                "a stage on the host needs `run`".to_owned(),
            );
        }
        (None, None) => {}
    }
    (Command::Entrypoint { args }, IndexMap::new())
}

/// An app that the file declares is its command; any other is looked for in the image.
fn app_command(
    node: &Node,
    name: &str,
    image: Option<&str>,
    args: Vec<Template>,
    reach: Reach<'_>,
    around: &Around<'_>,
    problems: &mut Problems,
) -> (Command, IndexMap<String, Template>) {
    let declared = image
        .and_then(|image| around.images.get(image))
        .and_then(|image| image.apps.get(name));
    let Some(app) = declared else {
        let name = name.to_owned();
        return (Command::App { name, args }, IndexMap::new());
    };
    // The app's own place is where it is declared, but only here is it known what task it is for.
    for template in app.run.iter().chain(app.env.values()) {
        if let Some(error) = reach.samples.iter().find_map(|scope| template::render(&template.0, scope).err()) {
            problems.hint(
                node.span.clone(),
                format!("app `{}` cannot run here: {}", shown(name), error.message),
                error.hint,
            );
        }
    }
    (Command::Argv(app.run.iter().cloned().chain(args).collect()), app.env.clone())
}

fn run(node: &Node, reach: Reach<'_>, around: &Around<'_>, problems: &mut Problems) -> Command {
    if let Kind::List(words) = &node.kind {
        if words.is_empty() {
            problems.add(node.span.clone(), "`run` runs nothing");
        }
        let words = templates(node, "`run`", "[program, --option]", around.text, reach, &around.declared, problems);
        return Command::Argv(words.into_iter().map(Template).collect());
    }
    let script = fields::text(node, "`run`", "samtools index x.bam", problems).unwrap_or_default();
    if script.trim().is_empty() && matches!(node.kind, Kind::Scalar { .. }) && !node.is_null() {
        problems.add(node.span.clone(), "`run` runs nothing");
    }
    templates::check(node, script, around.text, reach, &around.declared, problems);
    Command::Script(Template(script.to_owned()))
}
