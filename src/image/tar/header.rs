//! One 512-byte header (POSIX.1-2017, `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format").

use super::TarError;

/// Everything in an archive comes in blocks of this many bytes.
pub(super) const BLOCK: usize = 512;

/// A view of a header block.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Older than ustar: neither prefix nor anything behind the link name.
    V7,
    /// `ustar\0`: POSIX, the name continues in `prefix`.
    Ustar,
    /// `ustar  \0`: GNU, what POSIX uses for the prefix holds times and sparse maps.
    Gnu,
}

impl<'a> Header<'a> {
    /// The checksum counts its own field as spaces; some old writers summed signed characters.
    pub(super) fn verify(&self) -> Result<(), TarError> {
        let stated = number(&self.0[148..156]).ok_or(TarError::Checksum)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, &byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stated == unsigned || stated == signed {
            Ok(())
        } else {
            Err(TarError::Checksum)
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        if self.dialect() == Dialect::Ustar && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, TarError> {
        let mode = number(&self.0[100..108]).ok_or(TarError::Number("mode"))?;
        Ok(u16::try_from(mode & 0o7777).expect("masked to twelve bits"))
    }

    pub(super) fn uid(&self) -> Result<i64, TarError> {
        number(&self.0[108..116]).ok_or(TarError::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, TarError> {
        number(&self.0[116..124]).ok_or(TarError::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        let size = number(&self.0[124..136]).ok_or(TarError::Number("size"))?;
        u64::try_from(size).map_err(|_| TarError::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        number(&self.0[136..148]).ok_or(TarError::Number("mtime"))
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |field| number(field).and_then(|n| u32::try_from(n).ok()).ok_or(TarError::Number("device"));
        match self.dialect() {
            Dialect::V7 => Ok((0, 0)),
            _ => Ok((part(&self.0[329..337])?, part(&self.0[337..345])?)),
        }
    }

    /// The four sparse slots of an old GNU header, whether more follow in a block of their own, and the real size.
    pub(super) fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64), TarError> {
        if self.dialect() != Dialect::Gnu {
            return Err(TarError::Sparse("it is not in a GNU header"));
        }
        let size = number(&self.0[483..495]).and_then(|n| u64::try_from(n).ok());
        Ok((&self.0[386..482], self.0[482] != 0, size.ok_or(TarError::Number("realsize"))?))
    }
}

/// A field's bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs (nothing at all is 0), or GNU's base-256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = match at {
                0 if negative => byte | 0x80,
                0 => byte & 0x7f,
                _ => byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let skip = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !skip(b)).unwrap_or(field.len());
    let digits = field[start..].split(skip).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, &digit| {
        let digit = matches!(digit, b'0'..=b'7').then(|| i64::from(digit - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o7777_7777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None, "2^63 is no size");
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-1"), None);
    }
}
