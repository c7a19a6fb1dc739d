//! The problems that variants are tried on.

use super::{Difference, Scale, latent};
use crate::backend::{
    AdamW, AttentionDims, AttentionOps, CacheRows, Draw, EmbedOps, LinearOps, LossOps, Matrix, Norm, NormOps,
    NormScratch, OptimOps, Parameter, Role, Rules, Spans, Storage,
};
use crate::cuda::registry::REGISTRY;
use crate::cuda::{Buffer, Cuda};
use crate::error::Result;
use crate::rng::{Mask, Rng, Stream};

/// A problem: it runs on a device, and says what came of it if it is asked.
pub struct Case {
    /// The op and its sizes.
    pub name: String,
    /// Operations.
    pub flops: f64,
    /// Bytes that it must move at least.
    pub bytes: f64,
    /// What it does.
    pub run: Box<Run>,
}

/// Runs a case, and reads its results if they are wanted.
pub type Run = dyn FnMut(&Cuda, Option<&mut Results>);

/// What came of a case: the first elements of some buffers.
pub type Results = Vec<Vec<f32>>;

/// The registry's ops that a case takes time in.
pub type Ops = &'static [&'static str];

/// Makes a case, with its operands on the device.
pub type Make<'a> = Box<dyn FnOnce() -> Result<Case> + 'a>;

/// Standard normal numbers times `scale`.
pub(super) fn normal(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Rng::new(seed, Stream::Init, 0).fill_normal(&mut x);
    x.iter_mut().for_each(|x| *x *= scale);
    x
}

/// Adds what the first `len` elements are to the results.
pub(super) fn read(cuda: &Cuda, results: Option<&mut Results>, buffers: &[(&Buffer, usize)]) {
    let Some(results) = results else { return };
    for (buffer, len) in buffers {
        let mut host = vec![0.0; *len];
        cuda.read_floats(&mut host, buffer, 0);
        results.push(host);
    }
}

