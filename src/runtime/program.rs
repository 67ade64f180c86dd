//! Programs in an image, looked for before anything runs in it.

use std::collections::BTreeSet;
use std::path::Path;

use super::container::Root;
use super::inside::Kind;
use super::look::{LookError, Tree};

/// Where a program was looked for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoProgram {
    /// Folders of the image, or the program's own path.
    pub looked_in: String,
    /// The most similar name among the programs that are there.
    pub near: Option<String>,
}

/// Whether the image has `program`: a path, or a name to find in the folders `path` (colons between them).
/// Whether it may be executed is not asked.
///
/// # Errors
/// An image that cannot be opened or read, or links that go round in circles.
pub fn find_program(root: &Root, program: &str, path: &str) -> Result<Option<NoProgram>, LookError> {
    let root = Tree::open(root)?;
    let folders: Vec<&Path> = match program.contains('/') {
        true => Path::new(program).parent().into_iter().collect(),
        false => path.split(':').filter(|folder| folder.starts_with('/')).map(Path::new).collect(),
    };
    let name = Path::new(program).file_name().unwrap_or_default();
    for folder in &folders {
        if root.kind(&folder.join(name))? == Some(Kind::File) {
            return Ok(None);
        }
    }
    let mut known = BTreeSet::new();
    for folder in &folders {
        match root.names(folder) {
            Ok(names) => known.extend(names),
            // For a hint only.
            Err(LookError::Os(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let name = name.to_string_lossy();
    let distance = |other: &String| strsim::damerau_levenshtein(&name, other);
    let near = known
        .into_iter()
        .filter(|other| distance(other) <= 1 + name.chars().count() / 4)
        .min_by_key(distance);
    let near = near.map(|near| match program.contains('/') {
        true => Path::new(program).with_file_name(near).to_string_lossy().into_owned(),
        false => near,
    });
    let looked_in = if program.contains('/') { program } else { path };
    Ok(Some(NoProgram {
        looked_in: looked_in.to_owned(),
        near,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would_and_the_nearest_name_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("opt/tools/bin")).unwrap();
        fs::create_dir_all(root.join("bin/folder")).unwrap();
        fs::write(root.join("opt/tools/bin/freebayes"), "").unwrap();
        // An image's absolute link is absolute in the image.
        symlink("/opt/tools/bin/freebayes", root.join("bin/fb")).unwrap();
        symlink("/etc/passwd", root.join("bin/outside")).unwrap();
        let find = |program: &str, path: &str| find_program(&Root::Folder(root.to_owned()), program, path).unwrap();
        assert_eq!(find("freebayes", "/bin:/opt/tools/bin"), None);
        assert_eq!(find("/opt/tools/bin/freebayes", ""), None);
        assert_eq!(find("fb", "/nothing:/bin"), None);
        let near = |near: &str, looked_in: &str| NoProgram {
            looked_in: looked_in.into(),
            near: (!near.is_empty()).then(|| near.into()),
        };
        assert_eq!(
            find("freebaye", "/bin:/opt/tools/bin"),
            Some(near("freebayes", "/bin:/opt/tools/bin"))
        );
        let wrong = "/opt/tools/bin/frebayes";
        assert_eq!(find(wrong, ""), Some(near("/opt/tools/bin/freebayes", wrong)));
        assert_eq!(
            find("outside", "/bin").map(|none| none.looked_in),
            Some("/bin".into()),
            "links stay in the image"
        );
        assert_eq!(
            find("folder", "/bin").map(|none| none.looked_in),
            Some("/bin".into()),
            "a folder is no program"
        );
        assert_eq!(find("samtools", "/bin/fb:bin"), Some(near("", "/bin/fb:bin")));
    }
}
