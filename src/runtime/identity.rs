//! Who the caller is, in the image's `/etc/passwd` and `/etc/group`. Pure.

use std::path::Path;

/// The caller as the container knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller<'a> {
    pub name: &'a str,
    /// Inside.
    pub uid: u32,
    pub gid: u32,
    pub home: &'a Path,
}

/// `passwd` of the image with the caller's line in place of those of the same number or name.
pub fn passwd(image: &[u8], caller: &Caller<'_>) -> Vec<u8> {
    let line = format!("{}:x:{}:{}::{}:/bin/sh", caller.name, caller.uid, caller.gid, caller.home.display());
    merged(image, caller.name, caller.uid, &line)
}

/// `group` of the image with the caller's group, unless its number is known there.
pub fn group(image: &[u8], caller: &Caller<'_>) -> Vec<u8> {
    if lines(image).any(|line| field(line, 2) == Some(caller.gid.to_string().as_bytes())) {
        return image.to_vec();
    }
    merged(image, caller.name, caller.gid, &format!("{}:x:{}:", caller.name, caller.gid))
}

/// The name of `uid` in the text of a passwd file, when it is one that may be written into another.
pub fn name_of(passwd: &[u8], uid: u32) -> Option<String> {
    let number = uid.to_string();
    let line = lines(passwd).find(|line| field(line, 2) == Some(number.as_bytes()))?;
    let name = std::str::from_utf8(field(line, 0)?).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (!name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
}

/// The numbers that an image's `User` means: `user`, `uid`, `user:group` or `uid:gid`; empty is root. The group is that of
/// the user's line where none is given, and 0 where there is no such line.
///
/// # Errors
/// The name that the image's files do not know, or the number that cannot be one.
pub fn numbers(user: &str, passwd: &[u8], group: &[u8]) -> Result<(u32, u32), String> {
    let (user, group_name) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let line = lines(passwd).find(|line| field(line, 0) == Some(user.as_bytes()) || field(line, 2) == Some(user.as_bytes()));
    let number = |line: &[u8], at: usize| std::str::from_utf8(field(line, at)?).ok()?.parse::<u32>().ok();
    // All bits set means "no one" to the kernel.
    let whole = |text: &str| text.parse::<u32>().ok().filter(|&number| number != u32::MAX);
    let uid = whole(user).or_else(|| number(line?, 2));
    let uid = uid.ok_or_else(|| format!("the user `{user}`"))?;
    let gid = match group_name {
        None => line.and_then(|line| number(line, 3)).unwrap_or(0),
        Some(name) => {
            let line = lines(group).find(|line| field(line, 0) == Some(name.as_bytes()));
            let gid = whole(name).or_else(|| number(line?, 2));
            gid.ok_or_else(|| format!("the group `{name}`"))?
        }
    };
    Ok((uid, gid))
}

fn merged(image: &[u8], name: &str, number: u32, line: &str) -> Vec<u8> {
    let number = number.to_string();
    let mut text = Vec::with_capacity(image.len() + line.len() + 1);
    for other in lines(image) {
        if field(other, 0) == Some(name.as_bytes()) || field(other, 2) == Some(number.as_bytes()) {
            continue;
        }
        text.extend_from_slice(other);
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    text
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

fn field(line: &[u8], n: usize) -> Option<&[u8]> {
    line.split(|&b| b == b':').nth(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller<'static> {
        Caller {
            name: "ada",
            uid: 1000,
            gid: 100,
            home: Path::new("/home/ada"),
        }
    }

    #[test]
    fn the_caller_is_known_and_nobody_is_there_twice() {
        let image = b"root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\nada:x:7:7::/:/bin/false";
        let text = String::from_utf8(passwd(image, &caller())).unwrap();
        assert_eq!(text, "root:x:0:0:root:/root:/bin/bash\nada:x:1000:100::/home/ada:/bin/sh\n");
        assert_eq!(passwd(b"", &caller()), b"ada:x:1000:100::/home/ada:/bin/sh\n");
    }

    #[test]
    fn a_group_keeps_its_name_in_the_image() {
        assert_eq!(group(b"root:x:0:\nusers:x:100:\n", &caller()), b"root:x:0:\nusers:x:100:\n");
        assert_eq!(group(b"root:x:0:\n", &caller()), b"root:x:0:\nada:x:100:\n");
    }

    #[test]
    fn the_numbers_of_an_images_user() {
        let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1001:1002::/:/bin/sh\nodd:x:x:\n";
        let numbers = |user: &str| numbers(user, passwd, b"staff:x:50:\n");
        for (user, expected) in [
            ("", (0, 0)),
            ("root", (0, 0)),
            ("app", (1001, 1002)),
            ("1001", (1001, 1002)),
            ("7", (7, 0)),
            ("7:8", (7, 8)),
            ("app:staff", (1001, 50)),
            ("app:", (1001, 1002)),
        ] {
            assert_eq!(numbers(user), Ok(expected), "{user}");
        }
        for (user, unknown) in [
            ("nosuch", "the user `nosuch`"),
            ("app:nosuch", "the group `nosuch`"),
            ("odd", "the user `odd`"),
            ("4294967295", "the user `4294967295`"),
            ("-1", "the user `-1`"),
        ] {
            assert_eq!(numbers(user), Err(unknown.to_owned()), "{user}");
        }
    }

    #[test]
    fn only_plain_names_are_taken_over() {
        assert_eq!(name_of(b"root:x:0:0\nada:x:1000:", 1000), Some("ada".into()));
        assert_eq!(name_of(b"a b:x:1000:", 1000), None);
        assert_eq!(name_of(b"ada:x:1000:", 100), None);
    }
}
