//! The exported functions.
//!
//! Each takes C's arguments, calls the driver, and gives a `CUresult`. Pointers arrive as [`Out`] and [`In`], which check
//! for null; beyond that the interface trusts its caller, as every C interface must.

mod context;
mod device;
mod event;
mod launch;
mod management;
mod memory;
mod module;
mod shared;
mod stream;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Code, Result, fail};
use super::log::complain;

/// A pointer to which a result is written.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(super) fn set(self, value: T) -> Result<()> {
        if self.0.is_null() {
            fail!(InvalidValue, "a result has nowhere to go: the pointer is null");
        }
        // SAFETY: not null, and by the C interface valid for one value.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Set it where it is wanted.
    fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`.
            unsafe { self.0.write(value) };
        }
    }
}

impl Out<u8> {
    /// Write a text and its NUL into `room` bytes, cut where it does not fit.
    fn set_text(self, text: &str, room: i32) -> Result<()> {
        let Some(room) = usize::try_from(room)
            .ok()
            .filter(|room| *room > 0 && !self.0.is_null())
        else {
            fail!(InvalidValue, "there is no room for a text");
        };
        let len = text.len().min(room - 1);
        // SAFETY: by the C interface `room` bytes are writable.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0, len);
            self.0.add(len).write(0);
        }
        Ok(())
    }
}

/// A pointer from which arguments are read.
#[repr(transparent)]
struct In<T>(*const T);

impl<T: Copy> In<T> {
    fn get(&self, index: usize) -> Result<T> {
        if self.0.is_null() {
            fail!(InvalidValue, "an argument is missing: the pointer is null");
        }
        // SAFETY: not null, and by the C interface valid for so many values; packed structs may be unaligned.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

/// Turn a result into a `CUresult`. A panic does not cross into C.
fn answer(call: &str, body: impl FnOnce() -> Result<()>) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            // Asking whether something is ready, or there, is no mistake.
            if !matches!(error.code, Code::NotReady | Code::NotFound) {
                complain(call, &error.reason);
            }
            error.code as u32
        }
        Err(_) => Code::Unknown as u32,
    }
}

/// Define exported functions whose bodies give a [`Result`].
macro_rules! calls {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the names of the CUDA driver interface")]
            #[allow(clippy::too_many_arguments, reason = "its signatures too")]
            extern "C" fn $name($($arg: $ty),*) -> u32 {
                $crate::driver::abi::answer(stringify!($name), move || $body)
            }
        )*
    };
}
use calls;
