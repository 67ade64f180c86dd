//! Archives into an empty folder, never outside it.
//!
//! While members are written there is not one symbolic link in the folder: links are made last. So no path can lead
//! elsewhere, whatever order a hostile archive comes in (CVE-2021-29136 and kin).

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::ArchiveError;

/// Unpacks the tar archive at `archive`, plain or compressed with gzip or zstd, into `folder`. Blocks.
pub(super) fn unpack(archive: &Path, folder: &Path) -> Result<(), ArchiveError> {
    let mut file = File::open(archive).map_err(ArchiveError::io("open", archive))?;
    let mut magic = Vec::new();
    (&mut file)
        .take(8)
        .read_to_end(&mut magic)
        .map_err(ArchiveError::io("read", archive))?;
    file.seek(SeekFrom::Start(0)).map_err(ArchiveError::io("read", archive))?;
    let file = BufReader::with_capacity(1 << 18, file);
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => members(flate2::bufread::MultiGzDecoder::new(file), folder),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => members(zstd::Decoder::with_buffer(file).map_err(ArchiveError::Damaged)?, folder),
        [b'B', b'Z', b'h', ..] => Err(ArchiveError::Format("compressed with bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(ArchiveError::Format("compressed with xz")),
        [b'P', b'K', 3 | 5, ..] => Err(ArchiveError::Format("a zip archive")),
        _ => members(file, folder),
    }
}

fn members(archive: impl Read, folder: &Path) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(archive);
    // Sorted, so that the result does not depend on the order in which links came.
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for entry in archive.entries().map_err(ArchiveError::Damaged)? {
        let mut entry = entry.map_err(ArchiveError::Damaged)?;
        let kind = entry.header().entry_type();
        let name = entry.path().map_err(ArchiveError::Damaged)?.into_owned();
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let inside = inside(&name)?;
        if inside.as_os_str().is_empty() {
            continue;
        }
        let target = || -> Result<PathBuf, ArchiveError> {
            let link = entry.link_name().map_err(ArchiveError::Damaged)?;
            Ok(link.unwrap_or_default().into_owned())
        };
        match kind {
            EntryType::Directory => {
                links.remove(&inside);
                make_folder(folder, &inside)?;
            }
            EntryType::Symlink => {
                links.insert(inside.clone(), link_target(&inside, target()?)?);
                make_room(folder, &inside)?;
            }
            EntryType::Link => {
                let target = folder.join(self::inside(&target()?)?);
                let path = make_room(folder, &inside)?;
                links.remove(&inside);
                // Not through a link, as there is none yet; of a file only.
                if !target.is_file() {
                    return Err(ArchiveError::Link {
                        link: name.display().to_string(),
                        target: target.strip_prefix(folder).unwrap_or(&target).display().to_string(),
                    });
                }
                fs::hard_link(&target, &path).map_err(ArchiveError::io("create", &path))?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                links.remove(&inside);
                let executable = entry.header().mode().map_err(ArchiveError::Damaged)? & 0o111 != 0;
                let path = make_room(folder, &inside)?;
                let mut file = File::create_new(&path).map_err(ArchiveError::io("create", &path))?;
                io::copy(&mut entry, &mut file).map_err(ArchiveError::io("unpack", &path))?;
                // Shared by all that use the set: nobody writes to it.
                let mode = if executable { 0o555 } else { 0o444 };
                file.set_permissions(Permissions::from_mode(mode))
                    .map_err(ArchiveError::io("write", &path))?;
            }
            _ => return Err(ArchiveError::Special(name.display().to_string())),
        }
    }
    for (link, target) in links {
        let path = make_room(folder, &link)?;
        symlink(&target, &path).map_err(ArchiveError::io("create", &path))?;
    }
    // All at once: a sync for each of thousands of files would take minutes.
    let folder_file = File::open(folder).map_err(ArchiveError::io("open", folder))?;
    nix::unistd::syncfs(&folder_file).map_err(|error| ArchiveError::io("sync", folder)(error.into()))
}

/// The parts below the folder; `./` and doubled slashes are nothing.
fn inside(name: &Path) -> Result<PathBuf, ArchiveError> {
    let mut parts = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            _ => return Err(ArchiveError::Outside(name.display().to_string())),
        }
    }
    Ok(parts)
}

/// A symbolic link's target, if it stays inside: `..` only at its beginning, and no more often than the link is deep.
/// The folders above the link are real ones, so those steps are too; what follows them only goes down, or through
/// another link for which the same holds.
fn link_target(link: &Path, target: PathBuf) -> Result<PathBuf, ArchiveError> {
    let mut depth = link.components().count() - 1;
    let mut down = false;
    let stays = !target.as_os_str().is_empty()
        && target.components().all(|component| match component {
            Component::CurDir => true,
            Component::Normal(_) => {
                down = true;
                true
            }
            Component::ParentDir if down || depth == 0 => false,
            Component::ParentDir => {
                depth -= 1;
                true
            }
            Component::RootDir | Component::Prefix(_) => false,
        });
    if stays {
        return Ok(target);
    }
    Err(ArchiveError::Link {
        link: link.display().to_string(),
        target: target.display().to_string(),
    })
}

