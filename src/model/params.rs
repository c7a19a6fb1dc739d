//! The parameters: one tree of layers, and the only place that knows the names of the published checkpoints.

use crate::backend::Role;
use crate::dims::Dims;
pub use crate::io::checkpoint::TIED_HEAD;

tree! {
    /// Layer normalisation.
    pub struct Norm {
        /// `(C)`
        gain: vector,
        /// `(C)`
        bias: vector,
    }
}

tree! {
    /// `y = x W + b`.
    pub struct Linear {
        /// `(in, out)`
        weight: matrix,
        /// `(out)`
        bias: vector,
    }
}

tree! {
    /// One GPT-2 block.
    pub struct Block {
        /// Before attention.
        ln_1: node(Norm),
        /// Queries, keys and values, `(C, 3C)`.
        qkv: node(Linear),
        /// Attention's output, `(C, C)`.
        attn_proj: node(Linear),
        /// Before the MLP.
        ln_2: node(Norm),
        /// Into the MLP, `(C, F)`.
        fc: node(Linear),
        /// Out of the MLP, `(F, C)`.
        mlp_proj: node(Linear),
    }
}

tree! {
    /// A stack of blocks with its embeddings.
    pub struct Stack {
        /// Token embedding `(V, C)`; the decoder's is its head too.
        wte: matrix,
        /// Position embedding `(P, C)`.
        wpe: matrix,
        /// `L` blocks.
        blocks: nodes(Block),
        /// After the last block.
        ln_f: node(Norm),
    }
}

tree! {
    /// One step of the latent chain: `s' = tanh(s W_hhᵀ + z W_ihᵀ)`.
    pub struct Step {
        /// `(Z, Z)`, from the state.
        hh: matrix,
        /// `(Z, Z)`, from the latent.
        ih: matrix,
    }
}

tree! {
    /// All parameters of a Randeng VAE or CVAE.
    pub struct Params {
        /// The encoder.
        encoder: node(Stack),
        /// The decoder.
        decoder: node(Stack),
        /// Latent to decoder, `L` of `(C, Z)`.
        fusion: matrices,
        /// `L − 1` steps of the chain.
        chain: nodes(Step),
        /// `L` of `(2Z, C + Z)`, conditional `(2Z, 2C + Z)`.
        posterior: matrices,
        /// `L` of `(2Z, Z)`, conditional `(2Z, C + Z)`.
        prior: matrices,
        /// `L` of `(C)`.
        pooling: vectors,
    }
}

/// What a parameter starts as (spec of the published `_init_weights`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        deviation: f32,
    },
    /// Uniform in `±bound`.
    Uniform {
        /// Largest magnitude.
        bound: f32,
    },
}

/// A parameter's name, shape, purpose and initial value.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As in the published checkpoints.
    pub name: String,
    /// As stored.
    pub shape: Vec<usize>,
    /// What a matrix is for; `None` for a vector.
    pub role: Option<Role>,
    /// Initial value.
    pub init: Init,
}

impl Spec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn matrix(name: String, rows: usize, cols: usize, role: Role, init: Init) -> Self {
        Spec { name, shape: vec![rows, cols], role: Some(role), init }
    }

    fn vector(name: String, len: usize, init: Init) -> Self {
        Spec { name, shape: vec![len], role: None, init }
    }
}

impl Params<(Spec, Spec)> {
    /// Names, shapes and initial values of a model of this size.
    ///
    /// `range` is the configuration's `initializer_range`, 0.02 in GPT-2.
    pub fn specs(dims: &Dims, range: f32) -> Self {
        let normal = Init::Normal { deviation: range };
        let nn_linear = |name: String, outputs: usize, inputs: usize| {
            Spec::matrix(name, outputs, inputs, Role::Latent, Init::Uniform { bound: 1.0 / (inputs as f32).sqrt() })
        };
        let latent = dims.latent;
        let layers = |make: &dyn Fn(usize) -> Spec| (0..dims.layers).map(make).collect();
        Params {
            encoder: stack("model.encoder.transformer", dims, range, Role::Table),
            decoder: stack("model.decoder.transformer", dims, range, Role::TiedTable),
            fusion: layers(&|l| {
                let name = format!("model.decoder.transformer.linear_emb_layers.{l}.weight");
                Spec::matrix(name, dims.hidden, latent, Role::Latent, normal)
            }),
            chain: (0..dims.layers - 1)
                .map(|l| Step {
                    hh: nn_linear(format!("model.latent_nets.{l}.W_hh.weight"), latent, latent),
                    ih: nn_linear(format!("model.latent_nets.{l}.W_ih.weight"), latent, latent),
                })
                .collect(),
            posterior: layers(&|l| {
                nn_linear(format!("model.posterior_nets.{l}.weight"), 2 * latent, dims.posterior_inputs())
            }),
            prior: layers(&|l| nn_linear(format!("model.prior_nets.{l}.weight"), 2 * latent, dims.prior_inputs())),
            pooling: layers(&|l| Spec::vector(format!("model.pooling.{l}.attention_weights"), dims.hidden, normal)),
        }
    }

    /// All specs in order.
    pub fn list(&self) -> Vec<&Spec> {
        let list = std::cell::RefCell::new(Vec::new());
        self.visit(&mut |s| list.borrow_mut().push(s), &mut |s| list.borrow_mut().push(s));
        list.into_inner()
    }
}

fn stack(prefix: &str, dims: &Dims, range: f32, wte: Role) -> Stack<(Spec, Spec)> {
    let width = dims.hidden;
    let normal = Init::Normal { deviation: range };
    // GPT-2 scales what feeds the residual stream by the number of additions to it
    let residual = Init::Normal { deviation: range / (2.0 * dims.layers as f32).sqrt() };
    let norm = |name: String| Norm {
        gain: Spec::vector(format!("{name}.weight"), width, Init::Constant(1.0)),
        bias: Spec::vector(format!("{name}.bias"), width, Init::Constant(0.0)),
    };
    let linear = |name: String, inputs: usize, outputs: usize, init: Init| Linear {
        weight: Spec::matrix(format!("{name}.weight"), inputs, outputs, Role::Linear, init),
        bias: Spec::vector(format!("{name}.bias"), outputs, Init::Constant(0.0)),
    };
    Stack {
        wte: Spec::matrix(format!("{prefix}.wte.weight"), dims.vocab, width, wte, normal),
        wpe: Spec::matrix(format!("{prefix}.wpe.weight"), dims.positions, width, Role::Table, normal),
        blocks: (0..dims.layers)
            .map(|l| Block {
                ln_1: norm(format!("{prefix}.h.{l}.ln_1")),
                qkv: linear(format!("{prefix}.h.{l}.attn.c_attn"), width, 3 * width, normal),
                attn_proj: linear(format!("{prefix}.h.{l}.attn.c_proj"), width, width, residual),
                ln_2: norm(format!("{prefix}.h.{l}.ln_2")),
                fc: linear(format!("{prefix}.h.{l}.mlp.c_fc"), width, dims.inner, normal),
                mlp_proj: linear(format!("{prefix}.h.{l}.mlp.c_proj"), dims.inner, width, residual),
            })
            .collect(),
        ln_f: norm(format!("{prefix}.ln_f")),
    }
}
