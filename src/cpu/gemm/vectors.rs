//! Register tiles of vectors: a few rows by one panel, which walks down the panel.
//!
//! A block of rows is packed as the tile reads it, [`DEPTH`](Vectors::DEPTH) words at a time, so that a piece of a panel
//! stays in the second-level cache while the block's tiles pass over it. The sums of a piece are added to `y`.

use std::marker::PhantomData;
use std::ops::Range;

use super::Epilogue;
use super::epilogue::{Leave, Scales};
use super::format::Format;
use super::left::{Left, pack, packed_len};
use super::micro::{Microkernel, Piece};
use super::weight::Panels;
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{Dot, DotKernel, Floats, Form, Kernel, Simd, Token};

/// Floats of a cache line.
const LINE: usize = 16;
/// How far ahead of its use a weight is asked for that comes from memory, in floats.
const STREAMING_AHEAD: usize = 4096;
/// How far ahead of its use is asked for what comes from the second-level cache, in floats.
const AHEAD: usize = 320;
/// Rows of a block.
const BLOCK_ROWS: usize = 144;
/// Outputs of the widest panel.
pub const MOST_WIDTH: usize = 32;
/// Floats of `x` that may stay in the second-level cache beside the weights that pass through.
const RESIDENT: usize = 1 << 17;

/// Tiles of a block for which it pays to widen weights once.
const WIDENING_TILES: usize = 8;

/// `TILE_ROWS` rows by two vectors of outputs, and a broadcast of `x` for each row and word.
#[derive(Clone, Copy)]
pub struct Vectors<D>(D);

impl<D: Dot> Vectors<D> {
    /// Words of a pass at most, chosen so that a piece of a panel takes a fraction of the second-level cache. Sums of
    /// integers are scaled when they are complete.
    const DEPTH: usize = if D::FORM.scaled() { usize::MAX } else { 1024 };

    /// Passes over the words; one at least, so that without inputs the sums are zero.
    fn passes(words: usize) -> impl Iterator<Item = Range<usize>> {
        (0..words.max(1)).step_by(Self::DEPTH).map(move |first| first..words.min(first.saturating_add(Self::DEPTH)))
    }

