//! Layers made to measure: tar archives byte by byte, so that hostile ones can be made as well as good ones, and OCI layouts of them.

use std::fs;
use std::io::Write;
use std::path::Path;

use dvrun::image::LayerBlob;
use dvrun::oci::Digest;

/// One member of an archive, before it is packed. Start from one of the functions below.
#[derive(Clone, Debug)]
pub struct Member {
    /// The type flag: `b'0'` a file, `b'5'` a folder, …
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub device: (u32, u32),
    /// What is stored; the header's size is its length, unless `size` says otherwise.
    pub body: Vec<u8>,
    pub size: Option<u64>,
    /// Records of a PAX header before it.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// How a name of more than 100 bytes is kept.
    pub long: Long,
    /// The slots of an old GNU sparse file (`kind` `b'S'`) and its real size.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
    /// Name and content of a sparse file, as a reader should come to see them.
    pub real: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Long {
    Pax,
    Gnu,
    /// Split between name and prefix, at the first slash that fits.
    Ustar,
}

/// The time of every member that does not say its own.
pub const WHEN: i64 = 1_600_000_000;

pub fn member(kind: u8, name: impl AsRef<[u8]>) -> Member {
    Member {
        kind,
        name: name.as_ref().to_vec(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: WHEN,
        device: (0, 0),
        body: Vec::new(),
        size: None,
        pax: Vec::new(),
        long: Long::Pax,
        sparse: None,
        real: None,
    }
}

pub fn file(name: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Member {
    let body = body.as_ref().to_vec();
    Member {
        body,
        ..member(b'0', name)
    }
}

pub fn folder(name: impl AsRef<[u8]>) -> Member {
    Member {
        mode: 0o755,
        ..member(b'5', name)
    }
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member {
        link: target.as_ref().to_vec(),
        mode: 0o777,
        ..member(b'2', name)
    }
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member {
        link: target.as_ref().to_vec(),
        ..member(b'1', name)
    }
}

pub fn device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Member {
    Member {
        device: (major, minor),
        ..member(b'3', name)
    }
}

/// A whiteout of `path`.
pub fn whiteout(path: &str) -> Member {
    let (parent, name) = path.rsplit_once('/').map_or((String::new(), path), |(p, n)| (format!("{p}/"), n));
    file(format!("{parent}.wh.{name}"), "")
}

/// An opaque marker in `path` (empty: the root).
pub fn opaque(path: &str) -> Member {
    let parent = if path.is_empty() { String::new() } else { format!("{path}/") };
    file(format!("{parent}.wh..wh..opq"), "")
}

impl Member {
    pub fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }

    pub fn owner(self, uid: u32, gid: u32) -> Member {
        Member { uid, gid, ..self }
    }

    pub fn time(self, mtime: i64) -> Member {
        Member { mtime, ..self }
    }

    pub fn long(self, long: Long) -> Member {
        Member { long, ..self }
    }

    /// With one more PAX record.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Member {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Member {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }
}

/// How GNU tar keeps the map of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparse {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// A file of `size` bytes with these parts at these offsets, and holes elsewhere.
pub fn sparse(name: &str, how: Sparse, size: u64, parts: &[(u64, &[u8])]) -> Member {
    let mut content = vec![0; usize::try_from(size).expect("a test's file fits in memory")];
    for (at, bytes) in parts {
        let at = usize::try_from(*at).expect("a test's file fits in memory");
        content[at..at + bytes.len()].copy_from_slice(bytes);
    }
    Member {
        real: Some((name.into(), content)),
        ..huge(name, how, size, parts)
    }
}

/// As [`sparse`], of any size: a model does not know what is in it.
pub fn huge(name: &str, how: Sparse, size: u64, parts: &[(u64, &[u8])]) -> Member {
    let stored: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let map: Vec<(u64, u64)> = parts.iter().map(|(at, bytes)| (*at, bytes.len() as u64)).collect();
    let text = |n: u64| n.to_string();
    match how {
        Sparse::OldGnu => Member {
            kind: b'S',
            sparse: Some((map, size)),
            ..file(name, stored)
        },
        Sparse::Pax00 => {
            let member = file("GNUSparseFile.0/hole", stored)
                .pax("path", name)
                .pax("GNU.sparse.size", text(size))
                .pax("GNU.sparse.numblocks", text(map.len() as u64));
            map.iter().fold(member, |member, (at, length)| {
                member.pax("GNU.sparse.offset", text(*at)).pax("GNU.sparse.numbytes", text(*length))
            })
        }
        Sparse::Pax01 => {
            let list: Vec<String> = map.iter().flat_map(|(at, length)| [text(*at), text(*length)]).collect();
            file("GNUSparseFile.0/hole", stored)
                .pax("GNU.sparse.name", name)
                .pax("GNU.sparse.size", text(size))
                .pax("GNU.sparse.numblocks", text(map.len() as u64))
                .pax("GNU.sparse.map", list.join(","))
        }
        Sparse::Pax10 => {
            let mut body = format!("{}\n", map.len());
            for (at, length) in &map {
                body += &format!("{at}\n{length}\n");
            }
            let mut body = body.into_bytes();
            pad(&mut body);
            body.extend(stored);
            file("GNUSparseFile.0/hole", body)
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.name", name)
                .pax("GNU.sparse.realsize", text(size))
        }
    }
}

/// Packs members into an archive with its end marker.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        pack(member, &mut bytes);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn pack(member: &Member, out: &mut Vec<u8>) {
    let mut pax = member.pax.clone();
    for (long, pax_key, gnu_kind) in [(&member.name, "path", b'L'), (&member.link, "linkpath", b'K')] {
        match member.long {
            _ if long.len() <= 100 => {}
            Long::Pax => pax.push((pax_key.into(), long.clone())),
            Long::Gnu => {
                let body = [&long[..], b"\0"].concat();
                out.extend(header(&file("././@LongLink", body.clone()).mode(0).time(0), gnu_kind));
                out.extend(body);
                pad(out);
            }
            Long::Ustar => assert_eq!(gnu_kind, b'L', "ustar has no room for long targets"),
        }
    }
    if !pax.is_empty() {
        let body: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        out.extend(header(&file("PaxHeaders/next", body.clone()).time(0), b'x'));
        out.extend(body);
        pad(out);
    }
    out.extend(header(member, member.kind));
    if let Some((map, _)) = &member.sparse {
        for slots in map.get(4..).unwrap_or_default().chunks(21) {
            let mut block: Vec<u8> = slots.iter().flat_map(|slot| sparse_slot(*slot)).collect();
            block.resize(504, 0);
            let last = map.last() == slots.last();
            block.push(u8::from(!last));
            block.resize(512, 0);
            out.extend(block);
        }
    }
    out.extend(&member.body);
    pad(out);
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

fn sparse_slot((at, length): (u64, u64)) -> Vec<u8> {
    format!("{at:011o}\0{length:011o}\0").into_bytes()
}

fn header(member: &Member, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |value: u64, width: usize| match value < 1 << (3 * (width - 1)) {
        true => format!("{value:0width$o}\0", width = width - 1).into_bytes(),
        false => base_256(value.cast_signed(), width),
    };
    let (mut name, mut prefix) = (&member.name[..], &b""[..]);
    if name.len() > 100 && member.long == Long::Ustar {
        let slash = (name.len() - 101..name.len())
            .find(|&at| name[at] == b'/')
            .expect("a long ustar name has folders");
        (prefix, name) = (&name[..slash], &name[slash + 1..]);
    }
    put(0, &name[..name.len().min(100)]);
    put(100, &octal(member.mode.into(), 8));
    put(108, &octal(member.uid.into(), 8));
    put(116, &octal(member.gid.into(), 8));
    put(124, &octal(member.size.unwrap_or(member.body.len() as u64), 12));
    match u64::try_from(member.mtime) {
        Ok(mtime) => put(136, &octal(mtime, 12)),
        Err(_) => put(136, &base_256(member.mtime, 12)),
    }
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &member.link[..member.link.len().min(100)]);
    let gnu = member.long == Long::Gnu || member.sparse.is_some();
    put(257, if gnu { b"ustar  \0" } else { b"ustar\x0000" });
    put(329, &octal(member.device.0.into(), 8));
    put(337, &octal(member.device.1.into(), 8));
    put(345, prefix);
    if let Some((map, size)) = &member.sparse {
        for (slot, part) in map.iter().take(4).enumerate() {
            put(386 + 24 * slot, &sparse_slot(*part));
        }
        put(482, &[u8::from(map.len() > 4)]);
        put(483, &octal(*size, 12));
    }
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn base_256(value: i64, width: usize) -> Vec<u8> {
    let mut field = vec![if value < 0 { 0xff } else { 0 }; width];
    field[width - 8..].copy_from_slice(&value.to_be_bytes());
    field[0] |= 0x80;
    field
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    /// Several members, as `pigz -i` and eStargz write them.
    GzipMembers,
    Zstd,
    /// Several frames, with a skippable one at each end, as zstd:chunked has them.
    ZstdFrames,
}

impl Packing {
    pub const ALL: [Packing; 5] = [
        Packing::Plain,
        Packing::Gzip,
        Packing::GzipMembers,
        Packing::Zstd,
        Packing::ZstdFrames,
    ];

    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        let halves = bytes.split_at(bytes.len() / 2);
        let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), b"skip"].concat();
        match self {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => gzip(bytes),
            Packing::GzipMembers => [gzip(halves.0), gzip(halves.1), gzip(b"")].concat(),
            Packing::Zstd => zstd(bytes),
            Packing::ZstdFrames => [skippable.clone(), zstd(halves.0), zstd(halves.1), skippable].concat(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
            Packing::Gzip | Packing::GzipMembers => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packing::Zstd | Packing::ZstdFrames => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("a Vec takes all")
}

/// Writes a layer's blob into `folder`, whatever its bytes are.
pub fn blob(folder: &Path, packing: Packing, tar: &[u8]) -> LayerBlob {
    let packed = packing.pack(tar);
    let digest = Digest::sha256(&packed);
    let path = folder.join(digest.hex());
    fs::write(&path, packed).expect("the test's folder is writable");
    LayerBlob {
        path,
        digest,
        diff_id: Some(Digest::sha256(tar)),
    }
}

/// Writes an OCI layout with one image, tagged `tag`: what other tools read.
pub fn layout(folder: &Path, tag: &str, packing: Packing, tars: &[Vec<u8>]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the test's folder is writable");
    let layers: Vec<LayerBlob> = tars.iter().map(|tar| blob(&blobs, packing, tar)).collect();
    let descriptor = |media_type: &str, digest: &Digest| {
        let size = fs::metadata(blobs.join(digest.hex())).expect("just written").len();
        serde_json::json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
    };
    let put = |value: serde_json::Value| {
        let bytes = serde_json::to_vec(&value).expect("it is JSON");
        let digest = Digest::sha256(&bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("the test's folder is writable");
        digest
    };
    let config = put(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id.clone()).collect::<Vec<_>>()},
    }));
    let manifest = put(serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|l| descriptor(packing.media_type(), &l.digest)).collect::<Vec<_>>(),
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(folder.join("index.json"), index.to_string()).expect("the test's folder is writable");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the test's folder is writable");
}
