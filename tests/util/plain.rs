//! The ops as plain loops in double precision: the formulas of the backend's contract and nothing else.

/// `x W`; `x (rows, inputs)`, `w (inputs, outputs)`.
pub fn product(x: &[f64], w: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    let mut y = vec![0.0; rows * outputs];
    for r in 0..rows {
        for k in 0..inputs {
            for n in 0..outputs {
                y[r * outputs + n] += x[r * inputs + k] * w[k * outputs + n];
            }
        }
    }
    y
}

/// `(rows, cols)` to `(cols, rows)`.
pub fn transpose<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// `gelu_new`.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// In place.
pub fn softmax(x: &mut [f64]) {
    let greatest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - greatest).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Normalised rows of `width`, their means and reciprocal deviations.
pub fn layernorm(x: &[f64], gain: &[f64], bias: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let width = gain.len();
    let (mut y, mut means, mut rstds) = (vec![], vec![], vec![]);
    for x in x.chunks(width) {
        let mean = x.iter().sum::<f64>() / width as f64;
        let rstd = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64 + epsilon).sqrt();
        y.extend((0..width).map(|i| (x[i] - mean) * rstd * gain[i] + bias[i]));
        means.push(mean);
        rstds.push(rstd);
    }
    (y, means, rstds)
}

/// Causal attention within each span of `qkv (N, 3C)`.
pub fn attention(qkv: &[f64], spans: &[(usize, usize)], heads: usize, head_dim: usize) -> Vec<f64> {
    let width = heads * head_dim;
    let mut y = vec![0.0; qkv.len() / 3];
    for &(start, end) in spans {
        for t in start..end {
            for h in 0..heads {
                let at = |token: usize, part: usize, d: usize| qkv[token * 3 * width + part * width + h * head_dim + d];
                let score = |key| (0..head_dim).map(|d| at(t, 0, d) * at(key, 1, d)).sum::<f64>();
                let mut scores: Vec<f64> = (start..=t).map(|key| score(key) / (head_dim as f64).sqrt()).collect();
                softmax(&mut scores);
                for d in 0..head_dim {
                    y[t * width + h * head_dim + d] = (start..=t).map(|key| scores[key - start] * at(key, 2, d)).sum();
                }
            }
        }
    }
    y
}

/// Attentive pooling of each span of `x (N, C)`; also the weights `(N)`.
pub fn pool(x: &[f64], w: &[f64], spans: &[(usize, usize)]) -> (Vec<f64>, Vec<f64>) {
    let width = w.len();
    let (mut y, mut weights) = (vec![], vec![0.0; x.len() / width]);
    for &(start, end) in spans {
        for t in start..end {
            weights[t] = (0..width).map(|c| x[t * width + c] * w[c]).sum::<f64>().tanh();
        }
        softmax(&mut weights[start..end]);
        y.extend((0..width).map(|c| (start..end).map(|t| weights[t] * x[t * width + c]).sum::<f64>()));
    }
    (y, weights)
}

/// `KL(q ‖ p)` of each row of Gaussians `(μ, log σ²)`.
pub fn kl(posterior: &[f64], prior: &[f64], latent: usize) -> Vec<f64> {
    let row = |(q, p): (&[f64], &[f64])| {
        (0..latent)
            .map(|i| {
                let (log_q, log_p) = (q[latent + i], p[latent + i]);
                0.5 * (log_p - log_q + (log_q.exp() + (q[i] - p[i]).powi(2)) / log_p.exp() - 1.0)
            })
            .sum()
    };
    posterior.chunks(2 * latent).zip(prior.chunks(2 * latent)).map(row).collect()
}

/// Cross entropy of each row of `logits`.
pub fn cross_entropy(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let vocab = logits.len() / targets.len();
    let row = |(logits, target): (&[f64], &u32)| {
        let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - greatest).exp()).sum();
        greatest + sum.ln() - logits[*target as usize]
    };
    logits.chunks(vocab).zip(targets).map(row).collect()
}
