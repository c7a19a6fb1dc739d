//! Bounds of the likelihood.
//!
//! With `z_1 … z_K` drawn from the posterior of a sentence `x` and `w_s = p(x|z_s) p(z_s) / q(z_s|x)`:
//!
//! ```text
//! ELBO      = E_q[log p(x|z)] − Σ_l KL(q_l ‖ p_l)      the divergences in closed form, along the drawn chains
//!           ≈ (1/K) Σ_s log w_s                        the same expectation, the divergences drawn too
//! IW_K      = log (1/K) Σ_s w_s                        ELBO ≤ E[IW_K] ≤ log p(x), closer with every sample
//! ```
//!
//! (Kingma and Welling 2014; Burda, Grosse and Salakhutdinov 2016, eq. 8.) Densities are products over layers, each at
//! the chain state that the sample itself led to. Everything is in f64 and in logarithms.

use ndarray::ArrayView2;
use serde::Serialize;

use crate::latent::{Gaussian, Latents};

/// The mean over sentences, and how sure it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error, `√(variance / sentences)`; 0 for one sentence, of which nothing is known.
    pub standard_error: f64,
}

impl Estimate {
    /// Of one value for each sentence.
    pub fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let n = values.len() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Estimate { mean, standard_error: if n > 1.0 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 } }
    }
}

/// One sentence's terms, in nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Tokens that were predicted: all but the first, `<EOS>` included.
    pub tokens: usize,
    /// `−E_q[log p(x|z)]`
    pub reconstruction: f64,
    /// `KL(q_l ‖ p_l)` of each layer.
    pub kl: Vec<f64>,
    /// `(1/K) Σ_s log w_s`
    pub sampled: f64,
    /// `IW_K`
    pub importance: f64,
}

impl Terms {
    /// From `−log p(x|z_s)`, the divergences `(K, L)` and `log (p(z_s) / q(z_s|x))` of each sample.
    pub fn new(tokens: usize, losses: &[f64], kl: ArrayView2<'_, f32>, log_ratios: &[f64]) -> Self {
        let samples = losses.len() as f64;
        let log_weights: Vec<f64> = losses.iter().zip(log_ratios).map(|(loss, ratio)| ratio - loss).collect();
        Terms {
            tokens,
            reconstruction: losses.iter().sum::<f64>() / samples,
            kl: kl.columns().into_iter().map(|kl| kl.iter().map(|&kl| f64::from(kl)).sum::<f64>() / samples).collect(),
            sampled: log_weights.iter().sum::<f64>() / samples,
            importance: log_mean_exp(&log_weights),
        }
    }

    /// With the divergences in closed form.
    pub fn elbo(&self) -> f64 {
        -self.reconstruction - self.kl.iter().sum::<f64>()
    }
}

/// `log (1/K) Σ_s exp(x_s)`
pub fn log_mean_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return max;
    }
    max + (x.iter().map(|x| (x - max).exp()).sum::<f64>() / x.len() as f64).ln()
}

/// `log p(z) − log q(z|x)` of row `row`, summed over layers and dimensions; `None` without a posterior.
pub fn log_ratio(latents: &Latents, row: usize) -> Option<f64> {
    let posterior = latents.posterior.as_ref()?;
    Some(log_density(latents, &latents.prior, row) - log_density(latents, posterior, row))
}

