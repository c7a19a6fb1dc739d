//! What is timed, and the least work that it takes.
//!
//! Operations are multiplications and additions, so that a multiply-add is two. Bytes are those that have to pass between
//! memory and processor whatever the caches hold: weights in their own type, a key/value cache, an op's inputs and outputs.
//! Activations inside a model may stay in caches, and are not counted.

use std::fmt;

use super::limits::Limits;
use crate::dims::Dims;
use crate::dtype::Dtype;
use crate::model::Params;

/// Tokens of the condition that rows of a conditional model have.
pub const CONDITION: usize = 8;

/// Bytes of a weight.
pub fn size(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 8.0,
        Dtype::F32 => 4.0,
        Dtype::Bf16 => 2.0,
        Dtype::Int8 => 1.0,
        // and a byte for the factor of 32
        Dtype::Int4 => 0.5 + 1.0 / 32.0,
    }
}

/// Bytes of a weight of the tied table.
fn table_size(dtype: Dtype) -> f64 {
    if dtype == Dtype::Int4 { size(Dtype::Int8) } else { size(dtype) }
}

/// Relative spacing of numbers of this type: what rounding a factor costs.
pub fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::EPSILON,
        Dtype::F32 => f64::from(f32::EPSILON),
        Dtype::Bf16 => 2f64.powi(-7),
        // of 127 steps, to a normal number the greatest of a row
        Dtype::Int8 => 4.0 / 127.0,
        // of steps that are up to 27 of 127 wide
        Dtype::Int4 => 4.0 * 27.0 / 127.0,
    }
}

/// Something to be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Sentences to latents.
    Encode {
        /// Tokens of a sentence.
        len: usize,
        /// Sentences.
        batch: usize,
    },
    /// Logits at every position of given tokens.
    Prefill {
        /// Tokens of a sequence.
        len: usize,
        /// Sequences.
        batch: usize,
    },
    /// New tokens one after the other, over a key/value cache.
    Decode {
        /// New tokens of a sequence.
        new: usize,
        /// Sequences at the same time.
        batch: usize,
    },
    /// A step of training: forward, backward, update.
    Train {
        /// Tokens of a sentence.
        len: usize,
        /// Sentences.
        batch: usize,
    },
    /// A single operation.
    Op(Op),
}

/// A single operation, without the model around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `y = x W + b`; `x (rows, inputs)`, `W (inputs, outputs)`.
    Gemm {
        /// Rows of `x`.
        rows: usize,
        /// Columns of `x`.
        inputs: usize,
        /// Columns of `W`.
        outputs: usize,
    },
    /// Causal attention within each of `batch` sequences.
    Attention {
        /// Tokens of a sequence.
        len: usize,
        /// Sequences.
        batch: usize,
        /// Heads.
        heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// Layer norm of `(rows, width)`.
    LayerNorm {
        /// Rows.
        rows: usize,
        /// Width.
        width: usize,
    },
    /// The backward pass of `gelu_new` over `(rows, width)`; forward it is fused into the product before it.
    GeluBwd {
        /// Rows.
        rows: usize,
        /// Width.
        width: usize,
    },
    /// Softmax and cross-entropy of logits `(rows, vocab)`.
    CrossEntropy {
        /// Rows.
        rows: usize,
        /// Vocabulary.
        vocab: usize,
    },
}

/// The names of the ops.
pub const OPS: [&str; 5] = ["gemm", "attention", "layernorm", "gelu_bwd", "cross_entropy"];

impl Op {
    /// Its name, one of [`OPS`].
    pub fn name(&self) -> &'static str {
        match self {
            Op::Gemm { .. } => "gemm",
            Op::Attention { .. } => "attention",
            Op::LayerNorm { .. } => "layernorm",
            Op::GeluBwd { .. } => "gelu_bwd",
            Op::CrossEntropy { .. } => "cross_entropy",
        }
    }

    /// Its sizes, `MxKxN` of a product.
    pub fn shape(&self) -> String {
        match *self {
            Op::Gemm { rows, inputs, outputs } => format!("{rows}x{inputs}x{outputs}"),
            Op::Attention { len, batch, heads, head_dim } => format!("{batch}x{len}x{heads}x{head_dim}"),
            Op::LayerNorm { rows, width } | Op::GeluBwd { rows, width } => format!("{rows}x{width}"),
            Op::CrossEntropy { rows, vocab } => format!("{rows}x{vocab}"),
        }
    }

    /// The least work, with weights in `dtype` and everything else in f32.
    fn work(&self, dtype: Dtype) -> Work {
        let f = |x: usize| x as f64;
        match *self {
            Op::Gemm { rows, inputs, outputs } => Work {
                flops: 2.0 * f(rows) * f(inputs) * f(outputs),
                read: size(dtype) * f(inputs) * f(outputs) + 4.0 * f(rows) * f(inputs),
                written: 4.0 * f(rows) * f(outputs),
            },
            Op::Attention { len, batch, heads, head_dim } => {
                let width = f(heads * head_dim);
                Work {
                    flops: f(batch) * attention(width, len),
                    read: 12.0 * width * f(batch * len),
                    written: 4.0 * f(batch * len) * (width + f(heads)),
                }
            }
            // mean, variance, normalisation, gain and bias
            Op::LayerNorm { rows, width } => Work::elementwise(8.0, f(rows * width), 1.0, 1.0),
            // a polynomial for tanh, and the slope around it
            Op::GeluBwd { rows, width } => Work::elementwise(30.0, f(rows * width), 2.0, 1.0),
            // a polynomial for the exponential, the greatest, the sum
            Op::CrossEntropy { rows, vocab } => Work::elementwise(16.0, f(rows * vocab), 1.0, 0.0),
        }
    }
}