    /// Divides rows into tiles of nearly the same height, as `(start, len)`.
    fn tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let tiles = rows.div_ceil(Self::ROWS);
        (0..tiles).map(move |i| (rows * i / tiles, rows * (i + 1) / tiles - rows * i / tiles))
    }

    /// Floats of `rows` packed rows for `words` words.
    fn floats(rows: usize, words: usize) -> usize {
        packed_len(D::FORM, D::GROUP, rows, words)
    }

    /// Where the tile of `len` rows from `start` on lies in a block of `rows`: pass by pass, tile by tile.
    fn place(rows: usize, pass: &Range<usize>, start: usize, len: usize) -> Range<usize> {
        let floats = |rows, words| Self::tiles(rows).map(|(_, len)| Self::floats(len, words)).sum::<usize>();
        let before = if pass.start > 0 { pass.start / Self::DEPTH * floats(rows, Self::DEPTH) } else { 0 };
        let tiles = Self::tiles(rows).take_while(|tile| tile.0 < start);
        let first = before + tiles.map(|(_, len)| Self::floats(len, pass.len())).sum::<usize>();
        first..first + Self::floats(len, pass.len())
    }

    /// Whether a tile of so many rows, if it is one of several, passes over a piece of a panel that is in a cache; of lower
    /// ones there are so few that the first meets it in memory.
    const fn is_tall(rows: usize) -> bool {
        3 * rows > 2 * Self::ROWS
    }

    /// Whether a block of so many rows has each piece of a panel widened to f32 before its tiles pass over it, which are
    /// then those of f32: the same sums in the same order, without the work of widening in each tile.
    fn widens(rows: usize, inputs: usize) -> bool {
        let is_worth_it = rows >= WIDENING_TILES * Self::ROWS;
        D::FORM == Form::Floats && D::GROUP == 2 && inputs.is_multiple_of(D::GROUP) && is_worth_it
    }

    /// [`block`](Microkernel::block); if there is room for a piece of a panel as f32 in `wide`, it is widened there.
    fn pass_over(
        self,
        mut y: Tile<'_>,
        x: &[f32],
        w: Panels<'_>,
        epilogue: Epilogue<'_>,
        mut wide: Option<&mut [f32]>,
    ) {
        let (rows, cols, words) = (y.rows(), y.cols(), w.words());
        let tiles = rows.len().div_ceil(Self::ROWS);
        // A block that stays in the second-level cache takes panel after panel; of a larger one, pass after pass.
        let group = if Self::packed_len(rows.len(), words) <= RESIDENT { Self::WIDTH } else { cols.len() };
        for group in cols.clone().step_by(group).map(|col| col..cols.end.min(col + group)) {
            for pass in Self::passes(words) {
                let add = pass.start > 0 || epilogue.accumulates();
                let epilogue = if pass.end == words { epilogue } else { Epilogue::Store };
                for col in group.clone().step_by(Self::WIDTH) {
                    let panel = col / Self::WIDTH;
                    let piece = w.piece(panel, &pass);
                    // A single tile asks for its own weights in time. Of several, which find them in a cache but for the
                    // first, each asks for a part of what they need next: so memory is at work all the time.
                    let later = match tiles {
                        1 => &[],
                        _ if group.len() <= Self::WIDTH => w.after(panel, &pass),
                        _ if col + Self::WIDTH < w.outputs => w.piece(panel + 1, &pass).words,
                        _ => &[],
                    };
                    let mut later = later.chunks(later.len().div_ceil(tiles).max(1));
                    let widened = wide.as_deref_mut().map(|wide| {
                        let wide = &mut wide[..D::GROUP * piece.words.len()];
                        self.token().run(WidenPiece { y: &mut *wide, words: piece.words, width: Self::WIDTH });
                        &*wide
                    });
                    for (start, len) in Self::tiles(rows.len()) {
                        let x = &x[Self::place(rows.len(), &pass, start, len)];
                        let sums = Sums { tile: &mut y, start, col, outputs: w.outputs, add, epilogue };
                        let piece = Piece { later: later.next().unwrap_or_default(), ..piece };
                        match widened {
                            Some(words) => tile(Floats(self.0.simd()), sums, len, x, Piece { words, ..piece }),
                            None => tile(self.0, sums, len, x, piece),
                        }
                    }
                }
            }
        }
    }
}

