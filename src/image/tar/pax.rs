//! PAX extended headers (POSIX.1-2017, `pax`, "pax Extended Header"): `LENGTH KEY=VALUE\n` records.

use super::TarError;
use crate::image::tree::{Time, Xattr};

/// What of a PAX header matters to an image. An absent field leaves the ustar header's own.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    /// In the order of the archive; the same name twice: the last wins.
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: GnuSparse,
}

/// `GNU.sparse.*` of formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
#[derive(Debug, Default)]
pub(super) struct GnuSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn: 0.0 as one record each, 0.1 as one list.
    pub(super) map: Vec<u64>,
    pub(super) has_map: bool,
}

/// Kernel limits (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`): what is longer could never be set again.
const XATTR_NAME: usize = 255;
const XATTR_VALUE: usize = 64 << 10;

/// Labels of the machine that built the layer: they mean nothing, or something else, where the image is used.
const DROPPED_XATTRS: [&[u8]; 2] = [b"security.selinux", b"system.nfs4_acl"];

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Pax, TarError> {
        let mut pax = Pax::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarError::PaxSyntax)?;
            pax.set(key, value)?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let wrong = || TarError::PaxValue(String::from_utf8_lossy(key).chars().take(80).collect());
        let integer = || decimal(value).ok_or_else(wrong);
        match key {
            b"path" => self.path = name(value),
            b"linkpath" => self.link = name(value),
            b"size" if value.is_empty() => self.size = None,
            b"size" => self.size = Some(integer()?),
            b"uid" if value.is_empty() => self.uid = None,
            b"uid" => self.uid = Some(u32::try_from(integer()?).map_err(|_| wrong())?),
            b"gid" if value.is_empty() => self.gid = None,
            b"gid" => self.gid = Some(u32::try_from(integer()?).map_err(|_| wrong())?),
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(wrong)?),
            b"GNU.sparse.major" => self.sparse.major = Some(integer()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(integer()?),
            b"GNU.sparse.name" => self.sparse.name = name(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(integer()?),
            // Alone where there is nothing but a hole.
            b"GNU.sparse.numblocks" => self.sparse.has_map = true,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let parity = usize::from(key.ends_with(b"numbytes"));
                if self.sparse.map.len() % 2 != parity {
                    return Err(TarError::Sparse("offsets and lengths do not alternate"));
                }
                self.sparse.map.push(integer()?);
                self.sparse.has_map = true;
            }
            b"GNU.sparse.map" => {
                self.sparse.map.clear();
                self.sparse.has_map = true;
                if !value.is_empty() {
                    for part in value.split(|&b| b == b',') {
                        self.sparse.map.push(decimal(part).ok_or_else(wrong)?);
                    }
                }
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(attribute, value).ok_or_else(wrong)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, attribute: &[u8], value: &[u8]) -> Option<()> {
        if attribute.is_empty() || attribute.len() > XATTR_NAME || attribute.contains(&0) || value.len() > XATTR_VALUE {
            return None;
        }
        if !DROPPED_XATTRS.contains(&attribute) {
            self.xattrs.retain(|kept| &*kept.name != attribute);
            self.xattrs.push(Xattr {
                name: attribute.into(),
                value: value.into(),
            });
        }
        Some(())
    }
}

/// The first record: its key, its value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length <= space + 1 || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    (equals > 0).then(|| (&body[..equals], &body[equals + 1..], rest))
}

/// An empty value takes an override back.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// Unsigned, at most `i64::MAX`: no size of a file is larger.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0_i64, |value, &digit| {
            let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
            value.checked_mul(10)?.checked_add(digit)
        })
        .map(i64::cast_unsigned)
}

/// `-?SECONDS[.FRACTION]`; what is finer than a nanosecond is cut.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|&b| b == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = decimal(whole)?.cast_signed();
    let nanos = (0..9).fold(0, |n, at| n * 10 + u32::from(fraction.get(at).map_or(0, |d| d - b'0')));
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_length() {
        let pax = Pax::parse(b"12 path=a\nb\n11 size=42\n30 mtime=1700000000.123456789\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(pax.size, Some(42));
        let time = pax.mtime.unwrap();
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
    }

    #[test]
    fn a_time_before_1970_rounds_down() {
        let before = time(b"-1.25").unwrap();
        assert_eq!((before.seconds, before.nanos), (-2, 750_000_000));
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        for bad in [
            &b"99 path=a\n"[..],
            b"3 path=a\n",
            b"0 path=a\n",
            b"path=a\n",
            b"9 path=a",
            b"6 =abc\n",
            b"99999999999999999999 a=b\n",
            b"-1 path=a\n",
        ] {
            assert!(matches!(Pax::parse(bad), Err(TarError::PaxSyntax)), "{bad:?}");
        }
        assert!(matches!(Pax::parse(b"11 size=-1\n"), Err(TarError::PaxValue(_))));
        assert!(matches!(Pax::parse(b"28 size=9223372036854775808\n"), Err(TarError::PaxValue(_))));
    }
}
