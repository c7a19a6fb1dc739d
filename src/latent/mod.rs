//! Latents on the host: what encoding gives and decoding takes.

use ndarray::{Array2, Array3, Axis};

use crate::rng::{Rng, Stream};

/// A diagonal Gaussian for each row and layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// `(R, L, Z)`
    pub mean: Array3<f32>,
    /// `(R, L, Z)`: `log σ²`.
    pub log_variance: Array3<f32>,
}

/// The latents of `R` rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// `(R, L, Z)`: what the decoder is given.
    pub z: Array3<f32>,
    /// The prior at the state that `z` led to.
    pub prior: Gaussian,
    /// The posterior, if there was a sentence.
    pub posterior: Option<Gaussian>,
    /// `(R, L)`: divergence of the posterior from the prior in nats, if there was a sentence.
    pub kl: Option<Array2<f32>>,
}

impl Gaussian {
    fn append(&mut self, other: Gaussian) {
        append(&mut self.mean, other.mean);
        append(&mut self.log_variance, other.log_variance);
    }
}

impl Latents {
    /// Adds the rows of `other`, which come from the same model.
    pub fn append(&mut self, other: Latents) {
        append(&mut self.z, other.z);
        self.prior.append(other.prior);
        if let (Some(posterior), Some(more)) = (&mut self.posterior, other.posterior) {
            posterior.append(more);
        }
        if let (Some(kl), Some(more)) = (&mut self.kl, other.kl) {
            kl.append(Axis(0), more.view()).expect("rows have the same layers");
        }
    }
}

fn append(array: &mut Array3<f32>, more: Array3<f32>) {
    array.append(Axis(0), more.view()).expect("rows have the same layers and width");
}

/// The number that a row's draws depend on: which row it is, and which sample of it.
pub fn row_number(index: usize, sample: usize) -> u64 {
    index as u64 | (sample as u64) << 32
}

/// Where in a Gaussian the latents are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// At the mean.
    Mean,
    /// `μ + scale · ε · σ`, `ε` drawn from `(seed, row)`.
    Sample {
        /// The request's seed.
        seed: u64,
        /// `β_logvar`; 1 samples the Gaussian itself.
        scale: f32,
    },
}

impl Noise {
    /// `ε` of each row `(R, L, Z)`: a function of the seed and the row's number alone. `None` at the mean.
    pub fn draw(&self, rows: &[u64], layers: usize, latent: usize) -> Option<Array3<f32>> {
        let Noise::Sample { seed, .. } = *self else { return None };
        let mut eps = Array3::zeros((rows.len(), layers, latent));
        for (mut row, &id) in eps.outer_iter_mut().zip(rows) {
            let row = row.as_slice_mut().expect("a row of a new array is contiguous");
            Rng::new(seed, Stream::Latent, id).fill_normal(row);
        }
        Some(eps)
    }

    /// `β_logvar`.
    pub fn scale(&self) -> f32 {
        match *self {
            Noise::Mean => 0.0,
            Noise::Sample { scale, .. } => scale,
        }
    }
}
