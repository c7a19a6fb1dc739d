//! The library's front door: a model with its tokenizer, from text to text.

use std::ops::Range;
use std::path::Path;

use ndarray::{Array1, ArrayView3, Axis};

#[cfg(feature = "builtin-model")]
use crate::builtin;
use crate::engine::{self, DeviceOptions, Engine};
use crate::error::{Error, Result};
use crate::generate::Sampling;
use crate::generate::session::{Choice, Next, Request, unwatched};
use crate::io::checkpoint::Checkpoint;
use crate::latent::{Latents, Noise, row_number};
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

/// A sentence, and what a conditional model is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentence {
    /// The sentence.
    pub text: String,
    /// What it is about; for a CVAE only, which needs at least one.
    pub entities: Vec<Entity>,
}

impl From<String> for Sentence {
    fn from(text: String) -> Self {
        Sentence { text, entities: Vec::new() }
    }
}

impl From<&str> for Sentence {
    fn from(text: &str) -> Self {
        Sentence::from(text.to_owned())
    }
}

impl<S: Into<String>> From<(S, Vec<Entity>)> for Sentence {
    fn from((text, entities): (S, Vec<Entity>)) -> Self {
        Sentence { text: text.into(), entities }
    }
}

/// A sentence and its condition, as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceIds {
    /// The sentence's number. What is drawn for it depends on the seed, on this and on the sample's number, and on nothing
    /// else: not on the sentences beside it.
    pub index: usize,
    /// `name <ENT> type <ENS> … [SEP]`; empty for an unconditional model.
    pub condition: Vec<u32>,
    /// `<BOS> … <EOS>`; empty where a condition alone is meant.
    pub sentence: Vec<u32>,
}

