//! Streams and graphs.

use std::ffi::c_void;
use std::sync::Arc;

use super::{Out, calls};
use crate::driver::error::{Code, Result, error, fail};
use crate::driver::state::driver;
use crate::driver::stream::Stream;
use crate::driver::work::{HostCall, Work};

fn create() -> Result<u64> {
    let driver = driver()?;
    let (context, device) = driver.current()?;
    let mut tables = driver.tables();
    let handle = tables.handle();
    tables
        .streams
        .insert(handle, Arc::new(Stream::new(context, device)));
    Ok(handle)
}

/// A second handle of the graph, whose work may be launched.
fn instantiate(graph: u64) -> Result<u64> {
    let driver = driver()?;
    let mut tables = driver.tables();
    let Some(work) = tables.graphs.get(&graph).cloned() else {
        fail!(InvalidHandle, "{graph:#x} is no graph");
    };
    let handle = tables.handle();
    tables.graphs.insert(handle, work);
    Ok(handle)
}

fn destroy_graph(graph: u64) -> Result<()> {
    match driver()?.tables().graphs.remove(&graph) {
        Some(_) => Ok(()),
        None => fail!(InvalidHandle, "{graph:#x} is no graph"),
    }
}

calls! {
    fn cuStreamCreate(stream: Out<u64>, _flags: u32) {
        stream.set(create()?)
    }

    fn cuStreamCreateWithPriority(stream: Out<u64>, _flags: u32, _priority: i32) {
        stream.set(create()?)
    }

    fn cuStreamDestroy_v2(handle: u64) {
        let driver = driver()?;
        let stream = driver.stream(handle)?;
        let drained = driver.drain(&stream, u64::MAX);
        driver.tables().streams.remove(&handle);
        drained
    }

    fn cuStreamSynchronize(stream: u64) {
        let driver = driver()?;
        driver.synchronise(&driver.stream(stream)?)
    }

    // Each question lets the stream get one piece of work done, so that polling ends.
    fn cuStreamQuery(stream: u64) {
        let driver = driver()?;
        let stream = driver.stream(stream)?;
        driver.not_capturing(&stream, "asking a stream")?;
        if stream.idle() {
            return Ok(());
        }
        driver.step(&stream, u64::MAX)?;
        Err(error(Code::NotReady, "work is left"))
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) {
        let driver = driver()?;
        let stream = driver.stream(stream)?;
        let event = driver.event(event)?;
        driver.wait_event(&stream, &event)
    }

    fn cuStreamBeginCapture_v2(handle: u64, _mode: u32) {
        let driver = driver()?;
        driver.begin_capture(handle, &driver.stream(handle)?)
    }

    fn cuStreamEndCapture(handle: u64, graph: Out<u64>) {
        let driver = driver()?;
        graph.set(driver.end_capture(handle, &driver.stream(handle)?)?)
    }

    fn cuStreamIsCapturing(stream: u64, status: Out<u32>) {
        let driver = driver()?;
        status.set(u32::from(driver.stream(stream)?.capture().is_some()))
    }

    fn cuLaunchHostFunc(stream: u64, function: Option<extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let driver = driver()?;
        let stream = driver.stream(stream)?;
        match function {
            Some(function) => driver.enqueue(&stream, Work::Host(HostCall { function, data })),
            None => fail!(InvalidValue, "the function is null"),
        }
    }

    fn cuGraphInstantiateWithFlags(exec: Out<u64>, graph: u64, _flags: u64) {
        exec.set(instantiate(graph)?)
    }

    fn cuGraphLaunch(exec: u64, stream: u64) {
        let driver = driver()?;
        driver.launch_graph(exec, &driver.stream(stream)?)
    }

    fn cuGraphUpload(_exec: u64, stream: u64) {
        driver()?.stream(stream).map(|_| ())
    }

    fn cuGraphDestroy(graph: u64) {
        destroy_graph(graph)
    }

    fn cuGraphExecDestroy(exec: u64) {
        destroy_graph(exec)
    }
}
