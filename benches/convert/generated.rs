//! Content from a seed: sequence data as text, packed data, and very many small files, in the same proportions whatever the size.

use std::io::{self, Write};

/// Of a large file.
const LARGE: usize = 4 << 20;

/// Writes a tar archive of about `bytes`, and returns how many files are in it.
pub fn write(seed: u64, bytes: u64, to: &mut impl Write) -> io::Result<u64> {
    let mut builder = tar::Builder::new(to);
    let mut random = fastrand::Rng::with_seed(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| (0..random.usize(2..10)).map(|_| random.lowercase()).collect())
        .collect();
    let mut files = 0;
    let mut add = |folder: &str, content: &[u8]| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, format!("opt/{seed}/{folder}{}/{files}", files / 200), content)?;
        files += 1;
        Ok(())
    };
    let mut large = Vec::with_capacity(LARGE);
    let mut produced = 0;
    while produced < bytes {
        large.clear();
        while large.len() < LARGE {
            let line: [u8; 60] = std::array::from_fn(|_| b"ACGT"[random.usize(..4)]);
            large.extend(line);
            large.push(b'\n');
        }
        add("reference", &large)?;
        large.resize(LARGE, 0);
        random.fill(&mut large);
        add("model", &large)?;
        let mut small = 0;
        while small < 2 * LARGE {
            let size = random.usize(200..30_000);
            let mut script = String::with_capacity(size + 16);
            while script.len() < size {
                script += &words[random.usize(..words.len())];
                script.push(if random.u8(..8) == 0 { '\n' } else { ' ' });
            }
            add("package", script.as_bytes())?;
            small += script.len();
        }
        produced += (2 * LARGE + small) as u64;
    }
    builder.finish()?;
    Ok(files)
}
