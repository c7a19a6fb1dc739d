//! PyTorch's zip archives: `pytorch_model.bin` and DeepSpeed's `mp_rank_00_model_states.pt`.
//!
//! An archive has one top folder of any name. In it `data.pkl` describes the tensors ([`unpickle`]), `data/<key>` are
//! the storages, raw and uncompressed, and `byteorder` says in which order their bytes are. The storages are not read
//! here: a tensor is a range of the file.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::CompressionMethod;
use zip::read::{ArchiveOffset, Config, ZipArchive};

use self::unpickle::{Pickle, Value};
use crate::io::quoted;
use crate::io::tensor::TensorInfo;
use crate::{Error, Result};

#[cfg(test)]
mod tests;
pub mod unpickle;

/// The bytes that such an archive starts with.
pub const MAGIC: &[u8] = b"PK\x03\x04";

/// What an archive holds.
#[derive(Debug)]
pub struct Archive {
    /// The tensors in the order of the file, under the names that they have there.
    pub tensors: Vec<TensorInfo>,
    /// Whether they lay in a DeepSpeed checkpoint, under the key `module`.
    pub deepspeed: bool,
}

/// Reads what `archive`, the whole content of the file at `path`, says about its tensors. The path serves messages only.
///
/// # Errors
/// The archive or its pickle is malformed, names anything but weights, is compressed or big-endian, or a tensor leaves
/// its storage.
pub fn parse(path: &Path, archive: &[u8]) -> Result<Archive> {
    read(archive).map_err(|problem| Error::format(path, problem))
}

fn read(archive: &[u8]) -> Result<Archive, String> {
    let entries = Entries::read(archive)?;
    // Copied, because the archive may be a map of a file that changes, and text must stay the text that was checked.
    let pickle = &archive[entries.get("data.pkl")?];
    let pickle = pickle[..pickle.len().min(unpickle::MAX_LEN + 1)].to_vec();
    match entries.get("byteorder").map(|range| &archive[range]) {
        Err(_) | Ok(b"little") => {}
        Ok(other) => {
            return Err(format!(
                "`byteorder` is {}; only little-endian archives are supported, so save the model again on such a machine",
                quoted(&String::from_utf8_lossy(&other[..other.len().min(16)]))
            ));
        }
    }
    let pickle = Pickle::read(&pickle)?;
    let (weights, deepspeed) = weights(&pickle)?;

    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for &(key, value) in weights {
        let (Value::Str(name), Value::Tensor(tensor)) = (key, value) else { continue };
        if !names.insert(name) {
            return Err(format!("tensor {} occurs twice", quoted(name)));
        }
        let tensor = &pickle.tensors[tensor];
        let storage = pickle.storages[tensor.storage];
        let entry = entries.get(&format!("data/{}", storage.key))?;
        let info = match storage.elements.checked_mul(storage.dtype.size()) {
            Some(bytes) if bytes <= entry.len() => TensorInfo::new(
                name,
                storage.dtype,
                tensor.shape.clone(),
                tensor.strides.clone(),
                entry.start..entry.start + bytes,
                tensor.offset,
            ),
            _ => Err(format!(
                "needs storage {} with {} elements of {}, but the archive has {} bytes of it",
                quoted(storage.key),
                storage.elements,
                storage.dtype,
                entry.len()
            )),
        };
        tensors.push(info.map_err(|problem| format!("tensor {} {problem}", quoted(name)))?);
    }
    if tensors.is_empty() {
        return Err(
            "holds no tensors; expected a dictionary of names and weights, or one under the key `module`".into()
        );
    }
    Ok(Archive { tensors, deepspeed })
}

type Items<'a, 'p> = &'a [(Value<'p>, Value<'p>)];

/// The dictionary of weights: what is under the key `module`, or the whole.
fn weights<'a, 'p>(pickle: &'a Pickle<'p>) -> Result<(Items<'a, 'p>, bool), String> {
    let Value::Dict(root) = pickle.root() else {
        return Err("the pickle is not a dictionary; save the model's state_dict".into());
    };
    let root = &pickle.dicts[root];
    let module = root.iter().find_map(|item| match item {
        (Value::Str("module"), Value::Dict(module)) => Some(*module),
        _ => None,
    });
    Ok(match module {
        Some(module) => (&pickle.dicts[module], true),
        None => (root, false),
    })
}

/// Where the archive's entries lie in it, by their name below the top folder.
struct Entries(HashMap<String, Range<usize>>);

impl Entries {
    fn read(archive: &[u8]) -> Result<Self, String> {
        if !archive.starts_with(MAGIC) {
            return Err("is not a PyTorch zip archive: it does not start with `PK`".into());
        }
        // The offset is known because the file starts with an entry: there is no need to search for it.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, Cursor::new(archive))
            .map_err(|e| format!("the zip directory at its end cannot be read ({e}); the file may be cut off"))?;
        if zip.has_duplicate_names() {
            return Err("two entries of the zip archive have the same name".into());
        }
        let mut entries = HashMap::with_capacity(zip.len());
        let mut top = None;
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| format!("entry {index} of the zip archive: {e}"))?;
            let name = std::str::from_utf8(entry.name_raw())
                .map_err(|_| format!("the name of entry {index} of the zip archive is not UTF-8"))?;
            let quoted = quoted(name);
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(format!(
                    "entry {quoted} is compressed or encrypted; torch.save stores entries as they are"
                ));
            }
            let range = entry.data_start().and_then(|start| {
                let start = usize::try_from(start).ok()?;
                let end = start.checked_add(usize::try_from(entry.size()).ok()?)?;
                (entry.size() == entry.compressed_size() && end <= archive.len()).then_some(start..end)
            });
            let range =
                range.ok_or_else(|| format!("entry {quoted} reaches beyond the end; the file may be cut off"))?;
            let Some((folder, name)) = name.split_once('/') else {
                return Err(format!("entry {quoted} is not in the top folder"));
            };
            if *top.get_or_insert_with(|| folder.to_owned()) != folder {
                return Err(format!("entry {quoted} is in a second top folder"));
            }
            entries.insert(name.to_owned(), range);
        }
        Ok(Self(entries))
    }

    fn get(&self, name: &str) -> Result<Range<usize>, String> {
        self.0.get(name).cloned().ok_or_else(|| format!("the zip archive has no entry {}", quoted(name)))
    }
}
