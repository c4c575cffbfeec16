//! Modules: PTX, its variables in device memory, and its functions.

use std::sync::Arc;

use super::config::Config;
use super::device::{self, DEFAULT_SHARED, REGISTERS_PER_THREAD};
use super::error::{Result, fail};
use super::memory::Allocations;
use crate::ptx::{Kernel, Module, Variable, parse};

/// A module on a device.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) device: usize,
    pub(super) module: Module,
    /// Name, address and size.
    pub(super) variables: Vec<(String, u64, u64)>,
}

impl Loaded {
    /// Load PTX text.
    pub(super) fn new(text: &str, device: usize, config: &Config, memory: &mut Allocations) -> Result<Self> {
        let mut variables = Vec::new();
        let mut failed = None;
        let mut place = |variable: &Variable| match place(variable, device, config, memory) {
            Ok(address) => {
                variables.push((variable.name.clone(), address, variable.size as u64));
                address
            }
            Err(error) => {
                failed.get_or_insert(error);
                0
            }
        };
        let parsed = parse(text, &mut place);
        let loaded = Self {
            device,
            module: match parsed {
                Ok(module) => module,
                Err(error) => fail!(InvalidPtx, "{error}"),
            },
            variables,
        };
        match failed {
            Some(error) => Err(error),
            None => loaded.check_target(config),
        }
    }

    /// PTX runs on its target and later ones; PTX for `sm_90a` on 9.0 alone.
    fn check_target(self, config: &Config) -> Result<Self> {
        let (major, minor) = config.capability;
        let (have, want) = (10 * major + minor, self.module.target);
        let fits = if self.module.exact_target {
            have == want
        } else {
            have >= want
        };
        if !fits {
            fail!(
                NoBinaryForGpu,
                "the module is made for sm_{want}, the device is sm_{have}"
            );
        }
        Ok(self)
    }

    /// Give back the variables' memory.
    pub(super) fn unload(&self, memory: &mut Allocations) {
        for (_, address, _) in &self.variables {
            // It was allocated by this module, so it can only be there.
            let _ = memory.free(*address);
        }
    }
}

fn place(variable: &Variable, device: usize, config: &Config, memory: &mut Allocations) -> Result<u64> {
    let size = variable.size.max(1) as u64;
    let address = memory.allocate(device, size, config.memory)?;
    let mut bytes = variable.initial.clone();
    bytes.resize(size as usize, 0);
    // SAFETY: the memory was just allocated with this size, and nobody knows its address yet.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    Ok(address)
}

/// A kernel of a module, with the limits that were set for it.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) loaded: Arc<Loaded>,
    pub(super) index: usize,
    /// Most dynamic shared memory of a launch.
    pub(super) dynamic_shared: u32,
}

impl Function {
    pub(super) fn new(loaded: Arc<Loaded>, index: usize) -> Self {
        let fixed = loaded.module.kernels[index].shared_bytes as u32;
        Self {
            loaded,
            index,
            dynamic_shared: DEFAULT_SHARED.saturating_sub(fixed),
        }
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.loaded.module.kernels[self.index]
    }

    pub(super) fn max_threads(&self) -> u32 {
        self.kernel().max_threads.unwrap_or(1024).min(1024)
    }

    /// `CUfunction_attribute` to its value. Numbers as in `cuda.h`.
    pub(super) fn attribute(&self, attribute: u32, config: &Config) -> Result<i32> {
        let kernel = self.kernel();
        Ok(match attribute {
            0 => self.max_threads() as i32,
            1 => kernel.shared_bytes as i32,
            2 | 7 => 0,
            3 => kernel.local_bytes as i32,
            4 => REGISTERS_PER_THREAD as i32,
            5 => self.loaded.module.target as i32,
            6 => (10 * config.capability.0 + config.capability.1) as i32,
            8 => self.dynamic_shared as i32,
            9 => -1,
            other => fail!(
                InvalidValue,
                "the emulator does not know function attribute {other}"
            ),
        })
    }

    /// Set one of the attributes that can be set.
    pub(super) fn set_attribute(&mut self, attribute: u32, value: i32, config: &Config) -> Result<()> {
        let most = device::limits(config.capability).shared_per_block;
        let fixed = self.kernel().shared_bytes as u32;
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) if bytes + fixed <= most => self.dynamic_shared = bytes,
            (8, _) => fail!(
                InvalidValue,
                "{value} bytes of dynamic shared memory; with {fixed} static ones {most} are there"
            ),
            // How shared memory and L1 divide their bytes is not modelled.
            (9, _) => {}
            (other, _) => fail!(InvalidValue, "function attribute {other} cannot be set"),
        }
        Ok(())
    }
}
