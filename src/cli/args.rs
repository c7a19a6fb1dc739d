//! Arguments that commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use della::dtype::Dtype;
use della::engine::{Device, DeviceOptions};
use della::generate::{Mode, Sampling};
use della::io::ElementType;
use della::text::Unknown;
use della::{Della, Options, Padding};

use super::Usage;

/// Which model, and where it runs.
#[derive(Args)]
pub struct ModelArgs {
    /// Model directory: config.json, weights and vocab.txt [default: the built-in model]
    #[arg(long, value_name = "DIR", env = "DELLA_MODEL", help_heading = "Model")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Where a model runs.
#[derive(Args)]
pub struct DeviceArgs {
    #[arg(long, default_value_t = Device::Auto, env = "DELLA_DEVICE", help_heading = "Model", help = DEVICE_HELP)]
    pub device: Device,
    /// Precision of weights and activations
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, env = "DELLA_DTYPE", help_heading = "Model")]
    pub dtype: DtypeArg,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", env = "DELLA_THREADS", help_heading = "Model")]
    pub threads: Option<usize>,
}

/// What `--device` takes.
pub const DEVICE_HELP: &str = "What computes: `auto`, the cores of this machine; `cpu`; `cuda:N`, an NVIDIA GPU; \
                               `emulator`, the GPU's kernels on the CPU, slowly; `reference`, the f64 oracle, slowly";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// f64 on the reference device, else f32
    Auto,
    F32,
    /// Weights and products of 16 bits
    Bf16,
    /// Weights and products of 8 bits; cannot be trained
    Int8,
    /// Weights of 4 bits, products of 8; cannot be trained
    Int4,
    F64,
}

/// How weights are stored.
#[derive(Clone, Copy, ValueEnum)]
pub enum StoredArg {
    F32,
    F16,
    Bf16,
}

impl From<StoredArg> for ElementType {
    fn from(stored: StoredArg) -> Self {
        match stored {
            StoredArg::F32 => ElementType::F32,
            StoredArg::F16 => ElementType::F16,
            StoredArg::Bf16 => ElementType::Bf16,
        }
    }
}

impl DeviceArgs {
    /// The library's form of these arguments.
    pub fn options(&self) -> anyhow::Result<DeviceOptions> {
        if self.threads == Some(0) {
            return Err(Usage("--threads: 0 threads compute nothing; give at least 1".into()).into());
        }
        Ok(device_options(self.device, self.dtype, self.threads))
    }
}

/// The library's form of device, precision and threads.
pub fn device_options(device: Device, dtype: DtypeArg, threads: Option<usize>) -> DeviceOptions {
    let dtype = match dtype {
        DtypeArg::Auto => None,
        DtypeArg::F32 => Some(Dtype::F32),
        DtypeArg::Bf16 => Some(Dtype::Bf16),
        DtypeArg::Int8 => Some(Dtype::Int8),
        DtypeArg::Int4 => Some(Dtype::Int4),
        DtypeArg::F64 => Some(Dtype::F64),
    };
    DeviceOptions { device, dtype, threads }
}

impl ModelArgs {
    /// Opens the model.
    pub fn open(&self) -> anyhow::Result<Della> {
        self.open_in(self.device.dtype)
    }

    /// Opens the model in this precision.
    pub fn open_in(&self, dtype: DtypeArg) -> anyhow::Result<Della> {
        let device = device_options(self.device.device, dtype, self.device.options()?.threads);
        match &self.model {
            Some(dir) => Ok(Della::open_with(dir, &device)?),
            #[cfg(feature = "builtin-model")]
            None => Ok(Della::builtin_with(&device)?),
            #[cfg(not(feature = "builtin-model"))]
            None => Err(Usage("--model DIR is needed: this build has no built-in model".into()).into()),
        }
    }
}

/// Where latents are taken.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LatentArg {
    /// At their means
    Mean,
    /// Drawn, with the noise multiplied by --latent-noise
    Sample,
}

/// How latents and tokens are drawn.
#[derive(Args)]
pub struct DrawArgs {
    /// Where the latents are taken
    #[arg(long, value_enum, help_heading = "Drawing")]
    pub latent: Option<LatentArg>,
    /// Factor of the latents' noise (the published β_logvar), with --latent sample
    #[arg(long, value_name = "X", help_heading = "Drawing")]
    pub latent_noise: Option<f32>,
    /// Seed of everything that is drawn: a number, or `random`
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_seed, env = "DELLA_SEED", help_heading = "Drawing")]
    pub seed: u64,
}

/// A seed as the command line has it; one drawn at random is printed.
pub fn parse_seed(text: &str) -> Result<u64, String> {
    if text == "random" {
        // 63 bits, so that a settings file, whose numbers have a sign, can hold it
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id()) >> 1;
        remark!("seed: {seed}");
        return Ok(seed);
    }
    text.parse().map_err(|_| format!("a number from 0 to {}, or `random`", u64::MAX))
}

