/// Caches: found again, built anew when anything has changed, damaged.
mod cache;
/// Files: formats, compression, broken lines, choices.
mod files;

use std::fs;
use std::path::{Path, PathBuf};

use della::Result;
use della::model::Config;
use della::text::{Entity, Tokenizer};
use della::train::data::{Corpus, DataOptions, Origin, RowIds, unwatched};
use serde_json::json;
use tempfile::TempDir;

const SENTENCES: [&str; 4] = ["你喜欢吃什么水果？", "我们需要帮助。", "这家餐厅的菜很好吃。", "Hello 世界"];

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect()
}

/// A model's sizes and its vocabulary.
struct Model {
    tokenizer: Tokenizer,
    config: Config,
}

impl Model {
    fn with(vocabulary: &Path, conditional: bool, positions: usize) -> Self {
        let tokenizer = Tokenizer::from_vocab(vocabulary, conditional).unwrap();
        let specials = tokenizer.specials();
        let json = json!({
            "vocab_size": tokenizer.vocab_len(), "n_positions": positions, "n_embd": 8, "n_layer": 2, "n_head": 2,
            "latent_dim": 4, "CVAE": conditional, "pad_token_id": specials.pad,
            "bos_token_id": specials.bos, "eos_token_id": specials.eos,
        });
        let config = Config::parse(Path::new("config.json"), json.to_string().as_bytes(), None).unwrap();
        Model { tokenizer, config }
    }

    fn vae() -> Self {
        Self::with(&fixture("tokenizer/vocab.txt"), false, 64)
    }

    fn cvae() -> Self {
        Self::with(&fixture("tokenizer/vocab.txt"), true, 64)
    }

    /// `<BOS> … <EOS>`
    fn sentence(&self, text: &str) -> Vec<u32> {
        let specials = self.tokenizer.specials();
        [&[specials.bos], &self.tokenizer.encode(text).unwrap().ids[..], &[specials.eos]].concat()
    }

    fn row(&self, text: &str) -> RowIds {
        RowIds { condition: Vec::new(), sentence: self.sentence(text) }
    }
}

/// A directory for one test, with a cache in it.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// The files of ids in the cache, and those that should not be there.
    fn cached(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.cache()).into_iter().flatten().map(|file| file.unwrap().path());
        files.filter(|path| !path.ends_with("hashes.json")).collect()
    }

    fn open(&self, model: &Model, sources: &[PathBuf], options: &DataOptions) -> Result<Corpus> {
        Corpus::open(sources, &model.tokenizer, &model.config, options, &self.cache(), &unwatched)
    }

    #[track_caller]
    fn refused(&self, model: &Model, source: &Path, options: &DataOptions) -> String {
        let error = self.open(model, &[source.to_path_buf()], options).unwrap_err().to_string();
        assert_eq!(self.cached(), [""; 0].map(PathBuf::from), "a failure leaves no cache");
        error
    }
}

fn rows(corpus: &Corpus) -> Vec<RowIds> {
    let rows: Vec<RowIds> = (0..corpus.len()).map(|i| corpus.row(i)).collect();
    let lens: Vec<usize> = rows.iter().map(|row| row.condition.len() + row.sentence.len()).collect();
    assert_eq!(lens, (0..corpus.len()).map(|i| corpus.row_len(i)).collect::<Vec<_>>());
    assert_eq!(lens.iter().sum::<usize>() as u64, corpus.tokens());
    rows
}

fn entity(name: &str, kind: &str) -> Entity {
    Entity { name: name.into(), kind: kind.into() }
}
