//! Matrix units that multiply tiles.

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// 32-bit words of a row of a tile.
pub const TILE_WORDS: usize = 16;

/// Eight tiles of 16 rows by 16 words, and their products. The tiles are there inside [`enter`](TileUnit::enter) only.
pub trait TileUnit: Copy + Send + Sync + 'static {
    /// The token, if the processor has the unit and the system lets it be used.
    fn new() -> Option<Self>;
    /// Sets the unit up on this thread, does `work`, and gives it back.
    fn enter(self, work: impl FnOnce());
    /// Tile `T` is zero.
    fn zero<const T: u8>(self);
    /// Reads tile `T` from rows `stride` words apart.
    fn load<const T: u8>(self, rows: &[f32], stride: usize);
    /// Asks for the cache line in which `line` starts to come to the second-level cache.
    fn prefetch(self, line: &[f32]);
    /// Writes tile `T` to rows `stride` words apart.
    fn store<const T: u8>(self, rows: &mut [f32], stride: usize);
    /// `C += A B` in f32: words of `A` are two bf16 of a row, words of `B` two of a column.
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(self);
    /// `C += A B` in i32: words of `A` are four int8 of a row, words of `B` four of a column.
    fn dot_int8<const C: u8, const A: u8, const B: u8>(self);
}