/// All cases, each with the ops that take its time.
pub fn cases(cuda: &Cuda, scale: Scale) -> Vec<(Ops, Make<'_>)> {
    let full = scale == Scale::Full;
    let (tokens, width, vocab) = if full { (8192, 768, 21130) } else { (72, 64, 130) };
    let mut cases: Vec<(Ops, Make<'_>)> = Vec::new();
    for (rows, inputs, outputs) in match full {
        true => vec![
            (tokens, width, 3 * width),
            (tokens, width, 4 * width),
            (tokens, 4 * width, width),
            (tokens, width, width),
            (1, width, 3 * width),
            (16, width, 4 * width),
        ],
        false => vec![(tokens, width, 96), (2, width, 32)],
    } {
        cases.push((&["gemm"], Box::new(move || linear(cuda, rows, inputs, outputs))));
        if rows == tokens {
            let ops = &["gemm", "column_parts", "column_sums"];
            cases.push((ops, Box::new(move || linear_backward(cuda, rows, inputs, outputs, false))));
        }
    }
    // from the stream's gradient, of which products take a copy
    let (rows, inputs, outputs) = if full { (tokens, width, width) } else { (600, 8, 24) };
    cases.push((&["column_parts"], Box::new(move || linear_backward(cuda, rows, inputs, outputs, true))));
    if !full {
        cases.push((&["gemm_tail"], Box::new(move || shared_tail(cuda))));
    }
    for inputs in [width, 4 * width] {
        cases.push((&["gemm"], Box::new(move || linear_residual(cuda, tokens, inputs, width))));
    }
    for outputs in if full { [2 * 256, 256] } else { [50, 24] } {
        let (rows, inputs) = if full { (128, 1024) } else { (40, 33) };
        cases.push((&["gemm"], Box::new(move || latent_linear(cuda, rows, inputs, outputs))));
    }
    for rows in [1, if full { 8 } else { 7 }] {
        let outputs = if full { 3 * width } else { 40 };
        cases.push((&["norm_gemm"], Box::new(move || normed(cuda, rows, width, outputs))));
    }
    for rows in [if full { 2048 } else { 24 }, 1] {
        cases.push((&["gemm"], Box::new(move || head(cuda, rows, width, vocab))));
    }
    // with rows of whole 16 bytes, and without
    for vocab in if full { vec![21128, vocab] } else { vec![vocab] } {
        cases.push((&["gemm"], Box::new(move || head_backward(cuda, if full { 512 } else { 24 }, width, vocab))));
    }
    for rows in if full { [1, 64] } else { [1, 3] } {
        cases.push((&["sample"], Box::new(move || sampling(cuda, rows, if full { 21128 } else { vocab }))));
    }
    cases.push((
        &["layernorm_fwd", "layernorm_bwd", "layernorm_params_bwd"],
        Box::new(move || layer_norm(cuda, tokens, width)),
    ));
    cases.push((
        &["cross_entropy_fwd", "cross_entropy_bwd"],
        Box::new(move || cross_entropy(cuda, if full { 2048 } else { 5 }, vocab)),
    ));
    for (spans, length) in if full { vec![(128, 64), (16, 1024)] } else { vec![(2, 70)] } {
        cases.push((
            &["attention_fwd", "attention_bwd_q", "attention_bwd_kv"],
            Box::new(move || attention(cuda, spans, length, if full { 12 } else { 1 })),
        ));
    }
    for (rows, past) in if full { vec![(1, 1000), (64, 200)] } else { vec![(2, 150), (1, 2), (1, 600)] } {
        cases.push((&["attention_decode"], Box::new(move || decoding(cuda, rows, past, if full { 12 } else { 2 }))));
    }
    for rows in if full { vec![1, 64, 512] } else { vec![5] } {
        let sizes = if full { [12, width, 256] } else { [2, width, 16] };
        cases.push((&["chain_fwd"], Box::new(move || latent::chain(cuda, rows, sizes))));
    }
    let (spans, length) = if full { (128, 64) } else { (3, 19) };
    cases.push((&["pool_bwd"], Box::new(move || latent::pooling(cuda, spans, length, width))));
    cases.push((&["fuse_fwd", "fuse_bwd"], Box::new(move || latent::fusing(cuda, spans, length, width))));
    cases.push((&["gelu_bwd"], Box::new(move || gelu_backward(cuda, tokens * 4 * width))));
    for vocab in if full { vec![21130, width] } else { vec![vocab] }.into_iter().filter(|_| cuda.is_bf16()) {
        cases.push((&["cast"], Box::new(move || cast(cuda, if full { 4096 } else { 24 }, vocab))));
    }
    for distinct in if full { [vocab, 64] } else { [vocab, 5] } {
        cases.push((&["scatter_rows_bwd"], Box::new(move || scatter(cuda, tokens, width, distinct))));
    }
    cases.push((&["adamw"], Box::new(move || adamw(cuda, if full { 1 << 26 } else { 1000 }))));
    let lens = if full { [3072 * 768, 768] } else { [1030, 7] };
    cases.push((&["adamw_all"], Box::new(move || adamw_all(cuda, if full { 24 } else { 2 }, lens))));
    cases
}

fn act_bytes(cuda: &Cuda) -> f64 {
    if cuda.is_bf16() { 2.0 } else { 4.0 }
}

fn linear(cuda: &Cuda, rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let x = cuda.act_from(&normal(1, rows * inputs, 1.0))?;
    let data = normal(2, inputs * outputs, 0.05);
    let w = cuda.weight(Matrix { data: &data, rows: inputs, cols: outputs }, Role::Linear)?;
    let (bias, mut y) = (cuda.real_from(&normal(3, outputs, 1.0))?, cuda.act(rows * outputs)?);
    Ok(Case {
        name: format!("linear_gelu_fwd {rows}x{inputs}x{outputs}"),
        flops: 2.0 * (rows * inputs * outputs) as f64,
        bytes: act_bytes(cuda) * (rows * inputs + inputs * outputs + rows * outputs) as f64,
        run: Box::new(move |cuda, results| {
            cuda.linear_gelu_fwd(&mut y, None, &x, &w, &bias, rows);
            read(cuda, results, &[(&y, rows * outputs)]);
        }),
    })
}

/// To the residual stream.
fn linear_residual(cuda: &Cuda, rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let (x, data) = (cuda.act_from(&normal(1, rows * inputs, 1.0))?, normal(2, inputs * outputs, 0.05));
    let w = cuda.weight(Matrix { data: &data, rows: inputs, cols: outputs }, Role::Linear)?;
    let (mut residual, mut y) = (cuda.stream(rows * outputs)?, cuda.stream(rows * outputs)?);
    cuda.write_act(&mut residual, &normal(4, rows * outputs, 1.0));
    let bias = cuda.real_from(&normal(3, outputs, 1.0))?;
    Ok(Case {
        name: format!("linear_residual_fwd {rows}x{inputs}x{outputs}"),
        flops: 2.0 * (rows * inputs * outputs) as f64,
        bytes: act_bytes(cuda) * (rows * inputs + inputs * outputs) as f64 + 8.0 * (rows * outputs) as f64,
        run: Box::new(move |cuda, results| {
            cuda.linear_residual_fwd(&mut y, &residual, &x, &w, &bias, rows);
            read(cuda, results, &[(&y, rows * outputs)]);
        }),
    })
}

/// In f32, both ways.
fn latent_linear(cuda: &Cuda, rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let (x, data) = (cuda.real_from(&normal(1, rows * inputs, 1.0))?, normal(2, inputs * outputs, 0.05));
    let w = cuda.weight(Matrix { data: &data, rows: outputs, cols: inputs }, Role::Latent)?;
    let (mut y, mut dx, mut dw) = (cuda.real(rows * outputs)?, cuda.real(rows * inputs)?, cuda.real(inputs * outputs)?);
    Ok(Case {
        name: format!("latent_linear fwd+bwd {rows}x{inputs}x{outputs}"),
        flops: 6.0 * (rows * inputs * outputs) as f64,
        bytes: 4.0 * (4 * rows * outputs + 4 * rows * inputs + 4 * inputs * outputs) as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.zero_real(&mut dx, rows * inputs);
                cuda.zero_real(&mut dw, inputs * outputs);
            }
            cuda.latent_linear_fwd(&mut y, &x, &w, rows, false);
            cuda.latent_linear_bwd(&mut dx, &mut dw, &y, &x, &w, rows);
            read(cuda, results, &[(&y, rows * outputs), (&dx, rows * inputs), (&dw, inputs * outputs)]);
        }),
    })
}

