//! Safetensors: one file of tensors, or an index over several; and the writer.
//!
//! A file is the length of its header as a little-endian `u64`, the header in JSON, and the tensors one after the other.
//! The header is parsed and checked by the `safetensors` crate; where tensors lie in the file is checked here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Component, Path};

use ::safetensors::Dtype;
use ::safetensors::tensor::Metadata;
use serde::Deserialize;
use serde_json::json;

use crate::io::quoted;
use crate::io::tensor::{ElementType, TensorInfo, element_count};
use crate::{Error, Result};

/// The longest header that is read, in bytes.
const MAX_HEADER: usize = 1 << 24;

/// Reads the header of `file`, the whole content of the file at `path`. The path serves messages only.
///
/// The tensors come in the order in which they lie in the file. Types that no model here uses are refused by name.
///
/// # Errors
/// The header is malformed or disagrees with the file's length.
pub fn parse(path: &Path, file: &[u8]) -> Result<Vec<TensorInfo>> {
    read(file).map_err(|problem| Error::format(path, problem))
}

fn read(file: &[u8]) -> Result<Vec<TensorInfo>, String> {
    let (length, rest) = file.split_first_chunk::<8>().ok_or("is too short for a safetensors file")?;
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER)
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| format!("says that its header has {length} bytes; it is not safetensors, or it is cut off"))?;
    let data = 8 + header.len();
    // Copied, because the file may be a map of one that changes, and text must stay the text that was checked.
    let metadata: Metadata = serde_json::from_slice(&header.to_vec()).map_err(|e| format!("header: {e}"))?;
    if metadata.data_len() != file.len() - data {
        return Err(format!(
            "has {} bytes of tensors where its header announces {}; it may be cut off",
            file.len() - data,
            metadata.data_len()
        ));
    }
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(found) = metadata.info(&name) else { continue };
        let (start, end) = found.data_offsets;
        let dtype = element_type(found.dtype)
            .ok_or_else(|| format!("tensor {} is stored as {}, which is not supported", quoted(&name), found.dtype))?;
        let info = TensorInfo::row_major(&name, dtype, found.shape.clone(), data + start..data + end);
        tensors.push(info.map_err(|problem| format!("tensor {} {problem}", quoted(&name)))?);
    }
    Ok(tensors)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}

/// Reads an index, the content of `model.safetensors.index.json`: for each tensor, the file beside it that holds it.
///
/// # Errors
/// It is not such an index, or names a file outside its directory.
pub fn parse_index(path: &Path, json: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| Error::format(path, format!("`weight_map`: {e}")))?;
    for (tensor, shard) in &index.weight_map {
        let mut parts = Path::new(shard).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == shard.as_str()) {
            let (tensor, shard) = (quoted(tensor), quoted(shard));
            return Err(Error::format(
                path,
                format!("tensor {tensor} is said to be in {shard}, which is not the name of a file in this directory"),
            ));
        }
    }
    Ok(index.weight_map)
}

/// What is said about a tensor before its bytes are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name, unique in the file.
    pub name: String,
    /// How its elements are stored.
    pub dtype: ElementType,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// What to do if the file is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone and fail.
    Refuse,
    /// Put the new file in its place, at once.
    Replace,
}

/// Writes a file of the tensors in the order of `tensors`; `bytes(i)` is asked for the little-endian elements of one
/// after the other, so that no more than one of them need be in memory.
///
/// The file appears at `path` when it is complete and on disk, or not at all. `metadata` becomes the header's
/// `__metadata__`; PyTorch wants `("format", "pt")` there.
///
/// # Errors
/// [`Error::Exists`] as `existing` demands; two tensors have one name; `bytes` fails or gives another number of bytes
/// than shape and type demand; the file cannot be written.
pub fn write<'a>(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &[Header],
    existing: Existing,
    mut bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    if existing == Existing::Refuse && path.symlink_metadata().is_ok() {
        return Err(Error::Exists(path.to_path_buf()));
    }
    let io = |e| Error::io(path, e);
    let (header, sizes) = header(metadata, tensors).map_err(|problem| Error::format(path, problem))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let mut builder = tempfile::Builder::new();
    builder.prefix(".della-").suffix(".part");
    #[cfg(unix)]
    {
        // A temporary file is its owner's alone; this one becomes a file like any other, subject to the umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut out = BufWriter::new(builder.tempfile_in(directory).map_err(io)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&header)).map_err(io)?;
    for (i, (tensor, size)) in tensors.iter().zip(sizes).enumerate() {
        let data = bytes(i)?;
        if data.len() != size {
            return Err(Error::format(
                path,
                format!("tensor {} has {} bytes, not the {size} of its shape", quoted(&tensor.name), data.len()),
            ));
        }
        out.write_all(&data).map_err(io)?;
    }
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    file.as_file().sync_all().map_err(io)?;
    match existing {
        Existing::Replace => file.persist(path).map_err(|e| io(e.error))?,
        Existing::Refuse => file.persist_noclobber(path).map_err(|e| match e.error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists(path.to_path_buf()),
            _ => io(e.error),
        })?,
    };
    // The new name is in the directory, which has its own way to the disk.
    #[cfg(unix)]
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
    Ok(())
}

/// The header's JSON, padded so that the data starts at a multiple of eight, and each tensor's size in bytes.
fn header(metadata: &[(&str, &str)], tensors: &[Header]) -> Result<(Vec<u8>, Vec<usize>), String> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut start = 0usize;
    for Header { name, dtype, shape } in tensors {
        let size = element_count(shape)?.checked_mul(dtype.size());
        let (size, end) = size
            .and_then(|size| Some((size, start.checked_add(size)?)))
            .ok_or_else(|| format!("tensor {} of shape {shape:?} is too large", quoted(name)))?;
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
        if name == "__metadata__" || entries.insert(name.clone(), entry).is_some() {
            return Err(format!("two entries would be called {}", quoted(name)));
        }
        sizes.push(size);
        start = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok((header, sizes))
}
