//! What the latents know of the sentences: mutual information, and the units that are in use.

use ndarray::{Array2, ArrayView2, ArrayView3, Axis, s};

use super::bounds::log_mean_exp;
use crate::engine::PosteriorParts;

/// Units whose posterior mean moves with the sentence: `Var_x(E_q[z|x]) > δ` (Burda et al. 2016, section 4, with δ =
/// 0.01). In a chain the mean depends on the latents below; it is taken along the chain of means.
#[derive(Clone, Debug)]
pub struct Units {
    count: f64,
    /// `(L, Z)`
    mean: Array2<f64>,
    /// `(L, Z)`: squared deviations from the mean, summed.
    squares: Array2<f64>,
}

impl Units {
    /// Of no sentences yet.
    pub fn new(layers: usize, latent: usize) -> Self {
        Units { count: 0.0, mean: Array2::zeros((layers, latent)), squares: Array2::zeros((layers, latent)) }
    }

    /// Adds a sentence's posterior means `(L, Z)` (Welford 1962).
    pub fn add(&mut self, means: ArrayView2<'_, f32>) {
        self.count += 1.0;
        for ((mean, squares), &value) in self.mean.iter_mut().zip(&mut self.squares).zip(means) {
            let before = f64::from(value) - *mean;
            *mean += before / self.count;
            *squares += before * (f64::from(value) - *mean);
        }
    }

    /// How many units of each layer have a variance above `delta`.
    pub fn active(&self, delta: f64) -> Vec<usize> {
        let variances = self.squares.mapv(|squares| squares / (self.count - 1.0));
        variances.outer_iter().map(|layer| layer.iter().filter(|&&variance| variance > delta).count()).collect()
    }
}