fn linear_backward(cuda: &Cuda, rows: usize, inputs: usize, outputs: usize, of_stream: bool) -> Result<Case> {
    let x = cuda.act_from(&normal(1, rows * inputs, 1.0))?;
    let mut dy = if of_stream { cuda.stream(rows * outputs)? } else { cuda.act(rows * outputs)? };
    cuda.write_act(&mut dy, &normal(4, rows * outputs, 1.0));
    let data = normal(2, inputs * outputs, 0.05);
    let w = cuda.weight(Matrix { data: &data, rows: inputs, cols: outputs }, Role::Linear)?;
    let (mut dx, mut dw, mut db) = (cuda.act(rows * inputs)?, cuda.real(inputs * outputs)?, cuda.real(outputs)?);
    Ok(Case {
        name: format!("linear_bwd {rows}x{inputs}x{outputs}{}", if of_stream { " of the stream" } else { "" }),
        flops: 4.0 * (rows * inputs * outputs) as f64,
        bytes: act_bytes(cuda) * (3 * rows * outputs + 2 * rows * inputs + inputs * outputs) as f64
            + 8.0 * (inputs * outputs) as f64
            + if of_stream { 4.0 * (rows * outputs) as f64 } else { 0.0 },
        run: Box::new(move |cuda, results| {
            cuda.zero_real(&mut dw, inputs * outputs);
            cuda.zero_real(&mut db, outputs);
            cuda.linear_bwd(&mut dx, &mut dw, &mut db, &dy, &x, &w, rows);
            read(cuda, results, &[(&dx, rows * inputs), (&dw, inputs * outputs), (&db, outputs)]);
        }),
    })
}

/// A gradient of tiles few enough, and sums long enough, to be shared.
fn shared_tail(cuda: &Cuda) -> Result<Case> {
    let Case { name, flops, bytes, mut run } = linear_backward(cuda, 1024, 32, 8, false)?;
    let run = Box::new(move |cuda: &Cuda, results: Option<&mut Results>| {
        let Some(results) = results else { return run(cuda, None) };
        run(cuda, Some(&mut *results));
        // there is no other variant: the plainest product
        let plainest = REGISTRY.iter().rfind(|kernel| kernel.op == "gemm").expect("products have kernels");
        let mut plain = Results::new();
        run(&cuda.trying(plainest), Some(&mut plain));
        let passes = results.iter().zip(&plain).all(|(x, y)| Difference::of(x, y).passes(cuda.is_bf16()));
        results.push(vec![if passes { 1.0 } else { f32::NAN }]);
    });
    Ok(Case { name, flops, bytes, run })
}

