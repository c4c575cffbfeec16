//! What taking an input takes of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// The system's allocator, counted. Blocks that grow count as large as they have become.
struct Counted;

#[global_allocator]
static COUNTED: Counted = Counted;

thread_local! {
    /// Bytes that this thread took beyond what it gave back, and the most of them, since it began to count.
    static OWN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Whether all threads are counted together.
static TOGETHER: AtomicBool = AtomicBool::new(false);
/// As in `OWN`, of all threads.
static HELD: AtomicIsize = AtomicIsize::new(0);
/// The most of them.
static MOST: AtomicIsize = AtomicIsize::new(0);

// SAFETY: all of it is the system's allocator. Counting allocates nothing: the thread's cell is there from the beginning and has no destructor.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what the system's allocator asks for.
        let place = unsafe { System.alloc(layout) };
        if !place.is_null() {
            count(signed(layout.size()));
        }
        place
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what the system's allocator asks for.
        let place = unsafe { System.alloc_zeroed(layout) };
        if !place.is_null() {
            count(signed(layout.size()));
        }
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller promises what the system's allocator asks for.
        unsafe { System.dealloc(place, layout) };
        count(-signed(layout.size()));
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises what the system's allocator asks for.
        let moved = unsafe { System.realloc(place, layout, size) };
        if !moved.is_null() {
            count(signed(size).saturating_sub(signed(layout.size())));
        }
        moved
    }
}

/// No block is larger than that.
fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

fn count(bytes: isize) {
    let _ = OWN.try_with(|own| {
        let (held, most) = own.get();
        let held = held.saturating_add(bytes);
        own.set((held, most.max(held)));
    });
    if TOGETHER.load(Ordering::Relaxed) {
        let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        MOST.fetch_max(held, Ordering::Relaxed);
    }
}

/// The most bytes that `run` holds at a time: those of this thread, or, `together`, of all threads of the process. Then nothing may run beside it
/// that is not to be counted. `run` must not panic.
pub(crate) fn measure(together: bool, run: impl FnOnce()) -> usize {
    if together {
        HELD.store(0, Ordering::Relaxed);
        MOST.store(0, Ordering::Relaxed);
        TOGETHER.store(true, Ordering::Relaxed);
    }
    OWN.set((0, 0));
    run();
    let (_, own) = OWN.get();
    let most = if together {
        TOGETHER.store(false, Ordering::Relaxed);
        MOST.load(Ordering::Relaxed)
    } else {
        own
    };
    usize::try_from(most).unwrap_or(0)
}
