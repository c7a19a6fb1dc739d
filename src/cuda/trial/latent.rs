//! Problems of the latents: pooling, the chain, fusion.

use super::cases::{Case, normal, read};
use crate::backend::{ChainLayer, ChainScratch, Drive, LatentOps, Matrix, OptimOps, Role, Spans, Storage};
use crate::cuda::Cuda;
use crate::dims::Dims;
use crate::error::Result;

/// All layers of the chain, by the posterior.
pub fn chain(cuda: &Cuda, rows: usize, [count, hidden, latent]: [usize; 3]) -> Result<Case> {
    let dims =
        Dims { vocab: 1, positions: 1, hidden, heads: 1, inner: hidden, layers: count, latent, conditional: false };
    let net = |seed: usize, outputs: usize, inputs: usize| {
        let data = normal(seed as u64, outputs * inputs, 1.0 / (inputs as f32).sqrt());
        cuda.weight(Matrix { data: &data, rows: outputs, cols: inputs }, Role::Latent)
    };
    let nets = |seed, outputs, inputs| (0..count).map(|l| net(seed + l, outputs, inputs)).collect::<Result<Vec<_>>>();
    let (priors, posteriors) = (nets(1, 2 * latent, latent)?, nets(100, 2 * latent, dims.posterior_inputs())?);
    let (hh, ih) = (nets(200, latent, latent)?, nets(300, latent, latent)?);
    let layers = |len: usize| (0..count).map(|_| cuda.real(len)).collect::<Result<Vec<_>>>();
    let pooled = cuda.real_from(&normal(400, rows * hidden, 1.0))?;
    let eps = cuda.real_from(&normal(401, rows * latent, 1.0))?;
    let (mut states, mut z, mut kl) = (layers(rows * latent)?, layers(rows * latent)?, layers(rows)?);
    let (mut prior, mut posterior) = (layers(2 * rows * latent)?, layers(2 * rows * latent)?);
    let mut scratch =
        [cuda.real(rows * latent)?, cuda.real(rows * latent)?, cuda.real(rows * dims.posterior_inputs())?];
    let weights = count * latent * 2 * (latent + dims.posterior_inputs() + latent);
    Ok(Case {
        name: format!("chain_fwd {rows}x{count}x{hidden}x{latent}"),
        flops: 2.0 * (rows * weights) as f64,
        bytes: 4.0 * (weights + count * rows * (hidden + 7 * latent)) as f64,
        run: Box::new(move |cuda, results| {
            let written = states.iter_mut().zip(&mut prior).zip(&mut posterior).zip(&mut z).zip(&mut kl);
            let mut chain: Vec<_> = written
                .enumerate()
                .map(|(l, ((((state, prior), posterior), z), kl))| ChainLayer {
                    prior_net: &priors[l],
                    posterior_net: &posteriors[l],
                    step: (l + 1 < count).then(|| [&hh[l], &ih[l]]),
                    pooled: &pooled,
                    pooled_condition: None,
                    eps: Some(&eps),
                    state,
                    prior,
                    posterior,
                    z,
                    kl,
                })
                .collect();
            let [state_in, prior_in, posterior_in] = &mut scratch;
            let scratch = ChainScratch { state_in, prior_in, posterior_in };
            cuda.chain_fwd(&mut chain, scratch, Drive::Posterior, 1.0, &dims, rows);
            read(cuda, results, &[(&z[count - 1], rows * latent), (&kl[count - 1], rows)]);
        }),
    })
}

/// The way back of pooling `rows` spans of the stream.
pub fn pooling(cuda: &Cuda, rows: usize, length: usize, width: usize) -> Result<Case> {
    let (tokens, spans) = (rows * length, Spans::of_lengths(cuda, vec![length; rows])?);
    let (mut x, mut dx) = (cuda.stream(tokens * width)?, cuda.stream(tokens * width)?);
    cuda.write_act(&mut x, &normal(1, tokens * width, 1.0));
    let (w, dy) = (cuda.real_from(&normal(2, width, 0.05))?, cuda.real_from(&normal(3, rows * width, 1.0))?);
    let (mut y, mut scores, mut dw) = (cuda.real(rows * width)?, cuda.real(tokens)?, cuda.real(width)?);
    cuda.pool_fwd(&mut y, &mut scores, &x, &w, &spans, width);
    Ok(Case {
        name: format!("pool_bwd {rows}x{length}x{width}"),
        flops: 12.0 * (tokens * width) as f64,
        // x twice: also for the gradient of w
        bytes: 4.0 * 4.0 * (tokens * width) as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.zero_act(&mut dx, tokens * width);
                cuda.zero_real(&mut dw, width);
            }
            cuda.pool_bwd(&mut dx, &mut dw, &dy, &scores, &x, &w, &spans, width);
            read(cuda, results, &[(&dx, tokens * width), (&dw, width)]);
        }),
    })
}

/// Latents of `rows` spans added to the stream, and back.
pub fn fusing(cuda: &Cuda, rows: usize, length: usize, width: usize) -> Result<Case> {
    let (tokens, spans) = (rows * length, Spans::of_lengths(cuda, vec![length; rows])?);
    let given = normal(1, tokens * width, 1.0);
    let (mut h, mut dh) = (cuda.stream(tokens * width)?, cuda.stream(tokens * width)?);
    cuda.write_act(&mut dh, &normal(2, tokens * width, 1.0));
    let (e, mut de) = (cuda.real_from(&normal(3, rows * width, 1.0))?, cuda.real(rows * width)?);
    let slots = cuda.ids_from(&(0..rows as u32).map(|row| row / 2).collect::<Vec<_>>())?;
    Ok(Case {
        name: format!("fuse fwd+bwd {rows}x{length}x{width}"),
        flops: 2.0 * (tokens * width) as f64,
        bytes: 4.0 * 3.0 * (tokens * width) as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.write_act(&mut h, &given);
                cuda.zero_real(&mut de, rows * width);
            }
            cuda.fuse_fwd(&mut h, &e, &slots, &spans, width);
            cuda.fuse_bwd(&mut de, &dh, &slots, &spans, width);
            read(cuda, results, &[(&h, tokens * width), (&de, rows * width)]);
        }),
    })
}