impl Case {
    /// `encode`, `prefill`, `decode`, `train` or `op`.
    pub fn kind(&self) -> &'static str {
        match self {
            Case::Encode { .. } => "encode",
            Case::Prefill { .. } => "prefill",
            Case::Decode { .. } => "decode",
            Case::Train { .. } => "train",
            Case::Op(_) => "op",
        }
    }

    /// Tokens that are given, of one sentence or sequence.
    pub fn n_prompt(&self) -> usize {
        match *self {
            Case::Encode { len, .. } | Case::Prefill { len, .. } | Case::Train { len, .. } => len,
            Case::Op(Op::Attention { len, .. }) => len,
            Case::Decode { .. } | Case::Op(_) => 0,
        }
    }

    /// Tokens that are made, of one sequence.
    pub fn n_gen(&self) -> usize {
        match *self {
            Case::Decode { new, .. } => new,
            _ => 0,
        }
    }

    /// Sentences or sequences; rows of an op.
    pub fn batch(&self) -> usize {
        match *self {
            Case::Encode { batch, .. } | Case::Prefill { batch, .. } | Case::Decode { batch, .. } => batch,
            Case::Train { batch, .. } | Case::Op(Op::Attention { batch, .. }) => batch,
            Case::Op(Op::Gemm { rows, .. } | Op::LayerNorm { rows, .. }) => rows,
            Case::Op(Op::GeluBwd { rows, .. } | Op::CrossEntropy { rows, .. }) => rows,
        }
    }

    /// What is counted by the second: tokens, or rows of an op.
    pub fn tokens(&self) -> usize {
        self.batch() * (self.n_prompt() + self.n_gen()).max(1)
    }

    /// The least work on a model of this size, with weights in `dtype`.
    pub fn work(&self, dims: &Dims, dtype: Dtype) -> Work {
        let (blocks, head, chain) = (block_weights(dims), (dims.vocab * dims.hidden) as f64, chain_weights(dims));
        let condition = if dims.conditional { CONDITION } else { 0 };
        let attention = |len: usize| dims.layers as f64 * attention(dims.hidden as f64, len);
        match *self {
            Case::Encode { len, batch } => {
                let (rows, tokens) = (batch as f64, (len + condition) as f64);
                Work {
                    flops: rows * (2.0 * blocks * tokens + attention(len + condition) + 2.0 * chain),
                    read: size(dtype) * blocks + 4.0 * chain,
                    written: 0.0,
                }
            }
            Case::Prefill { len, batch } => {
                let (rows, tokens) = (batch as f64, len as f64);
                Work {
                    flops: rows * (2.0 * (blocks + head) * tokens + attention(len)),
                    read: size(dtype) * blocks + table_size(dtype) * head,
                    written: 4.0 * rows * tokens * dims.vocab as f64,
                }
            }
            Case::Decode { new, batch } => {
                let (rows, tokens) = (batch as f64, new as f64);
                // keys and values of the tokens before, at every step; bf16 where weights are narrow
                let number = size(dtype).max(2.0);
                let cache = number * (dims.layers * dims.hidden) as f64 * tokens * (tokens + 1.0);
                Work {
                    flops: rows * (2.0 * (blocks + head) * tokens + attention(new)),
                    read: (size(dtype) * blocks + table_size(dtype) * head) * tokens + rows * cache,
                    written: 0.0,
                }
            }
            Case::Train { len, batch } => {
                let (rows, tokens) = (batch as f64, (len + condition) as f64);
                let forward = 4.0 * blocks * tokens
                    + 2.0 * attention(len + condition)
                    + 2.0 * head * (len - 1) as f64
                    + 2.0 * chain;
                let parameters: usize = Params::specs(dims, 0.0).list().iter().map(|spec| spec.len()).sum();
                // read: weights forward and backward, then weight, gradient and both averages for the update;
                // written: the gradient, weight and averages, and the weight as the kernels want it
                Work {
                    flops: 3.0 * rows * forward,
                    read: 4.0 * 6.0 * parameters as f64,
                    written: 4.0 * 5.0 * parameters as f64,
                }
            }
            Case::Op(op) => op.work(dtype),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Op(op) => write!(f, "{} {}", op.name(), op.shape()),
            case => write!(f, "{} {}", case.kind(), case.n_prompt() + case.n_gen()),
        }
    }
}

/// Weights of one stack that every token is multiplied with.
fn block_weights(dims: &Dims) -> f64 {
    (dims.layers * dims.hidden * (4 * dims.hidden + 2 * dims.inner)) as f64
}

