//! Running a target.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::corpus;
use crate::memory;
use crate::mutate::{Shape, mutate};
use crate::random::Random;

/// Seconds of a run.
pub const SECONDS: u64 = 3;
/// Inputs that a run makes at least, where others leave it the processor for so many: a run of none would show nothing.
const FEWEST: usize = 500;
/// How often the seconds of a run may pass until they are made.
const PATIENCE: u32 = 10;
/// Time of the processor that one input may take: the slowest take milliseconds.
const MOST_TIME: Duration = Duration::from_secs(5);
/// An input that is not done after that waits for something that does not come, or never ends.
const HANG: Duration = Duration::from_secs(120);
/// Inputs with new outcomes that a run changes further.
const MOST: usize = 2000;

/// Targets whose threads are counted run alone.
static ALONE: RwLock<()> = RwLock::new(());

/// What takes bad input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its folder of `corpus`.
    pub name: &'static str,
    /// What an input looks like.
    pub shape: Shape,
    /// Bytes of memory that it may take for each byte of an input.
    pub factor: usize,
    /// Bytes of memory that it may take beside that.
    pub constant: usize,
    /// It works on threads of its own, whose memory and time count too.
    pub threads: bool,
}

/// Feeds the function that `prepare` gives inputs made from its seeds and the corpus until time is up. It returns the outcome in words.
///
/// # Panics
/// An input makes `take` panic, takes more memory than the target may, or hangs (then the process ends). The input is kept and named.
pub fn drive<F: FnMut(&[u8]) -> String>(target: Target, prepare: impl FnOnce() -> (Vec<Vec<u8>>, F)) {
    let _beside_others = (!target.threads).then(|| ALONE.read().unwrap_or_else(PoisonError::into_inner));
    let _alone = target
        .threads
        .then(|| ALONE.write().unwrap_or_else(PoisonError::into_inner));
    let (seeds, mut take) = prepare();
    let long = from_environment("LLAMERO_FUZZ_SECONDS");
    let seed = from_environment("LLAMERO_FUZZ_SEED").unwrap_or(1);
    let keeps = from_environment("LLAMERO_FUZZ_KEEP").is_some_and(|keeps| keeps != 0);
    let mut random = Random::new(seed);
    let mut inputs = corpus::kept(target.name);
    inputs.extend(seeds);
    assert!(!inputs.is_empty(), "{} has nothing to begin with", target.name);
    if long.is_some() {
        inputs.extend(corpus::found(target.name));
    }
    let words = corpus::words(target.name);
    let watch = Watch::start(target.name);
    let mut outcomes = BTreeSet::new();
    // First those that are kept, as they are.
    for input in &inputs {
        outcomes.insert(one(&target, input, &watch, &mut take));
    }
    let (start, run) = (Instant::now(), Duration::from_secs(long.unwrap_or(SECONDS)));
    let mut cases = inputs.len();
    while start.elapsed() < run || cases < FEWEST && start.elapsed() < run * PATIENCE {
        let (input, other) = (random.below(inputs.len()), random.below(inputs.len()));
        let (Some(input), Some(other)) = (inputs.get(input), inputs.get(other)) else {
            break;
        };
        let changed = mutate(input, other, target.shape, &words, &mut random);
        let outcome = one(&target, &changed, &watch, &mut take);
        cases += 1;
        if outcomes.insert(outcome) && inputs.len() < MOST {
            if long.is_some() {
                let _ = corpus::keep(target.name, "found", &changed);
            }
            if keeps {
                let _ = corpus::keep_in_repository(target.name, &changed);
            }
            inputs.push(changed);
        }
    }
    println!(
        "{}: {cases} inputs, {} outcomes, seed {seed}",
        target.name,
        outcomes.len()
    );
    assert!(
        outcomes.len() > 2,
        "{}: changing inputs changes nothing: {outcomes:?}",
        target.name
    );
}

