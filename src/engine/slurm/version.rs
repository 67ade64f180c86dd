//! Which Slurm this is.

use std::fmt;

/// The release: `22.05`. What comes behind it changes nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub year: u32,
    pub month: u32,
}

/// The first that all that is asked of Slurm here is known to (`srun --overlap` among it).
pub const OLDEST: Version = Version { year: 20, month: 11 };

/// The newest whose texts were looked at.
pub const NEWEST: Version = Version { year: 26, month: 5 };

impl Version {
    /// From what `sbatch --version` says: `slurm 23.11.4`, `slurm-wlm 22.05.8`, `slurm 24.05.0-0rc1`, among banners.
    pub fn parse(text: &str) -> Option<Version> {
        let line = text.lines().map(str::trim).find(|line| line.starts_with("slurm"))?;
        let mut numbers = line.split_whitespace().nth(1)?.split(['.', '-']);
        Some(Version {
            year: numbers.next()?.parse().ok()?,
            month: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_distributions_and_sites_write_it() {
        let version = |text: &str| Version::parse(text).map(|version| version.to_string());
        assert_eq!(version("slurm-wlm 22.05.8\n").as_deref(), Some("22.05"));
        assert_eq!(version("Welcome to 3.2.1\nslurm 23.11.0-0rc1\n").as_deref(), Some("23.11"));
        assert_eq!(version("slurm 26.05").as_deref(), Some("26.05"));
        assert_eq!((version("slurm unstable"), version("")), (None, None));
        assert!(Version::parse("slurm 19.05.8").unwrap() < OLDEST && OLDEST < NEWEST);
    }
}
