//! Layer normalisation.

use super::{Reference, view, view_mut};
use crate::backend::NormOps;

impl NormOps for Reference {
    fn layernorm_fwd(
        &self,
        y: &mut Vec<f64>,
        mean: &mut Vec<f64>,
        rstd: &mut Vec<f64>,
        x: &Vec<f64>,
        gain: &Vec<f64>,
        bias: &Vec<f64>,
        epsilon: f32,
        tokens: usize,
        width: usize,
    ) {
        let x = view(x, tokens, width);
        let mut y = view_mut(y, tokens, width);
        for n in 0..tokens {
            let x = x.row(n);
            mean[n] = x.sum() / width as f64;
            let variance = x.mapv(|v| (v - mean[n]).powi(2)).sum() / width as f64;
            rstd[n] = 1.0 / (variance + f64::from(epsilon)).sqrt();
            for c in 0..width {
                y[(n, c)] = (x[c] - mean[n]) * rstd[n] * gain[c] + bias[c];
            }
        }
    }
}