fn one(target: &Target, input: &[u8], watch: &Watch, take: &mut impl FnMut(&[u8]) -> String) -> String {
    match tried(target, input, watch, take) {
        Ok(outcome) => without_figures(&outcome),
        Err(complaint) => {
            let place = corpus::keep(target.name, "failed", input);
            panic!(
                "{}: {complaint} on {} bytes, kept as {place:?}",
                target.name,
                input.len()
            );
        }
    }
}

/// The outcome of one input, or what is wrong with it.
fn tried(
    target: &Target,
    input: &[u8],
    watch: &Watch,
    take: &mut impl FnMut(&[u8]) -> String,
) -> Result<String, String> {
    watch.begin(input);
    let start = computed(target.threads);
    let mut taken = Err(());
    let memory = memory::measure(target.threads, || {
        taken = catch_unwind(AssertUnwindSafe(|| take(input))).map_err(drop);
    });
    let time = computed(target.threads).saturating_sub(start);
    watch.end();
    let limit = target.factor * input.len() + target.constant;
    match taken {
        Err(()) => Err("it panics".to_owned()),
        Ok(_) if memory > limit => Err(format!(
            "it takes {memory} bytes of memory, {limit} are its bound"
        )),
        Ok(_) if time > MOST_TIME => Err(format!(
            "it takes {time:?} of the processor, {MOST_TIME:?} are the bound"
        )),
        Ok(outcome) => Ok(outcome),
    }
}

/// Time that this thread has had of a processor, or all threads of the process.
fn computed(together: bool) -> Duration {
    let clock = if together {
        ClockId::ProcessCPUTime
    } else {
        ClockId::ThreadCPUTime
    };
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// What kind of outcome it is: words without the names and figures of the input.
fn without_figures(outcome: &str) -> String {
    let mut kind = String::new();
    let mut quoted = false;
    for letter in outcome.chars() {
        if matches!(letter, '"' | '`' | '\'') {
            quoted = !quoted;
        } else if !quoted && (letter.is_ascii_alphabetic() || letter == ' ') && kind.len() < 80 {
            kind.push(letter);
        }
    }
    kind
}

/// What runs now, and since when.
type Running = Mutex<Option<(Instant, Vec<u8>)>>;

/// Ends the process when an input hangs.
struct Watch(Arc<Running>);

impl Watch {
    fn start(name: &'static str) -> Self {
        let running: Arc<Running> = Arc::default();
        let watched = Arc::downgrade(&running);
        std::thread::spawn(move || {
            while let Some(running) = watched.upgrade() {
                let hung = match &*running.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some((begin, input)) if begin.elapsed() > HANG => Some(input.clone()),
                    _ => None,
                };
                if let Some(input) = hung {
                    eprintln!(
                        "{name}: an input hangs, kept as {:?}",
                        corpus::keep(name, "failed", &input)
                    );
                    std::process::abort();
                }
                drop(running);
                std::thread::park_timeout(Duration::from_secs(1));
            }
        });
        Self(running)
    }

    fn begin(&self, input: &[u8]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), input.to_vec()));
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is {text:?}; give a whole number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_targets_threads_is_held_to_its_bound() {
        const LARGE: usize = 64 << 20;
        fn on_a_thread(_: &[u8]) -> String {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(std::hint::black_box(vec![1_u8; LARGE])));
            });
            String::new()
        }
        fn here(_: &[u8]) -> String {
            drop(std::hint::black_box(vec![1_u8; LARGE]));
            String::new()
        }
        let watch = Watch::start("threads");
        let target = |threads, constant| Target {
            name: "threads",
            shape: Shape::Bytes,
            factor: 0,
            constant,
            threads,
        };
        let (small, enough) = (LARGE / 2, LARGE * 2);
        type Taker = fn(&[u8]) -> String;
        let takers: [(bool, Taker); 3] = [(true, on_a_thread), (true, here), (false, here)];
        for (threads, mut take) in takers {
            let complaint = tried(&target(threads, small), &[], &watch, &mut take).unwrap_err();
            assert!(complaint.contains("bytes of memory"), "{complaint}");
            assert_eq!(
                tried(&target(threads, enough), &[], &watch, &mut take),
                Ok(String::new())
            );
        }
    }
}
