//! Every variant of every kernel: one row each, of an op the best first.
//!
//! The engine, the tests, the compile checks and `della bench` all read this table.

use super::driver::{Arch, Geometry};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Element types and layout that a kernel is compiled for: the macros that every kernel sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Types {
    /// Activations are bf16.
    pub act: bool,
    /// The left operand is bf16.
    pub a: bool,
    /// The right operand is bf16.
    pub b: bool,
    /// The result is bf16.
    pub y: bool,
    /// Which operands of a product are transposed.
    pub layout: Layout,
}

/// Which operands of a product `y (m, n) = a b` are stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `a (m, k)`, `b (k, n)`
    Nn = 0,
    /// `a (m, k)`, `b (n, k)`
    Nt = 1,
    /// `a (k, m)`, `b (k, n)`
    Tn = 2,
}

impl Types {
    /// Everything is f32.
    pub const F32: Types = Types { act: false, a: false, b: false, y: false, layout: Layout::Nn };

    /// Activations of the device's type.
    pub const fn act(bf16: bool) -> Self {
        Types { act: bf16, ..Types::F32 }
    }

    /// A product.
    pub const fn product(layout: Layout, a: bool, b: bool, y: bool) -> Self {
        Types { act: y, a, b, y, layout }
    }

    /// From one type to another.
    pub const fn convert(x: bool, y: bool) -> Self {
        Types { act: x, a: x, b: false, y, layout: Layout::Nn }
    }

    /// As macros.
    pub fn defines(self) -> [(&'static str, u32); 6] {
        let Types { act, a, b, y, layout } = self;
        [
            ("ACT_BF16", act.into()),
            ("A_BF16", a.into()),
            ("B_BF16", b.into()),
            ("X_BF16", a.into()),
            ("Y_BF16", y.into()),
            ("LAYOUT", layout as u32),
        ]
    }
}

/// Which element types the ops of a device ask of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// f32 alone.
    Real,
    /// Activations.
    Act,
    /// Gradients of activations that are added up in f32 or in the activations' type.
    Scatter,
    /// From f32 to the activations' type.
    Cast,
    /// Products.
    Product,
}

impl Uses {
    /// All of them, on a device that computes in bf16 or not.
    pub fn types(self, bf16: bool) -> Vec<Types> {
        let all = match self {
            Uses::Real => vec![Types::F32],
            Uses::Act => vec![Types::act(bf16)],
            Uses::Scatter => vec![Types::convert(bf16, false), Types::convert(bf16, bf16)],
            Uses::Cast => vec![Types::convert(false, bf16)],
            Uses::Product => {
                let f32 = [Layout::Nn, Layout::Nt, Layout::Tn].map(|l| Types::product(l, false, false, false));
                let bf16 = [
                    Types::product(Layout::Nn, bf16, bf16, bf16),
                    Types::product(Layout::Nt, bf16, bf16, bf16),
                    Types::product(Layout::Nt, bf16, bf16, false),
                    Types::product(Layout::Tn, bf16, bf16, false),
                ];
                f32.into_iter().chain(bf16).collect()
            }
        };
        let mut unique = Vec::new();
        for types in all {
            if !unique.contains(&types) {
                unique.push(types);
            }
        }
        unique
    }
}

/// What an op is asked to do, as far as the choice of a kernel and its blocks depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Element types.
    pub types: Types,
    /// Rows of the result; of attention, the longest span.
    pub rows: usize,
    /// Columns of the result; of attention, the width of a head.
    pub cols: usize,
    /// The inner size of a product; of attention, heads.
    pub depth: usize,
    /// Rows of the batch.
    pub batch: usize,
}

impl Problem {
    /// A pass over a matrix.
    pub fn matrix(types: Types, rows: usize, cols: usize) -> Self {
        Problem { types, rows, cols, depth: 1, batch: 1 }
    }

    /// A pass over elements that have no rows.
    pub fn flat(types: Types, len: usize) -> Self {
        Problem::matrix(types, 1, len)
    }
}

/// A variant of a kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What it computes; also the name of its function.
    pub op: &'static str,
    /// Which way: `v01_row`.
    pub variant: &'static str,
    /// The folder of its file.
    pub group: &'static str,
    /// The first architecture that it runs on.
    pub arch: Arch,
    /// Which element types it is used with.
    pub uses: Uses,
    /// Whether it can do this.
    pub fits: fn(&Problem) -> bool,
    /// Its blocks.
    pub geometry: fn(&Problem) -> Geometry,
    /// Macros with its sizes.
    pub defines: &'static [(&'static str, u32)],
    /// It also wants a [`TensorMap`](super::driver::TensorMap) of each operand, whose boxes have 64 elements along a row
    /// and this many rows, or with a transposed operand this many elements and 64 rows.
    pub tiles: Option<[u32; 2]>,
    /// Instructions that its machine code must have.
    pub instructions: &'static [&'static str],
}

