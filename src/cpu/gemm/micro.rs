//! Register tiles: the innermost loops of a product, one type for each way to multiply.

use std::marker::PhantomData;
use std::ops::Range;

use super::format::Format;
use super::left::{Left, pack, packed_len};
use crate::cpu::parallel::Tile;
use crate::cpu::simd::{Dot, DotKernel, Form, Simd, Token};

/// How far ahead of its use the weight is asked for, in floats.
const PREFETCH: usize = 4096;

/// Rows up to which a tile may meet its weights first; taller ones pass over a piece of a panel that is in a cache.
const STREAMING_ROWS: usize = 8;

/// A part of a panel.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    /// Words, as many for each as the panel is wide.
    pub words: &'a [f32],
    /// What follows the words of the whole panel: [`Format::extras`].
    pub extras: &'a [f32],
}

/// The way through a tile of the result.
pub trait Microkernel: Copy + Send + Sync + 'static {
    /// How it wants its weight.
    const FORMAT: Format;
    /// Outputs of a panel.
    const WIDTH: usize;
    /// Rows of the largest tile.
    const ROWS: usize;
    /// Words of a pass at most, chosen so that a piece of a panel takes a fraction of the second-level cache.
    const DEPTH: usize;
    /// A panel's words are filled up to a multiple of this.
    const ALIGN: usize = 1;

    /// The kernel, if the processor has what it needs.
    fn new() -> Option<Self>;
    /// Instructions for what goes on around it.
    fn token(self) -> Token;
    /// Prepares the thread for calls of [`tile`](Self::tile), until `work` is done.
    fn enter(self, work: impl FnOnce()) {
        work();
    }
    /// Floats that `rows` packed rows take for `words` words.
    fn packed_len(rows: usize, words: usize) -> usize;
    /// Arranges rows, [`ROWS`](Self::ROWS) at most, for [`tile`](Self::tile).
    fn pack(self, packed: &mut [f32], x: Left<'_>, rows: Range<usize>, inputs: Range<usize>);
    /// Whether a single row of so many inputs is packed as it is.
    fn takes_plain_row(inputs: usize) -> bool;
    /// `y[row.., col..] (+)= x w` for `len` rows and one panel, as far as the tile of `y` goes.
    fn tile(self, y: &mut Tile<'_>, place: (usize, usize, usize), x: &[f32], w: Piece<'_>, add: bool);
}

/// `TILE_ROWS` rows by two vectors of outputs, and a broadcast of `x` for each row and word.
#[derive(Clone, Copy)]
pub struct Vectors<D>(D);

impl<D: Dot> Microkernel for Vectors<D> {
    const FORMAT: Format = match (D::GROUP, D::FORM) {
        (1, _) => Format::F32,
        (2, _) => Format::Bf16,
        (_, Form::Bytes) => Format::Int8 { offset: 128 },
        _ => Format::Int8 { offset: 0 },
    };
    const WIDTH: usize = 2 * D::Simd::LANES;
    const ROWS: usize = D::Simd::TILE_ROWS;
    // Sums of integers are scaled when they are complete.
    const DEPTH: usize = if D::FORM.scaled() { usize::MAX } else { 1024 };

    fn new() -> Option<Self> {
        D::new().map(Vectors)
    }

    fn token(self) -> Token {
        self.0.simd().token()
    }

    fn packed_len(rows: usize, words: usize) -> usize {
        packed_len(D::FORM, D::GROUP, rows, words)
    }

    fn pack(self, packed: &mut [f32], x: Left<'_>, rows: Range<usize>, inputs: Range<usize>) {
        pack(self.token(), (D::FORM, D::GROUP), packed, x, rows, inputs);
    }

    fn takes_plain_row(inputs: usize) -> bool {
        D::FORM == Form::Floats && inputs.is_multiple_of(D::GROUP)
    }

    fn tile(self, y: &mut Tile<'_>, (row, len, col): (usize, usize, usize), x: &[f32], w: Piece<'_>, add: bool) {
        macro_rules! pick {
            ($($m:literal)*) => {
                match len {
                    $($m if $m <= Self::ROWS => {
                        self.0.vectorize(Micro::<$m, D> { y, row, col, x, w, add, dot: PhantomData })
                    })*
                    _ => unreachable!("a tile has at most {} rows", Self::ROWS),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// The tile of `M` rows.
struct Micro<'a, 'b, const M: usize, D> {
    y: &'a mut Tile<'b>,
    row: usize,
    col: usize,
    x: &'a [f32],
    w: Piece<'a>,
    /// Whether the sums are added to `y`.
    add: bool,
    dot: PhantomData<D>,
}

impl<const M: usize, D: Dot> DotKernel<D> for Micro<'_, '_, M, D> {
    #[inline(always)]
    fn run(self, d: D) {
        let Micro { y, row, col, x, w, add, .. } = self;
        let (s, lanes) = (d.simd(), D::Simd::LANES);
        let cols = col..y.cols().end.min(col + 2 * lanes);
        let middle = lanes.min(cols.len());
        let words = D::Simd::arrays(w.words).as_chunks::<2>().0;
        let (x, row_scales) = x.split_at(words.len() * M * (size_of::<D::X>() / size_of::<f32>()));
        let x = &bytemuck::cast_slice::<f32, D::X>(x).as_chunks::<M>().0[..words.len()];
        let (mut scales, mut starts) = ([s.splat(1.0); 2], [s.splat(0.0); 2]);
        if D::FORM.scaled() {
            let [a, b, c, d] = D::Simd::arrays(w.extras) else { unreachable!("scales and starts of a panel") };
            (scales, starts) = ([s.load_array(a), s.load_array(b)], [s.load_array(c), s.load_array(d)]);
        }
        let mut sums = [[d.start(starts[0]), d.start(starts[1])]; M];
        for k in 0..words.len() {
            let (x, w) = (&x[k], &words[k]);
            if M <= STREAMING_ROWS {
                s.prefetch(w.as_ptr().cast::<f32>().wrapping_add(PREFETCH));
                s.prefetch(w.as_ptr().cast::<f32>().wrapping_add(PREFETCH + lanes));
            }
            let w = [d.words(&w[0]), d.words(&w[1])];
            for r in 0..M {
                sums[r] = [d.add(sums[r][0], &x[r], w[0]), d.add(sums[r][1], &x[r], w[1])];
            }
        }
        for r in 0..M {
            let (left, right) = y.part(row + r, cols.clone()).split_at_mut(middle);
            let mut values = [d.finish(sums[r][0]), d.finish(sums[r][1])];
            if D::FORM.scaled() {
                let scale = s.splat(row_scales[r]);
                values = [s.mul(values[0], s.mul(scale, scales[0])), s.mul(values[1], s.mul(scale, scales[1]))];
            }
            if add {
                values = [s.add(values[0], s.load(left)), s.add(values[1], s.load(right))];
            }
            s.store(left, values[0]);
            s.store(right, values[1]);
        }
    }
}
