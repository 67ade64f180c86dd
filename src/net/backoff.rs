//! How long to wait before the next try.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

const LONGEST: Duration = Duration::from_secs(60);

/// Doubling from `first`, a minute at most, less up to half by chance: many clients that failed together must not
/// come back together.
pub(super) fn delay(first: Duration, failures: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    full.mul_f64(0.5 + 0.5 * fastrand::f64())
}

/// `Retry-After`: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    // A date that has passed asks for no wait at all.
    Some(now.duration_until(date).try_into().unwrap_or(Duration::ZERO))
}

/// Statuses that may be gone at the next try.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_minute() {
        let first = Duration::from_secs(2);
        for (failures, most) in [(1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (90, 60)] {
            let delay = delay(first, failures);
            assert!(
                delay <= Duration::from_secs(most) && delay >= Duration::from_secs(most) / 2,
                "{failures}: {delay:?}"
            );
        }
        let waits: std::collections::HashSet<Duration> = (0..100).map(|_| delay(first, 1)).collect();
        assert!(waits.len() > 1, "many that failed together do not come back together");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
