//! Text in, ids out, and back: BERT's WordPiece through the `tokenizers` crate, text as a person would write it, the
//! conditions of the conditional model, and vocabularies for new domains.

mod build;
mod bulk;
mod decode;
mod entities;
mod files;
mod tokenizer;

pub use build::{SPECIAL, TokenCounts, VocabOptions, Vocabulary, WordCounts};
pub use bulk::BulkEncoder;
pub use decode::{DecodeOptions, StreamDecoder, Unknown};
pub use entities::{Entity, condition_ids, contains_all, training_condition_ids};
pub use files::{Source, read_file};
pub use tokenizer::{Encoding, Specials, Tokenizer};
