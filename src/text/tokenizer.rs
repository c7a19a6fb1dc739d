//! BERT's WordPiece tokenizer with `<BOS>` and `<EOS>`: text to ids.
//!
//! Normalisation, pre-tokenisation and WordPiece (Devlin et al. 2019) are those of the `tokenizers` crate. Special and
//! added tokens are recognised in text before it is normalised, as Hugging Face's `BertTokenizer` does, and encode to
//! their one id.
//!
//! The crate is Hugging Face's fast tokenizer. From the slow one it differs for rare characters only: where its Unicode
//! tables are older (punctuation and format characters newer than Unicode 8), and U+2B820 to U+2B91F, ideographs that it
//! does not split.

use std::fmt;
use std::path::{Path, PathBuf};

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, TokenizerImpl,
};
use xxhash_rust::xxh3::Xxh3Default;

use super::files::{Definition, Source, read_file};
use crate::error::{Error, Result};

type Inner = TokenizerImpl<WordPiece, BertNormalizer, BertPreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// The names of the tokens that structure the conditional model's input (spec: `name <ENT> type <ENS> … <BOS>`).
const ENT: &str = "<ENT>";
const ENS: &str = "<ENS>";

/// A text as tokens, without any token that was not in it: no `[CLS]`, no `<BOS>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The tokens' names; `##` marks one that continues a word.
    pub tokens: Vec<String>,
    /// Their ids, as many as `tokens`.
    pub ids: Vec<u32>,
}

/// The ids of the tokens with a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    /// Fills short rows.
    pub pad: u32,
    /// Stands for a word that the vocabulary cannot spell.
    pub unk: u32,
    /// Begins a sentence.
    pub bos: u32,
    /// Ends a sentence.
    pub eos: u32,
    /// Separates a condition from its sentence when the conditional model is trained.
    pub sep: Option<u32>,
    /// Ends an entity's name.
    pub ent: Option<u32>,
    /// Ends an entity's type.
    pub ens: Option<u32>,
}

