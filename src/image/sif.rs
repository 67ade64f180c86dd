//! Writing SIF, the Singularity Image Format, version 01: one file with a SquashFS partition and what describes it.
//!
//! ```text
//! 0       global header (128 bytes, little-endian, unaligned)
//! 4096    48 descriptors of 585 bytes
//! 32176   definition │ inspect-metadata.json │ oci-config.json │ padding │ SquashFS, aligned to 4096
//! ```

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::error::{ImageError, at};
use super::layers::Merged;
use super::squashfs::{SquashfsOptions, Written, write_squashfs};
use crate::oci::{Algorithm, Hasher};
use crate::sif::format::{
    ARCHITECTURES, COUNT, DESCRIPTOR, DESCRIPTORS, EXTRA, GROUP, HEADER, INSPECT, MAGIC, OCI_CONFIG, VERSION, kind, partition,
};

/// What a SIF says of its partition.
#[derive(Clone, Debug)]
pub struct SifDescription {
    /// As an image's configuration names it (`amd64`); one that the format has no number for is stored as unknown.
    pub architecture: String,
    /// The definition file.
    pub definition: String,
    /// `inspect-metadata.json`.
    pub inspect: Vec<u8>,
    /// `oci-config.json`: the configuration's `config` object, verbatim.
    pub oci_config: Vec<u8>,
    /// Unix seconds. The same time, tree and description give the same file.
    pub created: i64,
}

const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";
const DATA: u64 = DESCRIPTORS + (COUNT * DESCRIPTOR) as u64;
const PARTITION_ALIGNMENT: u64 = 4096;

/// Writes `merged` as the SIF `out`, executable, replacing what is there in one step when all is on disk.
///
/// # Errors
/// What the disk says; then `out` is as it was.
pub fn write_sif(merged: &Merged, description: &SifDescription, options: &SquashfsOptions, out: &Path) -> Result<Written, ImageError> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let new = tempfile::NamedTempFile::new_in(folder).map_err(at("create a file in", folder))?;
    let written = write(merged, description, options, new.as_file()).map_err(at("write", out))?;
    new.persist(out).map_err(|error| at("write", out)(error.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at("write to disk", folder))?;
    Ok(written)
}

fn write(merged: &Merged, description: &SifDescription, options: &SquashfsOptions, file: &File) -> io::Result<Written> {
    let SifDescription {
        definition,
        inspect,
        oci_config,
        created,
        ..
    } = description;
    let architecture = architecture(&description.architecture);
    let texts: [(u32, &str, &[u8]); 3] = [
        (kind::DEFINITION, "", definition.as_bytes()),
        (kind::JSON, INSPECT, inspect),
        (kind::JSON, OCI_CONFIG, oci_config),
    ];
    let mut objects = Vec::new();
    let mut end = DATA;
    for (kind, name, bytes) in texts {
        file.write_all_at(bytes, end)?;
        let length = bytes.len() as u64;
        objects.push(Object {
            kind,
            name,
            offset: end,
            length,
            padded: length,
            extra: Vec::new(),
        });
        end += length;
    }
    let start = end.next_multiple_of(PARTITION_ALIGNMENT);
    let written = write_squashfs(merged, file, start, options)?;
    let extra = [
        &partition::SQUASHFS.to_le_bytes()[..],
        &partition::PRIMARY.to_le_bytes(),
        &architecture,
    ]
    .concat();
    objects.push(Object {
        kind: kind::PARTITION,
        name: "",
        offset: start,
        length: written.bytes,
        padded: written.bytes + (start - end),
        extra,
    });
    let end = start + written.bytes;
    let mut descriptors = vec![0; COUNT * DESCRIPTOR];
    for (at, object) in objects.iter().enumerate() {
        let id = u32::try_from(at + 1).expect("there are four");
        descriptors[at * DESCRIPTOR..][..DESCRIPTOR].copy_from_slice(&object.descriptor(id, *created));
    }
    file.write_all_at(&descriptors, DESCRIPTORS)?;
    let used = i64::try_from(objects.len()).expect("there are four");
    let mut header = Vec::with_capacity(HEADER);
    header.extend(LAUNCH);
    header.resize(32, 0);
    header.extend(MAGIC);
    header.extend(VERSION);
    header.extend(architecture);
    header.extend(uuid(description, &descriptors));
    header.extend(created.to_le_bytes());
    header.extend(created.to_le_bytes());
    header.extend((COUNT as i64 - used).to_le_bytes());
    header.extend((COUNT as i64).to_le_bytes());
    for field in [DESCRIPTORS, (COUNT * DESCRIPTOR) as u64, DATA, end - DATA] {
        header.extend(field.to_le_bytes());
    }
    file.set_permissions(Permissions::from_mode(0o755))?;
    file.sync_all()?;
    // Last: without it the file is nothing.
    file.write_all_at(&header, 0)?;
    file.sync_all()?;
    Ok(written)
}

/// Something in the file.
struct Object<'a> {
    kind: u32,
    name: &'a str,
    offset: u64,
    length: u64,
    /// From the end of the object before it.
    padded: u64,
    extra: Vec<u8>,
}

impl Object<'_> {
    fn descriptor(&self, id: u32, created: i64) -> [u8; DESCRIPTOR] {
        let mut bytes = Vec::with_capacity(DESCRIPTOR);
        bytes.extend(self.kind.to_le_bytes());
        bytes.push(1);
        for field in [id, GROUP, 0] {
            bytes.extend(field.to_le_bytes());
        }
        for field in [self.offset, self.length, self.padded] {
            bytes.extend(field.to_le_bytes());
        }
        for field in [created, created, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.name.as_bytes());
        bytes.resize(DESCRIPTOR - EXTRA, 0);
        bytes.extend(&self.extra);
        bytes.resize(DESCRIPTOR, 0);
        bytes.try_into().expect("it was sized")
    }
}

/// Two digits and a NUL.
fn architecture(name: &str) -> [u8; 3] {
    let known = ARCHITECTURES.iter().find(|(known, _)| *known == name);
    let digits = known.map_or(b"00", |(_, number)| *number);
    [digits[0], digits[1], 0]
}

/// From what the file says of itself, sizes included: version 8 of RFC 9562, "custom".
fn uuid(description: &SifDescription, descriptors: &[u8]) -> [u8; 16] {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for part in [
        description.definition.as_bytes(),
        &description.inspect,
        &description.oci_config,
        descriptors,
    ] {
        hasher.update(part);
    }
    let digest = hasher.finish();
    let mut uuid = [0; 16];
    for (byte, digits) in uuid.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16).expect("it is hexadecimal");
        *byte = u8::try_from(digit(0) << 4 | digit(1)).expect("two digits");
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