fn normed(cuda: &Cuda, rows: usize, width: usize, outputs: usize) -> Result<Case> {
    let (mut x, data) = (cuda.stream(rows * width)?, normal(2, width * outputs, 0.05));
    cuda.write_act(&mut x, &normal(1, rows * width, 1.0));
    let w = cuda.weight(Matrix { data: &data, rows: width, cols: outputs }, Role::Linear)?;
    let (gain, shift) = (cuda.real_from(&normal(3, width, 1.0))?, cuda.real(width)?);
    let (bias, mut y) = (cuda.real_from(&normal(4, outputs, 1.0))?, cuda.act(rows * outputs)?);
    let (mut norm_y, mut mean, mut rstd) = (cuda.act(rows * width)?, cuda.real(rows)?, cuda.real(rows)?);
    Ok(Case {
        name: format!("norm_linear_fwd {rows}x{width}x{outputs}"),
        flops: 2.0 * (rows * width * outputs) as f64,
        bytes: 4.0 * (rows * width) as f64 + act_bytes(cuda) * (width * outputs + rows * outputs) as f64,
        run: Box::new(move |cuda, results| {
            let normed = NormScratch { y: &mut norm_y, mean: &mut mean, rstd: &mut rstd };
            let norm = Norm { gain: &gain, bias: &shift, epsilon: 1e-5, width };
            cuda.norm_linear_fwd(&mut y, normed, &x, norm, (&w, &bias), rows);
            let Some(results) = results else { return };
            read(cuda, Some(results), &[(&y, rows * outputs)]);
            // there is no other variant: the two ops that it stands for
            cuda.layernorm_fwd(&mut norm_y, &mut mean, &mut rstd, &x, &gain, &shift, 1e-5, rows, width);
            cuda.linear_fwd(&mut y, &norm_y, &w, &bias, rows);
            let mut plain = vec![0.0; rows * outputs];
            cuda.read_floats(&mut plain, &y, 0);
            let passes = Difference::of(&results[0], &plain).passes(cuda.is_bf16());
            results.push(vec![if passes { 1.0 } else { f32::NAN }]);
        }),
    })
}

fn head(cuda: &Cuda, rows: usize, width: usize, vocab: usize) -> Result<Case> {
    let x = cuda.act_from(&normal(1, rows * width, 1.0))?;
    let data = normal(2, vocab * width, 0.05);
    let wte = cuda.weight(Matrix { data: &data, rows: vocab, cols: width }, Role::TiedTable)?;
    let mut logits = cuda.real(rows * vocab)?;
    Ok(Case {
        name: format!("head_fwd {rows}x{width}x{vocab}"),
        flops: 2.0 * (rows * width * vocab) as f64,
        bytes: act_bytes(cuda) * (rows * width + width * vocab) as f64 + 4.0 * (rows * vocab) as f64,
        run: Box::new(move |cuda, results| {
            cuda.head_fwd(&mut logits, &x, &wte, rows);
            read(cuda, results, &[(&logits, rows * vocab)]);
        }),
    })
}

fn head_backward(cuda: &Cuda, rows: usize, width: usize, vocab: usize) -> Result<Case> {
    let x = cuda.act_from(&normal(1, rows * width, 1.0))?;
    let data = normal(2, vocab * width, 0.05);
    let wte = cuda.weight(Matrix { data: &data, rows: vocab, cols: width }, Role::TiedTable)?;
    let dlogits = cuda.real_from(&normal(3, rows * vocab, 1.0))?;
    let (mut dx, mut dwte) = (cuda.act(rows * width)?, cuda.real(vocab * width)?);
    Ok(Case {
        name: format!("head_bwd {rows}x{width}x{vocab}"),
        flops: 4.0 * (rows * width * vocab) as f64,
        bytes: act_bytes(cuda) * (2 * rows * width + width * vocab) as f64
            + 4.0 * (rows * vocab + 2 * width * vocab) as f64,
        run: Box::new(move |cuda, results| {
            cuda.zero_real(&mut dwte, vocab * width);
            cuda.head_bwd(&mut dx, &mut dwte, &dlogits, &x, &wte, rows);
            read(cuda, results, &[(&dx, rows * width), (&dwte, vocab * width)]);
        }),
    })
}

