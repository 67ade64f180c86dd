//! Whatever stands in a file, reading it ends, and with messages.

use std::path::Path;

use dvrun::workflow::{check, params};
use indexmap::IndexMap;
use proptest::prelude::*;

use crate::support::checkout;

fn survives(text: &str) {
    let read = |_: &Path| Ok("a\tb\n1\t2\n".to_owned());
    if let Err(problems) = check(text, Path::new("/flow/w.yaml"), &IndexMap::new(), &read) {
        assert!(!problems.is_empty());
        for problem in &problems {
            assert!(problem.line > 0 && problem.column > 0, "{problem:?}");
            assert!(text.get(problem.span.clone()).is_some(), "{problem:?}");
            assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
        }
        assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
    }
    drop(params(text));
}

fn seeds() -> Vec<String> {
    let root = checkout();
    ["tests/workflow/bad", "workflows"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        // A bomb of aliases is slow by design up to its limit: once is enough.
        .filter(|path| path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("aliases.yaml"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_files_are_read_or_refused(
        seed in prop::sample::select(seeds()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, prop::sample::select(vec![
            "", " ", "\n", ":", "- ", "[", "]", "{", "}", "'", "\"", "|", ">", "&a ", "*a", "!", "#", "%", "\t", "${{", "}}", "0", "-1",
            "é", "\u{feff}", "\0", "..", "/", "null", "*", "params.", "~", "\r\n", "---\n", "? ", "<<: ", "999999999999",
        ])), 1..6),
    ) {
        let mut text = seed;
        for (at, cut, insert) in edits {
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((at + cut).min(text.len()));
            text.replace_range(at..end, insert);
        }
        survives(&text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        survives(&text);
    }
}

#[test]
fn what_a_message_repeats_of_a_file_stays_in_one_line() {
    survives("version: 1\nname: n\nstages:\n  a:\n    image: none\n    run: |\n      ${{ data.{x }}\n      echo ${{ params.region }}\n");
    survives("version: 1\nname: n\nstages:\n  \"a\\e[31m\":\n    image: \"x\\ny\"\n    run: ${{ a\tb }}\n");
}

#[test]
fn bombs_are_refused() {
    for text in [
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "{a: ".repeat(100_000),
        (0..2000).fold(String::new(), |text, level| text + &" ".repeat(level) + "a:\n"),
        format!("a: {}", "x".repeat(5 << 20)),
        (0..300_000).fold(String::new(), |text, n| text + &format!("k{n}: 1\n")),
        format!("version: 1\nparams: {{a: '{}'}}\n", "${{".repeat(100_000)),
    ] {
        assert!(check(&text, Path::new("/flow/w.yaml"), &IndexMap::new(), &|_| Ok(String::new())).is_err());
    }
    let many = (0..20_000).fold("version: 1\nstages:\n".to_owned(), |text, n| {
        text + &format!("  s{n}: {{need: s{n}}}\n")
    });
    let problems = check(&many, Path::new("/flow/w.yaml"), &IndexMap::new(), &|_| Ok(String::new())).unwrap_err();
    assert_eq!(problems.len(), 500);
}
