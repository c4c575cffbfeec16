//! Threads that share the work of one rank: a call runs tasks `0 .. n` on all of them and returns when all are done.
//!
//! Which thread runs which task never changes a result, because tasks split outputs and never a sum. A thread without
//! work spins for a while, which covers the gaps inside a step, and then sleeps. How long is for who knows how many
//! threads share the processors: all ranks of a pod do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What helpers look at.
struct PoolState {
    /// Counts jobs; a helper that sees a number it has not seen joins that job.
    round: AtomicUsize,
    /// The present job. Only written between jobs, under the lock.
    job: Mutex<Option<Job>>,
    wake: Condvar,
    next: AtomicUsize,
    /// Helpers that have not finished the present job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    tasks: usize,
}

/// A fixed set of threads; dropping it ends them.
pub struct Pool {
    shared: Arc<PoolState>,
    helpers: Vec<JoinHandle<()>>,
    /// Spinning only helps while every thread has a core of its own.
    spin: Duration,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included, that look for work for `spin` before they sleep.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(threads: usize, spin: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(PoolState {
            round: AtomicUsize::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            shared,
            helpers: Vec::new(),
            spin,
        };
        for number in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let helper = std::thread::Builder::new()
                .name(format!("compute-{number}"))
                .spawn(move || help(&shared, spin))?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Run `task(0)` … `task(tasks - 1)`, each once, on any thread, and return when all are done.
    ///
    /// # Panics
    /// When a task panicked, on any thread.
    pub fn run(&mut self, tasks: usize, task: Task<'_>) {
        if tasks <= 1 || self.helpers.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes. Helpers use the reference while they are counted in `busy`, and the guard
        // below waits until that is zero before this call returns or unwinds, so it never outlives the borrow.
        let task_static = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let shared = &*self.shared;
        shared.next.store(0, Ordering::Relaxed);
        shared.busy.store(self.helpers.len(), Ordering::Relaxed);
        {
            let mut job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            *job = Some(Job {
                task: task_static,
                tasks,
            });
            shared.round.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        let guard = WaitForHelpers {
            shared,
            spin: self.spin,
        };
        take_tasks(shared, task, tasks);
        drop(guard);
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a compute task panicked"
        );
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper's panic was reported by `run` already.
            let _ = helper.join();
        }
    }
}

/// Waits until no helper uses the job, however the scope is left.
struct WaitForHelpers<'a> {
    shared: &'a PoolState,
    spin: Duration,
}

impl Drop for WaitForHelpers<'_> {
    fn drop(&mut self) {
        let done = || self.shared.busy.load(Ordering::Acquire) == 0;
        if spin_until(self.spin, done) {
            return;
        }
        let mut job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        while !done() {
            job = self.shared.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn take_tasks(shared: &PoolState, task: Task<'_>, tasks: usize) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= tasks {
            return;
        }
        task(index);
    }
}

fn help(shared: &PoolState, spin: Duration) {
    let mut seen = 0;
    loop {
        let changed = || shared.round.load(Ordering::Acquire) != seen || shared.stop.load(Ordering::Acquire);
        spin_until(spin, changed);
        let job = {
            let mut job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            while !changed() {
                job = shared.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
            }
            *job
        };
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        seen = shared.round.load(Ordering::Acquire);
        if let Some(Job { task, tasks }) = job {
            let work = std::panic::AssertUnwindSafe(|| take_tasks(shared, task, tasks));
            if std::panic::catch_unwind(work).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        if shared.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
    }
}

fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    if limit.is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > limit {
            return done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(30);

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads, SPIN).unwrap();
            for tasks in [0, 1, 2, 7, 300] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3, Duration::ZERO).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(50, &|i| assert_ne!(i, 17));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