/// Text to ids and back.
///
/// ```
/// use std::path::Path;
/// use della::text::{DecodeOptions, Source, Tokenizer};
///
/// # fn main() -> della::Result<()> {
/// let vocab = "[PAD]\n[UNK]\n你\n好\n，\nvae\n".as_bytes();
/// let source = Source { dir: Path::new("example"), vocab, special_tokens_map: None, tokenizer_config: None };
/// let tokenizer = Tokenizer::from_bytes(source, false)?;
/// assert_eq!(tokenizer.encode("你好，VAE<EOS>")?.ids, [2, 3, 4, 5, 7]);
/// assert_eq!(tokenizer.decode(&[2, 3, 4, 5, 7], DecodeOptions::default())?, "你好，vae");
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    tokens: Vec<String>,
    /// In ascending order.
    special: Vec<u32>,
    specials: Specials,
    /// How many tokens the vocabulary file has; the rest were added here.
    in_file: usize,
    /// The added tokens that are not special, but found in text as they are written too.
    added: Vec<u32>,
    fingerprint: u128,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory: `vocab.txt` (or else `tokenizer.json`), and if they are there
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// `<BOS>` and `<EOS>`, and with `conditional` also `<ENT>` and `<ENS>`, are appended in this order where the
    /// vocabulary lacks them.
    ///
    /// # Errors
    /// A file that cannot be read or makes no sense, by name.
    pub fn from_dir(dir: impl AsRef<Path>, conditional: bool) -> Result<Self> {
        Self::build(Definition::from_dir(dir.as_ref())?, conditional)
    }

    /// As [`from_dir`](Self::from_dir), from a vocabulary alone, with BERT's own settings (lower case, no accents).
    ///
    /// # Errors
    /// The file cannot be read, is empty, is not UTF-8, has an empty or repeated line, or lacks `[UNK]` or `[PAD]`.
    pub fn from_vocab(path: impl AsRef<Path>, conditional: bool) -> Result<Self> {
        let path = path.as_ref();
        Self::build(Definition::from_vocab(path, &read_file(path)?)?, conditional)
    }

    /// As [`from_dir`](Self::from_dir), from files in memory.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_bytes(source: Source, conditional: bool) -> Result<Self> {
        Self::build(Definition::from_bytes(source)?, conditional)
    }

    fn build(definition: Definition, conditional: bool) -> Result<Self> {
        let Definition { path, mut tokens, mut ids, added, lowercase, chinese_chars, strip_accents, .. } = definition;
        let Definition { unk, pad, bos, eos, cls, sep, mask, additional, .. } = definition;
        let in_file = tokens.len();

        let structural: &[&str] = if conditional { &[ENT, ENS] } else { &[] };
        let wanted = [bos.as_str(), eos.as_str()].into_iter().chain(structural.iter().copied());
        for name in wanted.chain(additional.iter().map(String::as_str)).filter(|name| !name.is_empty()) {
            ids.entry(name.to_owned()).or_insert_with(|| {
                tokens.push(name.to_owned());
                tokens.len() as u32 - 1
            });
        }

        let id = |name: &str| ids.get(name).copied();
        let required = |role: &str, name: &str| {
            id(name).ok_or_else(|| {
                let message = format!(
                    "has no {name:?}, the {role} token; add it as a line, or name the vocabulary's own one as \
                     {role}_token in special_tokens_map.json"
                );
                Error::format(&path, message)
            })
        };
        let specials = Specials {
            pad: required("pad", &pad)?,
            unk: required("unk", &unk)?,
            bos: required("bos", &bos)?,
            eos: required("eos", &eos)?,
            sep: id(&sep),
            ent: id(ENT),
            ens: id(ENS),
        };
        let roles = [&unk, &pad, &bos, &eos, &cls, &sep, &mask].map(String::as_str);
        let named = roles.into_iter().chain([ENT, ENS]).chain(additional.iter().map(String::as_str));
        let mut special: Vec<u32> = named.filter_map(id).collect();
        special.sort_unstable();
        special.dedup();

        // Everything is in the model's own vocabulary, so that the library has no ids to give out.
        let library = |e: tokenizers::Error| Error::format(&path, e);
        // The type of its map has no public name: an empty one is read and filled.
        let mut vocab = WordPiece::read_bytes(b"").map_err(library)?;
        vocab.extend(ids);
        let model = WordPiece::builder().vocab(vocab).unk_token(unk).build().map_err(library)?;
        let normalizer = BertNormalizer::new(true, chinese_chars, strip_accents, lowercase);
        let mut inner = Inner::new(model);
        inner.with_normalizer(Some(normalizer)).map_err(library)?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        // Those that are merely added are special to the library too: it finds such tokens in text as it is written.
        let whole = special.iter().chain(&added).map(|&id| AddedToken::from(tokens[id as usize].clone(), true));
        inner.add_special_tokens(whole).map_err(library)?;

        let settings = format!("{chinese_chars} {strip_accents:?} {lowercase} {specials:?} {special:?} {added:?}");
        let mut fingerprint = Xxh3Default::new();
        for text in tokens.iter().chain([&settings]) {
            fingerprint.update(&(text.len() as u64).to_le_bytes());
            fingerprint.update(text.as_bytes());
        }
        Ok(Tokenizer { path, inner, tokens, special, specials, in_file, added, fingerprint: fingerprint.digest128() })
    }

    /// The tokens of `text`; special tokens in it are recognised, none is added.
    ///
    /// # Errors
    /// None is known for a valid string; the library's own are passed on.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let ids = self.encode_ids(text)?;
        let tokens = ids.iter().map(|&id| self.tokens[id as usize].clone()).collect();
        Ok(Encoding { tokens, ids })
    }

    /// As [`encode`](Self::encode), without the tokens' names.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::input("text", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A hash of everything that ids depend on: the tokens, which of them are special, how text is normalised.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// The name of token `id`.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The id of the token called `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The number of tokens, those that were appended included.
    pub fn vocab_len(&self) -> usize {
        self.tokens.len()
    }

    /// The file that holds the vocabulary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens that the file lacks and that were appended, in order.
    pub fn appended(&self) -> &[String] {
        &self.tokens[self.in_file..]
    }

    /// The tokens with a role.
    pub fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Whether `id` is a special token (`[UNK]` is one).
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Whether `id` is found in text as it is written, before anything else is done to the text.
    pub(super) fn is_whole(&self, id: u32) -> bool {
        self.is_special(id) || self.added.contains(&id)
    }

    /// What is wrong if a model's `vocab_size` is `expected`: both sizes, where [`vocab_len`](Self::vocab_len) comes from,
    /// and what may have gone wrong.
    pub fn vocab_size_problem(&self, expected: usize) -> Option<String> {
        let len = self.vocab_len();
        if len == expected {
            return None;
        }
        let appended = match self.appended() {
            [] => String::new(),
            names => format!(", {} of them appended ({})", names.len(), names.join(" ")),
        };
        let hint = if expected == len + 2 && self.specials.ent.is_none() {
            "two more are what a conditional model has (<ENT> <ENS>): set \"CVAE\": true in config.json if it is one"
        } else {
            "use the vocab.txt that came with the model"
        };
        Some(format!("makes {len} tokens{appended}, but the model's vocab_size is {expected}; {hint}"))
    }

    /// `text` as the tokenizer sees it: cleaned, and lower case without accents unless the model keeps them.
    pub(super) fn normalize(&self, text: &str) -> String {
        normalized(self.inner.get_normalizer(), text).get().to_owned()
    }

    /// Whether `a` and `b` side by side would be read as parts of one word.
    pub(super) fn fuses(&self, a: char, b: char) -> bool {
        if a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric() {
            return true;
        }
        if a.is_ascii_punctuation() || b.is_ascii_punctuation() {
            return false;
        }
        let pair = String::from_iter([a, b]);
        let mut words = PreTokenizedString::from(normalized(self.inner.get_normalizer(), &pair));
        BertPreTokenizer.pre_tokenize(&mut words).is_ok()
            && words.get_splits(OffsetReferential::Original, OffsetType::None).len() == 1
    }
}

pub(super) fn normalized(normalizer: Option<&BertNormalizer>, text: &str) -> NormalizedString {
    let mut text = NormalizedString::from(text);
    if let Some(normalizer) = normalizer {
        // BERT's normaliser has no way to fail.
        let _ = normalizer.normalize(&mut text);
    }
    text
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab_len())
    }
}
