//! Single operations on random numbers. Each checks some outputs against sums in double precision before it is timed.

use super::cases::{Op, epsilon, products};
use super::measure::Job;
use crate::backend::{AttentionDims, AttentionOps, LinearOps, LossOps, Matrix, NormOps, Role, Spans, Storage};
use crate::cpu::Cpu;
use crate::dims::Dims;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::rng::{Mask, Rng, Stream};

/// Bytes of all copies of a weight: more than caches hold.
const COPIES: usize = 512 << 20;
/// With fewer rows than this a product takes another copy of the weight each time, so that the weight is read from memory
/// as in a model, not from a cache.
const FEW_ROWS: usize = 64;
/// Outputs of a row, and rows, that are checked.
const CHECKED: usize = 8;

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Rng::new(seed, Stream::Init, 0).fill_normal(&mut x);
    x
}

/// About [`CHECKED`] of `0..len`, the last one among them.
fn some(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len.div_ceil(CHECKED).max(1)).chain(len.checked_sub(1))
}

/// Refuses `found` if it is farther from `wanted` than `tolerance`, or no number.
fn near(what: &str, found: f64, wanted: f64, tolerance: f64) -> Result<()> {
    let good = (found - wanted).abs() <= tolerance;
    let message = || format!("{found} should be {wanted}, within {tolerance:.1e}");
    if good { Ok(()) } else { Err(Error::Wrong { what: what.into(), message: message() }) }
}

/// Prepares an operation on `cpu`, whose weights are in `dtype`, and checks it.
///
/// # Errors
/// [`Error::Wrong`] with an output that is wrong; there is no memory.
pub fn prepare(cpu: Cpu, op: &Op, dtype: Dtype) -> Result<Job<'static>> {
    match *op {
        Op::Gemm { rows, inputs, outputs } => {
            let copies = if rows < FEW_ROWS { (COPIES / (4 * inputs * outputs)).clamp(1, 256) } else { 1 };
            gemm(cpu, rows, (inputs, outputs), dtype, copies)
        }
        Op::Attention { len, batch, heads, head_dim } => attention(cpu, len, batch, AttentionDims { heads, head_dim }),
        Op::LayerNorm { rows, width } => layernorm(cpu, rows, width),
        Op::GeluBwd { rows, width } => gelu_bwd(cpu, rows * width),
        Op::CrossEntropy { rows, vocab } => cross_entropy(cpu, rows, vocab),
    }
}

/// Checks the matrix product of `cpu` at the shapes of a model, for one row and for some.
///
/// # Errors
/// As [`prepare`].
pub fn check_products(cpu: impl Fn() -> Result<Cpu>, dims: &Dims, dtype: Dtype) -> Result<()> {
    for shape in products(dims) {
        for rows in [1, 5] {
            drop(gemm(cpu()?, rows, shape, dtype, 1)?);
        }
    }
    Ok(())
}

/// Rounding a factor costs ε, rounding a sum of `inputs` terms that are about 1 costs the ε of f32 at each step.
fn gemm(cpu: Cpu, rows: usize, shape: (usize, usize), dtype: Dtype, copies: usize) -> Result<Job<'static>> {
    let (inputs, outputs) = shape;
    let (w, x) = (normal(1, inputs * outputs), normal(2, rows * inputs));
    let prepare = |_| cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear);
    let weights = (0..copies).map(prepare).collect::<Result<Vec<_>>>()?;
    let (device_x, bias, mut y) = (cpu.act_from(&x)?, cpu.real(outputs)?, cpu.act(rows * outputs)?);
    cpu.linear_fwd(&mut y, &device_x, &weights[0], &bias, rows);
    let mut host = vec![0.0_f64; rows * outputs];
    cpu.read_act(&mut host, &y);
    let count = inputs as f64;
    let tolerance = 12.0 * epsilon(dtype) * count.sqrt() + 4.0 * f64::from(f32::EPSILON) * count;
    for row in some(rows) {
        for n in some(outputs) {
            let product = |k: usize| f64::from(x[row * inputs + k]) * f64::from(w[k * outputs + n]);
            let what = || format!("{}: output {n} of row {row}, {rows}x{inputs}x{outputs},", cpu.gemm());
            near(&what(), host[row * outputs + n], (0..inputs).map(product).sum(), tolerance)?;
        }
    }
    let mut next = 0;
    Ok(Box::new(move || {
        next = (next + 1) % weights.len();
        cpu.linear_fwd(&mut y, &device_x, &weights[next], &bias, rows);
        Ok(())
    }))
}

fn attention(cpu: Cpu, len: usize, batch: usize, dims: AttentionDims) -> Result<Job<'static>> {
    let (tokens, width, head_dim) = (len * batch, dims.width(), dims.head_dim);
    let host_qkv = normal(3, tokens * 3 * width);
    let spans = Spans::of_lengths(&cpu, (0..batch).map(|_| len))?;
    let (qkv, mut y, mut lse) = (cpu.act_from(&host_qkv)?, cpu.act(tokens * width)?, cpu.real(tokens * dims.heads)?);
    cpu.attention_fwd(&mut y, &mut lse, &qkv, Mask::NONE, &spans, dims);
    let mut host = vec![0.0_f64; tokens * width];
    cpu.read_act(&mut host, &y);
    for token in some(tokens) {
        let (head, first) = (token % dims.heads, token / len * len);
        // queries are part 0, keys 1, values 2
        let part = |token: usize, part: usize| {
            let start = (3 * token + part) * width + head * head_dim;
            host_qkv[start..start + head_dim].iter().map(|&x| f64::from(x))
        };
        let score = |key| part(token, 0).zip(part(key, 1)).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt();
        let weights: Vec<f64> = (first..=token).map(|key| score(key).exp()).collect();
        let total: f64 = weights.iter().sum();
        let first_value = |key| part(key, 2).next().unwrap_or_default();
        let sum = (first..=token).zip(&weights).map(|(key, weight)| weight * first_value(key)).sum::<f64>();
        near(&format!("attention on {}", cpu.isa()), host[token * width + head * head_dim], sum / total, 1e-4)?;
    }
    Ok(Box::new(move || {
        cpu.attention_fwd(&mut y, &mut lse, &qkv, Mask::NONE, &spans, dims);
        Ok(())
    }))
}

