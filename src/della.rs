//! The library's front door: a model with its tokenizer, from text to text.

use std::ops::ControlFlow;
use std::path::Path;

use ndarray::{Array1, ArrayView3, Axis};

#[cfg(feature = "builtin-model")]
use crate::builtin;
use crate::engine::{self, DeviceOptions, Engine};
use crate::error::{Error, Result};
use crate::generate::Sampling;
use crate::generate::session::{Choice, Request};
use crate::io::checkpoint::Checkpoint;
use crate::latent::{Latents, Noise};
use crate::model::Config;
use crate::model::encode::Row;
use crate::text::{DecodeOptions, Entity, Tokenizer, condition_ids, training_condition_ids};

/// How padding is treated when several sentences are encoded together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// There is none: a sentence's result is the same alone and in any company.
    #[default]
    Masked,
    /// The published arithmetic: shorter sentences are filled with `[PAD]`, which is attended to and pooled.
    Reference,
}

/// How text is decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How tokens are drawn; `None` takes the most probable one.
    pub sampling: Option<Sampling>,
    /// Factor of the latents' noise (`β_logvar`); `None` takes their means.
    pub latent_noise: Option<f32>,
    /// New tokens at most.
    pub max_length: usize,
    /// Everything that is drawn depends on this and on the row's number.
    pub seed: u64,
    /// Shorten sentences that the model cannot read whole, instead of refusing them.
    pub truncate: bool,
    /// Treatment of padding when encoding.
    pub padding: Padding,
    /// Sequences that are decoded at the same time.
    pub batch: usize,
    /// What of the special tokens is shown.
    pub show: DecodeOptions,
}

impl Default for Options {
    /// The VAE's model card: top-p 0.5 at temperature 0.7, latents at their means, at most 256 tokens.
    fn default() -> Self {
        Options {
            sampling: Some(Sampling::default()),
            latent_noise: None,
            max_length: 256,
            seed: 0,
            truncate: false,
            padding: Padding::Masked,
            batch: 32,
            show: DecodeOptions::default(),
        }
    }
}

impl Options {
    /// The most probable token at every step.
    pub fn greedy() -> Self {
        Options { sampling: None, ..Options::default() }
    }

    /// The CVAE's model card: top-k 50, top-p 0.8, temperature 1, latents "sampled" with noise factor 0.
    pub fn conditional() -> Self {
        let sampling = Sampling { top_k: 50, top_p: 0.8, temperature: 1.0, ..Sampling::default() };
        Options { sampling: Some(sampling), latent_noise: Some(0.0), ..Options::default() }
    }

    fn choice(&self) -> Choice {
        match self.sampling {
            Some(sampling) => Choice::Sample { sampling, seed: self.seed },
            None => Choice::Greedy,
        }
    }

    fn noise(&self) -> Noise {
        match self.latent_noise {
            Some(scale) => Noise::Sample { seed: self.seed, scale },
            None => Noise::Mean,
        }
    }
}

/// The number of a row: draws depend on it, and on nothing else of its batch.
pub fn row_number(input: usize, sample: usize) -> u64 {
    input as u64 | (sample as u64) << 32
}

/// A sentence and what it is conditioned on, as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceIds {
    /// `name <ENT> type <ENS> … [SEP]`; empty for an unconditional model.
    pub condition: Vec<u32>,
    /// `<BOS> … <EOS>`
    pub sentence: Vec<u32>,
}

/// A sentence after its way through the latents.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// The sentence as the model read it, `<BOS>` and `<EOS>` included.
    pub ids: Vec<u32>,
    /// What came back, as text.
    pub text: String,
    /// What came back, with `<EOS>` where it came.
    pub new_ids: Vec<u32>,
    /// `(L)`: divergence of the posterior from the prior in nats.
    pub kl: Array1<f32>,
}

/// A model with its tokenizer.
///
/// ```
/// # #[cfg(feature = "builtin-model")]
/// # fn main() -> della::Result<()> {
/// use della::{Della, Options};
///
/// let della = Della::builtin()?;
/// let [back] = &della.reconstruct(&["我们需要帮助。"], &Options::greedy())?[..] else { unreachable!() };
/// assert_eq!(back.text, "我们需要帮助。");
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "builtin-model"))]
/// # fn main() {}
/// ```
pub struct Della {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
}

