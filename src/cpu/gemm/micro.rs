//! What a product is made of: how its operands are packed, and the way through a block of the result.

use super::format::Format;
use super::left::Left;
use super::weight::Panels;
use super::{Epilogue, Mlp};
use crate::cpu::parallel::Tile;
use crate::cpu::simd::Token;

/// A part of a panel.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    /// Words, as many for each as the panel is wide.
    pub words: &'a [f32],
    /// What follows the words of the whole panel: [`Format::extras`].
    pub extras: &'a [f32],
    /// What is needed later, and asked for meanwhile.
    pub later: &'a [f32],
}

/// One way to multiply: register tiles, and the loops around them.
pub trait Microkernel: Copy + Send + Sync + 'static {
    /// How it wants its weight.
    const FORMAT: Format;
    /// Outputs of a panel.
    const WIDTH: usize;
    /// Rows of the largest register tile.
    const ROWS: usize;
    /// Rows of a block are a multiple of this, where there are as many.
    const GRAIN: usize = 1;
    /// Rows of a block at most whose activations between two products stay in the second-level cache; zero without
    /// [`block_twice`](Self::block_twice).
    const ROWS_TWICE: usize = 0;
    /// A panel's words are filled up to a multiple of this.
    const ALIGN: usize = 1;

    /// The kernel, if the processor has what it needs.
    fn new() -> Option<Self>;
    /// Instructions for what goes on around it.
    fn token(self) -> Token;
    /// Rows of a block whose sums run over so many words, about, so that the packed block takes a fraction of the
    /// second-level cache.
    fn block_rows(words: usize) -> usize;
    /// Floats that a packed block takes.
    fn packed_len(rows: usize, words: usize) -> usize;
    /// Packs `rows` rows of `x` from `first` on, for a product with `w`.
    fn pack(self, packed: &mut [f32], x: Left<'_>, first: usize, rows: usize, w: Panels<'_>);
    /// Whether a single row of so many inputs is packed as it is.
    fn takes_plain_row(inputs: usize) -> bool;
    /// `tile = epilogue(x w)`; `x` is the packed block of the tile's rows.
    fn block(self, tile: Tile<'_>, x: &[f32], w: Panels<'_>, epilogue: Epilogue<'_>);
    /// `tile = epilogue(gelu_new(x W₁ + b) W₂)`.
    fn block_twice(self, _tile: Tile<'_>, _x: &[f32], _mlp: Mlp<'_, Panels<'_>>) {
        unreachable!("`ROWS_TWICE` is zero");
    }
}