fn layernorm(cpu: Cpu, rows: usize, width: usize) -> Result<Job<'static>> {
    const SMALL: f32 = 1e-5;
    let (host_x, host_gain, host_bias) = (normal(4, rows * width), normal(5, width), normal(6, width));
    let (x, gain, bias) = (cpu.act_from(&host_x)?, cpu.real_from(&host_gain)?, cpu.real_from(&host_bias)?);
    let (mut y, mut mean, mut rstd) = (cpu.act(rows * width)?, cpu.real(rows)?, cpu.real(rows)?);
    cpu.layernorm_fwd(&mut y, &mut mean, &mut rstd, &x, &gain, &bias, SMALL, rows, width);
    let mut host = vec![0.0_f64; rows * width];
    cpu.read_act(&mut host, &y);
    for row in some(rows) {
        let x: Vec<f64> = host_x[row * width..][..width].iter().map(|&x| f64::from(x)).collect();
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
        for c in some(width) {
            let normal = (x[c] - mean) / (variance + f64::from(SMALL)).sqrt();
            let wanted = normal * f64::from(host_gain[c]) + f64::from(host_bias[c]);
            near(&format!("layer norm on {}", cpu.isa()), host[row * width + c], wanted, 1e-4)?;
        }
    }
    Ok(Box::new(move || {
        cpu.layernorm_fwd(&mut y, &mut mean, &mut rstd, &x, &gain, &bias, SMALL, rows, width);
        Ok(())
    }))
}

fn gelu_bwd(cpu: Cpu, len: usize) -> Result<Job<'static>> {
    let (host_u, host_dy) = (normal(7, len), normal(8, len));
    let (u, dy, mut du) = (cpu.act_from(&host_u)?, cpu.act_from(&host_dy)?, cpu.act(len)?);
    cpu.gelu_bwd(&mut du, &dy, &u, len);
    let mut host = vec![0.0_f64; len];
    cpu.read_act(&mut host, &du);
    for i in some(len) {
        let (u, dy) = (f64::from(host_u[i]), f64::from(host_dy[i]));
        let scale = (2.0 / std::f64::consts::PI).sqrt();
        let t = (scale * (u + 0.044715 * u * u * u)).tanh();
        let slope = 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * scale * (1.0 + 3.0 * 0.044715 * u * u);
        near(&format!("gelu's slope on {}", cpu.isa()), host[i], dy * slope, 1e-4)?;
    }
    Ok(Box::new(move || {
        cpu.gelu_bwd(&mut du, &dy, &u, len);
        Ok(())
    }))
}

fn cross_entropy(cpu: Cpu, rows: usize, vocab: usize) -> Result<Job<'static>> {
    let host_logits = normal(9, rows * vocab);
    let host_targets: Vec<u32> = (0..rows).map(|row| (row * 31 % vocab) as u32).collect();
    let (logits, targets, mut loss) = (cpu.real_from(&host_logits)?, cpu.ids_from(&host_targets)?, cpu.real(rows)?);
    cpu.cross_entropy_fwd(&mut loss, &logits, &targets, rows, vocab);
    let mut host = vec![0.0_f64; rows];
    cpu.read_real(&mut host, &loss);
    for row in some(rows) {
        let logits = &host_logits[row * vocab..][..vocab];
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let wanted = total.ln() - f64::from(logits[host_targets[row] as usize]);
        near(&format!("cross-entropy on {}", cpu.isa()), host[row], wanted, 1e-4)?;
    }
    Ok(Box::new(move || {
        cpu.cross_entropy_fwd(&mut loss, &logits, &targets, rows, vocab);
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Options;

    fn cpu() -> Cpu {
        Cpu::new(Options { threads: Some(1), ..Options::default() }).unwrap()
    }

    #[test]
    fn every_op_passes_its_check_and_runs() {
        for op in [
            Op::Gemm { rows: 70, inputs: 33, outputs: 17 },
            Op::Gemm { rows: 1, inputs: 64, outputs: 300 },
            Op::Attention { len: 9, batch: 3, heads: 2, head_dim: 16 },
            Op::LayerNorm { rows: 20, width: 40 },
            Op::GeluBwd { rows: 5, width: 13 },
            Op::CrossEntropy { rows: 3, vocab: 77 },
        ] {
            prepare(cpu(), &op, Dtype::F32).unwrap()().unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert!(near("x", 1.0, 1.0 + 1e-9, 1e-8).is_ok());
        let error = near("the sum", 1.0, 2.0, 1e-8).unwrap_err().to_string();
        assert!(error.contains("the sum computes wrongly") && error.contains("should be 2"), "{error}");
        assert!(near("x", f64::NAN, 2.0, 1.0).is_err() && near("x", 1.0, f64::NAN, 1.0).is_err());
        assert_eq!(some(3).collect::<Vec<_>>(), [0, 1, 2, 2]);
        assert_eq!(some(0).count(), 0);
        assert!(some(1000).count() <= CHECKED + 1);
    }
}
