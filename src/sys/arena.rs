//! The program's memory: from the C library, except while a shim starts its task.
//!
//! A shim allocates some thousand small blocks until its task runs, and nearly none after that. The C library would fetch and return the
//! pages for them one by one, which takes a tenth of the start. So the shim takes them from one piece of memory, an arena, and returns that
//! as a whole.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};

use super::clone::SingleThreaded;

/// Bytes of an arena. What does not fit comes from the C library. Pages that are not used cost nothing.
const SIZE: usize = 1 << 20;
/// Bytes at its beginning that are made available by one call, not by one page fault each: as many as the usual start needs.
const READY: usize = 48 * 1024;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The beginning of the arena; null: there is none.
static BASE: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Whether blocks are taken from it.
static OPEN: AtomicBool = AtomicBool::new(false);
/// Offset of the first byte that is free.
static USED: AtomicUsize = AtomicUsize::new(0);
/// How many blocks are in use.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// While it exists, memory comes from the arena.
#[derive(Debug)]
pub struct Arena(());

impl Arena {
    /// None if the kernel has no memory for it: then all memory comes from the C library, as usual.
    pub fn open(_: SingleThreaded) -> Option<Self> {
        if !BASE.load(Relaxed).is_null() {
            return None;
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { libc::mmap(null_mut(), SIZE, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the range is inside the new mapping, and its content stays as it is. It is only a hint.
        unsafe { libc::madvise(base, READY, libc::MADV_POPULATE_WRITE) };
        USED.store(0, Relaxed);
        BASE.store(base.cast(), Relaxed);
        OPEN.store(true, Relaxed);
        Some(Self(()))
    }
}

impl Drop for Arena {
    /// Blocks that are still in use stay valid; with the last of them the memory is returned.
    fn drop(&mut self) {
        OPEN.store(false, Relaxed);
        unmap_if_unused();
    }
}

fn unmap_if_unused() {
    if !OPEN.load(Relaxed) && BLOCKS.load(Relaxed) == 0 {
        let base = BASE.swap(null_mut(), Relaxed);
        if !base.is_null() {
            // SAFETY: the mapping is the arena's, and no block of it is in use.
            unsafe { libc::munmap(base.cast(), SIZE) };
        }
    }
}

/// Offset of a block, if it is in the arena.
fn offset(block: *mut u8) -> Option<usize> {
    let base = BASE.load(Relaxed);
    let offset = block.addr().wrapping_sub(base.addr());
    (!base.is_null() && offset < SIZE).then_some(offset)
}

/// A block of the arena, if it is open and has one.
fn take(layout: Layout) -> Option<*mut u8> {
    if !OPEN.load(Relaxed) {
        return None;
    }
    let base = BASE.load(Relaxed);
    let start = (base.addr() + USED.load(Relaxed)).next_multiple_of(layout.align()) - base.addr();
    let end = start.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
    USED.store(end, Relaxed);
    BLOCKS.store(BLOCKS.load(Relaxed) + 1, Relaxed);
    // SAFETY: `start` is less than the size of the arena, which `end` does not exceed.
    Some(unsafe { base.add(start) })
}

/// Only the last block makes room: most blocks live about as long as the arena.
fn give_back(start: usize, size: usize) {
    if start + size == USED.load(Relaxed) {
        USED.store(start, Relaxed);
    }
    BLOCKS.store(BLOCKS.load(Relaxed) - 1, Relaxed);
    unmap_if_unused();
}

/// Whether the block is the last one and has as much room.
fn resize(start: usize, size: usize, new_size: usize) -> bool {
    let fits =
        start + size == USED.load(Relaxed) && start.checked_add(new_size).is_some_and(|end| end <= SIZE);
    if fits {
        USED.store(start + new_size, Relaxed);
    }
    fits
}

#[derive(Debug)]
struct Allocator;

// SAFETY: a block is either the C library's, or a range of the arena that belongs to no other block: `take` gives each only what is behind
// all that are in use. The arena is used by one thread: only a process with a single one opens it, and a shim starts no other.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of `alloc`.
        take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => {
                // SAFETY: the block has that size. It may have been in use before.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: the caller keeps the rules of `alloc_zeroed`.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match offset(block) {
            Some(start) => give_back(start, layout.size()),
            // SAFETY: it is not the arena's, so it is the C library's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(start) = offset(block) else {
            // SAFETY: it is not the arena's, so it is the C library's.
            return unsafe { System.realloc(block, layout, new_size) };
        };
        if resize(start, layout.size(), new_size) {
            return block;
        }
        // SAFETY: the caller guarantees that the new size is valid with the old alignment; the new block is another one, so that they do
        // not overlap, and the old one is given back after its content is copied.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}
