//! Settings that are one of several words, each with what it means.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::gradient::{Divergence, FreeBits, Reconstruction};
use crate::train::data::{Format, Long};

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

/// Gives the variants of enums, which may be declared elsewhere, their words and what each means.
macro_rules! words {
    ($($name:ident { $($variant:ident = $word:literal: $doc:expr,)+ })+) => {$(
        impl Kind for $name {
            const WORDS: &[(&str, &str)] = &[$(($word, $doc)),+];
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

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                const KNOWN: &[&str] = &[$($word),+];
                let word = String::deserialize(deserializer)?;
                <Self as Choice>::of(&word).ok_or_else(|| de::Error::unknown_variant(&word, KNOWN))
            }
        }
    )+};
}

/// Declares enums of words.
macro_rules! choices {
    ($($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    })+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $name {
                $($(#[doc = $doc])+ $variant,)+
            }
        )+

        words! { $($name { $($variant = $word: concat!($($doc),+),)+ })+ }
    };
}

words! {
    Format {
        Auto = "auto": "By the name: .jsonl and .tsv are those, everything else is text.",
        Text = "text": "A sentence per line.",
        Tsv = "tsv": "A label, a tab and a sentence per line.",
        Jsonl = "jsonl": "An object per line.",
    }
    Long {
        Skip = "skip": "It is left out.",
        Truncate = "truncate": "Its end is cut off.",
    }
    Reconstruction {
        Token = "token": "Their sum over the row's length, as the published code: beta = 1 then weighs the KL far more than the ELBO.",
        Sum = "sum": "Their sum: with kl = \"sum\" and beta = 1, the loss is the negative ELBO.",
    }
    Divergence {
        Sum = "sum": "Their sum.",
        Mean = "mean": "Their mean, as the paper.",
    }
    FreeBits {
        Total = "total": "The KL of a row.",
        Layer = "layer": "The KL of each layer.",
        Dimension = "dimension": "The KL of each unit.",
    }
}

choices! {
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
