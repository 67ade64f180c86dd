//! Sizes and times as people and Slurm write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// A number of bytes. Written `512M`, `4G`, `1.5T` (powers of 1024; a unit is required).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A span of time in whole seconds. Written `90m`, `4h`, `2d`, or in Slurm's own syntax (`minutes`,
/// `minutes:seconds`, `hours:minutes:seconds`, `days-hours[:minutes[:seconds]]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

/// Why a text is no size or no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("`{0}` has no unit")]
    NoUnit(String),
    #[error("`{0}` is not a size")]
    Size(String),
    #[error("`{0}` is not a time")]
    Time(String),
    #[error("`{0}` is nothing: it must be more than zero")]
    Zero(String),
    #[error("`{0}` is too large")]
    TooLarge(String),
}

impl UnitError {
    /// How to write it instead.
    pub fn hint(&self) -> Option<String> {
        match self {
            UnitError::NoUnit(text) => Some(format!("write `{text}G` or `{text}M`")),
            UnitError::Size(_) => Some("write a size such as `512M`, `4G` or `1.5T`".into()),
            UnitError::Time(_) => Some("write a time such as `90m`, `4h`, `1-12:00:00` or `2:00:00` (hours:minutes:seconds)".into()),
            UnitError::Zero(_) | UnitError::TooLarge(_) => None,
        }
    }
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

impl Bytes {
    /// Whole mebibytes, rounded up: Slurm's unit.
    pub fn mebibytes(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

/// For `serde`: an optional value of a configuration file as people write it (`8G`, `4h`).
pub fn as_written<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let shown = || text.chars().take(80).collect::<String>();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let number = decimal(number).ok_or_else(|| UnitError::Size(shown()))?;
        if unit.is_empty() {
            return Err(UnitError::NoUnit(shown()));
        }
        let mut letters = unit.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        let rest = letters.as_str();
        let shift = UNITS.iter().find(|(letter, _)| Some(*letter) == first).map(|&(_, shift)| shift);
        let shift = match (shift, first) {
            (Some(shift), _) if rest.is_empty() || rest.eq_ignore_ascii_case("b") || rest.eq_ignore_ascii_case("ib") => shift,
            (None, Some('B')) if rest.is_empty() => 0,
            _ => return Err(UnitError::Size(shown())),
        };
        let bytes = number.scale(1 << shift).ok_or_else(|| UnitError::TooLarge(shown()))?;
        if bytes == 0 {
            return Err(UnitError::Zero(shown()));
        }
        Ok(Bytes(bytes))
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that says it exactly: `4G`, `1536M`, `5B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS.iter().rev() {
            if self.0 != 0 && self.0.trailing_zeros() >= *shift {
                return write!(f, "{}{letter}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Seconds {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let shown = || text.chars().take(80).collect::<String>();
        let parsed = if text.ends_with(|c: char| c.is_ascii_alphabetic()) {
            suffixed(text)
        } else {
            slurm(text)
        };
        match parsed {
            None => Err(UnitError::Time(shown())),
            Some(None) => Err(UnitError::TooLarge(shown())),
            Some(Some(0)) => Err(UnitError::Zero(shown())),
            Some(Some(seconds)) => Ok(Seconds(seconds)),
        }
    }
}

impl fmt::Display for Seconds {
    /// Slurm's `[days-]hours:minutes:seconds`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        if days > 0 {
            write!(f, "{days}-")?;
        }
        write!(f, "{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
    }
}

/// `1h30m`, `1.5h`, `2d`: `None` is not one, `Some(None)` too large.
fn suffixed(text: &str) -> Option<Option<u64>> {
    let mut total: Option<u64> = Some(0);
    let mut rest = text;
    let mut smaller_than = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = decimal(&rest[..digits])?;
        let word = &rest[digits..];
        let letters = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
        let unit = match &word[..letters] {
            "s" | "sec" | "secs" => 1,
            "m" | "min" | "mins" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        if unit >= smaller_than {
            return None;
        }
        smaller_than = unit;
        total = total.and_then(|total| total.checked_add(number.scale(unit)?));
        rest = &word[letters..];
    }
    Some(total)
}

/// `minutes[:seconds]`, `hours:minutes:seconds`, `days-hours[:minutes[:seconds]]` (sbatch(1), `--time`).
fn slurm(text: &str) -> Option<Option<u64>> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(whole(days)?), clock),
        None => (None, text),
    };
    let fields: Vec<u64> = clock.split(':').map(whole).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match (days.is_some(), fields.as_slice()) {
        (true, &[h]) => (h, 0, 0),
        (true, &[h, m]) => (h, m, 0),
        (false, &[m]) => (0, m, 0),
        (false, &[m, s]) => (0, m, s),
        (_, &[h, m, s]) => (h, m, s),
        _ => return None,
    };
    Some(
        [(days.unwrap_or(0), 86_400), (hours, 3600), (minutes, 60), (seconds, 1)]
            .into_iter()
            .try_fold(0u64, |total, (count, unit)| total.checked_add(count.checked_mul(unit)?)),
    )
}

fn whole(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// A decimal number, exactly.
struct Decimal {
    digits: u128,
    scale: u128,
}

impl Decimal {
    /// Times `unit`, rounded down; `None` when it does not fit.
    fn scale(&self, unit: u64) -> Option<u64> {
        u64::try_from(self.digits.checked_mul(u128::from(unit))? / self.scale).ok()
    }
}

/// At most twelve digits after the point; what is more than 24 digits is too large for anything here.
fn decimal(text: &str) -> Option<Decimal> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction_len = u32::try_from(fraction.len()).ok().filter(|&len| len <= 12)?;
    let digits = format!("{whole}{fraction}");
    if whole.is_empty() || digits.len() > 36 || !digits.bytes().all(|b| b.is_ascii_digit()) || text.ends_with('.') {
        return None;
    }
    Some(Decimal {
        digits: digits.parse().ok()?,
        scale: 10u128.pow(fraction_len),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("4G", 4 << 30, "4G"),
            ("4 GiB", 4 << 30, "4G"),
            ("4gb", 4 << 30, "4G"),
            ("1.5T", 3 << 39, "1536G"),
            ("0.5K", 512, "512B"),
            ("100B", 100, "100B"),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string(), shown);
            assert_eq!(shown.parse::<Bytes>(), Ok(Bytes(bytes)));
        }
        assert_eq!("4".parse::<Bytes>(), Err(UnitError::NoUnit("4".into())));
        assert_eq!("0G".parse::<Bytes>(), Err(UnitError::Zero("0G".into())));
        assert_eq!("99999999999P".parse::<Bytes>(), Err(UnitError::TooLarge("99999999999P".into())));
        for bad in ["", "G", "-4G", "4 X", "4Gx", "1.G", "1..5G", ".5G", "0x10M", "é"] {
            assert_eq!(bad.parse::<Bytes>(), Err(UnitError::Size(bad.into())), "{bad}");
        }
        assert_eq!(Bytes((1 << 20) + 1).mebibytes(), 2);
    }

    #[test]
    fn times() {
        for (text, seconds, shown) in [
            ("90", 5400, "01:30:00"),
            ("90m", 5400, "01:30:00"),
            ("90s", 90, "00:01:30"),
            ("4h", 14_400, "04:00:00"),
            ("1.5h", 5400, "01:30:00"),
            ("1h30m", 5400, "01:30:00"),
            ("2d", 172_800, "2-00:00:00"),
            ("2:30", 150, "00:02:30"),
            ("2:00:00", 7200, "02:00:00"),
            ("1-12", 129_600, "1-12:00:00"),
            ("1-12:30", 131_400, "1-12:30:00"),
            ("1-00:00:01", 86_401, "1-00:00:01"),
        ] {
            assert_eq!(text.parse::<Seconds>(), Ok(Seconds(seconds)), "{text}");
            assert_eq!(Seconds(seconds).to_string(), shown);
            assert_eq!(shown.parse::<Seconds>(), Ok(Seconds(seconds)));
        }
        assert_eq!("0".parse::<Seconds>(), Err(UnitError::Zero("0".into())));
        assert_eq!("0h".parse::<Seconds>(), Err(UnitError::Zero("0h".into())));
        assert_eq!(
            "9999999999999999999d".parse::<Seconds>(),
            Err(UnitError::TooLarge("9999999999999999999d".into()))
        );
        for bad in [
            "", "soon", "4 h", "1:2:3:4", "-1", "1-", "1:", "h", "30m1h", "1h1h", "4x", "1.5", "é",
        ] {
            assert_eq!(bad.parse::<Seconds>(), Err(UnitError::Time(bad.into())), "{bad}");
        }
    }
}