/// Weights between latents that every sentence is multiplied with.
fn chain_weights(dims: &Dims) -> f64 {
    let nets = 2 * dims.latent * (dims.posterior_inputs() + dims.prior_inputs());
    (dims.layers * nets + (dims.layers - 1) * 2 * dims.latent * dims.latent) as f64
}

/// Operations of one layer's attention over a sequence: scores and sums, each token with those up to itself.
fn attention(width: f64, len: usize) -> f64 {
    2.0 * width * (len * (len + 1)) as f64
}

/// Inputs and outputs of a model's matrix products: queries, keys and values; attention's projection; both layers of the
/// MLP; the head.
pub fn products(dims: &Dims) -> [(usize, usize); 5] {
    let c = dims.hidden;
    [(c, 3 * c), (c, c), (c, dims.inner), (dims.inner, c), (c, dims.vocab)]
}

/// Operations and bytes that cannot be avoided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read.
    pub read: f64,
    /// Bytes written.
    pub written: f64,
}

/// The least time that a machine allows for some work, and what sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// `read bandwidth`, `copy bandwidth`, or a unit's name.
    pub limit: &'static str,
    /// In seconds.
    pub seconds: f64,
    /// Whether it is memory that sets it.
    pub memory: bool,
}

impl Work {
    /// `flops` for each of `count` elements, of which `inputs` are read and `outputs` written as f32.
    fn elementwise(flops: f64, count: f64, inputs: f64, outputs: f64) -> Self {
        Work { flops: flops * count, read: 4.0 * inputs * count, written: 4.0 * outputs * count }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> f64 {
        self.read + self.written
    }

    /// The roofline: the greater of what memory and what arithmetic in `dtype` takes. Who writes much is held against the
    /// bandwidth of copying.
    pub fn bound(&self, limits: &Limits, dtype: Dtype) -> Bound {
        let (limit, bandwidth) = match 4.0 * self.written > self.read {
            true => ("copy bandwidth", limits.copy),
            false => ("read bandwidth", limits.read),
        };
        let memory = Bound { limit, seconds: self.bytes() / bandwidth, memory: true };
        let arithmetic =
            limits.peak(dtype).map(|peak| Bound { limit: peak.name, seconds: self.flops / peak.rate, memory: false });
        arithmetic.filter(|arithmetic| arithmetic.seconds > memory.seconds).unwrap_or(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::limits::Peak;
    use crate::model::Config;

    fn dims() -> Dims {
        Config::preset("randeng-226m").unwrap().dims
    }

    fn limits() -> Limits {
        let peak = Peak { name: "f32 multiply-add", dtype: Dtype::F32, rate: 4e11 };
        Limits { threads: 2, read: 4e10, copy: 3e10, peaks: vec![peak] }
    }

    #[test]
    fn work_is_that_of_the_sizes() {
        assert_eq!(products(&dims()), [(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 21130)]);
        let one = Case::Decode { new: 1, batch: 1 }.work(&dims(), Dtype::F32);
        let weights = 12.0 * (768.0 * (2304.0 + 768.0) + 2.0 * 768.0 * 3072.0) + 768.0 * 21130.0;
        assert_eq!(one.read, 4.0 * weights + 2.0 * 4.0 * 12.0 * 768.0);
        assert_eq!(one.flops, 2.0 * weights + 4.0 * 12.0 * 768.0);
        let gemm = Case::Op(Op::Gemm { rows: 3, inputs: 5, outputs: 7 }).work(&dims(), Dtype::F32);
        assert_eq!(gemm, Work { flops: 210.0, read: 4.0 * (35.0 + 15.0), written: 84.0 });
        // 1.12 GFLOP a token of 8 sentences of 64, most of it in both stacks
        let train = Case::Train { len: 64, batch: 8 }.work(&dims(), Dtype::F32);
        assert!((train.flops / 512.0 / 1.12e9 - 1.0).abs() < 0.02, "{}", train.flops / 512.0);
        // as often forward alone
        let forward = Case::Encode { len: 64, batch: 8 }.work(&dims(), Dtype::F32).flops
            + Case::Prefill { len: 64, batch: 8 }.work(&dims(), Dtype::F32).flops;
        assert!((train.flops / forward / 3.0 - 1.0).abs() < 0.01);
    }

    #[test]
    fn one_token_is_bound_by_memory_and_many_by_arithmetic() {
        let bound = |case: Case| case.work(&dims(), Dtype::F32).bound(&limits(), Dtype::F32).limit;
        assert_eq!(bound(Case::Decode { new: 32, batch: 1 }), "read bandwidth");
        assert_eq!(bound(Case::Encode { len: 64, batch: 8 }), "f32 multiply-add");
        assert_eq!(bound(Case::Train { len: 64, batch: 8 }), "f32 multiply-add");
        assert_eq!(bound(Case::Op(Op::LayerNorm { rows: 100, width: 768 })), "copy bandwidth");
        assert_eq!(bound(Case::Op(Op::CrossEntropy { rows: 100, vocab: 768 })), "read bandwidth");
    }
}
