//! Every variant of every kernel: one row each, of an op the best first and the plainest, which computes everything, last.
//!
//! The engine, the tests, the compile checks and `della gpu` all read this table.

use super::driver::{Arch, Geometry};
use super::problem::{Layout, Problem, Types, Uses};
use crate::dtype::Dtype;

/// A variant of a kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What it computes; also the name of its function.
    pub op: &'static str,
    /// Which way: `v01_row`.
    pub variant: &'static str,
    /// The folder of its file.
    pub group: &'static str,
    /// Its file, after the op: the variant, or another of which this one has other sizes.
    pub file: &'static str,
    /// The first architecture that it runs on.
    pub arch: Arch,
    /// Which element types it is used with.
    pub uses: Uses,
    /// Which of them it is written for.
    pub can: fn(Types) -> bool,
    /// Whether it computes sizes like these.
    pub fits: fn(&Problem) -> bool,
    /// Whether it is the one to take for them, before those below it.
    pub prefer: fn(&Problem) -> bool,
    /// Its blocks.
    pub geometry: fn(&Problem) -> Geometry,
    /// Macros with its sizes.
    pub defines: &'static [(&'static str, u32)],
    /// It also wants a [`TensorMap`](super::driver::TensorMap) of each operand, whose boxes have 64 elements along a row
    /// and this many rows, or with a transposed operand this many elements and 64 rows.
    pub tiles: Option<[u32; 2]>,
    /// It calls `let_next_begin` and `wait_for_previous`.
    pub overlaps: bool,
    /// Instructions that its machine code must have.
    pub instructions: &'static [&'static str],
}

impl Kernel {
    /// Its file below `kernels/`.
    pub fn path(&self) -> String {
        format!("{}/{}_{}.cu", self.group, self.op, self.file)
    }

    /// As `DELLA_VARIANT` and the tests name it.
    pub fn id(&self) -> String {
        format!("{}_{}", self.op, self.variant)
    }

    /// The element types that it is used with and can do.
    pub fn types(&self, bf16: bool) -> Vec<Types> {
        self.uses.types(bf16).into_iter().filter(|types| (self.can)(*types)).collect()
    }

    /// Blocks that share each sum of a product: `gemm_finish` adds their parts up.
    pub fn splits(&self) -> usize {
        self.defines.iter().find(|(name, _)| *name == "SPLITS").map_or(1, |(_, splits)| *splits as usize)
    }

    /// Whether the last tiles of its product may be shared: it also wants room for their parts, and how many there are.
    pub fn has_tail(&self) -> bool {
        self.defines.contains(&("TAIL", 1))
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
    Geometry { grid: [x as u32, y as u32, z as u32], block, shared: 0, cooperative: false, overlaps: false }
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

/// Warps for as many rows as multiprocessors have room for, or for an equal share of them.
fn streams(p: &Problem) -> Geometry {
    let at_once = PERSISTENT * 4 * 4;
    geometry(p.rows.div_ceil(4 * p.rows.div_ceil(at_once)), 1, 1, 128)
}

/// A warp for each token of each head of each span.
fn attention_warps(p: &Problem) -> Geometry {
    geometry(p.rows.div_ceil(4), p.depth, p.batch, 128)
}

/// A block for 64 tokens of each head of each span.
fn attention_tiles(p: &Problem) -> Geometry {
    geometry(p.rows.div_ceil(64), p.depth, p.batch, 128)
}

/// Residue classes of the indices, no more than there are of either, and blocks that share the columns of each: of 256
/// threads, as many as multiprocessors have room for.
fn row_classes(p: &Problem) -> [usize; 2] {
    let at_once = 4 * PERSISTENT;
    let classes = (p.rows / 16 + 1).next_power_of_two().min(p.depth.next_power_of_two()).min(512);
    [classes, (at_once / classes).clamp(1, p.cols.div_ceil(128))]
}

/// A block of 512 threads for each row.
fn wide_rows(p: &Problem) -> Geometry {
    geometry(p.rows, 1, 1, 512)
}

/// Rows that a warp can have in its registers.
fn short_rows(p: &Problem) -> bool {
    p.cols <= 1024 && p.cols.is_multiple_of(8)
}

/// Rows that begin at a multiple of two elements.
fn even_rows(p: &Problem) -> bool {
    p.cols.is_multiple_of(2)
}

/// A block for each token of each span.
fn span_tokens(p: &Problem) -> Geometry {
    geometry(p.rows, p.batch, 1, BLOCK)
}

/// Warps that share the rows of a part; two rows of each are in shared memory, each with those of `x` and `dx` and that of
/// `dy`.
fn rows_in_ring(p: &Problem, warps: usize) -> Geometry {
    let bytes = |bf16: bool| if bf16 { 2 } else { 4 };
    let row = p.cols * (2 * bytes(p.types.a) + bytes(p.types.y));
    Geometry { shared: (warps * 2 * row) as u32, ..geometry(p.rows.div_ceil(NORM_ROWS), 1, 1, 32 * warps as u32) }
}

/// A kernel that begins while the one before ends.
const fn overlapping(kernel: Kernel) -> Kernel {
    Kernel { overlaps: true, ..kernel }
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
        file: idea,
        arch: SM_80,
        uses,
        can: |_| true,
        fits: |_| true,
        prefer: |_| true,
        geometry,
        defines: &[],
        tiles: None,
        overlaps: false,
        instructions: &[],
    }
}

/// A layer norm's way back, which leaves the parameters' gradients in parts.
const fn norm_parts(variant: &'static str, geometry: fn(&Problem) -> Geometry) -> Kernel {
    Kernel {
        defines: &[("PART_ROWS", NORM_ROWS as u32)],
        ..v01("norm", "layernorm_bwd", variant, Uses::Norm, geometry)
    }
}

/// One that reads each row once, of which so many are a part's, by so many warps.
const fn ring_of_rows(
    variant: &'static str,
    defines: &'static [(&'static str, u32)],
    geometry: fn(&Problem) -> Geometry,
) -> Kernel {
    Kernel { file: "v02_ring", fits: short_rows, overlaps: true, defines, ..norm_parts(variant, geometry) }
}

