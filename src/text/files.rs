//! The tokenizer files of a Hugging Face directory, read into one [`Definition`] whichever of them are there.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::io::read_small;

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 26;

/// The bytes of a tokenizer that is not in a directory, e.g. one compiled into the binary.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What errors call the directory these files would lie in.
    pub dir: &'a Path,
    /// `vocab.txt`: one token a line, the line's number from 0 is the id.
    pub vocab: &'a [u8],
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
}

/// What the files say: the tokens by id, how text is normalised, and which tokens are special.
#[derive(Debug)]
pub(super) struct Definition {
    /// The file that holds the vocabulary.
    pub path: PathBuf,
    pub tokens: Vec<String>,
    /// The tokens' ids.
    pub ids: HashMap<String, u32>,
    /// The tokens that a list of added ones names: text is not divided inside them.
    pub added: Vec<u32>,
    pub lowercase: bool,
    pub chinese_chars: bool,
    pub strip_accents: Option<bool>,
    pub unk: String,
    pub pad: String,
    pub bos: String,
    pub eos: String,
    pub cls: String,
    pub sep: String,
    pub mask: String,
    pub additional: Vec<String>,
}

impl Definition {
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let vocab = dir.join("vocab.txt");
        let json = dir.join("tokenizer.json");
        let mut definition = if vocab.exists() {
            Self::from_vocab(&vocab, &read_file(&vocab)?)?
        } else if json.exists() {
            Self::from_tokenizer_json(&json, &read_file(&json)?)?
        } else {
            return Err(Error::format(
                dir,
                "holds neither vocab.txt nor tokenizer.json; put the vocab.txt that came with the model there \
                 (the published models use that of bert-base-chinese)",
            ));
        };
        let added = dir.join("added_tokens.json");
        if added.exists() {
            let ids: HashMap<String, u32> = parse(&added, &read_file(&added)?)?;
            definition.add(&added, ids.into_iter().map(|(token, id)| (id, token)).collect())?;
        }
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = dir.join(name);
            if path.exists() {
                definition.configure(&path, &read_file(&path)?)?;
            }
        }
        Ok(definition)
    }

    pub fn from_bytes(source: Source) -> Result<Self> {
        let mut definition = Self::from_vocab(&source.dir.join("vocab.txt"), source.vocab)?;
        if let Some(bytes) = source.tokenizer_config {
            definition.configure(&source.dir.join("tokenizer_config.json"), bytes)?;
        }
        if let Some(bytes) = source.special_tokens_map {
            definition.configure(&source.dir.join("special_tokens_map.json"), bytes)?;
        }
        Ok(definition)
    }

    pub fn from_vocab(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(Error::format(path, "is empty; a vocabulary has one token a line"));
        }
        let mut tokens = Vec::new();
        // Only line ends are cut off: some vocabularies hold tokens that are exotic white space.
        for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
            let token = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|e| {
                let at = e.valid_up_to() + 1;
                Error::format(path, format!("line {} is not UTF-8 (at byte {at}); convert the file to UTF-8", i + 1))
            })?;
            if token.is_empty() {
                return Err(Error::format(path, format!("line {} is empty; every line is a token", i + 1)));
            }
            tokens.push(token.to_owned());
        }
        Self::from_tokens(path, tokens)
    }

    /// The part of `tokenizer.json` that a BERT tokenizer uses. The rest (padding, truncation, templates) would change
    /// what `encode` returns and is left out on purpose.
    fn from_tokenizer_json(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file: TokenizerFile = parse(path, bytes)?;
        let found = [&file.model.kind, &file.normalizer.kind, &file.pre_tokenizer.kind];
        let wanted = ["WordPiece", "BertNormalizer", "BertPreTokenizer"];
        for ((part, found), wanted) in ["model", "normalizer", "pre_tokenizer"].iter().zip(found).zip(wanted) {
            if found != wanted {
                return Err(Error::format(
                    path,
                    format!("{part}.type is {found:?}, only {wanted:?} is read; put the model's vocab.txt beside it"),
                ));
            }
        }
        let mut tokens = vec![String::new(); file.model.vocab.len()];
        for (token, id) in file.model.vocab {
            match tokens.get_mut(id as usize) {
                Some(slot) if slot.is_empty() && !token.is_empty() => *slot = token,
                _ => {
                    let message =
                        format!("model.vocab: {token:?} has the id {id}; ids must be 0, 1, 2, … without gaps");
                    return Err(Error::format(path, message));
                }
            }
        }
        let mut definition = Self::from_tokens(path, tokens)?;
        definition.unk = file.model.unk_token;
        definition.lowercase = file.normalizer.lowercase;
        definition.chinese_chars = file.normalizer.handle_chinese_chars;
        definition.strip_accents = file.normalizer.strip_accents;
        definition.add(path, file.added_tokens.into_iter().map(|t| (t.id, t.content)).collect())?;
        Ok(definition)
    }

    fn from_tokens(path: &Path, tokens: Vec<String>) -> Result<Self> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0..).zip(&tokens) {
            if let Some(first) = ids.insert(token.clone(), id) {
                let message = format!("lines {} and {} are both {token:?}; a token has one id", first + 1, id + 1);
                return Err(Error::format(path, message));
            }
        }
        Ok(Definition {
            path: path.to_path_buf(),
            tokens,
            ids,
            added: Vec::new(),
            lowercase: true,
            chinese_chars: true,
            strip_accents: None,
            unk: "[UNK]".into(),
            pad: "[PAD]".into(),
            bos: "<BOS>".into(),
            eos: "<EOS>".into(),
            cls: "[CLS]".into(),
            sep: "[SEP]".into(),
            mask: "[MASK]".into(),
            additional: Vec::new(),
        })
    }

    /// Takes over what `special_tokens_map.json` or `tokenizer_config.json` says.
    fn configure(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file: ConfigFile = parse(path, bytes)?;
        if file.do_basic_tokenize == Some(false) {
            let message = "do_basic_tokenize is false, which is not supported; remove it or set it to true";
            return Err(Error::format(path, message));
        }
        self.lowercase = file.do_lower_case.unwrap_or(self.lowercase);
        self.chinese_chars = file.tokenize_chinese_chars.unwrap_or(self.chinese_chars);
        self.strip_accents = file.strip_accents.or(self.strip_accents);
        for (name, value) in [
            (&mut self.unk, file.unk_token),
            (&mut self.pad, file.pad_token),
            (&mut self.bos, file.bos_token),
            (&mut self.eos, file.eos_token),
            (&mut self.cls, file.cls_token),
            (&mut self.sep, file.sep_token),
            (&mut self.mask, file.mask_token),
        ] {
            if let Some(value) = value {
                *name = value.content();
            }
        }
        self.additional.extend(file.additional_special_tokens.into_iter().flatten().map(Name::content));
        let added = file.added_tokens_decoder.into_iter().flatten().map(|(id, name)| (id, name.content()));
        self.add(path, added.collect())
    }

    /// Appends tokens whose ids the file at `path` fixes.
    fn add(&mut self, path: &Path, added: BTreeMap<u32, String>) -> Result<()> {
        for (id, token) in added {
            let (len, there) = (self.tokens.len(), self.ids.get(&token));
            if id as usize == len && there.is_none() {
                self.tokens.push(token.clone());
                self.ids.insert(token, id);
            } else if there != Some(&id) {
                let there = there.map_or("is not in the vocabulary".into(), |id| format!("has the id {id} there"));
                let message = format!(
                    "adds {token:?} as id {id}, but it {there}, and {} has {len} tokens; the two files belong to \
                     different models, or lines are missing",
                    self.path.display()
                );
                return Err(Error::format(path, message));
            }
            self.added.push(id);
        }
        Ok(())
    }
}

