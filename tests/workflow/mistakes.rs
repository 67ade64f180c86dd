//! Every file of `bad/` against the messages beside it.

use std::path::{Path, PathBuf};

use dvrun::workflow::check;
use indexmap::IndexMap;

use crate::support::checkout;

pub fn folder() -> PathBuf {
    checkout().join("tests/workflow/bad")
}

/// All messages as `file:line:column: message`, with the file's name alone.
pub fn messages(file: &Path, text: &str) -> String {
    let read = |path: &Path| match path.file_name() {
        Some(name) if name != "absent.tsv" => std::fs::read_to_string(folder().join(name)),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    let name = Path::new(file.file_name().unwrap());
    match check(text, &Path::new("/flow").join(name), &IndexMap::new(), &read) {
        Ok(_) => "no mistake\n".to_owned(),
        Err(problems) => problems.iter().map(|problem| format!("{}\n", problem.at(name))).collect(),
    }
}

#[test]
fn each_mistake_is_told_with_its_place() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() > 10);
    let mut wrong = String::new();
    for file in files {
        let found = messages(&file, &std::fs::read_to_string(&file).unwrap());
        let expected = std::fs::read_to_string(file.with_extension("txt")).unwrap_or_default();
        if found != expected {
            wrong += &format!("=== {}\n{found}", file.display());
        }
    }
    assert!(wrong.is_empty(), "these say something else:\n{wrong}");
}
