//! Aligned, zeroed memory.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use bytemuck::Zeroable;

use crate::error::{Error, Result};

/// A cache line, and the widest vector.
const ALIGN: usize = 64;
/// A huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of spare blocks together, at most.
const SPARE: usize = 128 << 20;
/// The alignment up to which the allocator hands out fresh zero pages as they are, instead of writing zeros itself.
const ALLOCATOR_ALIGN: usize = 16;

/// A slice on the heap, aligned to 64 bytes and zeroed at first.
///
/// Large buffers come as untouched zero pages from the operating system, in huge pages where it has them: memory is
/// first touched by the thread that first writes it. Pages that are new to the process cost several times what writing
/// zeros does, so some large blocks are kept when their buffers go, for those to come.
pub struct Buffer<T> {
    data: NonNull<T>,
    len: usize,
    /// Where `data` is; `None` only when the buffer is gone.
    block: Option<Block>,
}

/// What the allocator gave.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is memory that nothing else refers to.
unsafe impl Send for Block {}

impl Block {
    /// The layout of a block with an aligned address that `bytes` follow.
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.saturating_add(ALIGN), ALLOCATOR_ALIGN).ok()
    }

    /// A block of zeros.
    fn new(bytes: usize) -> Option<Self> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the layout's size is at least `ALIGN`, so not zero.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|start| Block { start, layout })
    }

    /// The first aligned address.
    fn data(&self) -> NonNull<u8> {
        // SAFETY: a block has `ALIGN` bytes at least, so it reaches to its first aligned address.
        unsafe { self.start.add(self.start.align_offset(ALIGN)) }
    }

    fn is_large(&self) -> bool {
        self.layout.size() >= HUGE_PAGE
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with `layout`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Large blocks of buffers that are gone, the oldest first.
static SPARES: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// The smallest spare block that `bytes` fit into and that would not be wasted on them; none for what is not large.
fn take_spare(bytes: usize) -> Option<Block> {
    let size = Block::layout(bytes)?.size();
    if size < HUGE_PAGE {
        return None;
    }
    let fits = size..=size / 2 * 3;
    let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
    let sizes = spares.iter().map(|block| block.layout.size()).enumerate();
    let (best, _) = sizes.filter(|(_, size)| fits.contains(size)).min_by_key(|(_, size)| *size)?;
    Some(spares.remove(best))
}

fn keep_spare(block: Block) {
    let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
    spares.push(block);
    let mut bytes: usize = spares.iter().map(|block| block.layout.size()).sum();
    let superfluous = spares.iter().take_while(|oldest| {
        let is_much = bytes > SPARE;
        bytes -= oldest.layout.size();
        is_much
    });
    let count = superfluous.count();
    spares.drain(..count);
}

impl<T: Copy + Zeroable> Buffer<T> {
    /// A buffer of `len` zeros, whose size the caller has bounded.
    ///
    /// # Panics
    /// There is no memory.
    pub(super) fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// There is no memory. Where the system promises more than it has, that may show later, and end the process.
    pub fn try_zeroed(len: usize) -> Result<Self> {
        const { assert!(align_of::<T>() <= ALLOCATOR_ALIGN) };
        let bytes = len.saturating_mul(size_of::<T>());
        if let Some(block) = take_spare(bytes) {
            let data = block.data();
            // SAFETY: the block is longer than `bytes` by `ALIGN` at least, so they follow its first aligned address.
            unsafe { data.write_bytes(0, bytes) };
            return Ok(Buffer { data: data.cast(), len, block: Some(block) });
        }
        let block = Block::new(bytes).ok_or_else(|| no_memory(bytes))?;
        let data = block.data();
        if block.is_large() {
            advise_huge_pages(data, bytes);
        }
        Ok(Buffer { data: data.cast(), len, block: Some(block) })
    }

    /// A buffer that holds `src`.
    ///
    /// # Errors
    /// There is no memory.
    pub fn from_slice(src: &[T]) -> Result<Self> {
        let mut buffer = Self::try_zeroed(src.len())?;
        buffer.copy_from_slice(src);
        Ok(buffer)
    }
}

fn no_memory(bytes: usize) -> Error {
    Error::Unsupported(format!(
        "no memory for {:.1} GiB in one piece: take fewer rows at a time, a smaller maximal length, or a machine with more",
        bytes as f64 / (1u64 << 30) as f64
    ))
}

/// Asks for huge pages for the whole pages of a range; that the system refuses is no error. Large buffers lie one behind
/// the other, so a huge page may hold the end of one and the start of the next, and aligning each to one would only cost
/// memory.
#[cfg(target_os = "linux")]
fn advise_huge_pages(data: NonNull<u8>, bytes: usize) {
    // The largest page of any Linux, so that the start is that of a page.
    const PAGE: usize = 1 << 16;
    let skipped = data.align_offset(PAGE);
    let len = bytes.saturating_sub(skipped) / PAGE * PAGE;
    // SAFETY: the range lies inside the allocation, which has `bytes` from `data` on, and starts at a page; the advice does
    // not change its content.
    unsafe { libc::madvise(data.as_ptr().wrapping_add(skipped).cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_data: NonNull<u8>, _bytes: usize) {}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `data` is aligned and has `len` elements that were zeroed, which is a valid value of a `Zeroable` type.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the memory.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // The elements are `Copy` and need no drop.
        if let Some(block) = self.block.take_if(|block| block.is_large()) {
            keep_spare(block);
        }
    }
}

// SAFETY: a buffer owns its elements, like a `Vec`.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: a shared buffer gives shared references only, like a `Vec`.
unsafe impl<T: Sync> Sync for Buffer<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_and_aligned_at_every_size() {
        for len in [0, 1, 15, 16, 17, 1000, HUGE_PAGE / 4 - 1, HUGE_PAGE / 4, HUGE_PAGE / 4 + 1, 3_000_001] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGN), (len, 0));
            assert!(buffer.iter().all(|x| x.to_bits() == 0));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
        assert_eq!(*Buffer::from_slice(&[1u32, 2, 3]).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn spare_blocks_are_bounded_and_come_back_as_zeros() {
        let len = HUGE_PAGE / 4 + 7;
        for _ in 0..3 {
            let mut buffers = [(); 3].map(|()| Buffer::<f32>::zeroed(len));
            assert!(buffers.iter().all(|buffer| buffer.iter().all(|x| x.to_bits() == 0)));
            let mut places = buffers.each_ref().map(|buffer| buffer.as_ptr());
            places.sort_unstable();
            assert!(places.windows(2).all(|pair| pair[1] >= pair[0].wrapping_add(len)), "two buffers share memory");
            buffers.iter_mut().for_each(|buffer| buffer.fill(1.0));
        }
        drop(Buffer::<u8>::zeroed(SPARE + 1));
        let bytes = SPARES.lock().unwrap().iter().map(|block| block.layout.size()).sum::<usize>();
        assert!(bytes <= SPARE, "{bytes} bytes are kept");
    }

    /// The number of bytes overflows, the layout does, and no address space is this large.
    #[test]
    fn what_memory_cannot_hold_is_an_error() {
        let most = isize::MAX as usize;
        for len in [usize::MAX, most / 4, (most - 4 * HUGE_PAGE) / 4] {
            let message = Buffer::<f32>::try_zeroed(len).err().unwrap().to_string();
            assert!(message.contains("GiB") && message.contains("fewer rows"), "{message}");
        }
    }
}
