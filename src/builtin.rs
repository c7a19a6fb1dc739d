//! The model that is compiled into the library: small, trained on everyday Chinese sentences; see its card,
//! `assets/mini-zh/README.md`.

use std::path::Path;

use crate::error::Result;
use crate::io::checkpoint::Checkpoint;
use crate::text::{Source, Tokenizer};

/// Its `config.json`.
pub(crate) const CONFIG: &str = include_str!("../assets/mini-zh/config.json");

/// What errors call the directory that the files would lie in.
const NAME: &str = "built-in model";

/// Its weights.
pub(crate) fn checkpoint() -> Result<Checkpoint> {
    /// Tensors are read as numbers of their own size, so the file's bytes are aligned for the largest.
    #[repr(align(64))]
    struct Aligned<T: ?Sized>(T);
    static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/mini-zh/model.safetensors"));
    Checkpoint::builtin(Path::new(NAME), &WEIGHTS.0)
}

/// Its tokenizer.
pub(crate) fn tokenizer() -> Result<Tokenizer> {
    let source = Source {
        dir: Path::new(NAME),
        vocab: include_bytes!("../assets/mini-zh/vocab.txt"),
        special_tokens_map: Some(include_bytes!("../assets/mini-zh/special_tokens_map.json")),
        tokenizer_config: Some(include_bytes!("../assets/mini-zh/tokenizer_config.json")),
    };
    Tokenizer::from_bytes(source, false)
}
