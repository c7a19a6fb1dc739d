//! A model's weights under their canonical names, whatever file they come in.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::io::mmap::MappedFile;
use crate::io::tensor::Number;
use crate::io::{TensorInfo, quoted, read_small, safetensors, torch_zip};
use crate::{Error, Result};

/// What a model directory is searched for, in this order.
const FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "mp_rank_00_model_states.pt"];

/// The ways in which tensors are named: `model.` is the canonical one.
const PREFIXES: [&str; 3] = ["module.model.", "model.", ""];

/// The name of the head, which shares the decoder's token embedding, and that embedding's own.
pub const TIED_HEAD: (&str, &str) = ("model.decoder.lm_head.weight", "model.decoder.transformer.wte.weight");

/// The longest index of shards that is read, in bytes.
const MAX_INDEX: u64 = 1 << 24;

/// The format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One safetensors file.
    Safetensors,
    /// Several safetensors files with an index.
    ShardedSafetensors,
    /// A PyTorch zip archive.
    Torch,
    /// A PyTorch zip archive written by DeepSpeed.
    DeepSpeed,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::ShardedSafetensors => "sharded safetensors",
            Self::Torch => "PyTorch archive",
            Self::DeepSpeed => "DeepSpeed archive",
        })
    }
}

/// Tensors in one or more mapped files. Opening reads headers only; a tensor is read when it is asked for, and its part
/// of the file does not stay in memory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens the weights of a model: `path` is a model directory or a file of weights.
    ///
    /// Names become canonical: `module.model.`, `model.` or no prefix (the same for all of a file's tensors) becomes
    /// `model.`. Attention masks that were saved with the model (`*.attn.bias`, `*.attn.masked_bias`) are left out. Of
    /// the tied head and embedding, a file may hold the head alone: it goes by the embedding's name.
    ///
    /// # Errors
    /// There is nothing to open, the file is malformed, or its prefixes are mixed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_as_is(path)?.with_canonical_names()
    }

    /// The tensors of a safetensors file that is compiled into the executable; `path` is what errors call it.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn builtin(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        let tensors = safetensors::parse(path, bytes)?;
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let files = vec![MappedFile::builtin(path, bytes)];
        Self { path: path.to_path_buf(), format: Format::Safetensors, files, tensors }.with_canonical_names()
    }

    /// Opens any file of tensors under the names that they have there; `path` as for [`Checkpoint::open`].
    ///
    /// # Errors
    /// As for [`Checkpoint::open`], but names may be anything.
    pub fn open_as_is(path: impl AsRef<Path>) -> Result<Self> {
        let path = find(path.as_ref())?;
        let (format, files, tensors) =
            if path.to_string_lossy().ends_with(".index.json") { open_shards(&path)? } else { open_file(&path)? };
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Self { path, format, files, tensors })
    }

    fn with_canonical_names(mut self) -> Result<Self> {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = canonical(tensors).map_err(|problem| self.malformed(problem))?;
        Ok(self)
    }

    /// The file that was opened; of shards, their index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that the file lies in, where a model's other files are.
    pub fn dir(&self) -> &Path {
        self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The file's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The elements of a floating-point tensor in row-major order, rounded to `f32`.
    ///
    /// # Errors
    /// There is no such tensor, it is not floating-point, or an element is infinite or NaN.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read_f32_into(name, Vec::new())
    }

    /// [`read_f32`](Self::read_f32) into the memory of a vector whose content is of no use any more.
    ///
    /// # Errors
    /// As for [`Checkpoint::read_f32`].
    pub fn read_f32_into(&self, name: &str, spare: Vec<f32>) -> Result<Vec<f32>> {
        self.read(name, spare)
    }

    /// The elements of a floating-point tensor in row-major order.
    ///
    /// # Errors
    /// As for [`Checkpoint::read_f32`].
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>> {
        self.read(name, Vec::new())
    }

    /// The elements of an integer or boolean tensor in row-major order.
    ///
    /// # Errors
    /// There is no such tensor, or it is floating-point.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        self.read(name, Vec::new())
    }

    /// Whether two floating-point tensors have the same shape and elements, as tied weights must.
    ///
    /// # Errors
    /// There is no such tensor, or one is not floating-point.
    pub fn same_values(&self, a: &str, b: &str) -> Result<bool> {
        let (a, b) = (self.tensor(a)?, self.tensor(b)?);
        if a.same_location(b) {
            return Ok(true);
        }
        if a.shape != b.shape {
            return Ok(false);
        }
        let (mut left, mut right) = (Vec::<f64>::new(), Vec::new());
        for chunk in a.chunks() {
            for (tensor, out) in [(a, &mut left), (b, &mut right)] {
                out.clear();
                self.read_chunk(tensor, chunk.clone(), out)?;
            }
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.get(name)
            .ok_or_else(|| self.malformed(format!("has no tensor {} among its {}", quoted(name), self.tensors.len())))
    }

    fn read<T: Number>(&self, name: &str, mut elements: Vec<T>) -> Result<Vec<T>> {
        let tensor = self.tensor(name)?;
        elements.clear();
        elements.reserve_exact(tensor.elements());
        for chunk in tensor.chunks() {
            let start = chunk.start;
            self.read_chunk(tensor, chunk, &mut elements)?;
            // All first, which runs in vectors; then which one.
            let finite = elements[start..].iter().fold(true, |finite, element| finite & element.is_finite());
            if !finite && let Some(found) = elements[start..].iter().position(|element| !element.is_finite()) {
                let problem = format!("tensor {} has no finite number at index {}", quoted(name), start + found);
                return Err(self.malformed(problem + "; the file is damaged or training diverged"));
            }
        }
        Ok(elements)
    }

    fn read_chunk<T: Number>(&self, tensor: &TensorInfo, chunk: Range<usize>, out: &mut Vec<T>) -> Result<()> {
        let file = &self.files[tensor.file];
        tensor
            .read(file.bytes(), chunk.clone(), out)
            .map_err(|problem| Error::format(file.path(), format!("tensor {} {problem}", quoted(&tensor.name))))?;
        // From the start, because the kernel maps pages around the one that is touched, released ones among them.
        file.release(tensor.span(0..chunk.end));
        Ok(())
    }

    fn malformed(&self, problem: impl fmt::Display) -> Error {
        Error::format(&self.path, problem)
    }
}

