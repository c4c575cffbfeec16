//! Events.

use super::{Out, calls};
use crate::driver::error::{Code, Result, error, fail};
use crate::driver::state::{Driver, driver, lock};
use crate::driver::stream::Event;

impl Driver {
    /// An event by its handle.
    pub(super) fn event(&self, handle: u64) -> Result<Event> {
        match self.tables().events.get(&handle) {
            Some(event) => Ok(event.clone()),
            None => fail!(InvalidHandle, "{handle:#x} is no event"),
        }
    }
}

fn elapsed(start: u64, end: u64) -> Result<f32> {
    let driver = driver()?;
    let [start, end] = [driver.event(start)?, driver.event(end)?].map(|event| *lock(&event.mark));
    match (start, end) {
        (Some(start), Some(end)) => Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3),
        _ => Err(error(Code::NotReady, "an event was not reached")),
    }
}

calls! {
    fn cuEventCreate(event: Out<u64>, _flags: u32) {
        let driver = driver()?;
        driver.current()?;
        let mut tables = driver.tables();
        let handle = tables.handle();
        tables.events.insert(handle, Event::default());
        event.set(handle)
    }

    fn cuEventDestroy_v2(event: u64) {
        match driver()?.tables().events.remove(&event) {
            Some(_) => Ok(()),
            None => fail!(InvalidHandle, "{event:#x} is no event"),
        }
    }

    fn cuEventRecord(event: u64, stream: u64) {
        let driver = driver()?;
        driver.record(event, &driver.stream(stream)?)
    }

    fn cuEventSynchronize(event: u64) {
        let driver = driver()?;
        driver.wait_host(&driver.event(event)?)
    }

    // Each question lets the event's stream get one piece of work done, so that polling ends.
    fn cuEventQuery(event: u64) {
        let driver = driver()?;
        let event = driver.event(event)?;
        if event.complete() {
            return Ok(());
        }
        if let Some((stream, upto)) = &event.recorded {
            driver.step(stream, *upto)?;
        }
        Err(error(Code::NotReady, "work is left"))
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) {
        milliseconds.set(elapsed(start, end)?)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) {
        milliseconds.set(elapsed(start, end)?)
    }
}
