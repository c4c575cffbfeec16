//! The process's driver.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::config::Config;
use super::error::{Code, Error, Result, error, fail};
use super::log::complain;
use super::mapping::Mapping;
use super::memory::Allocations;
use super::module::{Function, Loaded};
use super::nccl::Communicator;
use super::stream::{Capture, Event, Stream};
use super::vmm::Shareable;
use super::work::Work;

/// Everything behind the exported functions.
pub(super) struct Driver {
    pub(super) config: Config,
    tables: Mutex<Tables>,
    /// Launches so far, for faults and `%gridid`.
    pub(super) launches: AtomicU64,
    /// Allocations so far.
    pub(super) allocations: AtomicU64,
}

/// What handles stand for.
pub(super) struct Tables {
    pub(super) memory: Allocations,
    pub(super) contexts: HashMap<u64, Context>,
    pub(super) streams: HashMap<u64, Arc<Stream>>,
    pub(super) events: HashMap<u64, Event>,
    pub(super) modules: HashMap<u64, Arc<Loaded>>,
    pub(super) functions: HashMap<u64, Function>,
    pub(super) captures: HashMap<u64, Capture>,
    /// Graphs, and executable ones.
    pub(super) graphs: HashMap<u64, Arc<Vec<Work>>>,
    pub(super) shareable: HashMap<u64, Shareable>,
    pub(super) communicators: HashMap<u64, Arc<Communicator>>,
    /// Reserved ranges of addresses.
    pub(super) reservations: BTreeMap<u64, Arc<Mapping>>,
    next: u64,
}

/// The primary context of a device, the only kind there is here.
pub(super) struct Context {
    pub(super) device: usize,
    pub(super) references: u32,
    /// After a fault every call fails with it until the context is gone.
    pub(super) sticky: Option<Error>,
    /// Devices whose memory it may reach.
    pub(super) peers: u64,
    pub(super) default_stream: u64,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

thread_local! {
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Start the driver, once.
pub(super) fn initialise() -> Result<()> {
    let config = match Config::from_environment() {
        Ok(config) => config,
        Err(reason) => fail!(InvalidValue, "{reason}"),
    };
    DRIVER.get_or_init(|| Driver {
        tables: Mutex::new(Tables {
            memory: Allocations::new(config.devices),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            shareable: HashMap::new(),
            communicators: HashMap::new(),
            reservations: BTreeMap::new(),
            next: 0x10_000,
        }),
        config,
        launches: AtomicU64::new(0),
        allocations: AtomicU64::new(0),
    });
    Ok(())
}

/// The driver.
pub(super) fn driver() -> Result<&'static Driver> {
    DRIVER
        .get()
        .ok_or_else(|| error(Code::NotInitialized, "cuInit was not called"))
}

/// A lock whose holder may have panicked; the tables are changed in single steps, so they are whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// Check a device's number.
    pub(super) fn device(&self, device: i32) -> Result<usize> {
        match usize::try_from(device) {
            Ok(device) if device < self.config.devices => Ok(device),
            _ => fail!(InvalidDevice, "device {device} of {}", self.config.devices),
        }
    }

    /// The calling thread's context and its device, if no fault has stuck to it.
    pub(super) fn current(&self) -> Result<(u64, usize)> {
        let Some(handle) = current() else {
            fail!(InvalidContext, "the thread has no current context");
        };
        Ok((handle, self.healthy(handle)?))
    }

    /// The device of a context, if no fault has stuck to it.
    pub(super) fn healthy(&self, context: u64) -> Result<usize> {
        match self.tables().contexts.get(&context) {
            Some(Context {
                sticky: Some(error), ..
            }) => Err(error.clone()),
            Some(context) => Ok(context.device),
            None => fail!(ContextIsDestroyed, "context {context:#x} is gone"),
        }
    }

    /// A fault sticks to a context.
    pub(super) fn stick(&self, context: u64, error: &Error) {
        complain("fault", &error.reason);
        if let Some(context) = self.tables().contexts.get_mut(&context) {
            context.sticky.get_or_insert_with(|| error.clone());
        }
    }

    /// A stream by its handle; 0 to 2 are the default streams.
    pub(super) fn stream(&self, handle: u64) -> Result<Arc<Stream>> {
        let (context, _) = self.current()?;
        let tables = self.tables();
        let handle = match handle {
            0..=2 => tables
                .contexts
                .get(&context)
                .map_or(0, |context| context.default_stream),
            handle => handle,
        };
        match tables.streams.get(&handle) {
            Some(stream) => Ok(stream.clone()),
            None => fail!(InvalidHandle, "{handle:#x} is no stream"),
        }
    }

    /// Make a context on a device, with its default stream.
    pub(super) fn make_context(&self, device: usize) -> u64 {
        let mut tables = self.tables();
        let (handle, default_stream) = (tables.handle(), tables.handle());
        let stream = Arc::new(Stream::new(handle, device));
        tables.streams.insert(default_stream, stream);
        tables.contexts.insert(
            handle,
            Context {
                device,
                references: 1,
                sticky: None,
                peers: 0,
                default_stream,
            },
        );
        handle
    }
}

impl Driver {
    /// The primary context of a device. `retain`: make it where it is not there, and count one more user.
    pub(super) fn primary(&self, device: usize, retain: bool) -> Result<u64> {
        let found = {
            let mut tables = self.tables();
            let found = tables
                .contexts
                .iter_mut()
                .find(|(_, context)| context.device == device);
            found.map(|(handle, context)| {
                context.references += u32::from(retain);
                *handle
            })
        };
        match found {
            Some(handle) => Ok(handle),
            None if retain => Ok(self.make_context(device)),
            None => fail!(InvalidContext, "device {device} has no primary context"),
        }
    }

    /// Give up one use of a context, or all. With the last one its streams, modules and device memory go.
    pub(super) fn release_context(&self, handle: u64, all: bool) -> Result<()> {
        let mut tables = self.tables();
        let Some(context) = tables.contexts.get_mut(&handle) else {
            fail!(InvalidContext, "{handle:#x} is no context");
        };
        context.references -= 1;
        if context.references > 0 && !all {
            return Ok(());
        }
        let device = context.device;
        tables.contexts.remove(&handle);
        tables.streams.retain(|_, stream| stream.context != handle);
        tables.modules.retain(|_, module| module.device != device);
        tables
            .functions
            .retain(|_, function| function.loaded.device != device);
        tables.memory.forget(device);
        Ok(())
    }
}

impl Tables {
    /// A handle that was never used.
    pub(super) fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }
}

/// The thread's current context.
pub(super) fn current() -> Option<u64> {
    CURRENT
        .with_borrow(|stack| stack.last().copied())
        .filter(|handle| *handle != 0)
}

/// Replace the thread's current context; none for 0.
pub(super) fn set_current(context: u64) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.push(context);
    });
}

/// Contexts that a thread stacks up, at most.
const DEPTH: usize = 64;

pub(super) fn push(context: u64) -> Result<()> {
    CURRENT.with_borrow_mut(|stack| {
        if stack.len() == DEPTH {
            fail!(InvalidValue, "{DEPTH} contexts are stacked up");
        }
        stack.push(context);
        Ok(())
    })
}

pub(super) fn pop() -> Result<u64> {
    match CURRENT.with_borrow_mut(Vec::pop) {
        Some(context) => Ok(context),
        None => fail!(InvalidContext, "the thread has no current context"),
    }
}
