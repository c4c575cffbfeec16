//! Loading and unloading adapters while the group serves.

use std::time::Instant;

use llamero_checkpoint::ContentIdentity;

use super::{End, Leader};
use crate::runtime::adapters::{AdapterError, AdapterReply};
use crate::runtime::executor::Executor;

impl Leader<'_> {
    /// Let every rank read an adapter; steps go on meanwhile.
    pub(super) fn load_adapter(
        &mut self,
        executor: Option<&mut Executor>,
        name: String,
        path: String,
        reply: AdapterReply,
    ) -> Result<(), End> {
        let now = Instant::now();
        if self.context.is_draining() {
            reply(Err(AdapterError::Unavailable("this group is draining".into())));
            return Ok(());
        }
        let Some(executor) = executor.filter(|executor| executor.capacity().is_some()) else {
            reply(Err(AdapterError::Unavailable("the group has not formed".into())));
            return Ok(());
        };
        match self.planner.adapters_mut().number(name, path) {
            Ok(source) => {
                let until = now + self.config.form_timeout;
                self.planner.adapters_mut().begin(source.clone(), until, reply);
                executor.load_adapter(source, now)?;
            }
            Err(error) => reply(Err(error)),
        }
        Ok(())
    }

    /// A rank has read an adapter, or cannot.
    pub(super) fn adapter_answered(
        &mut self,
        executor: &mut Executor,
        rank: u32,
        number: u32,
        outcome: Result<ContentIdentity, String>,
    ) -> Result<(), End> {
        let given_up = self.planner.adapters_mut().answered(rank, number, outcome);
        self.forget(executor, given_up)
    }

    /// Give up an adapter that takes too long.
    pub(super) fn check_adapters(&mut self, executor: &mut Executor) -> Result<(), End> {
        let given_up = self.planner.adapters_mut().check(Instant::now());
        self.forget(executor, given_up)
    }

    fn forget(&self, executor: &mut Executor, number: Option<u32>) -> Result<(), End> {
        match number {
            Some(number) => Ok(executor.unload_adapter(number, Instant::now())?),
            None => Ok(()),
        }
    }

    /// Forget an adapter that no request uses.
    pub(super) fn unload_adapter(
        &mut self,
        executor: Option<&mut Executor>,
        name: &str,
        reply: AdapterReply,
    ) -> Result<(), End> {
        let Some(info) = self.planner.adapters().get(name).cloned() else {
            reply(Err(AdapterError::Unknown(name.to_owned())));
            return Ok(());
        };
        let requests = self.planner.requests_of(info.number);
        if requests > 0 {
            let name = info.name;
            reply(Err(AdapterError::InUse { name, requests }));
            return Ok(());
        }
        self.planner.adapters_mut().remove(info.number);
        // Ranks that form later are not told of it.
        if let Some(executor) = executor {
            executor.unload_adapter(info.number, Instant::now())?;
        }
        reply(Ok(info));
        Ok(())
    }

    /// A rank that has joined cannot read an adapter: requests for it fail, rather than being answered without it.
    pub(super) fn lose_adapter(
        &mut self,
        executor: &mut Executor,
        number: u32,
        why: &str,
    ) -> Result<(), End> {
        if let Some(info) = self.planner.adapters_mut().remove(number) {
            tracing::error!(adapter = %info.name, "the adapter is unloaded, since it is not on every rank: {why}");
            let message = format!("the adapter {} was lost: {why}", info.name);
            self.planner.fail_adapter(number, &message);
            executor.unload_adapter(number, Instant::now())?;
        }
        Ok(())
    }
}
