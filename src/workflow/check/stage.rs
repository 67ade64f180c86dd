//! One stage, with the defaults under it.

use std::ops::Range;
use std::path::Path;

use indexmap::IndexMap;

use super::super::problem::{Problems, suggest};
use super::super::raw::{Key, Kind, Node};
use super::super::scope::{Scope, ScopeBuilder};
use super::super::{Array, DataSource, Image, Need, Resources, Stage, StageName, StageUser, Template};
use super::fields::{self, Fields, boolean, described, entries, list, shown};
use super::templates::{self, Declared, Reach};
use super::{array, binds, command, names, resources};
use crate::oci::Digest;

const KEYS: [&str; 15] = [
    "needs",
    "image",
    "app",
    "run",
    "args",
    "env",
    "binds",
    "array",
    "resources",
    "outputs",
    "workdir",
    "user",
    "retry",
    "always",
    "slurm",
];
pub const DEFAULTS: [&str; 8] = ["image", "binds", "env", "resources", "retry", "slurm", "workdir", "user"];

/// What all stages share.
pub struct Around<'a> {
    /// The file's text, and its folder.
    pub text: &'a str,
    pub dir: &'a Path,
    pub declared: Declared<'a>,
    pub images: &'a IndexMap<String, Image>,
    pub defaults: Option<Fields<'a>>,
    pub read: super::whole::Reader<'a>,
    /// What templates of every stage may name.
    pub common: ScopeBuilder,
}

impl<'a> Around<'a> {
    /// A key of the defaults.
    pub fn default(&self, key: &str) -> Option<&'a Node> {
        self.defaults.as_ref().and_then(|defaults| defaults.get(key))
    }
}

/// A stage, and where the parts lie that are checked against other stages.
pub struct Read<'n> {
    pub stage: Stage,
    pub needs: Vec<Range<usize>>,
    pub outputs: Vec<&'n Node>,
    pub binds: Vec<&'n Node>,
    pub workdir: Option<&'n Node>,
    /// The first task, the second and the last, as many as there are.
    pub samples: Vec<Scope>,
}

fn user(node: &Node, problems: &mut Problems) -> Option<StageUser> {
    match fields::text(node, "`user`", "root", problems)? {
        "caller" => Some(StageUser::Caller),
        "root" => Some(StageUser::Root),
        "image" => Some(StageUser::Image),
        other => {
            problems.hint(
                node.span.clone(),
                format!("`user` is `caller`, `root` or `image`, not `{}`", shown(other)),
                "`image` is whom the image names; a number of its own cannot be chosen".to_owned(),
            );
            None
        }
    }
}