/// The settings' way to the device and the tokens' way back are part of it.
fn sampling(cuda: &Cuda, rows: usize, vocab: usize) -> Result<Case> {
    let logits = cuda.real_from(&normal(1, rows * vocab, 3.0))?;
    Ok(Case {
        name: format!("sample {rows}x{vocab}"),
        // a comparison, an exponential and some twenty comparisons with a bound that is halved
        flops: 30.0 * (rows * vocab) as f64,
        bytes: 4.0 * (rows * vocab) as f64,
        run: Box::new(move |cuda, results| {
            let draw = |row| Draw {
                rules: Rules::Usual,
                top_k: 50,
                top_p: 0.9,
                temperature: 0.8,
                repetition_penalty: 1.0,
                seed: 1,
                number: row as u64,
                step: 0,
                history: &[],
            };
            let mut tokens = vec![0; rows];
            cuda.sample(&mut tokens, &logits, (0..rows).map(draw), vocab);
            results.into_iter().for_each(|results| results.push(tokens.iter().map(|&token| token as f32).collect()));
        }),
    })
}

fn gelu_backward(cuda: &Cuda, len: usize) -> Result<Case> {
    let (dy, u) = (cuda.act_from(&normal(1, len, 1.0))?, cuda.act_from(&normal(2, len, 2.0))?);
    let mut du = cuda.act(len)?;
    Ok(Case {
        name: format!("gelu_bwd {len}"),
        flops: 20.0 * len as f64,
        bytes: 3.0 * act_bytes(cuda) * len as f64,
        run: Box::new(move |cuda, results| {
            cuda.gelu_bwd(&mut du, &dy, &u, len);
            read(cuda, results, &[(&du, len)]);
        }),
    })
}

/// To rows of whole 16 bytes.
fn cast(cuda: &Cuda, rows: usize, columns: usize) -> Result<Case> {
    let (x, stride) = (cuda.real_from(&normal(1, rows * columns, 1.0))?, columns.next_multiple_of(8));
    let y = cuda.act(rows * stride)?;
    Ok(Case {
        name: format!("cast {rows}x{columns}"),
        flops: 0.0,
        bytes: (4.0 * columns as f64 + act_bytes(cuda) * stride as f64) * rows as f64,
        run: Box::new(move |cuda, results| {
            cuda.narrow(y.first(rows * stride), x.first(rows * columns), [rows, columns], stride);
            read(cuda, results, &[(&y, rows * stride)]);
        }),
    })
}

/// Gradients of tokens, of which `distinct` are different, to those of a table.
fn scatter(cuda: &Cuda, tokens: usize, width: usize, distinct: usize) -> Result<Case> {
    let mut dy = cuda.stream(tokens * width)?;
    cuda.write_act(&mut dy, &normal(1, tokens * width, 1.0));
    let ids = cuda.ids_from(&(0..tokens).map(|n| (n * 7919 % distinct) as u32).collect::<Vec<_>>())?;
    let (mut table, len) = (cuda.real(distinct * width)?, distinct * width);
    Ok(Case {
        name: format!("scatter_rows_bwd {tokens}x{width} to {distinct}"),
        flops: (tokens * width) as f64,
        bytes: 4.0 * (tokens + 2 * distinct.min(tokens)) as f64 * width as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.zero_real(&mut table, len);
            }
            cuda.gather_rows_bwd(&mut table, &dy, &ids, tokens, width);
            read(cuda, results, &[(&table, len)]);
        }),
    })
}