/// Multiprocessors of an H100 or H200: a kernel whose blocks take one tile after the other has as many. Any number computes
/// the same, but for the order of a [`Tail`]'s sums.
const PERSISTENT: usize = 132;

/// Blocks that take tiles of `tile_m` by 128 in turn, each in `splits` parts.
fn persistent(p: &Problem, tile_m: usize, splits: usize) -> Geometry {
    let tiles = p.rows.div_ceil(tile_m) * p.cols.div_ceil(128) * splits;
    Geometry { shared: 196_608 + 32_768, ..geometry(tiles.min(PERSISTENT), 1, 1, 384) }
}

/// The last tiles of a product, of 128 by 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// How many there are.
    pub tiles: usize,
    /// Blocks that have a part of the sums of each.
    pub sharers: usize,
}

impl Tail {
    /// Those of the last round, if there are multiprocessors enough for two blocks on each, or more, that have at least 512
    /// of the product's inner size; else none.
    pub fn of(p: &Problem) -> Self {
        let tiles = tiles_of(p) % PERSISTENT;
        let sharers = PERSISTENT.checked_div(tiles).unwrap_or(0).min(p.depth / 512);
        if sharers > 1 { Tail { tiles, sharers } } else { Tail { tiles: 0, sharers: 1 } }
    }

    /// Elements of their parts.
    pub fn parts_len(self) -> usize {
        self.tiles * self.sharers * 128 * 128
    }
}

/// Tiles of 128 by 128.
fn tiles_of(p: &Problem) -> usize {
    p.rows.div_ceil(128) * p.cols.div_ceil(128)
}

/// Blocks for whole tiles of 128 by 128 and for parts of the last.
fn with_tail(p: &Problem) -> Geometry {
    let Tail { tiles, sharers } = Tail::of(p);
    Geometry { shared: 196_608 + 32_768, ..geometry((tiles_of(p) + tiles * (sharers - 1)).min(PERSISTENT), 1, 1, 384) }
}

/// Tiles of `side` by `side`, a block for each in `splits` parts.
fn mma_tiles(p: &Problem, side: usize, splits: usize, block: u32) -> Geometry {
    Geometry { shared: 49152, ..geometry(p.cols.div_ceil(side), p.rows.div_ceil(side), splits, block) }
}

/// Blocks for few rows: 4 or 8 rows, and columns of 32 bytes or, of a transposed matrix, 8.
fn gemv_blocks(p: &Problem) -> Geometry {
    match (p.types.layout, p.types.b) {
        (Layout::Nn, true) => geometry(p.rows.div_ceil(4), p.cols.div_ceil(16), 1, BLOCK),
        (Layout::Nn, false) => geometry(p.rows.div_ceil(8), p.cols.div_ceil(8), 1, BLOCK),
        _ => geometry(p.rows.div_ceil(8), p.cols.div_ceil(8), 1, 128),
    }
}

