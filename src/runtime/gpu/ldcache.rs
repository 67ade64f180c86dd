//! `/etc/ld.so.cache`: which file is meant by a library's name. The format is that of glibc's `sysdeps/generic/dl-cache.h`,
//! "glibc-ld.so.cache1.1", alone or after a table of the old format.

use std::path::PathBuf;

/// Larger is none: a cache takes some 60 bytes a library.
pub const LIMIT: u64 = 64 << 20;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// A name or a path that is longer is no real one.
const LONGEST: usize = 4096;

/// ELF for glibc 2, and the machine in the second byte.
#[cfg(target_arch = "x86_64")]
const FLAGS: u32 = 0x0303;
#[cfg(target_arch = "aarch64")]
const FLAGS: u32 = 0x0a03;
#[cfg(target_arch = "powerpc64")]
const FLAGS: u32 = 0x0503;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
const FLAGS: u32 = 0x0003;

/// A library by the name that programs ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    pub name: String,
    /// Absolute, on the host.
    pub path: PathBuf,
}

/// The libraries of this machine's kind, in the cache's order; of a name, the first is the one that counts. `None`: the
/// bytes are no cache. Entries that lead out of the file, or to what is no plain name, are left out.
pub fn parse(bytes: &[u8]) -> Option<Vec<Library>> {
    let table = table(bytes)?;
    let count = number(table, MAGIC.len())? as usize;
    // A count beyond the file's end is no reason to make room for it.
    let entries = table.get(HEADER..)?.chunks_exact(ENTRY).take(count);
    let library = |entry: &[u8]| {
        if number(entry, 0)? != FLAGS {
            return None;
        }
        let name = text(table, number(entry, 4)?)?;
        let path = PathBuf::from(text(table, number(entry, 8)?)?);
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        (plain && path.is_absolute()).then(|| Library {
            name: name.to_owned(),
            path,
        })
    };
    Some(entries.filter_map(library).collect())
}

/// The bytes from the new format's beginning on: its offsets count from there.
fn table(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.starts_with(MAGIC) {
        return Some(bytes);
    }
    let count = bytes.starts_with(OLD_MAGIC).then(|| number(bytes, OLD_MAGIC.len()))?? as usize;
    let end = OLD_HEADER.checked_add(count.checked_mul(OLD_ENTRY)?)?.checked_next_multiple_of(8)?;
    bytes.get(end..).filter(|rest| rest.starts_with(MAGIC))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn text(table: &[u8], at: u32) -> Option<&str> {
    let rest = table.get(at as usize..)?;
    let rest = &rest[..rest.len().min(LONGEST)];
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cache of these entries: flags, name, path.
    fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let start = HEADER + entries.len() * ENTRY;
        for (flags, name, path) in entries {
            let mut place = |text: &str| {
                let at = (start + strings.len()) as u32;
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                at
            };
            let (name, path) = (place(name), place(path));
            for number in [*flags, name, path, 0, 0, 0] {
                table.extend_from_slice(&number.to_ne_bytes());
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(entries.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&(strings.len() as u32).to_ne_bytes());
        bytes.resize(HEADER, 0);
        [bytes, table, strings].concat()
    }

    fn names(bytes: &[u8]) -> Option<Vec<String>> {
        Some(
            parse(bytes)?
                .into_iter()
                .map(|library| format!("{} {}", library.name, library.path.display()))
                .collect(),
        )
    }

    #[test]
    fn libraries_of_this_machine_alone_with_or_without_the_old_table() {
        let new = cache(&[
            (FLAGS, "libcuda.so.1", "/lib/libcuda.so.1"),
            (0x0003 | 0x4000, "libcuda.so.1", "/lib32/libcuda.so.1"),
            (FLAGS, "libx.so", "/lib/libx.so"),
        ]);
        let expected = Some(vec!["libcuda.so.1 /lib/libcuda.so.1".to_owned(), "libx.so /lib/libx.so".to_owned()]);
        assert_eq!(names(&new), expected);
        let mut both = OLD_MAGIC.to_vec();
        both.extend_from_slice(&1u32.to_ne_bytes());
        both.resize((OLD_HEADER + OLD_ENTRY).next_multiple_of(8), 7);
        both.extend_from_slice(&new);
        assert_eq!(names(&both), expected);
    }

    #[test]
    fn what_is_no_cache_or_leads_out_of_it_is_left_out() {
        assert_eq!(parse(b""), None);
        assert_eq!(
            parse(b"glibc-ld.so.cache1.0 and more of it, so that it is long enough for a header"),
            None
        );
        assert_eq!(parse(&[OLD_MAGIC, &u32::MAX.to_ne_bytes()].concat()), None);
        let mut far = cache(&[(FLAGS, "liba.so", "/a"), (FLAGS, "libb.so", "/b")]);
        far[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(names(&far), Some(vec!["libb.so /b".to_owned()]));
        let odd = cache(&[
            (FLAGS, "../x", "/a"),
            (FLAGS, "", "/a"),
            (FLAGS, "libc.so", "relative"),
            (FLAGS, "..", "/a"),
        ]);
        assert_eq!(names(&odd), Some(vec![]));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_list_or_in_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400, cut in 0usize..400) {
            parse(&bytes);
            let mut real = cache(&[(FLAGS, "liba.so", "/a"), (FLAGS, "libb.so", "/b")]);
            for (place, byte) in bytes.iter().enumerate().take(8) {
                let place = (at + place) % real.len();
                real[place] = *byte;
            }
            real.truncate(cut);
            parse(&real);
        }
    }
}
