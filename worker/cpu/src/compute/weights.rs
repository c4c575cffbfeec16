//! A rank's weights in memory.
//!
//! The region starts with a header of four little-endian u64: a magic number, the fingerprint of what the region holds, its length, and
//! a flag that is set when the last tensor is in place. A process that finds a complete region with the right fingerprint
//! uses it as it is.

use std::os::fd::OwnedFd;

use llamero_checkpoint::load::Member;

use crate::disjoint::DisjointSlice;
use crate::kernel::pack::LANES;
use crate::layout::{HeadAt, Layout, MatrixAt};
use crate::load::share::Move;
use crate::matmul::Matrix;
use crate::region::Region;

const MAGIC: u64 = u64::from_le_bytes(*b"LLAMERO1");
const COMPLETE: u64 = 0x6574_656c_706d_6f63;
/// In place of that flag, until it is set: the region held other weights before.
const HELD_OTHER: u64 = u64::from_le_bytes(*b"replaced");

/// The region and the layout it is read by.
pub(crate) struct Weights {
    region: Region,
    layout: Layout,
    fingerprint: u64,
    complete: bool,
    /// Whether the region held something else when it was mapped.
    held_other: bool,
}

impl Weights {
    /// Map the region: `file` if there is one, else anonymous memory.
    ///
    /// `fingerprint` names the checkpoint, the shard and the layout. Ask [`Self::is_complete`] whether there is anything
    /// to load.
    pub(crate) fn map(layout: Layout, fingerprint: u64, file: Option<&OwnedFd>) -> std::io::Result<Self> {
        let region = match file {
            Some(file) => Region::of_file(file, layout.bytes)?,
            None => Region::anonymous(layout.bytes)?,
        };
        let region = region.prefer_large_pages();
        let mut weights = Self {
            region,
            layout,
            fingerprint,
            complete: false,
            held_other: false,
        };
        let held = state(weights.header(), &weights.layout, fingerprint);
        weights.complete = held == Member::Complete;
        weights.held_other = held == Member::Foreign || weights.header()[3] == HELD_OTHER;
        if !weights.complete {
            let flag = if weights.held_other { HELD_OTHER } else { 0 };
            weights.set_header([MAGIC, fingerprint, weights.layout.bytes as u64, flag]);
        }
        Ok(weights)
    }

    /// Whether the region held other weights when it was mapped, so that nothing that was noted of it before holds.
    pub(crate) fn held_other(&self) -> bool {
        self.held_other
    }

    /// Whether every tensor is in place.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Say that every tensor is in place.
    pub(crate) fn set_complete(&mut self) {
        // The flag must not be seen before what it vouches for, should the process die right here.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.set_header([MAGIC, self.fingerprint, self.layout.bytes as u64, COMPLETE]);
        self.complete = true;
    }