fn layer_norm(cuda: &Cuda, tokens: usize, width: usize) -> Result<Case> {
    let len = tokens * width;
    let mut x = cuda.stream(len)?;
    cuda.write_act(&mut x, &normal(1, len, 1.0));
    let (dy, gain, bias) =
        (cuda.act_from(&normal(2, len, 1.0))?, cuda.real_from(&normal(3, width, 1.0))?, cuda.real(width)?);
    let (mut y, mut mean, mut rstd) = (cuda.act(len)?, cuda.real(tokens)?, cuda.real(tokens)?);
    let (mut dx, mut dgain, mut dbias) = (cuda.stream(len)?, cuda.real(width)?, cuda.real(width)?);
    Ok(Case {
        name: format!("layernorm fwd+bwd {tokens}x{width}"),
        flops: 27.0 * len as f64,
        // forward x, y; backward x, dy, dx twice
        bytes: (4.0 * 4.0 + 2.0 * act_bytes(cuda)) * len as f64,
        run: Box::new(move |cuda, results| {
            cuda.layernorm_fwd(&mut y, &mut mean, &mut rstd, &x, &gain, &bias, 1e-5, tokens, width);
            if results.is_some() {
                [(&mut dx, len), (&mut dgain, width), (&mut dbias, width)]
                    .into_iter()
                    .for_each(|(x, len)| cuda.zero_real(x, len));
            }
            let d = (&mut dx, &mut dgain, &mut dbias);
            cuda.layernorm_bwd(d.0, d.1, d.2, &dy, &x, &mean, &rstd, &gain, tokens, width);
            read(cuda, results, &[(&y, len), (&dx, len), (&dgain, width), (&dbias, width)]);
        }),
    })
}

fn cross_entropy(cuda: &Cuda, tokens: usize, vocab: usize) -> Result<Case> {
    let len = tokens * vocab;
    let (given, mut logits) = (cuda.real_from(&normal(1, len, 3.0))?, cuda.real(len)?);
    let targets = cuda.ids_from(&(0..tokens).map(|n| (n * 31 % vocab) as u32).collect::<Vec<_>>())?;
    let (weights, mut loss) = (cuda.real_from(&normal(2, tokens, 1.0))?, cuda.real(tokens)?);
    Ok(Case {
        name: format!("cross_entropy fwd+bwd {tokens}x{vocab}"),
        flops: 10.0 * len as f64,
        bytes: 5.0 * 4.0 * len as f64,
        run: Box::new(move |cuda, results| {
            cuda.copy(logits.first(len), given.first(len), 4 * len);
            cuda.cross_entropy_fwd(&mut loss, &logits, &targets, tokens, vocab);
            cuda.cross_entropy_bwd(&mut logits, &targets, &weights, tokens, vocab);
            read(cuda, results, &[(&loss, tokens), (&logits, len)]);
        }),
    })
}

fn attention(cuda: &Cuda, rows: usize, length: usize, heads: usize) -> Result<Case> {
    let dims = AttentionDims { heads, head_dim: 64 };
    let (tokens, width) = (rows * length, dims.width());
    let spans = Spans::of_lengths(cuda, vec![length; rows])?;
    let (qkv, dy) =
        (cuda.act_from(&normal(1, 3 * tokens * width, 1.0))?, cuda.act_from(&normal(2, tokens * width, 1.0))?);
    let (mut y, mut lse, mut dqkv) =
        (cuda.act(tokens * width)?, cuda.real(tokens * heads)?, cuda.act(3 * tokens * width)?);
    // of the pairs of tokens half; forward two products, backward five and, in two kernels, two again
    let pairs = (rows * heads) as f64 * (length * (length + 1) / 2) as f64;
    Ok(Case {
        name: format!("attention fwd+bwd {rows}x{length}x{heads}x64"),
        flops: 9.0 * 2.0 * 64.0 * pairs,
        bytes: act_bytes(cuda) * (4 + 3 + 2 + 3) as f64 * (tokens * width) as f64,
        run: Box::new(move |cuda, results| {
            cuda.attention_fwd(&mut y, &mut lse, &qkv, Mask::NONE, &spans, dims);
            cuda.attention_bwd(&mut dqkv, &dy, &y, &lse, &qkv, Mask::NONE, &spans, dims);
            read(cuda, results, &[(&y, tokens * width), (&dqkv, 3 * tokens * width)]);
        }),
    })
}

