//! What a data set is, and where it will lie. No I/O.

use std::path::PathBuf;

use serde_json::json;

use crate::oci::Digest;
use crate::store::Store;
use crate::workflow::{DataFile, DataSet, DataSource};

/// A hash over kind, names, URLs and checksums, in no particular order: whatever the set is called, the same files are
/// the same set.
pub fn identity(set: &DataSet) -> Digest {
    let entry = |file: &DataFile| json!([file.name, file.url, file.digest]);
    let canonical = match &set.source {
        DataSource::Files(files) => {
            let mut sorted: Vec<&DataFile> = files.iter().collect();
            sorted.sort_by(|a, b| a.name.cmp(&b.name));
            json!(["files", 1, sorted.into_iter().map(entry).collect::<Vec<_>>()])
        }
        DataSource::Archive(file) => json!(["archive", 1, entry(file)]),
        DataSource::Path(path) => json!(["path", 1, path]),
    };
    Digest::sha256(canonical.to_string().as_bytes())
}

/// The set's folder (a `path` may be a file), there or not yet.
pub fn place(store: &Store, set: &DataSet) -> PathBuf {
    match &set.source {
        DataSource::Path(path) => path.clone(),
        DataSource::Files(_) | DataSource::Archive(_) => store.data(&identity(set)),
    }
}

/// The names in the folder that are known beforehand.
pub fn files(set: &DataSet) -> Vec<String> {
    match &set.source {
        DataSource::Files(files) => files.iter().map(|file| file.name.clone()).collect(),
        DataSource::Archive(_) | DataSource::Path(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, url: &str, sum: Option<&[u8]>) -> DataFile {
        DataFile {
            name: name.to_owned(),
            url: url.to_owned(),
            digest: sum.map(Digest::sha256),
        }
    }

    #[test]
    fn identity_is_content_not_order() {
        let set = |files: &[DataFile]| {
            identity(&DataSet {
                source: DataSource::Files(files.to_vec()),
            })
        };
        let (a, b) = (file("a", "http://h/a", Some(b"a")), file("b", "http://h/b", None));
        let one = set(&[a.clone(), b.clone()]);
        assert_eq!(one, set(&[b.clone(), a.clone()]));
        assert_ne!(one, set(std::slice::from_ref(&a)));
        assert_ne!(one, set(&[a.clone(), file("b", "http://h/b", Some(b"b"))]));
        assert_ne!(one, set(&[a.clone(), file("b", "http://h/c", None)]));
        assert_ne!(one, set(&[a.clone(), file("c", "http://h/b", None)]));
        let archive = identity(&DataSet {
            source: DataSource::Archive(a.clone()),
        });
        assert_ne!(archive, set(&[a]));
        // Written down: a change of it would make every user fetch all data again.
        assert_eq!(archive.short(), "21fcd7ee3916");
    }
}