/// Reads one stage; what is missing in it is filled in, so that the rest can still be checked.
pub fn stage<'n>(key: &Key, node: &'n Node, around: &Around<'n>, problems: &mut Problems) -> Option<Read<'n>> {
    names::check(key, "a stage", problems);
    let fields = Fields::read(node, "a stage", &KEYS, problems)?;
    let resources = resources::resources(around.default("resources"), fields.get("resources"), around, problems);
    let array = fields.get("array").and_then(|node| array::array(node, around, problems));
    let has_array = fields.get("array").is_some();
    let samples = samples(key, &resources, array.as_ref(), around);
    // Whatever is wrong with the array is reported already: what speaks of it is not wrong for that.
    let scopes = if has_array && array.is_none() { &[][..] } else { &samples };
    let reach = Reach {
        array: has_array,
        memory: resources.memory.is_some(),
        samples: scopes,
        ..Reach::TASK
    };
    let (needs, need_places) = needs(fields.get("needs"), problems);

    let image = image(key, &fields, around, problems);
    let (command, app_env) = command::command(key, &fields, image.as_ref(), reach, around, problems);
    let mut env = app_env;
    for node in [around.default("env"), fields.get("env")].into_iter().flatten() {
        env.extend(environment(node, around.text, reach, &around.declared, problems));
    }

    let mut bind_nodes: Vec<&Node> = Vec::new();
    match image {
        Place::Host => {
            if let Some(place) = fields.key("binds") {
                problems.add(place, "a stage on the host itself sees the host's folders: it has no binds");
            }
        }
        _ => {
            for node in [around.default("binds"), fields.get("binds")].into_iter().flatten() {
                bind_nodes.extend(list(node, "`binds`", "[./work:/work]", problems));
            }
        }
    }
    let binds = bind_nodes
        .into_iter()
        .filter_map(|node| binds::bind(node, around, reach, problems).map(|bind| (bind, node)))
        .collect::<Vec<_>>();
    let (binds, bind_nodes) = binds.into_iter().unzip();

    let (outputs, output_nodes) = outputs(fields.get("outputs"), reach.lasting(), around, problems);
    let workdir_node = fields.get("workdir").or(around.default("workdir"));
    let workdir = workdir_node.and_then(|node| {
        let text = fields::text(node, "`workdir`", "work", problems)?;
        templates::check(node, text, around.text, reach.lasting(), &around.declared, problems);
        Some(Template(text.to_owned()))
    });
    let user_node = fields.get("user");
    if let (Place::Host, Some(place)) = (&image, fields.key("user")) {
        problems.add(place, "a stage on the host itself runs as you: it has no `user`");
    }
    let user = user_node.or(around.default("user")).and_then(|node| user(node, problems));
    let always = fields.get("always").and_then(|node| boolean(node, "`always`", problems));
    Some(Read {
        stage: Stage {
            name: StageName(key.text.clone()),
            needs,
            always: always.unwrap_or(false),
            image: match image {
                Place::Named(name) => Some(name),
                _ => None,
            },
            command,
            env,
            binds,
            array,
            resources,
            outputs,
            workdir,
            user: user.unwrap_or_default(),
            retry: resources::retry(fields.get("retry").or(around.default("retry")), around, problems),
            slurm: resources::slurm(around.default("slurm"), fields.get("slurm"), around, problems),
        },
        needs: need_places,
        outputs: output_nodes,
        binds: bind_nodes,
        workdir: workdir_node,
        samples,
    })
}

/// What all stages may name. Where the store is, is not known yet: its folders stand under a name of their own.
pub fn common(declared: &Declared<'_>) -> ScopeBuilder {
    let sets = declared.data.iter().map(|(name, set)| match &set.source {
        DataSource::Path(path) => (name.as_str(), path.display().to_string(), Vec::new()),
        DataSource::Archive(_) => (name.as_str(), format!("/store/{name}"), Vec::new()),
        DataSource::Files(files) => (
            name.as_str(),
            format!("/store/{name}"),
            files.iter().map(|file| file.name.as_str()).collect(),
        ),
    });
    let digest = Digest::sha256(b"").to_string();
    let images = declared.images.iter().map(|name| (name.as_str(), Some(digest.clone())));
    Scope::builder().params(declared.params).data(sets).images(images).run("/run")
}

/// The scopes of a few tasks.
fn samples(key: &Key, resources: &Resources, array: Option<&Array>, around: &Around<'_>) -> Vec<Scope> {
    let last = array.map_or(0, |array| array.count - 1);
    let mut indices = vec![0, last.min(1), last];
    indices.dedup();
    let scope = |index: u32| {
        let scope = around.common.clone().stage(&key.text, resources);
        match array {
            Some(array) => scope.array(array, index).build(),
            None => scope.build(),
        }
    };
    indices.into_iter().map(scope).collect()
}

/// What a stage runs in.
enum Place {
    Host,
    Named(String),
    /// Reported already.
    Unknown,
}

impl Place {
    fn as_ref(&self) -> Option<&str> {
        match self {
            Place::Named(name) => Some(name),
            _ => None,
        }
    }
}

fn image(key: &Key, fields: &Fields<'_>, around: &Around<'_>, problems: &mut Problems) -> Place {
    let Some(node) = fields.get("image").or(around.default("image")) else {
        problems.hint(
            key.span.clone(),
            format!("stage `{}` has no `image`", shown(&key.text)),
            "add `image: NAME` here or under `defaults` (`image: none` is the host itself)".to_owned(),
        );
        return Place::Unknown;
    };
    let Some(name) = fields::text(node, "`image`", "the name of an image under `images`", problems) else {
        return Place::Unknown;
    };
    if name == "none" {
        return Place::Host;
    }
    if around.declared.images.iter().any(|known| known == name) {
        return Place::Named(name.to_owned());
    }
    let hint = match name.contains(':') {
        true => Some("declare it under `images`, and name it here".to_owned()),
        false => suggest(name, around.declared.images.iter().map(String::as_str)),
    };
    problems.hint(node.span.clone(), format!("unknown image `{}`", shown(name)), hint);
    Place::Unknown
}

