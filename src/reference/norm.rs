//! Layer normalisation.

use ndarray::Array1;

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

    fn layernorm_bwd(
        &self,
        dx_acc: &mut Vec<f64>,
        dgain: &mut Vec<f64>,
        dbias: &mut Vec<f64>,
        dy: &Vec<f64>,
        x: &Vec<f64>,
        mean: &Vec<f64>,
        rstd: &Vec<f64>,
        gain: &Vec<f64>,
        tokens: usize,
        width: usize,
    ) {
        let (dy, x) = (view(dy, tokens, width), view(x, tokens, width));
        let mut dx = view_mut(dx_acc, tokens, width);
        for n in 0..tokens {
            let normal = x.row(n).mapv(|x| (x - mean[n]) * rstd[n]);
            let g = Array1::from_shape_fn(width, |c| dy[(n, c)] * gain[c]);
            let (mean_g, mean_gx) = (g.sum() / width as f64, g.dot(&normal) / width as f64);
            for c in 0..width {
                dx[(n, c)] += rstd[n] * (g[c] - mean_g - normal[c] * mean_gx);
                dgain[c] += dy[(n, c)] * normal[c];
                dbias[c] += dy[(n, c)];
            }
        }
    }
}
