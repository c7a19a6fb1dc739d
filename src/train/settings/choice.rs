//! Settings that are one of several words, each with what it means.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a setting can be.
pub trait Kind {
    /// Of a setting that is one of several words, the words and what each means.
    const WORDS: &[(&str, &str)] = &[];
}

/// A setting that is one of several words.
pub trait Choice: Kind + Copy + fmt::Display + 'static {
    /// The choice of a word.
    fn of(word: &str) -> Option<Self>;
}

impl Kind for bool {}
impl Kind for u64 {}
impl Kind for usize {}
impl Kind for f64 {}
impl Kind for String {}
impl Kind for PathBuf {}
impl<T: Kind> Kind for [T; 2] {}
impl<T: Kind> Kind for Vec<T> {}
impl<T: Kind> Kind for Option<T> {
    const WORDS: &[(&str, &str)] = T::WORDS;
}

macro_rules! choices {
    ($($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    })+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl Kind for $name {
            const WORDS: &[(&str, &str)] = &[$(($word, concat!($($doc),+))),+];
        }

        impl Choice for $name {
            fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some($name::$variant),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $($name::$variant => $word,)+
                })
            }
        }
    )+};
}

choices! {
    /// How a data file is read.
    DataFormat {
        /// By the name: .jsonl and .tsv are those, everything else is text.
        Auto = "auto",
        /// A sentence per line.
        Text = "text",
        /// A label, a tab and a sentence per line.
        Tsv = "tsv",
        /// An object per line.
        Jsonl = "jsonl",
    }
    /// What happens to a sentence that is longer than the model can read.
    Long {
        /// It is left out.
        Skip = "skip",
        /// Its end is cut off.
        Truncate = "truncate",
    }
    /// Which parameters weight decay shrinks.
    Decay {
        /// Every one whose name has neither `bias` nor `LayerNorm.weight` in it, so the weights of ln_1, ln_2, ln_f too.
        Published = "published",
        /// Those with two dimensions, except the embeddings wte and wpe.
        Matrices = "matrices",
    }
    /// The learning rate after warm-up.
    LrSchedule {
        /// It stays.
        Constant = "constant",
        /// It falls in a straight line.
        Linear = "linear",
        /// It falls as half a cosine.
        Cosine = "cosine",
    }
    /// How a row's reconstruction loss comes from its tokens'.
    Rec {
        /// Their sum over the row's length, as the published code: beta = 1 then weighs the KL far more than the ELBO.
        Token = "token",
        /// Their sum: with kl = "sum" and beta = 1, the loss is the negative ELBO.
        Sum = "sum",
    }
    /// How a row's KL comes from its layers'.
    Kl {
        /// Their sum.
        Sum = "sum",
        /// Their mean, as the paper.
        Mean = "mean",
    }
    /// How beta changes.
    BetaSchedule {
        /// It stays.
        Constant = "constant",
        /// From beta_start to beta in a straight line over beta_steps.
        Linear = "linear",
        /// In each of beta_cycles, from beta_start to beta over the share beta_ratio, then beta (Fu et al. 2019).
        Cyclic = "cyclic",
        /// In each of beta_cycles, half at beta_start, a quarter rising, a quarter at beta: the published code's.
        Published = "published",
    }
    /// What the free bits are given to.
    FreeBitsBy {
        /// The KL of a row.
        Total = "total",
        /// The KL of each layer.
        Layer = "layer",
        /// The KL of each unit.
        Dimension = "dimension",
    }
}

impl Decay {
    /// Whether the parameter `name` of that shape is shrunk.
    pub fn applies(self, name: &str, shape: &[usize]) -> bool {
        match self {
            Decay::Published => !name.contains("bias") && !name.contains("LayerNorm.weight"),
            Decay::Matrices => shape.len() == 2 && !name.ends_with("wte.weight") && !name.ends_with("wpe.weight"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_leaves_out_what_it_says() {
        let shrunk = |decay: Decay| {
            let parameters: [(&str, &[usize]); 6] = [
                ("h.0.ln_1.weight", &[4]),
                ("h.0.ln_1.bias", &[4]),
                ("LayerNorm.weight", &[4]),
                ("h.0.attn.c_attn.weight", &[4, 12]),
                ("decoder.transformer.wte.weight", &[9, 4]),
                ("encoder.transformer.wpe.weight", &[8, 4]),
            ];
            parameters.map(|(name, shape)| decay.applies(name, shape))
        };
        assert_eq!(shrunk(Decay::Published), [true, false, false, true, true, true]);
        assert_eq!(shrunk(Decay::Matrices), [false, false, false, true, false, false]);
    }
}
