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
    let header = header.to_vec();
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| format!("header: {e}"))?;
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

/// Writes a file of the tensors in the order of `tensors`; `bytes(i)` is asked for the little-endian elements of one
/// after the other, so that no more than one of them need be in memory.
///
/// The file appears at `path` when it is complete and on disk, or not at all. `metadata` becomes the header's
/// `__metadata__`; PyTorch wants `("format", "pt")` there.
///
/// # Errors
/// [`Error::Exists`] if there is a file at `path`, which is left alone; two tensors have one name; `bytes` fails or gives another number of bytes
/// than shape and type demand; the file cannot be written.
pub fn write<'a>(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &[Header],
    mut bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    if path.symlink_metadata().is_ok() {
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
    file.persist_noclobber(path).map_err(|e| match e.error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Exists(path.to_path_buf()),
        _ => io(e.error),
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn refused(file: &[u8], expected: &str) {
        let error = parse(Path::new("w.safetensors"), file).unwrap_err().to_string();
        assert!(error.contains("w.safetensors: "), "{error}");
        assert!(error.contains(expected), "{expected:?} is missing in: {error}");
    }

    fn entry(dtype: &str, shape: &str, start: u64, end: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    #[test]
    fn headers_that_contradict_the_file_are_refused() {
        let good = file(&format!(r#"{{"a":{}}}"#, entry("F32", "[2,3]", 0, 24)), 24);
        assert_eq!(parse(Path::new("w"), &good).unwrap()[0].shape, [2, 3]);
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_err(), "cut off at {end}");
        }
        refused(b"1234567", "too short");
        for length in [u64::MAX, u64::MAX - 7, 1 << 40, MAX_HEADER as u64 + 1] {
            refused(&[&length.to_le_bytes()[..], b"{}"].concat(), "its header has");
        }
        refused(&file(&" ".repeat(MAX_HEADER + 1), 0), "its header has");
        refused(&file("{", 0), "header: ");
        refused(&file(&"[".repeat(100_000), 0), "header: ");
        refused(&file("{\"a\":\u{1}}", 0), "header: ");
        for (header, data, expected) in [
            (format!(r#"{{"a":{}}}"#, entry("F32", "[6]", 0, 24)), 28, "cut off"),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[7]", 0, 24)), 24, "header: "),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[6]", 4, 28)), 28, "header: "),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[6]", 24, 0)), 24, "header: "),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[6]", 0, u64::MAX)), 24, "header: "),
            (format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[1]", 0, 4), entry("F32", "[1]", 2, 6)), 6, "header: "),
            (format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[1]", 0, 4), entry("F32", "[1]", 8, 12)), 12, "header: "),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296,4]", 0, 0)), 0, "header: "),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[0,4294967296,4294967296]", 0, 0)), 0, "too large"),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4)), 4, "9 dimensions"),
            (format!(r#"{{"a":{}}}"#, entry("F8_E4M3", "[4]", 0, 4)), 4, "stored as F8_E4M3"),
            (format!(r#"{{"a":{}}}"#, entry("F33", "[4]", 0, 4)), 4, "header: "),
        ] {
            refused(&file(&header, data), expected);
        }
    }

    #[test]
    fn offsets_that_sum_to_more_than_a_word_are_refused() {
        // Fifteen tensors of 2⁶⁰ bytes and one of the rest: their end plus the header's length would wrap around.
        let part = 1u64 << 60;
        let entries: Vec<String> = (0..16)
            .map(|i| {
                let (start, end) = (i * part, if i == 15 { u64::MAX } else { (i + 1) * part });
                format!(r#""t{i}":{}"#, entry("U8", &format!("[{}]", end - start), start, end))
            })
            .collect();
        refused(&file(&format!("{{{}}}", entries.join(",")), 8), "cut off");
        let sizes: Vec<Header> =
            (0..9).map(|i| Header { name: i.to_string(), dtype: ElementType::U8, shape: vec![1 << 61] }).collect();
        assert!(super::header(&[], &sizes).unwrap_err().contains("too large"));
    }

    #[test]
    fn an_index_stays_in_its_directory() {
        let parse = |shard: &str| {
            let json = json!({ "weight_map": { "model.a": shard } }).to_string();
            parse_index(Path::new("model.safetensors.index.json"), json.as_bytes())
        };
        assert_eq!(parse("model-1.safetensors").unwrap()["model.a"], "model-1.safetensors");
        for shard in ["../x", "/etc/passwd", "a/b", "a/", "./a", ".", "..", "", "a/../b"] {
            let error = parse(shard).unwrap_err().to_string();
            assert!(error.contains("model.a") && error.contains("not the name of a file"), "{shard:?}: {error}");
        }
        let error = parse_index(Path::new("i.json"), b"{}").unwrap_err().to_string();
        assert!(error.contains("i.json: `weight_map`"), "{error}");
    }

    #[test]
    fn what_is_written_reads_back_and_is_never_half_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.safetensors");
        let headers = [
            Header { name: "b \"quoted\"".into(), dtype: ElementType::F32, shape: vec![2] },
            Header { name: "a".into(), dtype: ElementType::I64, shape: vec![] },
            Header { name: "empty".into(), dtype: ElementType::F16, shape: vec![0, 3] },
        ];
        let write_with = |number: i64| {
            write(&path, &[("format", "pt"), ("by", "test")], &headers, |i| {
                Ok(Cow::Owned(match i {
                    0 => [1f32, 2.].map(f32::to_le_bytes).concat(),
                    1 => number.to_le_bytes().to_vec(),
                    _ => vec![],
                }))
            })
        };
        let files = || std::fs::read_dir(&directory).unwrap().count();
        write_with(7).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let tensors = parse(&path, &bytes).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(tensors.len(), 3, "{names:?}");
        let read = |name| {
            let tensor = tensors.iter().find(|t| t.name == name).unwrap();
            let mut out: Vec<i64> = Vec::new();
            tensor.read(&bytes, 0..1, &mut out).map(|()| out[0])
        };
        assert_eq!(read("a"), Ok(7));
        let metadata = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap().1;
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(::safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("a").unwrap().data()[0], 7);

        assert!(matches!(write_with(8), Err(Error::Exists(found)) if found == path));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(files(), 1);

        // Failures half-way leave neither the file nor a part of it.
        let other = directory.path().join("other.safetensors");
        for given in [Ok(Cow::Borrowed(&[0u8; 3][..])), Err(Error::Cancelled)] {
            let mut given = Some(given);
            let result = write(&other, &[], &headers, |i| match i {
                0 => Ok(Cow::Owned(vec![0; 8])),
                _ => given.take().unwrap(),
            });
            assert!(result.is_err());
            assert_eq!(files(), 1);
        }
        let twice = [headers[1].clone(), headers[1].clone()];
        let error = write(&other, &[], &twice, |_| Ok(Cow::Owned(vec![0; 8]))).unwrap_err();
        assert!(error.to_string().contains("two entries would be called \"a\""), "{error}");
    }
}
