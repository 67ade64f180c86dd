//! Reading SIF, the Singularity Image Format, version 01: the file system in it, and what describes it.
//!
//! ```text
//! 0       global header (128 bytes, little-endian, unaligned)
//! 4096    descriptors of 585 bytes each, 48 as a rule
//!         the objects: definition, JSON, signatures, the partition with the file system
//! ```
//!
//! An image is not to be trusted: what the descriptors say is checked against the file's size before anything is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::oci::Execution;

/// Numbers of the format.
pub(crate) mod format {
    /// At byte 32.
    pub const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
    pub const VERSION: &[u8; 3] = b"01\0";
    /// Bytes of the global header.
    pub const HEADER: usize = 128;
    /// Where the table of descriptors begins, and how many there are, as every tool writes it.
    pub const DESCRIPTORS: u64 = 4096;
    pub const COUNT: usize = 48;
    /// The group that all objects of one image are in.
    pub const GROUP: u32 = 0xf000_0000 | 1;
    /// The objects that are found by name.
    pub const INSPECT: &str = "inspect-metadata.json";
    pub const OCI_CONFIG: &str = "oci-config.json";
    /// Bytes of a descriptor, and of its last part, which depends on the type.
    pub const DESCRIPTOR: usize = 585;
    pub const EXTRA: usize = 384;

    /// Types of objects.
    pub mod kind {
        pub const DEFINITION: u32 = 0x4001;
        pub const LABELS: u32 = 0x4003;
        pub const PARTITION: u32 = 0x4004;
        pub const SIGNATURE: u32 = 0x4005;
        pub const JSON: u32 = 0x4006;
    }

    /// File systems of a partition, and the kind of the one that is the root.
    pub mod partition {
        pub const SQUASHFS: i32 = 1;
        pub const EXT3: i32 = 2;
        pub const ENCRYPTED: i32 = 5;
        pub const PRIMARY: i32 = 2;
    }

    /// Of architectures, by the names that an OCI image's configuration uses.
    pub const ARCHITECTURES: [(&str, &[u8; 2]); 13] = [
        ("386", b"01"),
        ("amd64", b"02"),
        ("arm", b"03"),
        ("arm64", b"04"),
        ("ppc64", b"05"),
        ("ppc64le", b"06"),
        ("mips", b"07"),
        ("mipsle", b"08"),
        ("mips64", b"09"),
        ("mips64le", b"10"),
        ("s390x", b"11"),
        ("riscv64", b"12"),
        ("loong64", b"13"),
    ];
}

use format::{DESCRIPTOR, EXTRA, HEADER, kind, partition};

/// More descriptors than any tool makes.
const DESCRIPTORS_MAX: u64 = 4096;
/// The largest text or JSON object that is read.
const TEXT_MAX: u64 = 16 << 20;

/// Why a SIF cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SifError {
    #[error("the image cannot be read")]
    Read(#[source] io::Error),
    #[error("this is no SIF of version 01")]
    NotSif,
    #[error("the SIF is damaged: {0}")]
    Damaged(&'static str),
    #[error("the SIF has no root file system")]
    NoPrimary,
    #[error("the SIF's root file system is {0}, not SquashFS")]
    FileSystem(&'static str),
    #[error("`{name}` in the SIF cannot be understood")]
    Json { name: String, source: serde_json::Error },
}

impl SifError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            SifError::Damaged(_) => Some("fetch or copy the image again: it is not complete, or its bytes have changed".to_owned()),
            SifError::FileSystem(_) => Some("build it again with `apptainer build NEW.sif OLD.sif`, unencrypted".to_owned()),
            _ => None,
        }
    }
}

/// The table of contents of a SIF.
#[derive(Clone, Debug, PartialEq)]
pub struct Sif {
    /// As an OCI image's configuration names it; empty if unknown.
    pub architecture: &'static str,
    /// Unix seconds.
    pub created: i64,
    pub objects: Vec<Object>,
}

/// Something in a SIF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub id: u32,
    /// The data type's number.
    pub kind: u32,
    /// Empty for most.
    pub name: String,
    /// In bytes; all of it is in the file.
    pub offset: u64,
    pub size: u64,
    /// Of a partition: file system and role, by number.
    partition: Option<(i32, i32)>,
}

/// Where a SIF's root file system lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    pub offset: u64,
    pub size: u64,
}

