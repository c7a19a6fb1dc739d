//! The model that is compiled into the library: small, trained on everyday Chinese sentences; see its card,
//! `assets/mini-zh/README.md`.

use std::path::Path;

use crate::error::Result;
use crate::io::checkpoint::Checkpoint;
use crate::model::Config;
use crate::text::{Source, Tokenizer};

/// What errors call the directory that the files would lie in.
const NAME: &str = "built-in model";

/// Its configuration, checked against `checkpoint`, its weights.
///
/// # Errors
/// None that a build which passes its tests can meet; so for all functions here.
pub fn config(checkpoint: &Checkpoint) -> Result<Config> {
    let path = Path::new(NAME).join("config.json");
    Config::checked(&path, include_bytes!("../assets/mini-zh/config.json"), checkpoint)
}

/// Its weights.
///
/// # Errors
/// As for [`config`].
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::builtin(Path::new(NAME), include_bytes!("../assets/mini-zh/model.safetensors"))
}

/// Its tokenizer.
///
/// # Errors
/// As for [`config`].
pub fn tokenizer() -> Result<Tokenizer> {
    let source = Source {
        dir: Path::new(NAME),
        vocab: include_bytes!("../assets/mini-zh/vocab.txt"),
        special_tokens_map: Some(include_bytes!("../assets/mini-zh/special_tokens_map.json")),
        tokenizer_config: Some(include_bytes!("../assets/mini-zh/tokenizer_config.json")),
    };
    Tokenizer::from_bytes(source, false)
}