/// Whether sums are so long, and tiles of `side` by `side` so few, that `splits` blocks should share each: all of them run
/// at the same time, and the parts, of f32, are little beside what is read to make them.
fn is_shared(p: &Problem, side: usize, splits: usize, at_once: usize) -> bool {
    p.depth >= 2048 && splits * p.rows.div_ceil(side) * p.cols.div_ceil(side) <= at_once
}

/// Whether a product in f32, which has no tensor cores, has too few tiles of 64 by 64 for half of the multiprocessors.
fn is_narrow(p: &Problem) -> bool {
    !p.types.b && p.rows <= 512 && p.rows.div_ceil(64) * p.cols.div_ceil(64) <= PERSISTENT / 2
}

/// Whether the tensor memory accelerator can read both operands, in rows of whole 16 bytes, and rows of the result are
/// whole 8 bytes.
fn is_tiled(p: &Problem) -> bool {
    let of_b = if p.types.layout == Layout::Nt { p.depth } else { p.cols };
    p.depth > 0
        && p.stride.is_multiple_of(8)
        && of_b.is_multiple_of(8)
        && p.cols.is_multiple_of(if p.types.y { 4 } else { 2 })
}

/// What feeds `mma.sync` and what it is.
const MMA: &[&str] = &["HMMA.16816", "LDSM", "LDGSTS"];

/// A product on the tensor cores by `mma.sync`.
const fn mma(variant: &'static str, geometry: fn(&Problem) -> Geometry) -> Kernel {
    Kernel {
        file: "v02_mma",
        can: |types| types.a && types.b,
        overlaps: true,
        instructions: MMA,
        ..v01("linear", "gemm", variant, Uses::Product, geometry)
    }
}

/// A product on the tensor cores by `wgmma`, from tiles that the tensor memory accelerator brings.
const fn wgmma(variant: &'static str, geometry: fn(&Problem) -> Geometry) -> Kernel {
    Kernel {
        file: "v03_wgmma",
        arch: Arch { number: 90, specific: true },
        can: |types| types.a && types.b,
        fits: is_tiled,
        overlaps: true,
        instructions: &["HGMMA", "UTMALDG", "SYNCS"],
        ..v01("linear", "gemm", variant, Uses::Product, geometry)
    }
}

/// Attention on the tensor cores.
const fn flash(op: &'static str, geometry: fn(&Problem) -> Geometry) -> Kernel {
    Kernel {
        can: |types| types.act,
        fits: |p| p.cols == 64,
        overlaps: true,
        instructions: MMA,
        ..v01("attention", op, "v02_flash", Uses::Act, geometry)
    }
}