/// A list of templates.
pub fn templates(
    node: &Node,
    what: &str,
    example: &str,
    file: &str,
    reach: Reach<'_>,
    declared: &Declared<'_>,
    problems: &mut Problems,
) -> Vec<String> {
    let mut texts = Vec::new();
    for word in list(node, what, example, problems) {
        // An empty word is a word: `''` is one, nothing at all is a slip.
        if let Some(text) = fields::text(word, &format!("a word of {what}"), "--option", problems) {
            templates::check(word, text, file, reach, declared, problems);
            texts.push(text.to_owned());
        }
    }
    texts
}

/// Environment variables.
pub fn environment(
    node: &Node,
    file: &str,
    reach: Reach<'_>,
    declared: &Declared<'_>,
    problems: &mut Problems,
) -> IndexMap<String, Template> {
    let mut variables = IndexMap::new();
    for (key, node) in entries(node, "`env`", problems).unwrap_or_default() {
        let well = key.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !well {
            problems.add(
                key.span.clone(),
                format!("`{}` cannot be the name of an environment variable", shown(&key.text)),
            );
        }
        let value = match node.is_null() {
            true => Some(""),
            false => fields::text(node, "an environment variable", "LC_ALL: C.UTF-8", problems),
        };
        if let Some(value) = value {
            templates::check(node, value, file, reach, declared, problems);
            variables.insert(key.text.clone(), Template(value.to_owned()));
        }
    }
    variables
}

fn outputs<'n>(node: Option<&'n Node>, reach: Reach<'_>, around: &Around<'_>, problems: &mut Problems) -> (Vec<Template>, Vec<&'n Node>) {
    let Some(node) = node else { return (Vec::new(), Vec::new()) };
    let nodes: Vec<&Node> = match &node.kind {
        Kind::Scalar { .. } => vec![node],
        _ => list(node, "`outputs`", "[results/calls.vcf.gz]", problems).iter().collect(),
    };
    nodes
        .into_iter()
        .filter_map(|node| {
            let text = fields::text(node, "an output", "results/calls.vcf.gz", problems)?;
            templates::check(node, text, around.text, reach, &around.declared, problems).then(|| (Template(text.to_owned()), node))
        })
        .unzip()
}

fn needs(node: Option<&Node>, problems: &mut Problems) -> (Vec<Need>, Vec<Range<usize>>) {
    const EXAMPLE: &str = "[prepare, call]";
    let Some(node) = node else { return (Vec::new(), Vec::new()) };
    let nodes: Vec<&Node> = match &node.kind {
        Kind::List(list) => list.iter().collect(),
        _ => vec![node],
    };
    let mut needs: Vec<Need> = Vec::new();
    let mut places = Vec::new();
    for node in nodes {
        let (stage, same_shard) = match &node.kind {
            Kind::Map(_) => {
                let Some(fields) = Fields::read(node, "a need", &["stage", "shard"], problems) else {
                    continue;
                };
                let Some(stage) = fields.get("stage") else {
                    problems.hint(
                        node.span.clone(),
                        "this need names no stage",
                        "write `{stage: NAME, shard: same}`".to_owned(),
                    );
                    continue;
                };
                let same = match fields.get("shard").map(|node| (node, &node.kind)) {
                    None => false,
                    Some((_, Kind::Scalar { text, .. })) if text == "same" => true,
                    Some((_, Kind::Scalar { text, .. })) if text == "all" => false,
                    Some((node, _)) => {
                        problems.add(node.span.clone(), format!("`shard` is `same` or `all`, not {}", described(node)));
                        false
                    }
                };
                (stage, same)
            }
            _ => (node, false),
        };
        let Some(name) = fields::text(stage, "a need", EXAMPLE, problems) else {
            continue;
        };
        if needs.iter().any(|need| need.stage.0 == name) {
            problems.add(stage.span.clone(), format!("`{}` is needed twice", shown(name)));
            continue;
        }
        needs.push(Need {
            stage: StageName(name.to_owned()),
            same_shard,
        });
        places.push(stage.span.clone());
    }
    (needs, places)
}
