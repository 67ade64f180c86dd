//! The file as a whole.

use std::io;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;

use super::super::Workflow;
use super::super::problem::{Problem, Problems};
use super::super::raw::{self, Kind, Node};
use super::fields::{self, Fields, described, entries};
use super::stage::{Around, DEFAULTS};
use super::templates::Declared;
use super::{graph, outputs, sources, stage, values};

/// How a file that the workflow names (a table of samples) is read: by whoever does I/O.
pub type Reader<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

const KEYS: [&str; 8] = ["version", "name", "description", "params", "images", "data", "defaults", "stages"];

/// Checks a workflow file.
///
/// `file` is its absolute path, `overrides` are parameters set elsewhere ([`params`](super::params) and
/// [`scalar`](super::scalar) make them), `read` reads a table that an array names.
///
/// # Errors
///
/// Every mistake, in the file's order; those in `overrides` first.
pub fn check(text: &str, file: &Path, overrides: &IndexMap<String, Value>, read: Reader<'_>) -> Result<Workflow, Vec<Problem>> {
    let mut problems = Problems::default();
    let workflow = raw::read(text, &mut problems).and_then(|root| whole(&root, text, file, overrides, read, &mut problems));
    match workflow {
        Some(workflow) if problems.is_empty() => Ok(workflow),
        _ => Err(problems.finish(text)),
    }
}

fn whole(
    root: &Node,
    text: &str,
    file: &Path,
    overrides: &IndexMap<String, Value>,
    read: Reader<'_>,
    problems: &mut Problems,
) -> Option<Workflow> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let fields = Fields::read(root, "a workflow", &KEYS, problems)?;
    version(&fields, root, problems);
    let name = fields.get("name").and_then(|node| {
        let name = fields::text(node, "`name`", "deepvariant", problems)?;
        if name.trim().is_empty() || name.len() > 200 || name.contains(char::is_control) {
            problems.add(node.span.clone(), "`name` is one line of at most 200 characters");
        }
        Some(name.to_owned())
    });
    let description = fields
        .get("description")
        .and_then(|node| fields::text(node, "`description`", "Calls variants", problems));

    let params = fields
        .get("params")
        .map(|node| values::declared(node, problems))
        .unwrap_or_default();
    let params = values::overridden(params, overrides, problems);
    let image_names: Vec<String> = match fields.get("images").map(|node| &node.kind) {
        Some(Kind::Map(images)) => images.iter().map(|(key, _)| key.text.clone()).collect(),
        _ => Vec::new(),
    };
    // Data sets and images may speak of parameters alone; what they may name is complete before the stages are read.
    let nothing = IndexMap::new();
    let declared = Declared {
        params: &params,
        data: &nothing,
        images: &image_names,
    };
    let data = fields
        .get("data")
        .map(|node| sources::data(node, text, dir, &declared, problems))
        .unwrap_or_default();
    let declared = Declared { data: &data, ..declared };
    let images = fields
        .get("images")
        .map(|node| sources::images(node, text, dir, &declared, problems))
        .unwrap_or_default();
    let defaults = fields
        .get("defaults")
        .and_then(|node| Fields::read(node, "`defaults`", &DEFAULTS, problems));

    let around = Around {
        common: stage::common(&declared),
        text,
        dir,
        declared,
        images: &images,
        defaults,
        read,
    };
    let stages: Vec<stage::Read<'_>> = match fields.get("stages") {
        Some(node) => entries(node, "`stages`", problems)
            .unwrap_or_default()
            .iter()
            .filter_map(|(key, node)| stage::stage(key, node, &around, problems))
            .collect(),
        None => {
            problems.hint(
                root.span.clone(),
                "there are no `stages`",
                "add `stages:` and a stage under it".to_owned(),
            );
            return None;
        }
    };
    if stages.is_empty() && problems.is_empty() {
        let place = fields.key("stages").unwrap_or(0..0);
        problems.add(place, "there is no stage under `stages`");
    }
    outputs::check(&stages, file, dir, problems);
    outputs::check_binds(&stages, dir, problems);
    outputs::check_workdirs(&stages, problems);
    let order = graph::order(&stages, problems);

    let mut slots: Vec<Option<stage::Read<'_>>> = stages.into_iter().map(Some).collect();
    let stages = order
        .into_iter()
        .filter_map(|at| slots.get_mut(at)?.take())
        .map(|read| (read.stage.name.clone(), read.stage))
        .collect();
    Some(Workflow {
        file: file.to_owned(),
        dir: dir.to_owned(),
        name: name.unwrap_or_else(|| file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()),
        description: description.map(str::to_owned),
        params: params.clone(),
        images: images.clone(),
        data: data.clone(),
        stages,
    })
}

fn version(fields: &Fields<'_>, root: &Node, problems: &mut Problems) {
    match fields.get("version") {
        None => problems.hint(
            root.span.clone(),
            "the workflow does not say its `version`",
            "add `version: 1` as the first line".to_owned(),
        ),
        Some(node) if matches!(&node.kind, Kind::Scalar { text, .. } if text == "1") => {}
        Some(node) => problems.hint(
            node.span.clone(),
            format!("version {} of the workflow file is not known to this program", described(node)),
            "write `version: 1`".to_owned(),
        ),
    }
}
