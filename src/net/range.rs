//! `Content-Range` (RFC 9110, 14.4).

use reqwest::header::{CONTENT_RANGE, HeaderMap};

/// Bytes `first..=last` of `total` (`None`: `*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub first: u64,
    pub last: u64,
    pub total: Option<u64>,
}

impl ContentRange {
    pub(super) fn of(headers: &HeaderMap) -> Option<ContentRange> {
        let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let range = ContentRange {
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            total: match total {
                "*" => None,
                total => Some(total.parse().ok()?),
            },
        };
        let fits = range.first <= range.last && range.total.is_none_or(|total| range.last < total);
        fits.then_some(range)
    }

    /// Whether this is the part `from..end` of `size` bytes.
    pub(super) fn is_part(&self, from: u64, end: u64, size: u64) -> bool {
        self.first == from && self.last + 1 == end && self.total.is_none_or(|total| total == size)
    }

    /// Whether this is what was asked for: from `first` to the end of `size` bytes, where that is known.
    pub(super) fn is_rest(&self, first: u64, size: Option<u64>) -> bool {
        let whole = match (self.total, size) {
            (Some(total), Some(size)) => total == size && self.last + 1 == size,
            (Some(total), None) => self.last + 1 == total,
            (None, Some(size)) => self.last + 1 == size,
            (None, None) => false,
        };
        self.first == first && whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_rest_will_do() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            ContentRange::of(&headers)
        };
        assert!(of("bytes 5-9/10").unwrap().is_rest(5, Some(10)));
        assert!(of("bytes 5-9/10").unwrap().is_rest(5, None));
        assert!(of("bytes 5-9/*").unwrap().is_rest(5, Some(10)));
        assert!(!of("bytes 5-9/*").unwrap().is_rest(5, None));
        assert!(!of("bytes 4-9/10").unwrap().is_rest(5, Some(10)));
        assert!(!of("bytes 5-8/10").unwrap().is_rest(5, Some(10)));
        assert!(!of("bytes 5-10/11").unwrap().is_rest(5, Some(10)));
        assert!(of("bytes 5-8/10").unwrap().is_part(5, 9, 10));
        assert!(of("bytes 5-8/*").unwrap().is_part(5, 9, 10));
        assert!(!of("bytes 5-9/10").unwrap().is_part(5, 9, 10));
        assert!(!of("bytes 5-8/11").unwrap().is_part(5, 9, 10));
        for bad in [
            "",
            "bytes",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes */10",
            "items 5-9/10",
            "bytes 5-18446744073709551616/*",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