impl Kernel {
    /// Its file below `kernels/`.
    pub fn path(&self) -> String {
        format!("{}/{}_{}.cu", self.group, self.op, self.variant)
    }

    /// As `DELLA_VARIANT` and the tests name it.
    pub fn id(&self) -> String {
        format!("{}_{}", self.op, self.variant)
    }

    /// The element types that it is used with and can do.
    pub fn types(&self, bf16: bool) -> Vec<Types> {
        let fits = |types: &Types| (self.fits)(&Problem { types: *types, rows: 128, cols: 128, depth: 128, batch: 1 });
        self.uses.types(bf16).into_iter().filter(fits).collect()
    }

    /// All macros for these types.
    pub fn macros(&self, types: Types) -> Vec<(&'static str, u32)> {
        types.defines().into_iter().chain(self.defines.iter().copied()).collect()
    }
}

const SM_80: Arch = Arch::from_number(80);

/// Threads of a block that is not said to have another number.
const BLOCK: u32 = 256;

const fn geometry(x: usize, y: usize, z: usize, block: u32) -> Geometry {
    Geometry { grid: [x as u32, y as u32, z as u32], block, shared: 0, cooperative: false }
}

/// A block for each row.
fn rows(p: &Problem) -> Geometry {
    geometry(p.rows, 1, 1, BLOCK)
}

/// A thread for each element.
fn flat(p: &Problem) -> Geometry {
    geometry((p.rows * p.cols).div_ceil(BLOCK as usize), 1, 1, BLOCK)
}

/// A block for 32 columns.
fn columns(p: &Problem) -> Geometry {
    geometry(p.cols.div_ceil(32), 1, 1, BLOCK)
}

/// A warp for each row.
fn warps(p: &Problem) -> Geometry {
    geometry(p.rows.div_ceil(4), 1, 1, 128)
}

/// A warp for each token of each head of each span.
fn attention_warps(p: &Problem) -> Geometry {
    geometry(p.rows.div_ceil(4), p.depth, p.batch, 128)
}

/// A block for each token of each span.
fn span_tokens(p: &Problem) -> Geometry {
    geometry(p.rows, p.batch, 1, BLOCK)
}

const fn v01(
    group: &'static str,
    op: &'static str,
    idea: &'static str,
    uses: Uses,
    geometry: fn(&Problem) -> Geometry,
) -> Kernel {
    Kernel {
        op,
        variant: idea,
        group,
        arch: SM_80,
        uses,
        fits: |_| true,
        geometry,
        defines: &[],
        tiles: None,
        instructions: &[],
    }
}

