//! Pooling, the latent chain and fusion.

use ndarray::ArrayView1;

use super::{Reference, span, view, view_mut};
use crate::backend::{LatentOps, Spans};

impl LatentOps for Reference {
    fn pool_fwd(
        &self,
        y: &mut Vec<f64>,
        scores: &mut Vec<f64>,
        x: &Vec<f64>,
        w: &Vec<f64>,
        spans: &Spans<Self>,
        width: usize,
    ) {
        let x = view(x, x.len() / width, width);
        let w = ArrayView1::from(&w[..width]);
        let mut y = view_mut(y, spans.rows, width);
        y.fill(0.0);
        for row in 0..spans.rows {
            let tokens = span(&spans.bounds, row);
            for t in tokens.clone() {
                // tanh is at most 1, so the exponential needs no shift
                scores[t] = x.row(t).dot(&w).tanh().exp();
            }
            let total: f64 = scores[tokens.clone()].iter().sum();
            for t in tokens {
                scores[t] /= total;
                y.row_mut(row).scaled_add(scores[t], &x.row(t));
            }
        }
    }

    fn concat_fwd(&self, y: &mut Vec<f64>, parts: &[(&Vec<f64>, usize)], rows: usize) {
        let width: usize = parts.iter().map(|(_, width)| width).sum();
        for row in 0..rows {
            let mut at = row * width;
            for (part, width) in parts {
                y[at..at + width].copy_from_slice(&part[row * width..][..*width]);
                at += width;
            }
        }
    }

    fn reparameterize_fwd(
        &self,
        z: &mut Vec<f64>,
        gaussian: &Vec<f64>,
        eps: Option<&Vec<f64>>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        let gaussian = view(gaussian, rows, 2 * latent);
        for row in 0..rows {
            for i in 0..latent {
                let deviation = (0.5 * gaussian[(row, latent + i)]).exp();
                let noise = match eps {
                    // a deviation may overflow, and 0 · ∞ is not 0
                    Some(eps) if scale != 0.0 => eps[row * latent + i] * deviation * f64::from(scale),
                    _ => 0.0,
                };
                z[row * latent + i] = gaussian[(row, i)] + noise;
            }
        }
    }

    fn tanh_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, len: usize) {
        for i in 0..len {
            y[i] = x[i].tanh();
        }
    }

    fn kl_fwd(&self, kl: &mut Vec<f64>, posterior: &Vec<f64>, prior: &Vec<f64>, rows: usize, latent: usize) {
        let (q, p) = (view(posterior, rows, 2 * latent), view(prior, rows, 2 * latent));
        for row in 0..rows {
            kl[row] = (0..latent)
                .map(|i| {
                    let (mean_q, log_q) = (q[(row, i)], q[(row, latent + i)]);
                    let (mean_p, log_p) = (p[(row, i)], p[(row, latent + i)]);
                    0.5 * ((log_q - log_p).exp() + (mean_q - mean_p).powi(2) / log_p.exp() - 1.0 - (log_q - log_p))
                })
                .sum();
        }
    }

    fn fuse_fwd(&self, h: &mut Vec<f64>, e: &Vec<f64>, slots: &Vec<u32>, spans: &Spans<Self>, width: usize) {
        for row in 0..spans.rows {
            for t in span(&spans.bounds, row) {
                for c in 0..width {
                    h[t * width + c] += e[slots[row] as usize * width + c];
                }
            }
        }
    }
}
