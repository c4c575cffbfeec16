//! A wrong clock for one process: `CLOCK_REALTIME` has no namespace, and a static program takes no preloaded library. But every program asks the
//! time of a page that the kernel maps into each process, the vDSO, and what is written into that page through `/proc` is for this
//! process alone. The function there is overwritten by one that asks the kernel and adds some seconds. Clocks that only
//! measure how long something takes go on as they are. For x86-64.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::pod_process::{PodProcess, Signal};
use crate::poll;

/// What asks for the time, in vdso(7).
const FUNCTION: &str = "__vdso_clock_gettime";
/// Long enough for every thread of a stopped process to stop.
const STOPS: Duration = Duration::from_secs(30);

/// A clock that was set for one process.
#[derive(Debug)]
pub struct Shifted {
    process: PodProcess,
    page: Page,
    before: Vec<u8>,
}

impl Shifted {
    /// Lets the process be told the right time again. One that has ended needs nothing.
    ///
    /// # Errors
    /// Its memory cannot be written.
    pub fn take_back(self) -> Result<()> {
        put(&self.process, &self.page, &self.before)
    }
}

/// Shifts the clock of the wall, for this process only.
///
/// # Errors
/// The process has ended, or there is no such page in it.
pub fn shift(process: &PodProcess, seconds: i64) -> Result<Shifted> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "a clock can be shifted on x86-64 only"
    );
    let page = Page::of(process.pid)?;
    let code = code(seconds);
    ensure!(
        page.bytes >= code.len() as u64,
        "{FUNCTION} is too short to be replaced: {} bytes",
        page.bytes
    );
    let mut before = vec![0; code.len()];
    page.memory.read_exact_at(&mut before, page.function)?;
    put(process, &page, &code)?;
    Ok(Shifted {
        process: process.clone(),
        page,
        before,
    })
}

/// Writes where no thread is, as all of them stand still meanwhile. A process that has ended needs nothing.
fn put(process: &PodProcess, page: &Page, code: &[u8]) -> Result<()> {
    poll::until("all threads to be elsewhere", STOPS, || {
        let written = stopped(process, || {
            if poll::until("all threads to stand still", STOPS, || page.is_left(process.pid))? {
                page.memory.write_all_at(code, page.function)?;
                return Ok(Some(()));
            }
            Ok(None)
        });
        if process.lives() { written } else { Ok(Some(())) }
    })
}

/// Does that while the process stands still.
fn stopped<T>(process: &PodProcess, act: impl FnOnce() -> Result<T>) -> Result<T> {
    process.signal(Signal::STOP)?;
    let done = act();
    process.signal(Signal::CONT)?;
    done
}

/// The page of a process, and the function in it.
#[derive(Debug)]
struct Page {
    memory: File,
    start: u64,
    end: u64,
    /// Its address.
    function: u64,
    /// Its length.
    bytes: u64,
}

impl Page {
    fn of(pid: i32) -> Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("the process has ended")?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"));
        let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
        let (start, end) = range.context("the process has no vDSO")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .context("the process has ended")?;
        let mut image = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut image, start)?;
        let (offset, bytes) =
            find(&image, FUNCTION).with_context(|| format!("the vDSO has no {FUNCTION}"))?;
        Ok(Self {
            memory,
            start,
            end,
            function: start + offset,
            bytes,
        })
    }

    /// Whether no thread is in the page; none while one still runs. See `/proc/PID/syscall` in proc(5): the last word is where a thread is.
    fn is_left(&self, pid: i32) -> Result<Option<bool>> {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let Ok(text) = std::fs::read_to_string(task?.path().join("syscall")) else {
                // The thread has ended.
                continue;
            };
            let word = text.split_whitespace().next_back();
            let Some(place) = word.and_then(|word| word.strip_prefix("0x")) else {
                return Ok(None);
            };
            if (self.start..self.end).contains(&u64::from_str_radix(place, 16)?) {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }
}

/// What takes the function's place: `clock_gettime(clock, time)` by the system call, and seconds added for `CLOCK_REALTIME` and its coarse sister.
fn code(seconds: i64) -> Vec<u8> {
    let mut code = vec![
        0xb8, 0xe4, 0, 0, 0, // mov eax, SYS_clock_gettime
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x75, 0x16, // jne done
        0x85, 0xff, // test edi, edi       CLOCK_REALTIME is 0
        0x74, 0x05, // je add
        0x83, 0xff, 0x05, // cmp edi, 5     CLOCK_REALTIME_COARSE
        0x75, 0x0d, // jne done
        0x48, 0xb9, // add: mov rcx, seconds
    ];
    code.extend(seconds.to_le_bytes());
    code.extend([
        0x48, 0x01, 0x0e, // add [rsi], rcx
        0xc3, // done: ret
    ]);
    code
}

/// Offset and length of a function of a shared object in memory, by its dynamic symbols (elf(5)).
fn find(image: &[u8], name: &str) -> Option<(u64, u64)> {
    const DYNSYM: u64 = 11;
    const SECTION: u64 = 64;
    const SYMBOL: u64 = 24;
    let sections = number::<8>(image, 40)?;
    let section = |index: u64| {
        let at = sections + index * SECTION;
        (index < number::<2>(image, 60)?).then_some(at)
    };
    let table = (0..)
        .map_while(section)
        .find(|at| number::<4>(image, at + 4) == Some(DYNSYM))?;
    let names = section(number::<4>(image, table + 40)?)?;
    let (symbols, bytes) = (number::<8>(image, table + 24)?, number::<8>(image, table + 32)?);
    let names = number::<8>(image, names + 24)?;
    let wanted = |at: &u64| {
        let start = usize::try_from(names + number::<4>(image, *at)?).ok()?;
        let rest = image.get(start..)?;
        Some(rest.strip_prefix(name.as_bytes())?.first()? == &0)
    };
    let symbol = (symbols..symbols + bytes)
        .step_by(SYMBOL as usize)
        .find(|at| wanted(at) == Some(true))?;
    Some((number::<8>(image, symbol + 8)?, number::<8>(image, symbol + 16)?))
}

/// A little-endian number of `N` bytes at that offset.
fn number<const N: usize>(image: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = image.get(at..at.checked_add(N)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}
