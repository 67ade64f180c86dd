//! What stages leave behind, and where: nothing twice, nothing outside, nothing that is the user's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::super::paths;
use super::super::problem::Problems;
use super::super::template;
use super::fields::shown;
use super::stage::Read;

/// Checks the outputs of all stages, for a few tasks of each array.
pub fn check(stages: &[Read<'_>], file: &Path, dir: &Path, problems: &mut Problems) {
    let mut owners: HashMap<PathBuf, (&str, usize)> = HashMap::new();
    for read in stages {
        for (number, (pattern, node)) in read.stage.outputs.iter().zip(&read.outputs).enumerate() {
            let place = node.span.clone();
            let expanded: Vec<String> = read
                .samples
                .iter()
                .filter_map(|scope| template::render(&pattern.0, scope).ok())
                .collect();
            let Some(first) = expanded.first() else { continue };
            if let Some((message, hint)) = wrong(first, file, dir) {
                problems.hint(place, message, hint);
                continue;
            }
            if expanded.get(1) == Some(first) {
                problems.hint(
                    place.clone(),
                    format!("every task of stage `{}` writes `{}`", read.stage.name, shown(first)),
                    "put `${{ array.index }}` into it, or name it in a stage that merges".to_owned(),
                );
                continue;
            }
            for path in expanded.iter().map(|path| paths::absolute(dir, path)) {
                let name = read.stage.name.0.as_str();
                let owner = *owners.entry(path).or_insert((name, number));
                if owner == (name, number) {
                    continue;
                }
                let message = match owner.0 == name {
                    true => format!("`{}` stands here twice", shown(first)),
                    false => format!("`{}` is an output of stage `{}` too", shown(first), owner.0),
                };
                problems.add(place.clone(), message);
                break;
            }
        }
    }
}

fn wrong(pattern: &str, file: &Path, dir: &Path) -> Option<(String, Option<String>)> {
    let text = shown(pattern);
    if pattern.starts_with('/') && paths::climbs(pattern) {
        return Some((format!("output `{text}` has `..` in it"), None));
    }
    if pattern.starts_with('~') {
        return Some((
            format!("output `{text}`: `~` is not expanded"),
            Some("write a parameter, and set it to the path".into()),
        ));
    }
    if paths::leaves(pattern) {
        return Some((
            format!("output `{text}` leaves the workflow's folder"),
            Some("write an absolute path, or a parameter that holds one".into()),
        ));
    }
    let whole = paths::absolute(dir, pattern);
    if whole == dir || whole == Path::new("/") {
        return Some((
            format!("output `{text}` is a whole folder that is not only the stage's"),
            Some("name a file or a folder below it: outputs are removed before a stage runs again".into()),
        ));
    }
    if whole.starts_with(dir.join(".dvrun")) {
        return Some((format!("output `{text}` lies where runs are recorded"), None));
    }
    let absolute = match pattern.starts_with('/') {
        true => pattern.to_owned(),
        false => format!("{}/{pattern}", Pattern::escape(&dir.display().to_string())),
    };
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::new()
    };
    match Pattern::new(&absolute) {
        Err(error) => Some((format!("output `{text}` is no pattern: {}", error.msg), None)),
        Ok(glob) if glob.matches_path_with(file, options) => Some((
            format!("output `{text}` takes in the workflow file itself"),
            Some("outputs are removed before a stage runs again: name them more exactly".into()),
        )),
        Ok(_) => None,
    }
}

/// Two binds of one stage at one place in the container; targets that cannot be.
pub fn check_binds(stages: &[Read<'_>], dir: &Path, problems: &mut Problems) {
    for read in stages {
        let Some(scope) = read.samples.first() else { continue };
        let mut targets: HashMap<PathBuf, PathBuf> = HashMap::new();
        for (bind, node) in read.stage.binds.iter().zip(&read.binds) {
            let (Ok(source), Ok(target)) = (template::render(&bind.source.0, scope), template::render(&bind.target.0, scope)) else {
                continue;
            };
            let message = if !target.starts_with('/') {
                Some(format!("bind target `{}` is not absolute", shown(&target)))
            } else if paths::climbs(&target) {
                Some(format!("bind target `{}` has `..` in it", shown(&target)))
            } else {
                let target_path = paths::absolute(Path::new("/"), &target);
                let source = paths::absolute(dir, &source);
                match target_path.to_str() {
                    Some("/" | "/proc" | "/sys" | "/dev") => Some(format!("nothing can be bound at `{}`", shown(&target))),
                    _ => match targets.insert(target_path, source.clone()) {
                        Some(other) if other != source => Some(format!(
                            "both `{}` and `{}` are bound at `{}`",
                            other.display(),
                            source.display(),
                            shown(&target)
                        )),
                        _ => None,
                    },
                }
            };
            if let Some(message) = message {
                problems.add(node.span.clone(), message);
            }
        }
    }
}

/// A relative working directory is below the workflow's folder.
pub fn check_workdirs(stages: &[Read<'_>], problems: &mut Problems) {
    for read in stages {
        let (Some(workdir), Some(node), Some(scope)) = (&read.stage.workdir, read.workdir, read.samples.first()) else {
            continue;
        };
        let Ok(path) = template::render(&workdir.0, scope) else { continue };
        if path.is_empty() || (path.starts_with('/') && paths::climbs(&path)) {
            problems.add(node.span.clone(), format!("workdir `{}` is empty or has `..` in it", shown(&path)));
        } else if paths::leaves(&path) {
            problems.hint(
                node.span.clone(),
                format!("workdir `{}` leaves the workflow's folder", shown(&path)),
                "write an absolute path for a folder in the container".to_owned(),
            );
        }
    }
}