impl Della {
    /// Opens a model directory on the best device.
    ///
    /// # Errors
    /// Everything that can be wrong with the files, by name.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, &DeviceOptions::default())
    }

    /// Opens a model directory, or the file of weights in one, on a given device.
    ///
    /// # Errors
    /// As [`open`](Self::open); and the device cannot be had.
    pub fn open_with(path: impl AsRef<Path>, device: &DeviceOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = Config::read(&checkpoint)?;
        let tokenizer = Tokenizer::from_dir(checkpoint.dir(), config.dims.conditional)?;
        Self::new(config, tokenizer, &checkpoint, device)
    }

    /// The model that is compiled into the library.
    ///
    /// # Errors
    /// None that a build which passes its tests can meet.
    #[cfg(feature = "builtin-model")]
    pub fn builtin() -> Result<Self> {
        Self::builtin_with(&DeviceOptions::default())
    }

    /// The built-in model on a given device.
    ///
    /// # Errors
    /// The device cannot be had.
    #[cfg(feature = "builtin-model")]
    pub fn builtin_with(device: &DeviceOptions) -> Result<Self> {
        let checkpoint = builtin::checkpoint()?;
        Self::new(builtin::config(&checkpoint)?, builtin::tokenizer()?, &checkpoint, device)
    }

    /// Checks everything that is quick to check before it reads the weights.
    fn new(config: Config, tokenizer: Tokenizer, checkpoint: &Checkpoint, device: &DeviceOptions) -> Result<Self> {
        check_vocabulary(&config, &tokenizer)?;
        Ok(Della { engine: engine::prepare(config, checkpoint, device)?, tokenizer })
    }

    /// The model alone.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        self.engine.config()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A sentence as the model reads it. A conditional model needs at least one entity, another takes none.
    ///
    /// # Errors
    /// A sentence without tokens; one that is too long, unless `truncate` shortens it.
    pub fn ids(&self, text: &str, entities: &[Entity], truncate: bool) -> Result<SentenceIds> {
        let condition = self.posterior_condition(entities)?;
        let mut ids = self.tokenizer.encode(text)?.ids;
        if ids.is_empty() {
            return Err(Error::input("sentence", "is empty: it has no tokens"));
        }
        let limit = self.config().dims.positions.saturating_sub(condition.len() + 2);
        if ids.len() > limit {
            if !truncate || limit == 0 {
                let len = ids.len();
                return Err(Error::input(
                    "sentence",
                    format!("has {len} tokens; this model reads at most {limit}. Shorten it, or ask for truncation"),
                ));
            }
            ids.truncate(limit);
        }
        let specials = self.tokenizer.specials();
        let sentence = [&[specials.bos], &ids[..], &[specials.eos]].concat();
        Ok(SentenceIds { condition, sentence })
    }

    /// What a conditional model reads before it writes about `entities`: `name <ENT> type <ENS> … <BOS>`.
    ///
    /// # Errors
    /// An unconditional model; entities that cannot be a condition, or that fill all of the model's positions.
    pub fn condition(&self, entities: &[Entity]) -> Result<Vec<u32>> {
        let ids = condition_ids(&self.tokenizer, entities)?;
        let (len, limit) = (ids.len(), self.config().dims.positions);
        match len <= limit {
            true => Ok(ids),
            false => Err(Error::input("entities", format!("have {len} tokens; this model reads at most {limit}"))),
        }
    }

    fn posterior_condition(&self, entities: &[Entity]) -> Result<Vec<u32>> {
        if self.config().dims.conditional {
            return training_condition_ids(&self.tokenizer, entities);
        }
        match entities {
            [] => Ok(Vec::new()),
            _ => Err(Error::input("entities", "this model is a VAE and takes none; they are for a CVAE")),
        }
    }

    /// The latents of sentences.
    ///
    /// # Errors
    /// A sentence that the model cannot read.
    pub fn encode<S: AsRef<str>>(&self, sentences: &[S], options: &Options) -> Result<Latents> {
        let ids = self.all_ids(sentences, options)?;
        let numbers: Vec<u64> = (0..ids.len()).map(|i| row_number(i, 0)).collect();
        self.encode_ids(&ids, &numbers, options)
    }

    /// The latents of sentences given as ids; `numbers` are their rows' numbers.
    ///
    /// # Errors
    /// A sentence that the model cannot read.
    pub fn encode_ids(&self, sentences: &[SentenceIds], numbers: &[u64], options: &Options) -> Result<Latents> {
        let padded = match options.padding {
            Padding::Masked => None,
            Padding::Reference => Some(pad(sentences, self.config().pad)),
        };
        let sentences = padded.as_deref().unwrap_or(sentences);
        let rows: Vec<Row<'_>> =
            sentences.iter().map(|s| Row { condition: &s.condition, sentence: &s.sentence }).collect();
        self.encode_rows(&rows, numbers, options)
    }

    fn encode_rows(&self, rows: &[Row<'_>], numbers: &[u64], options: &Options) -> Result<Latents> {
        let (noise, dims) = (options.noise(), &self.config().dims);
        check_scale(noise.scale())?;
        let eps = noise.draw(numbers, dims.layers, dims.latent);
        self.engine.encode(rows, eps.as_ref().map(|eps| eps.view()), noise.scale())
    }

    /// The texts of latents `z (R, L, Z)` of an unconditional model.
    ///
    /// # Errors
    /// Latents of another shape, and a conditional model, which cannot decode without a condition.
    pub fn decode(&self, z: ArrayView3<'_, f32>, options: &Options) -> Result<Vec<String>> {
        let rows = z.len_of(Axis(0));
        let numbers: Vec<u64> = (0..rows).map(|i| row_number(i, 0)).collect();
        let ids = self.decode_ids(z, &vec![self.start(&[])?; rows], &numbers, options, &mut proceed)?;
        ids.iter().map(|ids| self.text(ids, options)).collect()
    }

    /// What the decoder starts from: `[condition,] <BOS>`.
    ///
    /// # Errors
    /// A conditional model without a condition.
    pub fn start(&self, condition: &[u32]) -> Result<Vec<u32>> {
        if self.config().dims.conditional && condition.is_empty() {
            return Err(Error::input("condition", "this model is a CVAE: it decodes only after a condition"));
        }
        Ok([condition, &[self.config().bos]].concat())
    }

    /// Continues `prefixes`, given latents `z (R, L, Z)`; returns the new tokens with `<EOS>` where it came. `on_token`
    /// sees each token with the index of its row as it is chosen, and can cancel.
    ///
    /// # Errors
    /// As [`generate`](crate::generate::session::generate).
    pub fn decode_ids(
        &self,
        z: ArrayView3<'_, f32>,
        prefixes: &[Vec<u32>],
        numbers: &[u64],
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let request = Request {
            z,
            prefixes,
            rows: numbers,
            choice: options.choice(),
            max_length: options.max_length,
            slots: options.batch,
        };
        self.engine.generate(&request, on_token)
    }

    /// The text of new tokens: up to `<EOS>`.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn text(&self, ids: &[u32], options: &Options) -> Result<String> {
        let end = ids.iter().position(|&id| id == self.config().eos).unwrap_or(ids.len());
        self.tokenizer.decode(&ids[..end], options.show)
    }

    /// Sentences through the latents and back.
    ///
    /// # Errors
    /// A sentence that the model cannot read.
    pub fn reconstruct<S: AsRef<str>>(&self, sentences: &[S], options: &Options) -> Result<Vec<Reconstruction>> {
        let ids = self.all_ids(sentences, options)?;
        let numbers: Vec<u64> = (0..ids.len()).map(|i| row_number(i, 0)).collect();
        self.reconstruct_ids(&ids, &numbers, options, &mut proceed)
    }

    /// As [`reconstruct`](Self::reconstruct), for ids; `numbers` and `on_token` as in [`decode_ids`](Self::decode_ids).
    ///
    /// # Errors
    /// As [`reconstruct`](Self::reconstruct).
    pub fn reconstruct_ids(
        &self,
        sentences: &[SentenceIds],
        numbers: &[u64],
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Reconstruction>> {
        let latents = self.encode_ids(sentences, numbers, options)?;
        let prefixes: Vec<_> = sentences.iter().map(|s| self.start(&s.condition)).collect::<Result<_>>()?;
        let outputs = self.decode_ids(latents.z.view(), &prefixes, numbers, options, on_token)?;
        let kl = latents.kl.ok_or_else(|| Error::input("sentences", "are empty"))?;
        let rows = sentences.iter().zip(outputs).zip(kl.outer_iter());
        rows.map(|((sentence, output), kl)| {
            let text = self.text(&output, options)?;
            Ok(Reconstruction { ids: sentence.sentence.clone(), text, new_ids: output, kl: kl.to_owned() })
        })
        .collect()
    }

    /// Latents drawn from the prior of an unconditional model; without noise, its mean.
    ///
    /// # Errors
    /// A conditional model.
    pub fn prior(&self, numbers: &[u64], options: &Options) -> Result<Latents> {
        let (noise, dims) = (options.noise(), &self.config().dims);
        check_scale(noise.scale())?;
        let eps = noise.draw(numbers, dims.layers, dims.latent);
        self.engine.prior(numbers.len(), eps.as_ref().map(|eps| eps.view()), noise.scale())
    }

    /// `count` texts from the prior of an unconditional model.
    ///
    /// # Errors
    /// A conditional model.
    pub fn sample_prior(&self, count: usize, options: &Options) -> Result<Vec<String>> {
        let numbers: Vec<u64> = (0..count).map(|i| row_number(0, i)).collect();
        let latents = self.prior(&numbers, options)?;
        let prefixes = vec![self.start(&[])?; count];
        let ids = self.decode_ids(latents.z.view(), &prefixes, &numbers, options, &mut proceed)?;
        ids.iter().map(|ids| self.text(ids, options)).collect()
    }

    /// `count` sentences of a conditional model about `entities`.
    ///
    /// # Errors
    /// An unconditional model; entities that cannot be a condition.
    pub fn generate(&self, entities: &[Entity], count: usize, options: &Options) -> Result<Vec<String>> {
        let condition = self.condition(entities)?;
        let numbers: Vec<u64> = (0..count).map(|i| row_number(0, i)).collect();
        let ids = self.generate_ids(&vec![condition; count], &numbers, options, &mut proceed)?;
        ids.iter().map(|ids| self.text(ids, options)).collect()
    }

    /// As [`generate`](Self::generate), for conditions as ids; `numbers` and `on_token` as in
    /// [`decode_ids`](Self::decode_ids).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_ids(
        &self,
        conditions: &[Vec<u32>],
        numbers: &[u64],
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let rows: Vec<Row<'_>> = conditions.iter().map(|c| Row { condition: c, sentence: &[] }).collect();
        let latents = self.encode_rows(&rows, numbers, options)?;
        self.decode_ids(latents.z.view(), conditions, numbers, options, on_token)
    }

    fn all_ids<S: AsRef<str>>(&self, sentences: &[S], options: &Options) -> Result<Vec<SentenceIds>> {
        sentences.iter().map(|text| self.ids(text.as_ref(), &[], options.truncate)).collect()
    }
}