/// The file of weights that `path` means.
fn find(path: &Path) -> Result<PathBuf> {
    let metadata = path.metadata().map_err(|e| Error::io(path, e))?;
    if !metadata.is_dir() {
        return Ok(path.to_path_buf());
    }
    FILES.iter().map(|file| path.join(file)).find(|file| file.exists()).ok_or_else(|| {
        Error::format(path, format!("holds none of {}; name the directory that has one", FILES.join(", ")))
    })
}

type Opened = (Format, Vec<MappedFile>, Vec<TensorInfo>);

fn open_file(path: &Path) -> Result<Opened> {
    let file = MappedFile::open(path)?;
    let bytes = file.bytes();
    let (format, tensors) = if bytes.starts_with(torch_zip::MAGIC) {
        let archive = torch_zip::parse(path, bytes)?;
        (if archive.deepspeed { Format::DeepSpeed } else { Format::Torch }, archive.tensors)
    } else if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::format(path, "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"));
    } else if bytes.starts_with(b"\x80\x02") {
        return Err(Error::format(
            path,
            "is in PyTorch's format of before 1.6; load it with torch.load and save it again with torch.save",
        ));
    } else {
        (Format::Safetensors, safetensors::parse(path, bytes)?)
    };
    // The headers have been read; tensors are read page by page from here on.
    file.release(0..bytes.len());
    Ok((format, vec![file], tensors))
}

fn open_shards(path: &Path) -> Result<Opened> {
    let index = safetensors::parse_index(path, &read_small(path, MAX_INDEX)?)?;
    let directory = path.parent().unwrap_or(Path::new(""));

    let mut files: Vec<MappedFile> = Vec::new();
    let mut shards = HashMap::new();
    let mut tensors = Vec::with_capacity(index.len());
    for (name, shard) in &index {
        let held: &mut HashMap<_, _> = match shards.entry(shard) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let file = MappedFile::open(&directory.join(shard))?;
                let found = safetensors::parse(file.path(), file.bytes())?;
                file.release(0..file.bytes().len());
                let number = files.len();
                files.push(file);
                let numbered = found.into_iter().map(|mut tensor| {
                    tensor.file = number;
                    (tensor.name.clone(), tensor)
                });
                new.insert(numbered.collect())
            }
        };
        tensors.push(held.remove(name).ok_or_else(|| {
            Error::format(path, format!("tensor {} is said to be in {}, which lacks it", quoted(name), quoted(shard)))
        })?);
    }
    Ok((Format::ShardedSafetensors, files, tensors))
}

/// Gives every tensor its canonical name and leaves the masks out. safetensors.torch.save_model keeps one name of tied
/// tensors, whichever comes first.
fn canonical(tensors: BTreeMap<String, TensorInfo>) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut first: Option<(&str, String)> = None;
    let mut renamed = BTreeMap::new();
    for (name, mut tensor) in tensors {
        if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") {
            continue;
        }
        let prefix = PREFIXES.into_iter().find(|prefix| name.starts_with(prefix)).unwrap_or("");
        let (expected, witness) = first.get_or_insert_with(|| (prefix, name.clone()));
        if *expected != prefix {
            return Err(format!(
                "names its tensors in two ways, {} and {}; they must share one prefix",
                quoted(witness),
                quoted(&name)
            ));
        }
        tensor.name = format!("model.{}", &name[prefix.len()..]);
        renamed.insert(tensor.name.clone(), tensor);
    }
    let (head, table) = TIED_HEAD;
    if !renamed.contains_key(table)
        && let Some(mut tensor) = renamed.remove(head)
    {
        tensor.name = table.into();
        renamed.insert(table.into(), tensor);
    }
    Ok(renamed)
}
