//! What was measured, as a table and as JSON.

use std::fmt;

use ndarray::ArrayView1;
use serde::Serialize;

use super::Options;
use super::bounds::{Estimate, Terms};
use crate::engine::RowScore;

/// All measures of a model on some sentences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Sentences that were measured.
    pub sentences: usize,
    /// Tokens that were predicted: all but each sentence's first, `<EOS>` included.
    pub tokens: usize,
    /// With latents drawn from the posterior.
    pub likelihood: Likelihood,
    /// With latents at their means.
    pub means: AtMeans,
    /// One for each latent.
    pub layers: Vec<Layer>,
    /// Units of a latent.
    pub latent: usize,
    /// What counts as active.
    pub delta: f64,
    /// What the latents know of the sentences.
    pub information: Option<Information>,
    /// What comes back.
    pub reconstructions: Option<Reconstructions>,
    /// What comes from the prior.
    pub prior_samples: Option<PriorSamples>,
    /// Of everything that was drawn.
    pub seed: u64,
}

/// Bounds of the likelihood; see [`bounds`](super::bounds). Estimates are in nats a sentence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Likelihood {
    /// `K`: latents drawn for each sentence.
    pub samples: usize,
    /// `−E_q[log p(x|z)]`
    pub reconstruction: Estimate,
    /// Divergence of the posterior from the prior along the drawn chains, summed over layers.
    pub kl: Estimate,
    /// The evidence lower bound, with that divergence.
    pub elbo: Estimate,
    /// The same with the divergence drawn as well.
    pub sampled_elbo: Estimate,
    /// The importance-weighted estimate of `−log p(x)`.
    pub nll: Estimate,
    /// `−ELBO` of all sentences over all tokens, in nats a token.
    pub negative_elbo_per_token: f64,
    /// `exp(−ELBO / tokens)`: an upper bound of the perplexity.
    pub perplexity_bound: f64,
    /// `exp(nll / tokens)`, over all sentences.
    pub perplexity: f64,
}

/// Teacher forcing with every latent at its mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AtMeans {
    /// Share of tokens that had the largest logit.
    pub token_accuracy: f64,
    /// Mean loss in nats a token.
    pub cross_entropy: f64,
    /// Divergence of the posterior from the prior along the chain of means, summed over layers, in nats a sentence.
    pub kl: f64,
    /// The same of each layer.
    #[serde(skip)]
    pub kl_of_layers: Vec<f64>,
}

/// One latent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// In nats a sentence, along the drawn chains.
    pub kl: f64,
    /// The same along the chain of means.
    pub kl_at_means: f64,
    /// Units whose mean moves with the sentence.
    pub active_units: usize,
}

/// Mutual information of sentences and latents; see [`information`](super::information).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Information {
    /// `N`: sentences that were compared with each other.
    pub sentences: usize,
    /// `log N`: the most that can be measured with so many, in nats.
    pub bound: f64,
    /// Of each layer together with those below, in nats; the last is that of all latents.
    pub layers: Vec<f64>,
}

/// Most probable tokens from latents at their means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reconstructions {
    /// Share of sentences that come back token for token, up to and including `<EOS>`.
    pub exact: f64,
    /// Corpus BLEU-4 over tokens in [0, 1]; see [`text`](super::text).
    pub bleu_4: f64,
}

/// Texts from the prior; see [`text`](super::text).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PriorSamples {
    /// How many.
    pub samples: usize,
    /// Mean length in tokens, without `<EOS>`.
    pub tokens: f64,
    /// Different tokens among all.
    pub distinct_1: f64,
    /// Different pairs of tokens among all.
    pub distinct_2: f64,
    /// How much they repeat each other, in [0, 1].
    pub self_bleu_4: f64,
}

/// Sums over sentences.
#[derive(Default)]
pub(super) struct MeansSum {
    sentences: f64,
    tokens: f64,
    correct: f64,
    loss: f64,
    kl: Vec<f64>,
}

impl MeansSum {
    pub(super) fn add(&mut self, score: &RowScore, kl: ArrayView1<'_, f32>) {
        self.sentences += 1.0;
        self.tokens += score.nll.len() as f64;
        self.correct += score.correct.iter().filter(|&&correct| correct).count() as f64;
        self.loss += score.sum();
        self.kl.resize(kl.len(), 0.0);
        self.kl.iter_mut().zip(kl).for_each(|(sum, &kl)| *sum += f64::from(kl));
    }

    pub(super) fn finish(self) -> AtMeans {
        let kl_of_layers: Vec<f64> = self.kl.iter().map(|kl| kl / self.sentences).collect();
        AtMeans {
            token_accuracy: self.correct / self.tokens,
            cross_entropy: self.loss / self.tokens,
            kl: kl_of_layers.iter().sum(),
            kl_of_layers,
        }
    }
}