/// `log N(z; μ, σ²)` less the constant that all densities share.
fn log_density(latents: &Latents, gaussian: &Gaussian, row: usize) -> f64 {
    let [z, mean, log_variance] =
        [&latents.z, &gaussian.mean, &gaussian.log_variance].map(|array| array.index_axis(ndarray::Axis(0), row));
    let terms = z.iter().zip(mean).zip(log_variance).map(|((&z, &mean), &log_variance)| {
        let (difference, log_variance) = (f64::from(z) - f64::from(mean), f64::from(log_variance));
        log_variance + difference.powi(2) * (-log_variance).exp()
    });
    -0.5 * terms.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, array};

    use super::*;
    use crate::rng::{Rng, Stream};

    /// `z ~ N(0, 1)`, `x ~ N(z, noise)`, seen through a posterior `N(mean, variance)`: a sentence of one number.
    struct Toy {
        x: f64,
        noise: f64,
        mean: f64,
        variance: f64,
    }

    impl Toy {
        /// `log p(x)`: `x ~ N(0, 1 + noise)`.
        fn evidence(&self) -> f64 {
            let variance = 1.0 + self.noise;
            -0.5 * ((std::f64::consts::TAU * variance).ln() + self.x.powi(2) / variance)
        }

        fn terms(&self, samples: usize, seed: u64) -> Terms {
            let mut eps = vec![0.0; samples];
            Rng::new(seed, Stream::Latent, 0).fill_normal(&mut eps);
            let z = Array3::from_shape_fn((samples, 1, 1), |(s, ..)| {
                (self.mean + f64::from(eps[s]) * self.variance.sqrt()) as f32
            });
            let gaussian = |mean: f64, log_variance: f64| Gaussian {
                mean: Array3::from_elem(z.dim(), mean as f32),
                log_variance: Array3::from_elem(z.dim(), log_variance as f32),
            };
            let losses: Vec<f64> = z
                .iter()
                .map(|&z| {
                    0.5 * ((std::f64::consts::TAU * self.noise).ln() + (self.x - f64::from(z)).powi(2) / self.noise)
                })
                .collect();
            let kl = 0.5 * (self.variance + self.mean.powi(2) - 1.0 - self.variance.ln());
            let latents = Latents {
                prior: gaussian(0.0, 0.0),
                posterior: Some(gaussian(self.mean, self.variance.ln())),
                kl: None,
                z,
            };
            let ratios: Vec<f64> = (0..samples).map(|row| log_ratio(&latents, row).unwrap()).collect();
            Terms::new(1, &losses, Array2::from_elem((samples, 1), kl as f32).view(), &ratios)
        }
    }

    /// With the true posterior every weight is `p(x)`, whatever is drawn.
    #[test]
    fn the_true_posterior_gives_the_evidence_from_one_sample() {
        let (x, noise) = (1.3, 0.4);
        let toy = Toy { x, noise, mean: x / (1.0 + noise), variance: noise / (1.0 + noise) };
        for seed in 0..4 {
            let terms = toy.terms(1, seed);
            assert!((terms.importance - toy.evidence()).abs() < 1e-6, "{terms:?} {}", toy.evidence());
        }
        let terms = toy.terms(4000, 9);
        assert!((terms.elbo() - toy.evidence()).abs() < 0.05, "{terms:?} {}", toy.evidence());
    }

    #[test]
    fn a_wrong_posterior_needs_samples() {
        let toy = Toy { x: 1.3, noise: 0.4, mean: 0.4, variance: 0.8 };
        // in closed form: E_q[log p(x|z)] − KL
        let rec = 0.5 * ((std::f64::consts::TAU * 0.4).ln() + (0.9_f64.powi(2) + 0.8) / 0.4);
        let elbo = -rec - 0.5 * (0.8 + 0.16 - 1.0 - 0.8_f64.ln());
        let mean = |k: usize, of: fn(&Terms) -> f64| {
            (0..20_000 / k as u64).map(|seed| of(&toy.terms(k, seed))).sum::<f64>() / (20_000 / k) as f64
        };
        let (elbos, one, five) = (mean(1, Terms::elbo), mean(1, |t| t.importance), mean(5, |t| t.importance));
        assert!((elbos - elbo).abs() < 0.02 && (one - elbo).abs() < 0.02, "{elbos} {one} {elbo}");
        assert!(one < five - 0.1 && five < toy.evidence() - 0.01, "{one} {five} {}", toy.evidence());
        let many = toy.terms(100_000, 3).importance;
        assert!((many - toy.evidence()).abs() < 0.01, "{many} {}", toy.evidence());
    }

    #[test]
    fn one_sample_is_the_sampled_bound_and_more_are_never_below_it() {
        let toy = Toy { x: -0.5, noise: 0.2, mean: 0.3, variance: 0.5 };
        assert_eq!(toy.terms(1, 5).sampled, toy.terms(1, 5).importance);
        for seed in 0..50 {
            let terms = toy.terms(8, seed);
            assert!(terms.importance > terms.sampled, "{terms:?}");
        }
    }

    #[test]
    fn sums_are_kept_in_logarithms() {
        assert!((log_mean_exp(&[-1000.0, -1000.0 + 3.0_f64.ln()]) - (-1000.0 + 2.0_f64.ln())).abs() < 1e-12);
        assert_eq!(log_mean_exp(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    }

    #[test]
    fn terms_are_means_over_samples() {
        let terms = Terms::new(3, &[4.0, 6.0], array![[1.0, 2.0], [3.0, 6.0]].view(), &[-1.0, -5.0]);
        assert_eq!((terms.reconstruction, &terms.kl[..], terms.sampled), (5.0, &[2.0, 4.0][..], -8.0));
        assert_eq!(terms.elbo(), -11.0);
    }

    #[test]
    fn errors_are_of_the_mean() {
        let estimate = Estimate::of([1.0, 2.0, 3.0, 6.0].into_iter());
        // variance (4 + 1 + 0 + 9) / 3, over 4 sentences
        assert_eq!(estimate, Estimate { mean: 3.0, standard_error: (14.0_f64 / 12.0).sqrt() });
        assert_eq!(Estimate::of([5.0].into_iter()), Estimate { mean: 5.0, standard_error: 0.0 });
    }
}