/// The content of one of a tokenizer's files.
///
/// # Errors
/// As [`read_small`].
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_small(path, MAX_BYTES)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::format(path, format!("unexpected JSON: {e}")))
}

/// A token's name is a string, or an object with its text under `content`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Plain(String),
    Object { content: String },
}

impl Name {
    fn content(self) -> String {
        match self {
            Name::Plain(content) | Name::Object { content } => content,
        }
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    do_lower_case: Option<bool>,
    do_basic_tokenize: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    unk_token: Option<Name>,
    pad_token: Option<Name>,
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    cls_token: Option<Name>,
    sep_token: Option<Name>,
    mask_token: Option<Name>,
    additional_special_tokens: Option<Vec<Name>>,
    added_tokens_decoder: Option<BTreeMap<u32, Name>>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    model: ModelPart,
    #[serde(default)]
    normalizer: NormalizerPart,
    #[serde(default)]
    pre_tokenizer: Part,
    #[serde(default)]
    added_tokens: Vec<AddedPart>,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    unk_token: String,
    #[serde(default)]
    vocab: HashMap<String, u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NormalizerPart {
    #[serde(rename = "type")]
    kind: String,
    lowercase: bool,
    handle_chinese_chars: bool,
    strip_accents: Option<bool>,
}

#[derive(Deserialize, Default)]
struct Part {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Deserialize)]
struct AddedPart {
    id: u32,
    content: String,
}

/// The files that a tokenizer may come in.
pub const FILES: [&str; 5] =
    ["vocab.txt", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"];

/// Copies a tokenizer's file to one that is not there yet.
///
/// # Errors
/// It cannot be read; there is a file already.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let content = read_file(from)?;
    let mut target = File::create_new(to).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Exists(to.to_path_buf()),
        _ => Error::io(to, e),
    })?;
    target.write_all(&content).and_then(|()| target.sync_all()).map_err(|e| Error::io(to, e))
}
