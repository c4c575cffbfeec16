//! The tree again whenever it changes.

use std::{
    fmt::Debug,
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, anyhow};
use futures::{Stream, StreamExt as _, future, pin_mut, stream};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, reflector, reflector::Store, watcher},
};
use llamero_api::{LlamaDeployment, LlamaGroup};
use serde::de::DeserializeOwned;

use super::{named, nothing, rates::Rates, render, tree::Tree};
use crate::{cluster::Cluster, exit::Code, options::StatusArgs, paint::Paint};

/// Between two pictures at least, so that a storm of changes does not flicker.
const LEAST: Duration = Duration::from_millis(250);
/// Between two pictures at most, so that ages move on.
const MOST: Duration = Duration::from_secs(5);

/// Draws until Ctrl-C.
///
/// # Errors
/// The cluster cannot be read any more.
pub async fn run(cluster: &Cluster, args: &StatusArgs, paint: Paint) -> Result<Code> {
    let (deployments, changes) = kept(cluster.api::<LlamaDeployment>(args.all_namespaces));
    let (groups, more) = kept(cluster.api::<LlamaGroup>(args.all_namespaces));
    let changes = stream::select(changes, more);
    pin_mut!(changes);
    let mut screen = Screen::new();
    let mut rates = Rates::default();
    let interrupt = tokio::signal::ctrl_c();
    pin_mut!(interrupt);
    loop {
        let change = tokio::time::timeout(MOST, changes.next());
        match future::select(&mut interrupt, Box::pin(change)).await {
            future::Either::Left(_) => return Ok(Code::Done),
            future::Either::Right((Ok(None), _)) => return Err(anyhow!("the watch has ended")),
            future::Either::Right((Ok(Some(Err(error))), _)) => return Err(hopeless(error)),
            future::Either::Right(_) => {}
        }
        while let Some(Some(change)) = futures::FutureExt::now_or_never(changes.next()) {
            change.map_err(hopeless)?;
        }
        let now = jiff::Timestamp::now().as_millisecond();
        let groups: Vec<LlamaGroup> = state(&groups);
        rates.look(groups.iter(), now);
        let deployments = named(state(&deployments), &args.names).unwrap_or_default();
        let tree = Tree::of(&deployments, &groups);
        let mut text = render::text(&tree, &rates, now, paint);
        if text.is_empty() {
            text = format!("{}\n", nothing(cluster, args.all_namespaces));
        }
        screen.draw(&text)?;
        let pause = tokio::time::sleep(LEAST);
        if let future::Either::Left(_) = future::select(&mut interrupt, Box::pin(pause)).await {
            return Ok(Code::Done);
        }
    }
}

fn hopeless(error: watcher::Error) -> anyhow::Error {
    anyhow!("cannot watch: {error}; do you have the right to watch llamadeployments and llamagroups?")
}

fn state<K>(store: &Store<K>) -> Vec<K>
where
    K: reflector::Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    store
        .state()
        .iter()
        .map(|object| K::clone(object))
        .collect::<Vec<K>>()
}

type Change = Result<(), watcher::Error>;

/// A store that follows the API server, and its changes. Lost connections are taken up again; what is forbidden is an error.
fn kept<K>(api: Api<K>) -> (Store<K>, impl Stream<Item = Change> + Send)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    let (store, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default()).default_backoff();
    let changes = reflector(writer, changes).filter_map(|event| {
        future::ready(match event {
            Ok(_) => Some(Ok(())),
            Err(error) if forbidden(&error) => Some(Err(error)),
            Err(_) => None,
        })
    });
    (store, changes)
}

fn forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    matches!(status.code, 401 | 403 | 404)
}

/// Where pictures are drawn: one over the other on a terminal, else one after the other when they differ.
struct Screen {
    terminal: bool,
    last: Arc<str>,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            last: Arc::from(""),
        }
    }

    fn draw(&mut self, text: &str) -> io::Result<()> {
        if *self.last == *text {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.terminal {
            // Home, each line to its end, and what is left of the picture before: nothing flickers.
            let lines = text.replace('\n', "\x1b[K\n");
            let clear = if self.last.is_empty() { "\x1b[2J" } else { "" };
            write!(out, "{clear}\x1b[H{lines}\x1b[J")?;
        } else {
            let gap = if self.last.is_empty() { "" } else { "\n" };
            write!(out, "{gap}{text}")?;
        }
        out.flush()?;
        self.last = Arc::from(text);
        Ok(())
    }
}