/// Mutual information of sentences and latents under the posterior, in nats: for each layer `l` that of all latents up to
/// it,
///
/// ```text
/// I_l = (1/N) Σ_m [ log q(z_≤l | x_m) − log (1/N) Σ_n q(z_≤l | x_n) ]        z of row m drawn from q(z | x_m)
/// ```
///
/// so that the last is `I_q(x; z)`, and the difference of two neighbours is what a layer adds to those below it. This is
/// `E_x KL(q(z|x) ‖ p) − KL(q(z) ‖ p)` (Hoffman and Johnson 2016) with the aggregated posterior `q(z)` over the same
/// sentences, estimated as by He et al. (2019), over a chain: `q(z|x_n) = Π_l q(z_l | x_n, z_<l)` at the very latents of
/// row `m`.
///
/// Row `m` is among the `n`, so no term exceeds `log N`: where all sentences can be told apart the estimate is `log N`,
/// however much more the latents know. Of these `N` sentences, taken as all there are, it is an unbiased estimate; of
/// the population that they come from a lower bound (Poole et al. 2019). For a conditional model, `x` is the sentence with
/// its condition.
///
/// `parts` are of `N` rows, `z (N, L, Z)` drawn from their posteriors.
pub fn mutual_information(parts: &PosteriorParts, z: ArrayView3<'_, f32>) -> Vec<f64> {
    let (count, layers, latent) = z.dim();
    let mut sums = vec![0.0; layers];
    let mut densities = Array2::<f64>::zeros((layers, count));
    // 1/σ² = exp(−a) exp(−b) for a log-variance a + b: no exponential for a pair
    let precision = |log_variance: f32| (-f64::from(log_variance)).exp();
    let row_precisions = parts.rows.slice(s![.., .., latent..]).mapv(precision);
    let [row_logs, state_logs] =
        [&parts.rows, &parts.states].map(|part| part.slice(s![.., .., latent..]).mapv(f64::from).sum_axis(Axis(2)));
    let row_means = parts.rows.slice(s![.., .., ..latent]).mapv(f64::from);
    for m in 0..count {
        let state = parts.states.index_axis(Axis(0), m);
        for l in 0..layers {
            let target: Vec<f64> = (0..latent).map(|i| f64::from(z[(m, l, i)]) - f64::from(state[(l, i)])).collect();
            let precisions: Vec<f64> = (0..latent).map(|i| precision(state[(l, latent + i)])).collect();
            for n in 0..count {
                let (means, row_precisions) = (row_means.slice(s![n, l, ..]), row_precisions.slice(s![n, l, ..]));
                let distance: f64 = target
                    .iter()
                    .zip(&precisions)
                    .zip(means)
                    .zip(row_precisions)
                    .map(|(((target, p), mean), q)| (target - mean).powi(2) * p * q)
                    .sum();
                let below = if l == 0 { 0.0 } else { densities[(l - 1, n)] };
                densities[(l, n)] = below - 0.5 * (distance + row_logs[(n, l)] + state_logs[(m, l)]);
            }
        }
        for (sum, densities) in sums.iter_mut().zip(densities.outer_iter()) {
            *sum += densities[m] - log_mean_exp(densities.as_slice().expect("a row of a new array is contiguous"));
        }
    }
    sums.into_iter().map(|sum| sum / count as f64).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};

    use super::*;

    #[test]
    fn units_are_active_where_the_mean_moves() {
        let mut units = Units::new(2, 3);
        // variances: 1, 0.01, 0; 0.0049, 0.0225, 0
        for sign in [-1.0_f32, 0.0, 1.0] {
            units.add(array![[sign, 0.1 * sign, 7.0], [0.07 * sign, 0.15 * sign, -1e6]].view());
        }
        assert_eq!(units.active(0.011), [1, 1]);
        assert_eq!(units.active(0.008), [2, 1]);
        assert_eq!(units.active(0.001), [2, 2]);
        assert_eq!(units.active(2.0), [0, 0]);
        let mut one = Units::new(1, 1);
        one.add(array![[3.0]].view());
        assert_eq!(one.active(0.01), [0]);
    }

    /// Rows with these means and log-variances in every layer, no influence of the state.
    fn parts(means: &[f32], log_variance: f32, layers: usize) -> PosteriorParts {
        let rows = Array3::from_shape_fn((means.len(), layers, 2), |(n, _, i)| [means[n], log_variance][i]);
        PosteriorParts { states: Array3::zeros(rows.dim()), rows }
    }

    fn drawn(z: &[f32], layers: usize) -> Array3<f32> {
        Array3::from_shape_fn((z.len(), layers, 1), |(n, ..)| z[n])
    }

    #[test]
    fn information_by_hand() {
        // q(0|x_1) = c, q(0|x_2) = c exp(−½), and the other way round
        let found = mutual_information(&parts(&[0.0, 1.0], 0.0, 1), drawn(&[0.0, 1.0], 1).view());
        let wanted = (2.0 / (1.0 + (-0.5_f64).exp())).ln();
        assert!((found[0] - wanted).abs() < 1e-12, "{found:?} {wanted}");
        // variance 4 in one row's part and 1/2 in the state's: 2 together
        let mut wide = parts(&[0.0, 1.0], 4.0_f32.ln(), 1);
        wide.states.slice_mut(s![.., .., 1]).fill(0.5_f32.ln());
        // the state moves both means, and the latents with them
        wide.states.slice_mut(s![.., .., 0]).fill(10.0);
        let found = mutual_information(&wide, drawn(&[10.0, 11.0], 1).view());
        let wanted = (2.0 / (1.0 + (-0.25_f64).exp())).ln();
        assert!((found[0] - wanted).abs() < 1e-6, "{found:?} {wanted}");
        // the second layer tells as much again: densities multiply
        let found = mutual_information(&parts(&[0.0, 1.0], 0.0, 2), drawn(&[0.0, 1.0], 2).view());
        let wanted = (2.0 / (1.0 + (-1.0_f64).exp())).ln();
        assert!((found[1] - wanted).abs() < 1e-12 && found[1] > found[0], "{found:?} {wanted}");
    }

    #[test]
    fn nothing_is_known_of_equals_and_at_most_log_n_of_any() {
        let same = mutual_information(&parts(&[3.0; 5], 0.0, 2), drawn(&[2.0, 3.0, 3.5, 4.0, 9.0], 2).view());
        assert!(same.iter().all(|i| i.abs() < 1e-12), "{same:?}");
        let far: Vec<f32> = (0..8).map(|n| 1000.0 * n as f32).collect();
        let told = mutual_information(&parts(&far, 0.0, 1), drawn(&far, 1).view());
        assert!((told[0] - 8.0_f64.ln()).abs() < 1e-12, "{told:?}");
    }
}
