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

    fn pool_bwd(
        &self,
        dx_acc: &mut Vec<f64>,
        dw: &mut Vec<f64>,
        dy: &Vec<f64>,
        scores: &Vec<f64>,
        x: &Vec<f64>,
        w: &Vec<f64>,
        spans: &Spans<Self>,
        width: usize,
    ) {
        let x = view(x, x.len() / width, width);
        let (w, dy) = (ArrayView1::from(&w[..width]), view(dy, spans.rows, width));
        for row in 0..spans.rows {
            let (tokens, dy) = (span(&spans.bounds, row), dy.row(row));
            let mean: f64 = tokens.clone().map(|t| scores[t] * dy.dot(&x.row(t))).sum();
            for t in tokens {
                let u = x.row(t).dot(&w).tanh();
                let g = scores[t] * (dy.dot(&x.row(t)) - mean) * (1.0 - u.powi(2));
                for c in 0..width {
                    dx_acc[t * width + c] += scores[t] * dy[c] + g * w[c];
                    dw[c] += g * x[(t, c)];
                }
            }
        }
    }

    fn concat_bwd(&self, parts_acc: &mut [(&mut Vec<f64>, usize)], dy: &Vec<f64>, rows: usize) {
        let all: usize = parts_acc.iter().map(|(_, width)| width).sum();
        let mut before = 0;
        for (part, width) in parts_acc {
            for row in 0..rows {
                for i in 0..*width {
                    part[row * *width + i] += dy[row * all + before + i];
                }
            }
            before += *width;
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

    fn reparameterize_bwd(
        &self,
        dgaussian_acc: &mut Vec<f64>,
        dz: &Vec<f64>,
        gaussian: &Vec<f64>,
        eps: Option<&Vec<f64>>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        let gaussian = view(gaussian, rows, 2 * latent);
        let mut dgaussian = view_mut(dgaussian_acc, rows, 2 * latent);
        for row in 0..rows {
            for i in 0..latent {
                let (dz, noise) = (dz[row * latent + i], eps.map_or(0.0, |eps| eps[row * latent + i]));
                let deviation = (0.5 * gaussian[(row, latent + i)]).exp();
                dgaussian[(row, i)] += dz;
                dgaussian[(row, latent + i)] += 0.5 * dz * f64::from(scale) * noise * deviation;
            }
        }
    }

    fn tanh_bwd(&self, dx: &mut Vec<f64>, dy: &Vec<f64>, y: &Vec<f64>, len: usize) {
        for i in 0..len {
            dx[i] = dy[i] * (1.0 - y[i].powi(2));
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

    fn kl_bwd(
        &self,
        dposterior_acc: &mut Vec<f64>,
        dprior_acc: &mut Vec<f64>,
        weights: &Vec<f64>,
        posterior: &Vec<f64>,
        prior: &Vec<f64>,
        rows: usize,
        latent: usize,
    ) {
        let (q, p) = (view(posterior, rows, 2 * latent), view(prior, rows, 2 * latent));
        let mut dq = view_mut(dposterior_acc, rows, 2 * latent);
        let mut dp = view_mut(dprior_acc, rows, 2 * latent);
        for row in 0..rows {
            for i in 0..latent {
                let scale = weights[i];
                let ratio = (q[(row, latent + i)] - p[(row, latent + i)]).exp();
                let (difference, variance) = (q[(row, i)] - p[(row, i)], p[(row, latent + i)].exp());
                dq[(row, i)] += scale * difference / variance;
                dq[(row, latent + i)] += 0.5 * scale * (ratio - 1.0);
                dp[(row, i)] -= scale * difference / variance;
                dp[(row, latent + i)] += 0.5 * scale * (1.0 - ratio - difference.powi(2) / variance);
            }
        }
    }

    fn mask_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, mask: &Vec<f64>, len: usize) {
        for i in 0..len {
            y[i] = x[i] * mask[i];
        }
    }

    fn fuse_bwd(&self, de_acc: &mut Vec<f64>, dh: &Vec<f64>, slots: &Vec<u32>, spans: &Spans<Self>, width: usize) {
        for row in 0..spans.rows {
            for t in span(&spans.bounds, row) {
                for c in 0..width {
                    de_acc[slots[row] as usize * width + c] += dh[t * width + c];
                }
            }
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