/// Whether `file` begins like a SIF.
///
/// # Errors
/// What the disk says.
pub fn is_sif(file: &File) -> io::Result<bool> {
    let mut bytes = [0; 10];
    match file.read_exact_at(&mut bytes, 32) {
        Ok(()) => Ok(&bytes == format::MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the SIF file that begins with `head` is made for, as an OCI image's configuration names it; `None` if it does not say.
pub fn made_for(head: &[u8]) -> Option<&'static str> {
    let is_sif = head.get(32..42).is_some_and(|magic| magic == format::MAGIC);
    let known = is_sif.then(|| architecture(head.get(0x2d..0x2f).unwrap_or_default()));
    known.filter(|name| !name.is_empty())
}

impl Sif {
    /// Reads the header and the descriptors of `file`.
    ///
    /// # Errors
    /// A file that is no SIF, or whose descriptors name what is not in it.
    pub fn read(file: &File) -> Result<Sif, SifError> {
        let length = file.metadata().map_err(SifError::Read)?.len();
        if !is_sif(file).map_err(SifError::Read)? || length < HEADER as u64 {
            return Err(SifError::NotSif);
        }
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(SifError::Read)?;
        if header[0x2a..0x2d] != *format::VERSION {
            return Err(SifError::NotSif);
        }
        let (total, table, table_length) = (u64_at(&header, 0x58), u64_at(&header, 0x60), u64_at(&header, 0x68));
        let bytes = total.checked_mul(DESCRIPTOR as u64).filter(|_| total <= DESCRIPTORS_MAX);
        let Some(bytes) = bytes.filter(|&bytes| bytes <= table_length && table.checked_add(bytes).is_some_and(|end| end <= length)) else {
            return Err(SifError::Damaged("its descriptors are not where they are said to be"));
        };
        let mut descriptors = vec![0; bytes as usize];
        file.read_exact_at(&mut descriptors, table).map_err(SifError::Read)?;
        let used = descriptors.chunks_exact(DESCRIPTOR).filter(|descriptor| descriptor[4] != 0);
        Ok(Sif {
            architecture: architecture(&header[0x2d..0x2f]),
            created: u64_at(&header, 0x40).cast_signed(),
            objects: used.map(|descriptor| object(descriptor, length)).collect::<Result<_, _>>()?,
        })
    }

    /// The root file system.
    ///
    /// # Errors
    /// None, or one that is not SquashFS.
    pub fn primary(&self) -> Result<Primary, SifError> {
        let found = self.objects.iter().find_map(|object| {
            object
                .partition
                .filter(|(_, role)| *role == partition::PRIMARY)
                .map(|part| (object, part))
        });
        let (object, (system, _)) = found.ok_or(SifError::NoPrimary)?;
        match system {
            partition::SQUASHFS => Ok(Primary {
                offset: object.offset,
                size: object.size,
            }),
            partition::EXT3 => Err(SifError::FileSystem("ext3")),
            partition::ENCRYPTED => Err(SifError::FileSystem("encrypted")),
            _ => Err(SifError::FileSystem("of another kind")),
        }
    }

    /// The definition file.
    ///
    /// # Errors
    /// What the disk says; one that is too large.
    pub fn definition(&self, file: &File) -> Result<Option<String>, SifError> {
        let object = self.objects.iter().find(|object| object.kind == kind::DEFINITION);
        let bytes = object.map(|object| text(file, object)).transpose()?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The JSON object of that name: `oci-config.json`, `inspect-metadata.json`.
    ///
    /// # Errors
    /// What the disk says; one that is too large.
    pub fn json(&self, file: &File, name: &str) -> Result<Option<Vec<u8>>, SifError> {
        let object = self.objects.iter().find(|object| object.kind == kind::JSON && object.name == name);
        object.map(|object| text(file, object)).transpose()
    }

    /// How the image wants to be run: what `oci-config.json` says; nothing where there is none.
    ///
    /// # Errors
    /// As [`Sif::json`]; one that is no such thing.
    pub fn execution(&self, file: &File) -> Result<Execution, SifError> {
        let name = format::OCI_CONFIG;
        match self.json(file, name)? {
            None => Ok(Execution::default()),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|source| SifError::Json {
                name: name.to_owned(),
                source,
            }),
        }
    }

    /// Whether anyone has signed it.
    pub fn is_signed(&self) -> bool {
        self.objects.iter().any(|object| object.kind == kind::SIGNATURE)
    }
}

impl Object {
    /// What it is, in words.
    pub fn description(&self) -> &'static str {
        match (self.kind, self.partition) {
            (kind::DEFINITION, _) => "definition",
            (kind::LABELS, _) => "labels",
            (kind::PARTITION, Some((partition::SQUASHFS, partition::PRIMARY))) => "root file system (SquashFS)",
            (kind::PARTITION, Some((_, partition::PRIMARY))) => "root file system",
            (kind::PARTITION, _) => "partition",
            (kind::SIGNATURE, _) => "signature",
            (kind::JSON, _) => "JSON",
            _ => "other",
        }
    }
}

fn object(descriptor: &[u8], length: u64) -> Result<Object, SifError> {
    let (offset, size) = (u64_at(descriptor, 17), u64_at(descriptor, 25));
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(SifError::Damaged("its end is missing"));
    }
    let (common, extra) = descriptor.split_at(DESCRIPTOR - EXTRA);
    let name = &common[73..];
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let kind = u32_at(descriptor, 0);
    let number = |at: usize| u32_at(extra, at).cast_signed();
    Ok(Object {
        id: u32_at(descriptor, 5),
        kind,
        name: String::from_utf8_lossy(name).into_owned(),
        offset,
        size,
        partition: (kind == kind::PARTITION).then(|| (number(0), number(4))),
    })
}

fn text(file: &File, object: &Object) -> Result<Vec<u8>, SifError> {
    if object.size > TEXT_MAX {
        return Err(SifError::Damaged("a text in it is too long"));
    }
    let mut bytes = vec![0; object.size as usize];
    file.read_exact_at(&mut bytes, object.offset).map_err(SifError::Read)?;
    Ok(bytes)
}

fn architecture(digits: &[u8]) -> &'static str {
    let known = format::ARCHITECTURES.iter().find(|(_, number)| *number == digits);
    known.map_or("", |(name, _)| name)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