impl Report {
    pub(super) fn new(terms: &[Terms], options: &Options, means: AtMeans, active: Vec<usize>, latent: usize) -> Report {
        let tokens: usize = terms.iter().map(|terms| terms.tokens).sum();
        let estimate = |of: &dyn Fn(&Terms) -> f64| Estimate::of(terms.iter().map(of));
        let per_token = |estimate: &Estimate| estimate.mean * terms.len() as f64 / tokens as f64;
        let (elbo, nll) = (estimate(&Terms::elbo), estimate(&|terms| -terms.importance));
        let layer = |(l, active_units)| Layer {
            kl: estimate(&|terms| terms.kl[l]).mean,
            kl_at_means: means.kl_of_layers[l],
            active_units,
        };
        Report {
            sentences: terms.len(),
            tokens,
            layers: active.into_iter().enumerate().map(layer).collect(),
            likelihood: Likelihood {
                samples: options.samples,
                reconstruction: estimate(&|terms| terms.reconstruction),
                kl: estimate(&|terms| terms.kl.iter().sum()),
                sampled_elbo: estimate(&|terms| terms.sampled),
                negative_elbo_per_token: -per_token(&elbo),
                perplexity_bound: (-per_token(&elbo)).exp(),
                perplexity: per_token(&nll).exp(),
                elbo,
                nll,
            },
            means,
            latent,
            delta: options.delta,
            information: None,
            reconstructions: None,
            prior_samples: None,
            seed: options.seed,
        }
    }
}

/// A line of the table.
struct Line {
    name: String,
    value: String,
    error: Option<f64>,
    unit: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { likelihood, means, .. } = self;
        let mut lines: Vec<Line> = Vec::new();
        let mut put = |name: &str, value: String, error: Option<f64>, unit: &str| {
            lines.push(Line { name: name.into(), value, error, unit: unit.into() });
        };
        let estimate = |estimate: &Estimate| (format!("{:.3}", estimate.mean), Some(estimate.standard_error));
        let nats = "nats/sentence";
        put("sentences", self.sentences.to_string(), None, "");
        put("tokens", self.tokens.to_string(), None, "<EOS> counts, <BOS> does not");
        let title = match likelihood.samples {
            1 => "latents drawn".to_owned(),
            samples => format!("latents drawn, {samples} of each sentence"),
        };
        put(&title, String::new(), None, "");
        let rows =
            [("reconstruction loss", &likelihood.reconstruction), ("KL", &likelihood.kl), ("ELBO", &likelihood.elbo)];
        for (name, value) in rows {
            let (value, error) = estimate(value);
            put(&format!("  {name}"), value, error, nats);
        }
        put("  -ELBO", format!("{:.4}", likelihood.negative_elbo_per_token), None, "nats/token");
        put("  perplexity, at most", format!("{:.3}", likelihood.perplexity_bound), None, "per token");
        if likelihood.samples > 1 {
            let (value, error) = estimate(&likelihood.nll);
            put("  NLL, importance-weighted", value, error, nats);
            put("  perplexity, importance-weighted", format!("{:.3}", likelihood.perplexity), None, "per token");
        }
        put("latents at their means", String::new(), None, "");
        put("  token accuracy", format!("{:.5}", means.token_accuracy), None, "of tokens, teacher forcing");
        put("  cross-entropy", format!("{:.5}", means.cross_entropy), None, "nats/token, teacher forcing");
        put("  KL", format!("{:.3}", means.kl), None, nats);
        if let Some(back) = &self.reconstructions {
            put("  exact reconstructions", format!("{:.5}", back.exact), None, "of sentences, greedy");
            put("  BLEU-4", format!("{:.4}", back.bleu_4), None, "tokens, greedy");
        }
        if let Some(Information { sentences, bound, layers }) = &self.information {
            put(&format!("mutual information, {sentences} sentences"), String::new(), None, "");
            let value = layers.last().copied().unwrap_or_default();
            put("  I(x; z)", format!("{value:.4}"), None, &format!("nats, of log {sentences} = {bound:.4} at most"));
        }
        if let Some(prior) = &self.prior_samples {
            put(&format!("texts from the prior, {}", prior.samples), String::new(), None, "");
            put("  length", format!("{:.2}", prior.tokens), None, "tokens");
            put("  distinct-1", format!("{:.4}", prior.distinct_1), None, "of tokens");
            put("  distinct-2", format!("{:.4}", prior.distinct_2), None, "of pairs");
            put("  self-BLEU-4", format!("{:.4}", prior.self_bleu_4), None, "tokens");
        }
        let width = lines.iter().map(|line| line.name.len()).max().unwrap_or_default();
        writeln!(f, "{:<width$} {:>12} {:>9}  unit", "measure", "value", "± s.e.")?;
        for Line { name, value, error, unit } in lines {
            let error = error.map_or(String::new(), |error| format!("{error:.3}"));
            writeln!(f, "{}", format!("{name:<width$} {value:>12} {error:>9}  {unit}").trim_end())?;
        }
        self.write_layers(f)
    }
}

impl Report {
    fn write_layers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = format!("active of {}", self.latent);
        let information = self.information.as_ref().map(|information| &information.layers);
        let head = if information.is_some() { "   I(x; z_1 … z_l)" } else { "" };
        writeln!(f, "\n{:<5} {:>10} {:>12} {units:>14}{head}", "layer", "KL", "KL at means")?;
        for (l, layer) in self.layers.iter().enumerate() {
            let Layer { kl, kl_at_means, active_units } = layer;
            let known = information.map_or(String::new(), |layers| format!("{:>18.4}", layers[l]));
            writeln!(f, "{:<5} {kl:>10.3} {kl_at_means:>12.3} {active_units:>14}{known}", l + 1)?;
        }
        Ok(())
    }
}
