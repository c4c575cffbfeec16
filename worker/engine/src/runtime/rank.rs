//! One rank from start to end: load, then lead or follow.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::config::{RankConfig, Wrap};
use super::control::{RankControl, Shared};
use super::follower::Follower;
use super::handle::EngineHandle;
use super::input::Input;
use super::leader::Leader;
use super::load::LoadCell;
use super::state::{Outcome, Phase};
use crate::backend::{Backend, BackendError};
use crate::mesh::{Inbox, Listener};

/// One rank of a group.
pub struct RankRuntime<B: Backend> {
    backend: B,
    wrap: Wrap<B>,
    config: RankConfig,
    listener: Listener,
    shared: Arc<Shared>,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    load: Arc<LoadCell>,
}

impl<B: Backend> RankRuntime<B> {
    /// A rank that listens on `socket` for its peers. Nothing is loaded before [`Self::run`].
    ///
    /// # Errors
    /// The operating system's word.
    pub fn new(backend: B, wrap: Wrap<B>, config: RankConfig, socket: TcpListener) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new(
            config.rank,
            config.numerics.clone(),
            config.model.clone(),
        ));
        let listener = Listener::start(socket, Arc::clone(&inbox))?;
        let (sender, inputs) = mpsc::channel();
        let shared = Arc::new(Shared::new(inbox, sender.clone()));
        Ok(Self {
            backend,
            wrap,
            config,
            listener,
            shared,
            inputs,
            sender,
            load: Arc::default(),
        })
    }

    /// Where peers reach this rank.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Form, drain, stop, and the state.
    #[must_use]
    pub fn control(&self) -> RankControl {
        RankControl {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The way to the queue; of use on rank 0 only.
    #[must_use]
    pub fn engine(&self) -> EngineHandle {
        EngineHandle::new(
            self.sender.clone(),
            Arc::clone(&self.load),
            Arc::clone(&self.shared),
        )
    }

    /// Load the weights, then serve until drained, told to leave, or stopped. Lost peers do not end it.
    ///
    /// # Errors
    /// [`BackendError`] when the weights cannot be loaded.
    pub fn run(mut self) -> Result<Outcome, BackendError> {
        let shared = &self.shared;
        shared.state.phase(Phase::Loading, "");
        let read = &self.config.read_bytes;
        let loaded = self.backend.load(&mut |progress| {
            shared.state.update(|state| {
                state.loaded = progress.loaded;
                state.total = progress.total;
                state.read_bytes = read.load(Ordering::Relaxed);
            });
        });
        if let Err(error) = loaded {
            shared.state.explain(&error.to_string());
            return Err(error);
        }
        shared
            .state
            .update(|state| state.read_bytes = read.load(Ordering::Relaxed));
        shared.inbox.set_ready(None);
        shared.state.phase(Phase::Connecting, "");
        let outcome = if self.config.rank == 0 {
            let (backend, wrap, config) = (&mut self.backend, &self.wrap, &self.config);
            Leader::new(
                backend,
                wrap,
                config,
                shared,
                &self.inputs,
                Arc::clone(&self.load),
            )
            .run()
        } else {
            let (backend, wrap, config) = (&mut self.backend, &self.wrap, &self.config);
            Follower {
                backend,
                wrap,
                config,
                shared,
            }
            .run()
        };
        self.backend.dissolve();
        Ok(outcome)
    }
}