/// The sums of `len` rows and one panel.
fn tile<D: Dot>(dot: D, sums: Sums<'_, '_>, len: usize, x: &[f32], w: Piece<'_>) {
    macro_rules! pick {
        ($($m:literal)*) => {
            match len {
                $($m if $m <= D::Simd::TILE_ROWS => dot.vectorize(Micro::<$m, D> { sums, x, w, dot: PhantomData }),)*
                _ => unreachable!("a tile has at most {} rows", D::Simd::TILE_ROWS),
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8 9 10 11 12)
}

impl<D: Dot> Microkernel for Vectors<D> {
    const FORMAT: Format = match (D::GROUP, D::FORM) {
        (1, _) => Format::F32,
        (2, _) => Format::Bf16,
        (4, _) => Format::Int8,
        _ => Format::Int4,
    };
    const WIDTH: usize = 2 * D::Simd::LANES;
    const ROWS: usize = D::Simd::TILE_ROWS;

    fn new() -> Option<Self> {
        D::new().map(Vectors)
    }

    fn token(self) -> Token {
        self.0.simd().token()
    }

    fn block_rows(_words: usize) -> usize {
        BLOCK_ROWS
    }

    fn packed_len(rows: usize, words: usize) -> usize {
        let pass = |pass: Range<usize>| Self::tiles(rows).map(|(_, len)| Self::floats(len, pass.len())).sum::<usize>();
        Self::passes(words).map(pass).sum()
    }

    fn pack(self, packed: &mut [f32], x: Left<'_>, first: usize, rows: usize, w: Panels<'_>) {
        let inputs = w.inputs;
        let form = if Self::widens(rows, inputs) { (Form::Floats, 1) } else { (D::FORM, D::GROUP) };
        for pass in Self::passes(inputs.div_ceil(D::GROUP)) {
            for (start, len) in Self::tiles(rows) {
                let inputs = (pass.start * D::GROUP).min(inputs)..(pass.end * D::GROUP).min(inputs);
                let packed = &mut packed[Self::place(rows, &pass, start, len)];
                let rows = first + start..first + start + len;
                pack(self.token(), form, packed, x, rows, inputs, w.balance);
            }
        }
    }

    fn takes_plain_row(inputs: usize) -> bool {
        D::FORM == Form::Floats && inputs.is_multiple_of(D::GROUP)
    }

    fn block(self, y: Tile<'_>, x: &[f32], w: Panels<'_>, epilogue: Epilogue<'_>) {
        if !Self::widens(y.rows().len(), w.inputs) {
            return self.pass_over(y, x, w, epilogue, None);
        }
        let longest = D::GROUP * w.words().min(Self::DEPTH) * Self::WIDTH;
        with_scratch(longest, |wide| self.pass_over(y, x, w, epilogue, Some(wide)));
    }
}

/// Words of two bf16 as f32: of each word of a panel the first numbers of its outputs, then the second ones.
struct WidenPiece<'a> {
    y: &'a mut [f32],
    words: &'a [f32],
    /// Outputs of the panel.
    width: usize,
}

impl Kernel for WidenPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenPiece { y, words, width } = self;
        for (y, words) in y.chunks_exact_mut(2 * width).zip(words.chunks_exact(width)) {
            let (first, second) = y.split_at_mut(width);
            for i in (0..width).step_by(S::LANES) {
                let [lower, upper] = s.halves(s.load(&words[i..]));
                s.store(&mut first[i..], lower);
                s.store(&mut second[i..], upper);
            }
        }
    }
}

/// What becomes of the sums of a register tile.
struct Sums<'a, 'b> {
    tile: &'a mut Tile<'b>,
    /// The first row, counted in the tile.
    start: usize,
    /// The panel's first column.
    col: usize,
    /// Columns of the whole matrix.
    outputs: usize,
    /// Whether they are added to what the tile holds.
    add: bool,
    epilogue: Epilogue<'a>,
}

/// A register tile of `M` rows.
struct Micro<'a, 'b, const M: usize, D> {
    sums: Sums<'a, 'b>,
    x: &'a [f32],
    w: Piece<'a>,
    dot: PhantomData<D>,
}

/// Adds the products of words, part by part, in code without a loop. Sums of many rows fill the registers, so their words
/// are read again for each part.
macro_rules! multiply {
    ($d:ident, $sums:ident, $x:ident, $words:ident, [$($part:literal)*]) => {$(
        if $part < D::PARTS {
            let s = $d.simd();
            let many = 2 * M > D::Simd::TILE_ROWS;
            let [left, right] = if many { [s.again(&$words[0]), s.again(&$words[1])] } else { $words.each_ref() };
            let w = [$d.words(s.load_array(left), $part), $d.words(s.load_array(right), $part)];
            for r in 0..M {
                $sums[r] = [$d.add($sums[r][0], &$x[r], w[0], $part), $d.add($sums[r][1], &$x[r], w[1], $part)];
            }
        }
    )*};
}

