//! Active units, from the batches that are trained on.
//!
//! A unit is active if its posterior mean varies with the sentence: `Var_x(E[z|x]) > δ`, `δ = 0.01` (Burda et al. 2016,
//! arXiv 1509.00519, section 5). While the model learns, the variance is that of the latest rows, older batches counting
//! less and less. With `n`, `m`, `s` the weight, mean and sum of squares so far, and `n'`, `m'`, `s'` a batch's,
//!
//! ```text
//! n, s ← ρn, ρs                       ρ = 0.98: half of the weight is the last 34 batches'
//! s ← s + s' + (m' − m)² n n' / (n + n'),   m ← m + (m' − m) n' / (n + n'),   n ← n + n'
//! ```
//!
//! (Chan, Golub, LeVeque 1979) and `s / n` is the variance: of all rows, also between batches, because sentences of one
//! batch are of like length. No squares are subtracted.

use serde::{Deserialize, Serialize};

/// Variance above which a unit is active.
pub const THRESHOLD: f64 = 0.01;

/// What is left of a batch's weight after the next.
const KEPT: f64 = 0.98;

/// The running variance of every unit. To be saved with a checkpoint, so that a resumed run counts on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveUnits {
    latent: usize,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Layer {
    weight: f64,
    means: Vec<f64>,
    squares: Vec<f64>,
}

impl ActiveUnits {
    /// For `layers` latents of width `latent`; no unit is active yet.
    pub fn new(layers: usize, latent: usize) -> Self {
        let layer = Layer { weight: 0.0, means: vec![0.0; latent], squares: vec![0.0; latent] };
        ActiveUnits { latent, layers: vec![layer; layers] }
    }

    /// Takes a batch's posterior means of one layer, `(rows, latent)`.
    ///
    /// # Panics
    /// There is no such layer, or a row is incomplete.
    pub fn update(&mut self, layer: usize, means: &[f32]) {
        assert_eq!(means.len() % self.latent, 0, "rows of {} units are needed", self.latent);
        let rows = (means.len() / self.latent) as f64;
        let layer = &mut self.layers[layer];
        if rows == 0.0 {
            return;
        }
        let old = layer.weight * KEPT;
        layer.weight = old + rows;
        for unit in 0..self.latent {
            let values = means.iter().skip(unit).step_by(self.latent).map(|&value| f64::from(value));
            let mean = values.clone().sum::<f64>() / rows;
            let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
            let apart = mean - layer.means[unit];
            layer.squares[unit] = layer.squares[unit] * KEPT + squares + apart * apart * old * rows / layer.weight;
            layer.means[unit] += apart * rows / layer.weight;
        }
    }

    /// The variance of each of a layer's units; 0 before the first batch.
    pub fn variances(&self, layer: usize) -> impl Iterator<Item = f64> {
        let Layer { weight, squares, .. } = &self.layers[layer];
        squares.iter().map(move |squares| if *weight > 0.0 { squares / weight } else { 0.0 })
    }

    /// Active units of each layer.
    pub fn counts(&self) -> Vec<usize> {
        (0..self.layers.len()).map(|layer| self.variances(layer).filter(|v| *v > THRESHOLD).count()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the weighted variance by its definition, around a mean that is large.
    #[test]
    fn variances_are_those_of_weighted_rows() {
        let mut units = ActiveUnits::new(1, 2);
        assert_eq!(units.counts(), [0]);
        let batches: [&[f32]; 4] = [&[1000.0, 0.5], &[1000.25, 0.5, 999.5, 0.5, 1000.0, 0.5], &[], &[1001.0, 0.5]];
        batches.iter().for_each(|batch| units.update(0, batch));
        let rows = [(1000.0, 2), (1000.25, 1), (999.5, 1), (1000.0, 1), (1001.0, 0)];
        let rows = rows.map(|(value, age)| (value, KEPT.powi(age)));
        let weight: f64 = rows.iter().map(|(_, w)| w).sum();
        let mean: f64 = rows.iter().map(|(x, w)| x * w).sum::<f64>() / weight;
        let variance = rows.iter().map(|(x, w)| w * (x - mean) * (x - mean)).sum::<f64>() / weight;
        let found: Vec<f64> = units.variances(0).collect();
        assert!((found[0] - variance).abs() < 1e-12 && found[1] == 0.0, "{found:?}, {variance}");
        assert_eq!(units.counts(), [1]);
    }

    /// Units that differ between batches only are active too; those that fall silent stop being it.
    #[test]
    fn activity_comes_and_goes() {
        let mut units = ActiveUnits::new(2, 1);
        for step in 0..10 {
            units.update(0, &[step as f32; 4]);
            units.update(1, &[0.05, -0.05]);
        }
        assert_eq!(units.counts(), [1, 0]);
        let saved = serde_json::to_string(&units).unwrap();
        assert_eq!(serde_json::from_str::<ActiveUnits>(&saved).unwrap(), units);
        for _ in 0..500 {
            units.update(0, &[0.0; 4]);
        }
        assert_eq!(units.counts(), [0, 0]);
    }
}
