//! Work divided among threads, over disjoint parts of the outputs.
//!
//! How work is cut and which thread gets which part never decides about a result: each part is computed by the same code
//! in the same order. A part should be worth some microseconds; an op with a single part runs on the calling thread.
#![allow(unsafe_code)]

mod pool;

pub use pool::{MAX_THREADS, Pool};

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::buffer::Buffer;

impl Pool {
    /// Cuts matrices of `rows` rows, each given with its width, into blocks of at most `block` rows and calls
    /// `task(first row, blocks)` for each.
    pub fn rows<const N: usize>(
        &self,
        rows: usize,
        block: usize,
        outputs: [(&mut [f32], usize); N],
        task: impl Fn(usize, [&mut [f32]; N]) + Sync,
    ) {
        let outputs = outputs.map(|(data, width)| {
            let len = rows * width;
            (Shared::new(&mut data[..len]), width)
        });
        self.run(rows.div_ceil(block), |i| {
            let (first, end) = (i * block, rows.min((i + 1) * block));
            // SAFETY: block `i` is passed to one call only, and no two blocks share rows.
            task(first, outputs.each_ref().map(|(data, width)| unsafe { data.get(first * width..end * width) }));
        });
    }

    /// Cuts row-major matrices of `rows` rows, each given with its columns and the columns of a tile, into tiles of at most
    /// `block` rows and calls `task` for each place.
    ///
    /// # Panics
    /// If the matrices differ in the number of tiles side by side.
    pub fn tiles<const N: usize>(
        &self,
        rows: usize,
        block: usize,
        outputs: [(&mut [f32], usize, usize); N],
        task: impl Fn([Tile<'_>; N]) + Sync,
    ) {
        self.share_tiles(rows, block, outputs, |tiles| tiles.for_each(&task));
    }

    /// Calls `work` on each thread that finds a tile to do, with those that it is to do; else as [`tiles`](Self::tiles).
    pub fn share_tiles<const N: usize>(
        &self,
        rows: usize,
        block: usize,
        outputs: [(&mut [f32], usize, usize); N],
        work: impl Fn(&mut dyn Iterator<Item = [Tile<'_>; N]>) + Sync,
    ) {
        let across = outputs.first().map_or(0, |(_, cols, width)| cols.div_ceil(*width));
        let outputs = outputs.map(|(data, cols, width)| {
            assert_eq!(cols.div_ceil(width), across, "matrices with different tiles");
            (Shared::new(&mut data[..rows * cols]), cols, width)
        });
        let down = rows.div_ceil(block);
        self.share(down * across, |tasks| {
            work(&mut tasks.map(|i| {
                let (row, place) = (i % down * block, i / down);
                // Task `i` alone gets these tiles, which share no element with another.
                outputs.each_ref().map(|(data, cols, width)| {
                    let cols_of_tile = place * width..(*cols).min((place + 1) * width);
                    Tile { data, stride: *cols, rows: row..rows.min(row + block), cols: cols_of_tile }
                })
            }));
        });
    }

    /// Calls `task(i, tile)` for each tile of `width` columns of each band of rows of `y`, which has `cols` columns; `i` is
    /// the band's number.
    ///
    /// # Panics
    /// If the bands are not in order, or share rows.
    pub fn bands(
        &self,
        y: &mut [f32],
        (cols, width): (usize, usize),
        bands: impl Iterator<Item = Range<usize>> + Clone + Sync,
        task: impl Fn(usize, Tile<'_>) + Sync,
    ) {
        let mut end = 0;
        for band in bands.clone() {
            assert!(end <= band.start && band.start <= band.end, "bands of rows that are not in order");
            end = band.end;
        }
        let data = Shared::new(&mut y[..end * cols]);
        let across = cols.div_ceil(width);
        self.run(bands.clone().count() * across, |i| {
            let (band, col) = (i / across, i % across * width);
            let rows = bands.clone().nth(band).expect("tasks are counted by bands");
            // Task `i` alone gets this tile: bands share no rows, and tiles of a band no columns.
            task(band, Tile { data: &data, stride: cols, rows, cols: col..cols.min(col + width) });
        });
    }
}

/// A rectangle of a matrix that one task may write.
pub struct Tile<'a> {
    data: &'a Shared<'a>,
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Tile<'_> {
    /// Rows of the matrix in this tile.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Columns of the matrix in this tile.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's part of row `row`, counted in the whole matrix.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        let cols = self.cols();
        self.part(row, cols)
    }

    /// Columns `cols` of row `row`, both counted in the whole matrix and inside the tile.
    #[inline(always)]
    pub fn part(&mut self, row: usize, cols: Range<usize>) -> &mut [f32] {
        assert!(self.rows.contains(&row) && self.cols.start <= cols.start && cols.end <= self.cols.end);
        // SAFETY: no other tile has this part, and `&mut self` keeps this one from giving it out twice.
        unsafe { self.data.get(row * self.stride + cols.start..row * self.stride + cols.end) }
    }

    /// The first element and the distance between rows, for code that takes pointers; the pointer reaches every row.
    pub fn as_mut_ptr(&mut self) -> (*mut f32, usize) {
        let start = self.rows.start * self.stride + self.cols.start;
        let end = (self.rows.end - 1) * self.stride + self.cols.end;
        assert!(start <= end && end <= self.data.len);
        // Not from `row`: a pointer into a slice may not leave that slice.
        // SAFETY: `start` was just found to lie inside the matrix that `data` points to.
        (unsafe { self.data.data.add(start) }, self.stride)
    }
}

/// A mutable slice that is handed out in parts, to several threads.
struct Shared<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it only passes on parts of a `&mut [f32]`, which is `Send`; `get` demands that they be disjoint, and whoever
// writes through `Tile::as_mut_ptr` keeps to a tile, of which no two share an element.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(data: &'a mut [f32]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), lifetime: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No element of the range may be in another part that is still in use.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the point of the type; the parts are disjoint
    unsafe fn get(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the slice, and the caller keeps the parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// Calls `f` with `len` floats of this thread's scratch memory, whose content is left over from earlier calls.
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Buffer<f32>>> = const { RefCell::new(Vec::new()) };
    }
    // A stack, so that a nested call gets a buffer of its own, and the same one as the last time.
    let kept = SCRATCH.with_borrow_mut(Vec::pop).filter(|buffer| buffer.len() >= len);
    let mut buffer = kept.unwrap_or_else(|| Buffer::zeroed(len.next_power_of_two()));
    let result = f(&mut buffer[..len]);
    SCRATCH.with_borrow_mut(|stack| stack.push(buffer));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_tile_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for (rows, cols, block) in
                [(0, 3, (1, 1)), (1, 1, (4, 4)), (7, 5, (2, 3)), (16, 8, (4, 8)), (5, 9, (99, 2))]
            {
                let mut y = vec![0.0; rows * cols + 3];
                let number = |mut tile: Tile<'_>| {
                    for row in tile.rows() {
                        let first = tile.cols().start;
                        for (i, v) in tile.row(row).iter_mut().enumerate() {
                            *v += (row * cols + first + i) as f32 + 1.0;
                        }
                    }
                };
                let mut other = y.clone();
                let outputs = [(&mut y[..], cols, block.1), (&mut other, cols, block.1)];
                pool.tiles(rows, block.0, outputs, |tiles| tiles.into_iter().for_each(number));
                let middle = rows.min(block.0);
                let mut banded = vec![0.0; rows * cols + 3];
                let bands = [0..middle, middle..rows];
                pool.bands(&mut banded, (cols, block.1), bands.iter().cloned(), |band, tile| {
                    assert_eq!(tile.rows(), bands[band]);
                    number(tile);
                });
                assert_eq!((&other, &banded), (&y, &y));
                let mut count = vec![0.0; rows];
                pool.rows(rows, block.0, [(&mut y, cols), (&mut count, 1)], |first, [y, count]| {
                    for (i, (y, count)) in y.chunks_mut(cols).zip(count).enumerate() {
                        y.iter_mut().for_each(|v| *v += 0.5);
                        *count += (first + i) as f32;
                    }
                });
                let expected = (0..rows * cols + 3).map(|i| if i < rows * cols { i as f32 + 1.5 } else { 0.0 });
                assert!(y.iter().copied().eq(expected), "{rows}x{cols} in {block:?} on {threads}: {y:?}");
                assert!(count.iter().enumerate().all(|(i, c)| *c == i as f32));
            }
        }
    }

    /// Rows after the first are within the pointer's reach: a wrong provenance shows under Miri.
    #[test]
    fn a_tiles_pointer_reaches_all_its_rows() {
        let (rows, cols) = (7, 5);
        let mut y = vec![0.0; rows * cols];
        Pool::new(2).unwrap().tiles(rows, 3, [(&mut y, cols, 2)], |[mut tile]| {
            let (height, width) = (tile.rows().len(), tile.cols().len());
            let (first, stride) = tile.as_mut_ptr();
            for (row, col) in (0..height).flat_map(|row| (0..width).map(move |col| (row, col))) {
                // SAFETY: the element is in the tile, which is this task's alone.
                unsafe { *first.add(row * stride + col) += 1.0 };
            }
        });
        assert_eq!(y, [1.0; 35]);
    }

    #[test]
    fn nested_scratch_is_separate() {
        with_scratch(8, |a| {
            a.fill(1.0);
            with_scratch(8, |b| b.fill(2.0));
            assert!(a.iter().all(|x| *x == 1.0));
        });
        with_scratch(1000, |a| assert_eq!(a.len(), 1000));
    }
}