/// Where decoding starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// `[condition,] <BOS>`
    pub prefix: Vec<u32>,
    /// See [`SentenceIds::index`].
    pub index: usize,
    /// Which sample of this start it is.
    pub sample: usize,
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
/// let back = della.reconstruct(["我们需要帮助。"], &Options::greedy())?;
/// assert_eq!(back[0].text, "我们需要帮助。");
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

    /// A sentence as the model reads it; `index` is its number. A conditional model needs at least one entity, another
    /// takes none.
    ///
    /// # Errors
    /// A sentence without tokens; one that is too long, unless `truncate` shortens it.
    pub fn ids(&self, index: usize, sentence: &Sentence, truncate: bool) -> Result<SentenceIds> {
        let condition = self.posterior_condition(&sentence.entities)?;
        let mut ids = self.tokenizer.encode(&sentence.text)?.ids;
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
        Ok(SentenceIds { index, condition, sentence })
    }

    /// What a conditional model reads before it writes about `entities`: `name <ENT> type <ENS> … <BOS>`; `index` is its
    /// number.
    ///
    /// # Errors
    /// An unconditional model; entities that cannot be a condition, or that fill all of the model's positions.
    pub fn condition(&self, index: usize, entities: &[Entity]) -> Result<SentenceIds> {
        let condition = condition_ids(&self.tokenizer, entities)?;
        let (len, limit) = (condition.len(), self.config().dims.positions);
        match len <= limit {
            true => Ok(SentenceIds { index, condition, sentence: Vec::new() }),
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
    /// No sentence; one that the model cannot read.
    pub fn encode<S: Into<Sentence>>(
        &self,
        sentences: impl IntoIterator<Item = S>,
        options: &Options,
    ) -> Result<Latents> {
        self.encode_ids(&self.all_ids(sentences, options)?, 0..1, options)
    }

    /// The latents of sentences given as ids: for each one row for every number in `samples`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_ids(&self, sentences: &[SentenceIds], samples: Range<usize>, options: &Options) -> Result<Latents> {
        let mut latents: Option<Latents> = None;
        for group in self.padded(sentences, options.padding) {
            let part = self.encode_rows(&group, samples.clone(), options)?;
            match &mut latents {
                Some(latents) => latents.append(part),
                None => latents = Some(part),
            }
        }
        latents.ok_or_else(|| Error::input("sentences", "there are none; give at least one"))
    }

    fn encode_rows(&self, sentences: &[SentenceIds], samples: Range<usize>, options: &Options) -> Result<Latents> {
        let (noise, dims) = (options.noise(), &self.config().dims);
        check_scale(noise.scale())?;
        let numbers: Vec<u64> =
            sentences.iter().flat_map(|s| samples.clone().map(|sample| row_number(s.index, sample))).collect();
        let eps = noise.draw(&numbers, dims.layers, dims.latent);
        let rows: Vec<Row<'_>> =
            sentences.iter().map(|s| Row { condition: &s.condition, sentence: &s.sentence }).collect();
        let latents = self.engine.encode(&rows, samples.len(), eps.as_ref().map(|eps| eps.view()), noise.scale())?;
        match latents.z.outer_iter().position(|z| z.iter().any(|z| !z.is_finite())) {
            None => Ok(latents),
            Some(row) => {
                let index = sentences[row / samples.len()].index;
                let message = "are not finite: the model's weights or the noise are too large";
                Err(Error::input(format!("latents of sentence {index}"), message))
            }
        }
    }

    /// The sentences in groups that are encoded together, filled up as the published code does if that is asked for. A
    /// group ends where its longest condition and its longest sentence would not fit into the model together.
    fn padded(&self, sentences: &[SentenceIds], padding: Padding) -> Vec<Vec<SentenceIds>> {
        if padding == Padding::Masked {
            return Vec::from_iter((!sentences.is_empty()).then(|| sentences.to_vec()));
        }
        let (config, mut groups) = (self.config(), Vec::<(usize, usize, Vec<SentenceIds>)>::new());
        for s in sentences {
            let (condition, sentence) = (s.condition.len(), s.sentence.len());
            match groups.last_mut() {
                Some(group) if group.0.max(condition) + group.1.max(sentence) <= config.dims.positions => {
                    (group.0, group.1) = (group.0.max(condition), group.1.max(sentence));
                    group.2.push(s.clone());
                }
                _ => groups.push((condition, sentence, vec![s.clone()])),
            }
        }
        for (condition, sentence, group) in &mut groups {
            for s in group {
                s.condition.resize(*condition, config.pad);
                s.sentence.resize(*sentence, config.pad);
            }
        }
        groups.into_iter().map(|(_, _, group)| group).collect()
    }

    /// The texts of latents `z (R, L, Z)` of an unconditional model.
    ///
    /// # Errors
    /// Latents of another shape, or that are not numbers; a conditional model, which cannot decode without a condition.
    pub fn decode(&self, z: ArrayView3<'_, f32>, options: &Options) -> Result<Vec<String>> {
        let prefix = self.start(&[])?;
        let starts: Vec<Start> =
            (0..z.len_of(Axis(0))).map(|index| Start { prefix: prefix.clone(), index, sample: 0 }).collect();
        let ids = self.decode_ids(z, &starts, options, &mut unwatched)?;
        ids.into_iter().map(|ids| self.text(&ids?, options)).collect()
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

    /// Continues `starts`, given latents `z (R, L, Z)`; returns each row's new tokens, with `<EOS>` where it came, or why
    /// it has none. `on_token` sees each token with the index of its row as it is chosen.
    ///
    /// # Errors
    /// As [`generate`](crate::generate::session::generate).
    pub fn decode_ids(
        &self,
        z: ArrayView3<'_, f32>,
        starts: &[Start],
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> Next,
    ) -> Result<Vec<Result<Vec<u32>>>> {
        if z.len_of(Axis(0)) != starts.len() {
            let message = format!("{} rows of latents for {} starts", z.len_of(Axis(0)), starts.len());
            return Err(Error::input("z", message));
        }
        let requests: Vec<Request<'_>> = z
            .outer_iter()
            .zip(starts)
            .map(|(z, start)| Request {
                z,
                prefix: &start.prefix,
                number: row_number(start.index, start.sample),
                choice: options.choice(),
                max_length: options.max_length,
            })
            .collect();
        self.engine.generate(&requests, options.batch, on_token)
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
    /// No sentence; one that the model cannot read.
    pub fn reconstruct<S: Into<Sentence>>(
        &self,
        sentences: impl IntoIterator<Item = S>,
        options: &Options,
    ) -> Result<Vec<Reconstruction>> {
        let ids = self.all_ids(sentences, options)?;
        self.reconstruct_ids(&ids, 0..1, options, &mut unwatched)?.into_iter().collect()
    }

    /// As [`reconstruct`](Self::reconstruct), for ids: for each sentence one reconstruction for every number in `samples`,
    /// or why there is none; `on_token` as in [`decode_ids`](Self::decode_ids).
    ///
    /// # Errors
    /// As [`encode_ids`](Self::encode_ids) and [`decode_ids`](Self::decode_ids).
    pub fn reconstruct_ids(
        &self,
        sentences: &[SentenceIds],
        samples: Range<usize>,
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> Next,
    ) -> Result<Vec<Result<Reconstruction>>> {
        let latents = self.encode_ids(sentences, samples.clone(), options)?;
        let mut starts = Vec::with_capacity(sentences.len() * samples.len());
        for s in sentences {
            let prefix = self.start(&s.condition)?;
            starts.extend(samples.clone().map(|sample| Start { prefix: prefix.clone(), index: s.index, sample }));
        }
        let outputs = self.decode_ids(latents.z.view(), &starts, options, on_token)?;
        let kl = latents.kl.ok_or_else(|| Error::input("sentences", "are empty"))?;
        let sentences = sentences.iter().flat_map(|s| samples.clone().map(move |_| s));
        let rows = sentences.zip(outputs).zip(kl.outer_iter());
        Ok(rows
            .map(|((s, output), kl)| {
                let new_ids = output?;
                let text = self.text(&new_ids, options)?;
                Ok(Reconstruction { ids: s.sentence.clone(), text, new_ids, kl: kl.to_owned() })
            })
            .collect())
    }

    /// Latents drawn from the prior of an unconditional model, one row for every number in `samples`; without noise, its
    /// mean.
    ///
    /// # Errors
    /// A conditional model.
    pub fn prior(&self, samples: Range<usize>, options: &Options) -> Result<Latents> {
        let (noise, dims) = (options.noise(), &self.config().dims);
        check_scale(noise.scale())?;
        let numbers: Vec<u64> = samples.map(|sample| row_number(0, sample)).collect();
        let eps = noise.draw(&numbers, dims.layers, dims.latent);
        self.engine.prior(numbers.len(), eps.as_ref().map(|eps| eps.view()), noise.scale())
    }

    /// `count` texts from the prior of an unconditional model.
    ///
    /// # Errors
    /// A conditional model.
    pub fn sample_prior(&self, count: usize, options: &Options) -> Result<Vec<String>> {
        let ids = self.sample_prior_ids(0..count, options)?;
        ids.into_iter().map(|ids| self.text(&ids?, options)).collect()
    }

    /// As [`sample_prior`](Self::sample_prior), as ids: one row for every number in `samples`, or why there is none.
    ///
    /// # Errors
    /// A conditional model.
    pub fn sample_prior_ids(&self, samples: Range<usize>, options: &Options) -> Result<Vec<Result<Vec<u32>>>> {
        let latents = self.prior(samples.clone(), options)?;
        let prefix = self.start(&[])?;
        let starts: Vec<Start> = samples.map(|sample| Start { prefix: prefix.clone(), index: 0, sample }).collect();
        self.decode_ids(latents.z.view(), &starts, options, &mut unwatched)
    }

    /// `count` sentences of a conditional model about `entities`.
    ///
    /// # Errors
    /// An unconditional model; entities that cannot be a condition.
    pub fn generate(&self, entities: &[Entity], count: usize, options: &Options) -> Result<Vec<String>> {
        let condition = self.condition(0, entities)?;
        let ids = self.generate_ids(&condition, 0..count, options)?;
        ids.into_iter().map(|ids| self.text(&ids?, options)).collect()
    }

    /// As [`generate`](Self::generate), for a condition as ids: one row for every number in `samples`, or why there is none.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_ids(
        &self,
        condition: &SentenceIds,
        samples: Range<usize>,
        options: &Options,
    ) -> Result<Vec<Result<Vec<u32>>>> {
        let latents = self.encode_rows(std::slice::from_ref(condition), samples.clone(), options)?;
        let SentenceIds { index, condition, .. } = condition;
        let starts: Vec<Start> =
            samples.map(|sample| Start { prefix: condition.clone(), index: *index, sample }).collect();
        self.decode_ids(latents.z.view(), &starts, options, &mut unwatched)
    }

    fn all_ids<S: Into<Sentence>>(
        &self,
        sentences: impl IntoIterator<Item = S>,
        options: &Options,
    ) -> Result<Vec<SentenceIds>> {
        let sentences = sentences.into_iter().enumerate();
        sentences.map(|(index, sentence)| self.ids(index, &sentence.into(), options.truncate)).collect()
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

fn check_scale(scale: f32) -> Result<()> {
    match scale.is_finite() && scale >= 0.0 {
        true => Ok(()),
        false => Err(Error::input("latent noise", format!("{scale} is not a number from 0"))),
    }
}