fn decoding(cuda: &Cuda, rows: usize, past: usize, heads: usize) -> Result<Case> {
    let dims = AttentionDims { heads, head_dim: 64 };
    let (width, capacity) = (dims.width(), (past + 1).next_multiple_of(64));
    let (len, tokens) = (rows * capacity * width, rows * width);
    let given = [normal(1, len, 1.0), normal(2, len, 1.0)];
    let (mut keys, mut values) = (cuda.act_from(&given[0])?, cuda.act_from(&given[1])?);
    let (qkv, mut y) = (cuda.act_from(&normal(3, 3 * tokens, 1.0))?, cuda.act(tokens)?);
    let spans = Spans::of_lengths(cuda, vec![1; rows])?;
    let cached = CacheRows { spans, slots: cuda.ids_from(&(0..rows as u32).collect::<Vec<_>>())?, capacity };
    let new = cuda.ids_from(&[vec![0; rows], vec![past as u32; rows]].concat())?;
    Ok(Case {
        name: format!("attention_cached_fwd {rows}x{past}x{heads}x64"),
        flops: 4.0 * (tokens * (past + 1)) as f64,
        bytes: act_bytes(cuda) * 2.0 * (tokens * (past + 1)) as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.write_act(&mut keys, &given[0]);
                cuda.write_act(&mut values, &given[1]);
            }
            cuda.attention_cached_fwd(&mut y, &mut keys, &mut values, &qkv, &new, &cached, dims);
            read(cuda, results, &[(&y, tokens), (&keys, len), (&values, len)]);
        }),
    })
}

fn adamw(cuda: &Cuda, len: usize) -> Result<Case> {
    let (values, mut gradient) = (normal(1, len.min(1 << 20), 1.0), cuda.real(len)?);
    let (mut p, mut m, mut v) = (cuda.real(len)?, cuda.real(len)?, cuda.real(len)?);
    let step = AdamW { lr: 1e-3, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.1, factor: 1.0, step: 1 };
    Ok(Case {
        name: format!("adamw {len}"),
        flops: 15.0 * len as f64,
        bytes: 32.0 * len as f64,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                cuda.write_floats(&p, &values);
                [&mut m, &mut v].into_iter().for_each(|x| cuda.zero_real(x, len));
                cuda.write_floats(&gradient, &values);
            }
            cuda.adamw(&mut p, &mut m, &mut v, &mut gradient, &step, len);
            read(cuda, results, &[(&p, values.len()), (&v, values.len())]);
        }),
    })
}

/// Of `count` matrices and as many vectors.
fn adamw_all(cuda: &Cuda, count: usize, lens: [usize; 2]) -> Result<Case> {
    let lens = lens.repeat(count);
    let of_each = || lens.iter().map(|&len| cuda.real(len)).collect::<Result<Vec<_>>>();
    let (mut values, mut means, mut squares, mut gradients) = (of_each()?, of_each()?, of_each()?, of_each()?);
    let data = vec![0.0; lens[0]];
    let matrix = || cuda.weight(Matrix { data: &data, rows: 1, cols: lens[0] }, Role::Linear);
    let mut matrices = (0..count).map(|_| matrix()).collect::<Result<Vec<_>>>()?;
    let given = normal(1, lens[0], 1.0);
    let step = AdamW { lr: 1e-3, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.0, factor: 1.0, step: 1 };
    let len = lens.iter().sum::<usize>() as f64;
    Ok(Case {
        name: format!("adamw_all {count}x{}", lens[0]),
        flops: 15.0 * len,
        bytes: (32.0 + act_bytes(cuda)) * len,
        run: Box::new(move |cuda, results| {
            if results.is_some() {
                for all in [&mut values, &mut means, &mut squares] {
                    all.iter_mut().zip(&lens).for_each(|(x, &len)| cuda.zero_real(x, len));
                }
                gradients.iter().zip(&lens).for_each(|(gradient, &len)| cuda.write_floats(gradient, &given[..len]));
            }
            let each = values.iter_mut().zip(&mut means).zip(&mut squares).zip(&mut gradients).zip(&lens).enumerate();
            let mut matrices = matrices.iter_mut();
            let mut parameters: Vec<_> = each
                .map(|(i, ((((values, mean), square), gradient), &len))| {
                    let matrix = if i % 2 == 0 { matrices.next().map(|matrix| (matrix, Role::Linear)) } else { None };
                    Parameter { values, matrix, mean, square, gradient, decay: 0.1, len }
                })
                .collect();
            cuda.adamw_all(&mut parameters, &step);
            read(cuda, results, &[(&values[0], lens[0])]);
        }),
    })
}
