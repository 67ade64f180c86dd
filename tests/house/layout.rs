//! What `build/start.ld` names.

use std::fs;
use std::path::PathBuf;

use crate::support::checkout;

/// Not the functions themselves: what the compiler makes of them changes, and a name that is not there does no harm.
#[test]
fn the_functions_that_are_laid_side_by_side_are_in_modules_that_are_there() {
    let text = fs::read_to_string(checkout().join("build/start.ld")).expect("the linker script is there");
    let src = checkout().join("src");
    let mut lost: Vec<String> = (text.lines().flat_map(modules))
        .filter(|module| !src.join(module).is_dir() && !src.join(module).with_extension("rs").is_file())
        .map(|module| module.display().to_string())
        .collect();
    lost.sort();
    lost.dedup();
    assert!(
        lost.is_empty(),
        "no longer in src: {}; `benches/layout.rs` says how the script is written anew, and `sed` will do for a module that only moved",
        lost.join(", ")
    );
}

/// The modules of this crate in a mangled name, as paths (the Rust reference, "v0 Symbol Format": `NtNtC…dvrun3cli4exec` is
/// `dvrun::cli::exec`).
fn modules(mangled: &str) -> Vec<PathBuf> {
    const CRATE: &str = "Cs*_5dvrun";
    let found = mangled.match_indices(CRATE).map(|(at, _)| {
        let mut namespaces = mangled.as_bytes()[..at].rchunks(2).map_while(|pair| match pair {
            [b'N', namespace] => Some(*namespace),
            _ => None,
        });
        let mut rest = &mangled[at + CRATE.len()..];
        let mut path = PathBuf::new();
        while namespaces.next() == Some(b't')
            && let Some((identifier, after)) = identifier(rest)
            && identifier.starts_with(|first: char| first.is_ascii_lowercase())
        {
            path.push(identifier);
            rest = after;
        }
        path
    });
    found.filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The identifier at the beginning of `text`, which its length precedes, and what follows it.
fn identifier(text: &str) -> Option<(&str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let length: usize = text[..digits].parse().ok()?;
    text[digits..].split_at_checked(length)
}

#[test]
fn modules_in_mangled_names() {
    let of = |name| modules(name).into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    assert_eq!(of("_RNvNtNtCs*_5dvrun3cli4args4main"), ["cli/args"]);
    assert_eq!(of("_RNvCs*_5dvrun4main"), [""; 0]);
    assert_eq!(of("_RNvMNtNtCs*_5dvrun7runtime7executeNtB2_5Place4find"), ["runtime/execute"]);
    assert_eq!(
        of("_RINvNtCs*_4core3fooNtNtNtCs*_5dvrun3cli4exec9ArgumentsNtNtCs*_5dvrun8squashfs5inodeECs*_5dvrun"),
        ["cli/exec", "squashfs/inode"]
    );
}
