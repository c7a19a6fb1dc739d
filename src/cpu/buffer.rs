//! Aligned, zeroed memory.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Zeroable;

/// A cache line, and the widest vector.
const ALIGN: usize = 64;
/// From here on a buffer is aligned to huge pages and asks for them.
const HUGE: usize = 2 << 20;
/// The alignment up to which the allocator hands out fresh zero pages as they are, instead of writing zeros itself.
const ALLOCATOR_ALIGN: usize = 16;

/// A slice on the heap, aligned to 64 bytes and zeroed at first.
///
/// Large buffers come as untouched zero pages from the operating system, in huge pages where it has them: memory is
/// first touched by the thread that first writes it.
pub struct Buffer<T> {
    data: NonNull<T>,
    len: usize,
    block: NonNull<u8>,
    layout: Layout,
}

impl<T: Copy + Zeroable> Buffer<T> {
    /// A buffer of `len` zeros.
    ///
    /// # Panics
    /// If the size overflows. Running out of memory ends the process, as for `Vec`.
    pub fn zeroed(len: usize) -> Self {
        const { assert!(align_of::<T>() <= ALLOCATOR_ALIGN) };
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer size overflows");
        let align = if bytes >= HUGE { HUGE } else { ALIGN };
        let size = bytes.checked_add(align).expect("buffer size overflows");
        let layout = Layout::from_size_align(size, ALLOCATOR_ALIGN).expect("buffer size overflows");
        // SAFETY: the layout's size is at least `ALIGN`, so not zero.
        let Some(block) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: the block is longer than `bytes` by `align`, so it has an aligned address with `bytes` behind it.
        let data = unsafe { block.add(block.align_offset(align)) };
        if bytes >= HUGE {
            advise_huge_pages(data, bytes);
        }
        Buffer { data: data.cast(), len, block, layout }
    }

    /// A buffer that holds `src`.
    pub fn from_slice(src: &[T]) -> Self {
        let mut buffer = Self::zeroed(src.len());
        buffer.copy_from_slice(src);
        buffer
    }
}

/// Asks for huge pages; that the system refuses is no error.
#[cfg(target_os = "linux")]
fn advise_huge_pages(data: NonNull<u8>, bytes: usize) {
    // SAFETY: the range lies in one allocation and starts at a page; the advice does not change its content.
    unsafe { libc::madvise(data.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
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
        // SAFETY: `block` was allocated with `layout`; the elements are `Copy` and need no drop.
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
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
        for len in [0, 1, 15, 16, 17, 1000, HUGE / 4 - 1, HUGE / 4, HUGE / 4 + 1, 3_000_001] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGN), (len, 0));
            assert!(buffer.iter().all(|x| x.to_bits() == 0));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
        assert_eq!(*Buffer::from_slice(&[1u32, 2, 3]), [1, 2, 3]);
    }
}