/// All kernels.
pub const REGISTRY: &[Kernel] = &[
    overlapping(v01("embed", "embed_fwd", "v01_row", Uses::Embed, rows)),
    overlapping(v01("embed", "gather_rows_fwd", "v01_row", Uses::Act, rows)),
    Kernel {
        fits: |p| p.cols.is_multiple_of(4) && p.depth <= row_classes(p)[0] << 19,
        overlaps: true,
        ..v01("embed", "scatter_rows_bwd", "v04_rows", Uses::Scatter, |p| {
            let [classes, splits] = row_classes(p);
            geometry(classes, splits, 1, BLOCK)
        })
    },
    v01("embed", "scatter_rows_bwd", "v01_first", Uses::Scatter, rows),
    Kernel { fits: short_rows, overlaps: true, ..v01("norm", "layernorm_fwd", "v03_stream", Uses::Norm, streams) },
    v01("norm", "layernorm_fwd", "v01_row", Uses::Norm, rows),
    Kernel {
        arch: Arch { number: 90, specific: true },
        ..ring_of_rows("v02_ring_wide", &[("PART_ROWS", NORM_ROWS as u32), ("WARPS", 8)], |p| rows_in_ring(p, 8))
    },
    ring_of_rows("v02_ring", &[("PART_ROWS", NORM_ROWS as u32), ("WARPS", 4)], |p| rows_in_ring(p, 4)),
    norm_parts("v01_columns", |p| geometry(p.rows.div_ceil(NORM_ROWS), 1, 1, BLOCK)),
    overlapping(v01("norm", "layernorm_params_bwd", "v01_columns", Uses::Real, columns)),
    Kernel {
        prefer: |p| p.rows <= 8 || is_narrow(p),
        can: |types| types.layout != Layout::Tn && types.a == types.b,
        overlaps: true,
        instructions: &["LDG.E.128"],
        ..v01("linear", "gemm", "v04_gemv", Uses::Product, gemv_blocks)
    },
    Kernel {
        fits: |p| p.rows <= 8 && p.depth <= 1024 && p.depth.is_multiple_of(4),
        ..overlapping(v01("linear", "norm_gemm", "v01_gemv", Uses::ActProduct, gemv_blocks))
    },
    Kernel {
        // slower than v03_wgmma_small and v03_wgmma_tail at all sizes of a training step, on an H200
        prefer: |_| false,
        tiles: Some([256, 128]),
        ..wgmma("v03_wgmma", |p| persistent(p, 256, 1))
    },
    Kernel {
        // of gradients of weights alone: the order of their sums depends on all sizes of the product
        can: |types| types.a && types.b && types.layout == Layout::Tn,
        prefer: |p| Tail::of(p).tiles > 0,
        tiles: Some([128, 128]),
        defines: &[("TILE_M", 128), ("STAGES", 6), ("TAIL", 1)],
        ..wgmma("v03_wgmma_tail", with_tail)
    },
    Kernel {
        prefer: |p| is_shared(p, 128, 5, PERSISTENT),
        tiles: Some([128, 128]),
        defines: &[("TILE_M", 128), ("STAGES", 6), ("SPLITS", 5)],
        ..wgmma("v03_wgmma_split5", |p| persistent(p, 128, 5))
    },
    Kernel {
        prefer: |p| is_shared(p, 128, 3, PERSISTENT),
        tiles: Some([128, 128]),
        defines: &[("TILE_M", 128), ("STAGES", 6), ("SPLITS", 3)],
        ..wgmma("v03_wgmma_split3", |p| persistent(p, 128, 3))
    },
    Kernel {
        tiles: Some([128, 128]),
        defines: &[("TILE_M", 128), ("STAGES", 6)],
        ..wgmma("v03_wgmma_small", |p| persistent(p, 128, 1))
    },
    Kernel {
        prefer: |p| p.rows.div_ceil(128) * p.cols.div_ceil(128) >= 2 * PERSISTENT,
        ..mma("v02_mma", |p| mma_tiles(p, 128, 1, BLOCK))
    },
    Kernel {
        prefer: |p| is_shared(p, 64, 3, 4 * PERSISTENT),
        defines: &[
            ("TILE_M", 64),
            ("TILE_N", 64),
            ("TILE_K", 64),
            ("WARPS_M", 2),
            ("WARPS_N", 2),
            ("BLOCKS", 4),
            ("SPLITS", 3),
        ],
        ..mma("v02_mma_split3", |p| mma_tiles(p, 64, 3, 128))
    },
    Kernel {
        defines: &[("TILE_M", 64), ("TILE_N", 64), ("TILE_K", 64), ("WARPS_M", 2), ("WARPS_N", 2), ("BLOCKS", 4)],
        ..mma("v02_mma_small", |p| mma_tiles(p, 64, 1, 128))
    },
    Kernel {
        can: |types| !types.b,
        ..v01("linear", "gemm", "v05_ahead", Uses::Product, |p| {
            geometry(p.cols.div_ceil(64), p.rows.div_ceil(64), 1, BLOCK)
        })
    },
    v01("linear", "gemm", "v01_tile", Uses::Product, |p| geometry(p.cols.div_ceil(64), p.rows.div_ceil(64), 1, BLOCK)),
    overlapping(v01("linear", "gemm_finish", "v01_flat", Uses::Finish, |p| {
        geometry((p.rows * p.cols).div_ceil(4 * BLOCK as usize), 1, 1, BLOCK)
    })),
    overlapping(v01("linear", "gemm_tail", "v01_flat", Uses::Real, |p| geometry(16, p.rows, 1, BLOCK))),
    Kernel {
        fits: |p| p.cols.is_multiple_of(8),
        overlaps: true,
        ..v01("linear", "gelu_bwd", "v02_vector", Uses::Act, |p| geometry(p.cols.div_ceil(2048), 1, 1, BLOCK))
    },
    v01("linear", "gelu_bwd", "v01_flat", Uses::Act, flat),
    Kernel {
        fits: |p| p.cols.is_multiple_of(8),
        defines: &[("PART_ROWS", PART_ROWS as u32)],
        overlaps: true,
        ..v01("linear", "column_parts", "v02_vector", Uses::Stream, |p| {
            geometry(p.cols.div_ceil(if p.types.act { 256 } else { 128 }), p.rows.div_ceil(PART_ROWS), 1, BLOCK)
        })
    },
    Kernel {
        defines: &[("PART_ROWS", PART_ROWS as u32)],
        overlaps: true,
        ..v01("linear", "column_parts", "v01_columns", Uses::Stream, |p| {
            geometry(p.cols.div_ceil(BLOCK as usize), p.rows.div_ceil(PART_ROWS), 1, BLOCK)
        })
    },
    overlapping(v01("linear", "column_sums", "v01_columns", Uses::Stream, columns)),
    Kernel {
        fits: |p| p.depth.is_multiple_of(2) && p.cols.is_multiple_of(4),
        overlaps: true,
        ..v01("linear", "cast", "v02_vector", Uses::Cast, |p| geometry(p.rows * p.cols.div_ceil(1024), 1, 1, BLOCK))
    },
    v01("linear", "cast", "v01_flat", Uses::Cast, |p| geometry(p.rows * p.cols.div_ceil(BLOCK as usize), 1, 1, BLOCK)),
    flash("attention_fwd", attention_tiles),
    v01("attention", "attention_fwd", "v01_warp", Uses::Act, attention_warps),
    flash("attention_bwd_q", attention_tiles),
    v01("attention", "attention_bwd_q", "v01_warp", Uses::Act, attention_warps),
    flash("attention_bwd_kv", |p| Geometry { shared: 65024, ..attention_tiles(p) }),
    v01("attention", "attention_bwd_kv", "v01_warp", Uses::Act, attention_warps),
    v01("attention", "cache_append", "v01_row", Uses::Act, span_tokens),
    Kernel {
        // with fewer heads than twice as many as there are multiprocessors, those of v03_ahead are all there together, too
        prefer: |p| p.batch * p.depth > 2 * PERSISTENT,
        can: |types| types.act,
        fits: |p| p.cols == 64 && p.batch * p.depth <= COUNTERS,
        overlaps: true,
        instructions: &["LDGSTS"],
        ..v01("attention", "attention_decode", "v04_ring", Uses::Act, |p| Geometry {
            shared: 4 * 4096,
            ..geometry(p.keys.div_ceil(BLOCK as usize), p.depth, p.batch, 32)
        })
    },
    Kernel {
        can: |types| types.act,
        fits: |p| p.cols == 64 && p.batch * p.depth <= COUNTERS,
        overlaps: true,
        instructions: &["LDG.E.128"],
        ..v01("attention", "attention_decode", "v03_ahead", Uses::Act, |p| {
            geometry(p.keys.div_ceil(BLOCK as usize), p.depth, p.batch, BLOCK)
        })
    },
    Kernel {
        overlaps: true,
        fits: |p| p.cols.is_multiple_of(8) && p.cols <= 256 && p.batch * p.depth <= COUNTERS,
        ..v01("attention", "attention_decode", "v02_split", Uses::Act, |p| {
            geometry(p.keys.div_ceil(SPLIT_KEYS), p.depth, p.batch, SPLIT_KEYS as u32)
        })
    },
    v01("attention", "attention_decode", "v01_warp", Uses::Act, |p| geometry(p.batch, p.depth, 1, 32)),
    v01("attention", "attention_cached", "v01_warp", Uses::Act, attention_warps),
    v01("latent", "pool_fwd", "v01_row", Uses::Stream, rows),
    Kernel {
        fits: short_rows,
        overlaps: true,
        ..v01("latent", "pool_bwd", "v02_vector", Uses::Stream, |p| geometry(p.rows, 1, 1, 512))
    },
    v01("latent", "pool_bwd", "v01_row", Uses::Stream, rows),
    v01("latent", "copy_columns", "v01_flat", Uses::Real, flat),
    v01("latent", "reparameterize_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "reparameterize_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "tanh_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "tanh_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "mask_fwd", "v01_flat", Uses::Real, flat),
    v01("latent", "kl_fwd", "v01_warp", Uses::Real, warps),
    v01("latent", "kl_bwd", "v01_flat", Uses::Real, flat),
    v01("latent", "chain_fwd", "v02_grid", Uses::Real, |p| {
        // eight rows, and eight outputs of the nets or of the next state, are a warp's
        let warps = p.rows.div_ceil(8) * (5 * p.cols).div_ceil(8);
        let shared = (8 * 4 * p.cols) as u32;
        Geometry { shared, cooperative: true, ..geometry(warps.min(PERSISTENT), 1, 1, BLOCK) }
    }),
    v01("latent", "chain_fwd", "v01_rows", Uses::Real, |p| geometry(p.rows.div_ceil(4), 1, 1, 384)),
    Kernel {
        fits: short_rows,
        overlaps: true,
        ..v01("latent", "fuse_fwd", "v02_warp", Uses::Stream, |p| geometry(p.rows.div_ceil(8), p.batch, 1, BLOCK))
    },
    overlapping(v01("latent", "fuse_fwd", "v01_row", Uses::Stream, span_tokens)),
    Kernel {
        fits: |p| p.cols.is_multiple_of(8),
        overlaps: true,
        ..v01("latent", "fuse_bwd", "v02_strips", Uses::Stream, |p| geometry(p.cols.div_ceil(128), p.batch, 1, BLOCK))
    },
    v01("latent", "fuse_bwd", "v01_slot", Uses::Stream, |p| {
        geometry(p.cols.div_ceil(BLOCK as usize), p.batch, 1, BLOCK)
    }),
    Kernel { fits: even_rows, ..v01("loss", "cross_entropy_fwd", "v02_online", Uses::Real, wide_rows) },
    v01("loss", "cross_entropy_fwd", "v01_row", Uses::Real, rows),
    Kernel {
        defines: &[("SAMPLE_THREADS", 512)],
        overlaps: true,
        ..v01("loss", "sample", "v01_row", Uses::Real, |p| geometry(p.rows, 1, 1, 512))
    },
    Kernel { fits: even_rows, ..v01("loss", "cross_entropy_bwd", "v02_vector", Uses::Real, wide_rows) },
    v01("loss", "cross_entropy_bwd", "v01_row", Uses::Real, rows),
    Kernel {
        fits: |p| p.cols.is_multiple_of(4),
        ..v01("optim", "adamw", "v02_vector", Uses::Real, |p| {
            geometry(p.cols.div_ceil(4 * BLOCK as usize), 1, 1, BLOCK)
        })
    },
    v01("optim", "adamw", "v01_flat", Uses::Real, flat),
    Kernel { defines: &[("CHUNK", CHUNK as u32)], ..v01("optim", "adamw_all", "v01_chunks", Uses::Real, rows) },
    Kernel { defines: &[("CHUNK", CHUNK as u32)], ..v01("optim", "sum_squares", "v01_chunks", Uses::Real, rows) },
    v01("optim", "dropout", "v01_flat", Uses::Stream, |p| {
        geometry((p.rows * p.cols.div_ceil(4)).div_ceil(BLOCK as usize), 1, 1, BLOCK)
    }),
];

/// Rows of a part of `layernorm_bwd`.
pub const NORM_ROWS: usize = 64;

/// Rows of a part of `column_parts`.
pub const PART_ROWS: usize = 64;

/// Neighbours of a vector that are one block's, where a launch is for many vectors.
pub const CHUNK: usize = 8192;

/// Keys of a block of `attention_decode` in `v02_split`, and its threads; `v03_ahead` has more of them.
const SPLIT_KEYS: usize = 64;

/// Elements of `attention_decode`'s part of a head of `head_dim`: sums, greatest score and denominator, in whole sectors of
/// 32 bytes.
const fn part_len(head_dim: usize) -> usize {
    (head_dim + 2).next_multiple_of(8)
}

/// Elements that the parts of `attention_decode` take together; none where one block has all keys, or one warp.
pub fn parts_len(p: &Problem) -> usize {
    match p.keys.div_ceil(SPLIT_KEYS) {
        splits if splits > 1 => p.batch * p.depth * splits * part_len(p.cols),
        _ => 0,
    }
}

/// Counters that a device has for blocks that add up what others leave.
pub const COUNTERS: usize = 1 << 16;

/// Whether the registry has kernels for a device that computes in `dtype`.
pub fn computes(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::Bf16)
}