/// All folders of `parts`, each a real one.
fn make_folder(folder: &Path, parts: &Path) -> Result<(), ArchiveError> {
    let mut path = folder.to_owned();
    for part in parts {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(ArchiveError::BelowFile(parts.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&path).map_err(ArchiveError::io("create", &path))?;
            }
            Err(error) => return Err(ArchiveError::io("look at", &path)(error)),
        }
    }
    Ok(())
}

/// The path of a member to be made: its folders are there, an earlier member of the same name is gone.
fn make_room(folder: &Path, parts: &Path) -> Result<PathBuf, ArchiveError> {
    if let Some(parent) = parts.parent() {
        make_folder(folder, parent)?;
    }
    let path = folder.join(parts);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => Err(ArchiveError::BelowFile(parts.display().to_string())),
        Ok(_) => {
            fs::remove_file(&path).map_err(ArchiveError::io("remove", &path))?;
            Ok(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(ArchiveError::io("look at", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, kind, link target or content.
    fn archive(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, text) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if text.starts_with("#!") { 0o755 } else { 0o600 });
            // Straight into the header: the builder would refuse the names that are to be refused here.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            let body = if kind.is_file() { text.as_bytes() } else { b"" };
            if !kind.is_file() {
                header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Result<(), ArchiveError>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        fs::write(&path, bytes).unwrap();
        let folder = dir.path().join("into");
        fs::create_dir(&folder).unwrap();
        let result = unpack(&path, &folder);
        (dir, result)
    }

    const GOOD: &[(&str, EntryType, &str)] = &[
        ("./", EntryType::Directory, ""),
        ("a/l", EntryType::Symlink, "../b/f"),
        ("a/b/../", EntryType::XGlobalHeader, ""),
        ("b/f", EntryType::Regular, "old"),
        ("./b/f", EntryType::Regular, "hello"),
        ("b/x", EntryType::Regular, "#!/bin/sh"),
        ("b/h", EntryType::Link, "b/f"),
    ];

    #[test]
    fn each_compression_gives_the_same_folder() {
        let plain = archive(GOOD);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // Two members: concatenated streams are one.
        io::Write::write_all(&mut gz, &plain[..700]).unwrap();
        let mut gz = gz.finish().unwrap();
        let mut second = flate2::write::GzEncoder::new(&mut gz, flate2::Compression::fast());
        io::Write::write_all(&mut second, &plain[700..]).unwrap();
        second.finish().unwrap();
        let zst = [
            zstd::encode_all(&plain[..700], 1).unwrap(),
            zstd::encode_all(&plain[700..], 1).unwrap(),
        ]
        .concat();
        for bytes in [plain, gz, zst] {
            let (dir, result) = unpacked(&bytes);
            result.unwrap();
            let into = dir.path().join("into");
            assert_eq!(fs::read_to_string(into.join("a/l")).unwrap(), "hello", "through the link");
            assert_eq!(fs::read_to_string(into.join("b/h")).unwrap(), "hello");
            let mode = |name| fs::metadata(into.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode("b/f"), mode("b/x")), (0o444, 0o555));
        }
    }

    #[test]
    fn nothing_gets_out() {
        use EntryType::{Char, Link, Regular, Symlink};
        let hostile: &[&[(&str, EntryType, &str)]] = &[
            &[("../x", Regular, "x")],
            &[("/x", Regular, "x")],
            &[("a/../../x", Regular, "x")],
            &[("l", Symlink, "/etc")],
            &[("l", Symlink, "..")],
            &[("a/l", Symlink, "../../x")],
            &[("a/l", Symlink, "b/../../../x")],
            &[("l", Symlink, "")],
            &[("h", Link, "../archive")],
            &[("h", Link, "/etc/passwd")],
            &[("l", Symlink, "a"), ("h", Link, "l")],
            &[("d", Char, "")],
            &[("f", Regular, "x"), ("f/g", Regular, "x")],
        ];
        for members in hostile {
            let (dir, result) = unpacked(&archive(members));
            assert!(result.is_err(), "{members:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{members:?}");
        }
        // A link with members below it: the link is not followed, and cannot stay.
        let (dir, result) = unpacked(&archive(&[("l", Symlink, "a"), ("a/f", Regular, "x"), ("l/g", Regular, "x")]));
        assert!(matches!(result, Err(ArchiveError::BelowFile(_))), "{result:?}");
        assert!(!dir.path().join("into/a/g").exists());
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let whole = archive(GOOD);
        let gz = {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gz, &whole).unwrap();
            gz.finish().unwrap()
        };
        for bytes in [
            &whole[..whole.len() / 2 + 100],
            &gz[..gz.len() / 2],
            b"PK\x03\x04....",
            b"BZh91AY",
            b"\xfd7zXZ\0\0\0",
            &[b'x'; 2000],
        ] {
            assert!(unpacked(bytes).1.is_err());
        }
    }
}
