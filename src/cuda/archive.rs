//! Machine code that was compiled ahead of time, in one compressed file that can be built into the program.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::OnceLock;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use xxhash_rust::xxh3::xxh3_128;

use super::driver::Arch;
use super::source::Program;
use crate::error::{Error, Result};

/// What a program is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code of an architecture.
    Cubin(Arch),
    /// Assembly that the driver compiles for architectures from this one on.
    Ptx(Arch),
}

impl Target {
    /// As `nvcc` and NVRTC call it.
    pub fn name(self) -> String {
        match self {
            Target::Cubin(arch) => arch.to_string(),
            Target::Ptx(arch) => arch.to_string().replace("sm_", "compute_"),
        }
    }
}

/// Identifies a program by what it is made of.
fn key(program: &Program<'_>, target: Target) -> String {
    let hash = xxh3_128(format!("{:?}\n{}", program.defines, program.text).as_bytes());
    format!("{} {hash:032x} {}", program.name, target.name())
}

/// Images, by a hash of what they are made of.
#[derive(Default)]
pub struct Archive(BTreeMap<String, Vec<u8>>);

impl Archive {
    /// The one that was built into this program, empty if none was.
    ///
    /// # Errors
    /// It is damaged.
    pub fn built_in() -> Result<&'static Archive> {
        static ARCHIVE: OnceLock<Option<Archive>> = OnceLock::new();
        #[cfg(cubins)]
        const BYTES: Option<&[u8]> = Some(include_bytes!(env!("DELLA_CUBINS")));
        #[cfg(not(cubins))]
        const BYTES: Option<&[u8]> = None;
        let archive = ARCHIVE.get_or_init(|| BYTES.map_or_else(|| Some(Archive::default()), |b| Archive::read(b).ok()));
        archive.as_ref().ok_or_else(|| {
            let message = "what was built into this program is damaged; build it again, with another DELLA_CUBINS";
            Error::input("machine code", message)
        })
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an image of `program`.
    pub fn insert(&mut self, program: &Program<'_>, target: Target, image: Vec<u8>) {
        self.0.insert(key(program, target), image);
    }

    /// Adds all images of another archive.
    pub fn merge(&mut self, other: Archive) {
        self.0.extend(other.0);
    }

    /// An image of `program` for `target`.
    pub fn get(&self, program: &Program<'_>, target: Target) -> Option<&[u8]> {
        self.0.get(&key(program, target)).map(Vec::as_slice)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut text = Vec::new();
        let wrong = || Error::input("machine code", "is no archive of kernels");
        DeflateDecoder::new(bytes).read_to_end(&mut text).map_err(|_| wrong())?;
        let (mut images, mut rest) = (BTreeMap::new(), text.as_slice());
        while !rest.is_empty() {
            let mut part = || {
                let (length, after) = rest.split_first_chunk::<4>()?;
                let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
                rest = after;
                Some(part)
            };
            let (key, image) = part().zip(part()).ok_or_else(wrong)?;
            images.insert(String::from_utf8(key.into()).map_err(|_| wrong())?, image.into());
        }
        Ok(Archive(images))
    }

    /// Writes all images, compressed.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: impl Write) -> std::io::Result<()> {
        let mut encoder = DeflateEncoder::new(to, Compression::best());
        for part in self.0.iter().flat_map(|(key, image)| [key.as_bytes(), image]) {
            encoder.write_all(&(part.len() as u32).to_le_bytes())?;
            encoder.write_all(part)?;
        }
        encoder.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let program = Program { name: "f", path: "f.cu", defines: &[("N", 1)], text: "text" };
        let other = Program { defines: &[("N", 2)], ..program };
        let target = Target::Cubin(Arch { number: 90, specific: true });
        let mut archive = Archive::default();
        archive.insert(&program, target, vec![1, 2, 3]);
        archive.insert(&other, Target::Ptx(Arch::from_number(80)), vec![]);
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let read = Archive::read(&bytes).unwrap();
        assert_eq!(read.get(&program, target), Some(&[1, 2, 3][..]));
        assert_eq!((read.len(), read.get(&other, target)), (2, None));
        assert!(Archive::read(&bytes[..bytes.len() - 3]).is_err() && Archive::read(b"else").is_err());
    }
}