/// All kernels.
pub const REGISTRY: &[Kernel] = &[
    v01("embed", "embed_fwd", "v01_row", Uses::Act, rows),
    v01("embed", "gather_rows_fwd", "v01_row", Uses::Act, rows),
    v01("embed", "scatter_rows_bwd", "v01_first", Uses::Scatter, rows),
    v01("norm", "layernorm_fwd", "v01_row", Uses::Act, rows),
    v01("norm", "layernorm_bwd", "v01_row", Uses::Act, rows),
    v01("norm", "layernorm_params_bwd", "v01_columns", Uses::Act, columns),
    v01("linear", "gemm", "v01_tile", Uses::Product, |p| geometry(p.cols.div_ceil(64), p.rows.div_ceil(64), 1, BLOCK)),
    v01("linear", "gelu_bwd", "v01_flat", Uses::Act, flat),
    v01("linear", "column_sums", "v01_columns", Uses::Act, columns),
    v01("linear", "cast", "v01_flat", Uses::Cast, flat),
    v01("attention", "attention_fwd", "v01_warp", Uses::Act, attention_warps),
    v01("attention", "attention_bwd_q", "v01_warp", Uses::Act, attention_warps),
    v01("attention", "attention_bwd_kv", "v01_warp", Uses::Act, attention_warps),
    v01("attention", "cache_append", "v01_row", Uses::Act, span_tokens),
    v01("attention", "attention_decode", "v01_warp", Uses::Act, attention_warps),
    v01("latent", "pool_fwd", "v01_row", Uses::Act, rows),
    v01("latent", "pool_bwd", "v01_row", Uses::Act, rows),
    v01("latent", "pool_weight_bwd", "v01_columns", Uses::Act, columns),
    v01("latent", "copy_columns", "v01_flat", Uses::Real, flat),
    v01("latent", "reparameterize_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "reparameterize_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "tanh_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "tanh_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "mask_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "kl_fwd", "v01_warp", Uses::Real, warps),
    v01("latent", "kl_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "fuse_fwd", "v01_row", Uses::Act, span_tokens),
    v01("latent", "fuse_bwd", "v01_slot", Uses::Act, |p| geometry(p.cols.div_ceil(BLOCK as usize), p.batch, 1, BLOCK)),
    v01("loss", "cross_entropy_fwd", "v01_row", Uses::Real, rows),
    v01("loss", "cross_entropy_bwd", "v01_row", Uses::Real, rows),
    v01("optim", "adamw", "v01_flat", Uses::Real, flat),
    v01("optim", "sum_squares", "v01_strided", Uses::Real, |_| geometry(SUM_BLOCKS, 1, 1, BLOCK)),
    v01("optim", "dropout", "v01_flat", Uses::Act, |p| {
        geometry((p.rows * p.cols.div_ceil(4)).div_ceil(BLOCK as usize), 1, 1, BLOCK)
    }),
];

/// Blocks, and partial sums, of `sum_squares`.
pub const SUM_BLOCKS: usize = 256;

/// The variable that forces variants: `op=variant`, several with commas between.
pub const VARIANT_VAR: &str = "DELLA_VARIANT";

/// Variants that must be taken, by op.
#[derive(Clone, Debug, Default)]
pub struct Forced(Vec<(&'static str, &'static Kernel)>);

impl Forced {
    /// Parses `op=variant,op=variant`.
    ///
    /// # Errors
    /// An op or a variant that is unknown; the message names the choices.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = |pair: &str| {
            let Some((op, variant)) = pair.split_once('=') else {
                return Err(Error::input(VARIANT_VAR, format!("{pair:?} is not op=variant")));
            };
            let of_op: Vec<_> = REGISTRY.iter().filter(|kernel| kernel.op == op).collect();
            if of_op.is_empty() {
                let mut ops: Vec<_> = REGISTRY.iter().map(|kernel| kernel.op).collect();
                ops.dedup();
                let message = format!("there is no op {op:?}; choose one of {}", ops.join(", "));
                return Err(Error::input(VARIANT_VAR, message));
            }
            match of_op.iter().find(|kernel| kernel.variant == variant) {
                Some(kernel) => Ok((kernel.op, *kernel)),
                None => {
                    let names: Vec<_> = of_op.iter().map(|kernel| kernel.variant).collect();
                    let message = format!("{op} has no variant {variant:?}; choose one of {}", names.join(", "));
                    Err(Error::input(VARIANT_VAR, message))
                }
            }
        };
        text.split(',').filter(|pair| !pair.trim().is_empty()).map(|pair| parse(pair.trim())).collect::<Result<_>>().map(Forced)
    }

    /// Those that the environment names.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_env() -> Result<Self> {
        Self::parse(&std::env::var(VARIANT_VAR).unwrap_or_default())
    }

    /// The one for `op`.
    pub fn get(&self, op: &str) -> Option<&'static Kernel> {
        self.0.iter().rev().find(|(forced, _)| *forced == op).map(|(_, kernel)| *kernel)
    }
}

/// The kernel for a problem on an architecture: the forced one, or the best that can do it.
///
/// # Errors
/// The forced one cannot do it.
pub fn choose(op: &str, problem: &Problem, arch: Arch, forced: &Forced) -> Result<(usize, &'static Kernel)> {
    let can = |kernel: &Kernel| arch.runs(kernel.arch) && (kernel.fits)(problem);
    let mut of_op = REGISTRY.iter().enumerate().filter(|(_, kernel)| kernel.op == op);
    match forced.get(op) {
        Some(kernel) if can(kernel) => Ok(of_op.find(|(_, k)| k.variant == kernel.variant).expect("it is in the table")),
        Some(kernel) => Err(Error::Unsupported(format!("{VARIANT_VAR}: {} cannot do {problem:?} on {arch}", kernel.id()))),
        None => of_op
            .find(|(_, kernel)| can(kernel))
            .ok_or_else(|| Error::Unsupported(format!("no kernel for {op} can do {problem:?} on {arch}"))),
    }
}

/// Whether the registry has kernels for a device that computes in `dtype`.
pub fn computes(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::Bf16)
}
