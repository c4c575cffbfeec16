//! `backends`: what this program can compute on, on this machine.

use llamero_cpu::Kernel;
use llamero_cuda::{device, probe};

/// Print a line for each backend: what there is, or why not.
pub fn backends() {
    println!("cpu   {}", Kernel::detect().numerics_class());
    match probe::driver() {
        Err(absent) => println!("cuda  not usable: {absent}"),
        Ok(driver) => match device::devices(driver) {
            Err(error) => println!("cuda  not usable: {error}"),
            Ok(devices) if devices.is_empty() => println!("cuda  not usable: the NVIDIA driver shows no GPU"),
            Ok(devices) => {
                for device in devices {
                    let (major, minor) = device.capability;
                    println!(
                        "cuda  {} {}, compute capability {major}.{minor}, {} bytes",
                        device.name, device.uuid, device.memory
                    );
                }
            }
        },
    }
}