impl DrawArgs {
    /// Puts what was given into `options`.
    pub fn apply(&self, options: &mut Options) -> anyhow::Result<()> {
        options.seed = self.seed;
        options.latent_noise = match (self.latent, self.latent_noise) {
            (Some(LatentArg::Mean), Some(_)) => {
                return Err(Usage("--latent-noise has no meaning with --latent mean".into()).into());
            }
            (Some(LatentArg::Mean), None) => None,
            (_, Some(noise)) if !(noise >= 0.0 && noise.is_finite()) => {
                return Err(Usage(format!("--latent-noise: {noise} is not a number from 0")).into());
            }
            (_, Some(noise)) => Some(noise),
            (Some(LatentArg::Sample), None) => Some(1.0),
            (None, None) => options.latent_noise,
        };
        Ok(())
    }
}

/// How text is decoded from latents.
#[derive(Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    pub draw: DrawArgs,
    /// Always take the most probable token
    #[arg(long, help_heading = "Drawing", conflicts_with_all = ["top_p", "top_k", "temperature", "repetition_penalty"])]
    pub greedy: bool,
    /// Keep the likeliest tokens up to this mass; 0 and 1 keep all
    #[arg(long, value_name = "P", help_heading = "Drawing")]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", help_heading = "Drawing")]
    pub top_k: Option<usize>,
    /// Below 1 sharpens, above 1 flattens
    #[arg(long, value_name = "T", help_heading = "Drawing")]
    pub temperature: Option<f32>,
    /// Above 1 discourages tokens that were there before
    #[arg(long, value_name = "X", help_heading = "Drawing")]
    pub repetition_penalty: Option<f32>,
    /// Rules of top-p and the repetition penalty
    #[arg(long, value_enum, default_value_t = RulesArg::Usual, help_heading = "Drawing")]
    pub rules: RulesArg,
    /// New tokens at most
    #[arg(long, value_name = "N", help_heading = "Drawing")]
    pub max_length: Option<usize>,
    /// Sequences that are decoded at the same time
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Drawing")]
    pub batch: usize,
    /// Leave [UNK] out of the text
    #[arg(long, help_heading = "Output")]
    pub drop_unknown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RulesArg {
    /// As everywhere: penalty on logits, once per token
    Usual,
    /// As the published code: penalty on probabilities, once per occurrence
    Reference,
}

impl DecodeArgs {
    /// `options` with what was given on the command line.
    pub fn options(&self, mut options: Options) -> anyhow::Result<Options> {
        self.draw.apply(&mut options)?;
        if let Some(sampling) = &mut options.sampling {
            *sampling = Sampling {
                top_k: self.top_k.unwrap_or(sampling.top_k),
                top_p: self.top_p.unwrap_or(sampling.top_p),
                temperature: self.temperature.unwrap_or(sampling.temperature),
                repetition_penalty: self.repetition_penalty.unwrap_or(sampling.repetition_penalty),
                mode: match self.rules {
                    RulesArg::Usual => Mode::Usual,
                    RulesArg::Reference => Mode::Reference,
                },
            };
            sampling.validate().map_err(|e| Usage(format!("--{}", e.to_string().replacen('_', "-", 1))))?;
        }
        if self.greedy {
            options.sampling = None;
        }
        options.max_length = self.max_length.unwrap_or(options.max_length);
        options.batch = self.batch;
        for (flag, value) in [("--max-length", options.max_length), ("--batch", options.batch)] {
            if value == 0 {
                return Err(Usage(format!("{flag}: at least 1 is needed")).into());
            }
        }
        if self.drop_unknown {
            options.show.unk = Unknown::Drop;
        }
        Ok(options)
    }
}

/// How sentences are read.
#[derive(Args)]
pub struct EncodeArgs {
    /// Shorten sentences that the model cannot read whole, instead of refusing them
    #[arg(long, help_heading = "Input")]
    pub truncate: bool,
    /// Treatment of padding when sentences of different lengths are encoded together
    #[arg(long, value_enum, default_value_t = PaddingArg::Masked, help_heading = "Input")]
    pub padding: PaddingArg,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PaddingArg {
    /// A sentence's result does not depend on its company
    Masked,
    /// The published arithmetic: padding is read like text
    Reference,
}

impl EncodeArgs {
    /// Puts what was given into `options`.
    pub fn apply(&self, options: &mut Options) {
        options.truncate = self.truncate;
        options.padding = match self.padding {
            PaddingArg::Masked => Padding::Masked,
            PaddingArg::Reference => Padding::Reference,
        };
    }
}
