//! What can be wrong with an archive.

use std::io;

/// Why an entry cannot be read. Which entry it is, the caller knows from [`super::Reader::current`].
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("reading the archive")]
    Io(#[source] io::Error),
    #[error("the archive ends within an entry")]
    Truncated,
    #[error("the header's checksum does not match: this is no tar archive, or a damaged one")]
    Checksum,
    #[error("a block of zeros stands between entries")]
    LoneZeroBlock,
    #[error("the header's field `{0}` is not a number in range")]
    Number(&'static str),
    #[error("malformed PAX record")]
    PaxSyntax,
    #[error("the PAX record `{0}` has a value that cannot be")]
    PaxValue(String),
    #[error("{what} takes {size} bytes, more than the {limit} allowed")]
    TooLong { what: &'static str, size: u64, limit: u64 },
    #[error("the map of a sparse file is wrong: {0}")]
    Sparse(&'static str),
    #[error("unknown entry type {:?}", char::from(*.0))]
    Type(u8),
    #[error("the name holds a NUL byte")]
    NulInName,
}
