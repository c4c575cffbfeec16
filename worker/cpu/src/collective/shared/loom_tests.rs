//! Every order in which two threads can pass through the ring and the bell, as the memory model allows. A wake-up that can be
//! missed is found as a deadlock.

use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};

use super::ring::{Bell, DATUM, Datum, Ring, Word};

/// A word on which threads sleep as on a futex: it is compared and the thread put to sleep as one. Nothing ends the sleep but
/// a wake-up.
#[derive(Default)]
struct Futex {
    word: AtomicU32,
    queue: Mutex<()>,
    woken: Condvar,
}

impl Word for Futex {
    fn load(&self, order: Ordering) -> u32 {
        self.word.load(order)
    }

    fn store(&self, value: u32, order: Ordering) {
        self.word.store(value, order);
    }

    fn increment(&self, order: Ordering) {
        self.word.fetch_add(1, order);
    }

    fn sleep(&self, value: u32, _: Duration) {
        let queue = self.queue.lock().unwrap();
        if self.word.load(Ordering::Relaxed) == value {
            drop(self.woken.wait(queue).unwrap());
        }
    }

    fn wake(&self) {
        let _queue = self.queue.lock().unwrap();
        self.woken.notify_all();
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl Datum for AtomicU64 {
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Memory {
    written: Futex,
    read: Futex,
    wants_room: Futex,
    data: [AtomicU64; 2],
    /// Count and flag of the producer's bell, and of the consumer's.
    bells: [[Futex; 2]; 2],
}

impl Memory {
    fn ring(&self) -> Ring<'_, Futex, AtomicU64> {
        Ring {
            written: &self.written,
            read: &self.read,
            wants_room: &self.wants_room,
            data: &self.data,
        }
    }

    fn bell(&self, of: usize) -> Bell<'_, Futex> {
        let [count, asleep] = &self.bells[of];
        Bell { count, asleep }
    }

    /// Send as [`super::mesh`] does.
    fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let rung = self.bell(0).rung();
            match self.ring().push(bytes).unwrap() {
                0 => self.bell(0).sleep(rung, Duration::MAX),
                count => {
                    bytes = &bytes[count..];
                    self.bell(1).ring();
                }
            }
        }
    }

    fn receive(&self, mut into: &mut [u8]) {
        while !into.is_empty() {
            let rung = self.bell(1).rung();
            match self.ring().pop(into).unwrap() {
                (0, _) => self.bell(1).sleep(rung, Duration::MAX),
                (count, wanted) => {
                    into = &mut into[count..];
                    if wanted {
                        self.bell(0).ring();
                    }
                }
            }
        }
    }
}

fn check(preemptions: usize, frames: &'static [&'static [u8]]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let memory = Arc::new(Memory::default());
        let sender = Arc::clone(&memory);
        let sending = loom::thread::spawn(move || frames.iter().for_each(|frame| sender.send(frame)));
        for frame in frames {
            let mut bytes = vec![0; frame.len()];
            memory.receive(&mut bytes);
            assert_eq!(bytes, *frame);
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_frame_that_fits_arrives_whole() {
    check(4, &[&[1; DATUM + 3]]);
}

#[test]
fn what_is_longer_than_the_ring_is_streamed() {
    check(3, &[&[7; 3 * DATUM + 1]]);
}

#[test]
fn frames_follow_each_other() {
    check(3, &[&[1; 5], &[2; DATUM], &[3; 9]]);
}