/// Checks that a tokenizer belongs to a model.
///
/// # Errors
/// [`Error::Mismatch`] with every disagreement: the number of tokens, and the ids of `<BOS>`, `<EOS>` and `[PAD]`.
pub fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let specials = tokenizer.specials();
    let ids = [
        ("bos_token_id", config.bos, specials.bos),
        ("eos_token_id", config.eos, specials.eos),
        ("pad_token_id", config.pad, specials.pad),
    ];
    let ids = ids.into_iter().filter(|(_, stated, found)| stated != found);
    let ids = ids.map(|(key, stated, found)| format!("{key} is {stated} in config.json, but {found} here"));
    let problems: Vec<String> = tokenizer.vocab_size_problem(config.dims.vocab).into_iter().chain(ids).collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Mismatch { path: tokenizer.path().to_path_buf(), problems }),
    }
}

/// The `on_token` of those who do not watch.
fn proceed(_row: usize, _token: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn check_scale(scale: f32) -> Result<()> {
    match scale.is_finite() && scale >= 0.0 {
        true => Ok(()),
        false => Err(Error::input("latent noise", format!("{scale} is not a number from 0"))),
    }
}

/// Fills conditions and sentences up to the longest with `pad`.
fn pad(sentences: &[SentenceIds], pad: u32) -> Vec<SentenceIds> {
    let longest = |part: fn(&SentenceIds) -> &Vec<u32>| sentences.iter().map(|s| part(s).len()).max().unwrap_or(0);
    let (condition_len, sentence_len) = (longest(|s| &s.condition), longest(|s| &s.sentence));
    let mut padded = sentences.to_vec();
    for s in &mut padded {
        s.condition.resize(condition_len, pad);
        s.sentence.resize(sentence_len, pad);
    }
    padded
}