impl<const M: usize, D: Dot> DotKernel<D> for Micro<'_, '_, M, D> {
    #[inline(always)]
    fn run(self, d: D) {
        let Micro { sums: Sums { tile, start, col, outputs, add, epilogue }, x, w, .. } = self;
        let (s, lanes) = (d.simd(), D::Simd::LANES);
        let cols = col..tile.cols().end.min(col + 2 * lanes);
        let words = D::Simd::arrays(w.words).as_chunks::<2>().0;
        let (x, of_rows) = x.split_at(words.len() * M * (size_of::<D::X>() / size_of::<f32>()));
        let x = &bytemuck::cast_slice::<f32, D::X>(x).as_chunks::<M>().0[..words.len()];
        let (mut sums, mut weighed) = ([[d.start(); 2]; M], [[s.splat(0.0); 2]; M]);
        if Vectors::<D>::is_tall(M) {
            // So that the result's lines, and what is added to them, are there when the sums are.
            for row in tile.rows().skip(start).take(M) {
                epilogue.of_row(row, cols.clone(), outputs).fetch(s);
                let y = tile.part(row, cols.clone());
                s.prefetch(y.as_ptr());
                s.prefetch(y[y.len() - 1..].as_ptr());
            }
        }
        let later = w.later.len().div_ceil(words.len().max(1));
        let ahead = if Vectors::<D>::is_tall(M) && later > 0 { AHEAD } else { STREAMING_AHEAD };
        for first in (0..words.len()).step_by(D::WORDS_PER_FACTOR) {
            for k in first..words.len().min(first.saturating_add(D::WORDS_PER_FACTOR)) {
                if !w.later.is_empty() {
                    s.prefetch_early(w.later.as_ptr().wrapping_add(k * later));
                }
                let (x, words) = (&x[k], &words[k]);
                for line in (0..2 * lanes).step_by(LINE) {
                    s.prefetch(words.as_ptr().cast::<f32>().wrapping_add(ahead + line));
                }
                if Vectors::<D>::is_tall(M) {
                    s.prefetch(x.as_ptr().cast::<f32>().wrapping_add(AHEAD));
                }
                multiply!(d, sums, x, words, [0 1 2 3 4 5 6 7]);
            }
            if D::has_factors() {
                let factors = factors(s, w.extras, first / D::WORDS_PER_FACTOR);
                for r in 0..M {
                    for i in 0..2 {
                        weighed[r][i] = s.fma(d.finish(sums[r][i]), factors[i], weighed[r][i]);
                        sums[r][i] = d.start();
                    }
                }
            }
        }
        let mut complete = [[0.0; MOST_WIDTH]; M];
        let complete = complete.as_flattened_mut();
        for r in 0..M {
            let sums = if D::has_factors() { weighed[r] } else { [d.finish(sums[r][0]), d.finish(sums[r][1])] };
            s.store(&mut complete[2 * lanes * r..][..lanes], sums[0]);
            s.store(&mut complete[2 * lanes * r + lanes..][..lanes], sums[1]);
        }
        let scales = D::FORM.scaled().then(|| {
            let (rows, zeros) = of_rows.split_at(M);
            Scales { bits: false, rows, zeros, outputs: w.extras }
        });
        let (rows, sums, width) = (start..start + M, &complete[..2 * lanes * M], 2 * lanes);
        Leave { tile, rows, cols, outputs, sums, width, scales, add, epilogue }.run(s);
    }
}

/// Factor `place` of each output of a panel, from what follows its words: scales, totals, factors.
#[inline(always)]
fn factors<S: Simd>(s: S, extras: &[f32], place: usize) -> [S::F32; 2] {
    let [left, right] = &S::arrays(extras).as_chunks::<2>().0[2 + place / 4];
    let (left, right) = (s.load_array(left), s.load_array(right));
    match place % 4 {
        0 => [s.byte::<0>(left), s.byte::<0>(right)],
        1 => [s.byte::<1>(left), s.byte::<1>(right)],
        2 => [s.byte::<2>(left), s.byte::<2>(right)],
        _ => [s.byte::<3>(left), s.byte::<3>(right)],
    }
}