    /// Become the weights of another share that contains the present one (`grows`) or is part of it: move what both have. They are
    /// incomplete until [`Self::set_complete`], and a process that ends before leaves nothing that counts as weights.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn change(
        &mut self,
        layout: Layout,
        fingerprint: u64,
        (moves, grows): (Vec<Move>, bool),
        file: Option<&OwnedFd>,
    ) -> std::io::Result<()> {
        self.complete = false;
        self.held_other = true;
        self.set_header([MAGIC, fingerprint, layout.bytes as u64, HELD_OTHER]);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if grows {
            self.region.resize(file, layout.bytes)?;
            moves.iter().rev().for_each(|one| self.carry(one));
        } else {
            moves.iter().for_each(|one| self.carry(one));
            self.region.resize(file, layout.bytes)?;
        }
        self.layout = layout;
        self.fingerprint = fingerprint;
        Ok(())
    }

    fn carry(&mut self, one: &Move) {
        let bytes = self.region.bytes_mut();
        let held = bytes[one.from.clone()].to_vec();
        let target = &mut bytes[one.to.clone()];
        target.fill(0);
        for (from, to) in &one.parts {
            target[*to..to + from.len()].copy_from_slice(&held[from.clone()]);
        }
    }

    fn header(&self) -> [u64; 4] {
        let words: &[u64] = bytemuck::cast_slice(&self.region.bytes()[..32]);
        [words[0], words[1], words[2], words[3]]
    }

    fn set_header(&mut self, header: [u64; 4]) {
        self.region.bytes_mut()[..32].copy_from_slice(bytemuck::cast_slice(&header));
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// f32 `[n]` at `at`.
    pub(crate) fn floats(&self, at: usize, n: usize) -> &[f32] {
        bytemuck::cast_slice(&self.region.bytes()[at..at + n * size_of::<f32>()])
    }

    /// The embedding of the `row`-th token of the rank's vocabulary, bf16 `[hidden]`, into `out`; nothing on a rank that has
    /// neither the table nor the head.
    pub(crate) fn embed(&self, row: usize, out: &mut [u16]) {
        let bytes = self.region.bytes();
        if let Some(table) = self.layout.embedding {
            let at = table + row * size_of_val(out);
            out.copy_from_slice(bytemuck::cast_slice(&bytes[at..at + size_of_val(out)]));
            return;
        }
        // The head's table, of which a step holds two elements of the row.
        let Some(HeadAt { matrix: head, .. }) = self.layout.head else {
            return;
        };
        let block = &bytes[head.weights + row / LANES * head.element.block_bytes(head.k)..];
        let at = head.element.index(row % LANES, 0) * head.element.size();
        let steps = block.chunks_exact(head.element.step_bytes());
        for (pair, step) in out.chunks_mut(2).zip(steps) {
            pair.copy_from_slice(bytemuck::cast_slice(&step[at..at + size_of_val(pair)]));
        }
    }

    /// All of the region.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    /// A matrix to multiply with.
    pub(crate) fn matrix(&self, at: MatrixAt) -> Matrix<'_> {
        Matrix {
            element: at.element,
            n: at.n,
            k: at.k,
            weights: &self.region.bytes()[at.weights..][..at.element.packed_bytes(at.n, at.k)],
            scale: self.floats(at.scales, at.n),
        }
    }

    /// Where to put what is loaded: through `file`, which the region must be a mapping of, or straight into memory.
    /// Writing to a file in memory takes less than half of what touching fresh pages of its mapping does.
    pub(crate) fn store<'a>(&'a mut self, file: Option<&'a OwnedFd>) -> Store<'a> {
        match file {
            Some(file) => Store::File(file),
            None => Store::Memory(DisjointSlice::new(self.region.bytes_mut())),
        }
    }
}

/// What a header says of the region it belongs to.
fn state(header: [u64; 4], layout: &Layout, fingerprint: u64) -> Member {
    match header {
        [0, ..] => Member::Loading,
        [MAGIC, held, bytes, flag] if (held, bytes) == (fingerprint, layout.bytes as u64) => match flag {
            COMPLETE => Member::Complete,
            _ => Member::Loading,
        },
        _ => Member::Foreign,
    }
}

/// What `file`, the region of a rank whose weights have that layout and fingerprint, holds now.
pub(crate) fn state_of_file(file: &OwnedFd, layout: &Layout, fingerprint: u64) -> Member {
    let mut header = [0u64; 4];
    // A file that is still empty leaves the header at zero.
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut header);
    match rustix::io::pread(file, bytes, 0) {
        Ok(_) => state(header, layout, fingerprint),
        Err(_) => Member::Foreign,
    }
}

/// Takes bytes of the region from several threads.
pub(crate) enum Store<'a> {
    File(&'a OwnedFd),
    Memory(DisjointSlice<'a, u8>),
}

impl Store<'_> {
    /// Put `bytes` at byte `at` of the region.
    ///
    /// # Safety
    /// Nobody else may put anything there at the same time.
    pub(crate) unsafe fn put(&self, at: usize, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => {
                let mut done = 0;
                while done < bytes.len() {
                    match rustix::io::pwrite(file, &bytes[done..], (at + done) as u64) {
                        Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                        Ok(written) => done += written,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Self::Memory(memory) => {
                // SAFETY: the caller promises that nobody else has this part.
                unsafe { memory.part(at..at + bytes.len()) }.copy_from_slice(bytes);
            }
        }
        Ok(())
    }
}
