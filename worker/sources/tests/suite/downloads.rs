//! Downloads, with everything that goes wrong on the way.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use llamero_checkpoint::Progress;
use llamero_fake_hub::{COMMIT, FakeHub, Faults, REPOSITORY, files};
use llamero_sources::{FetchError, Hub, Origin, Patience, Repository};

/// As the program's, without its pauses.
const QUICK: Patience = Patience {
    attempts: 6,
    first: Duration::from_millis(1),
    most: Duration::from_millis(5),
    silence: Duration::from_secs(20),
};

const WANTED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model-1.safetensors",
    "model-2.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn repository(revision: &str) -> Repository {
    Repository {
        name: REPOSITORY.to_owned(),
        revision: revision.to_owned(),
    }
}

async fn pull_with(
    server: &FakeHub,
    patience: Patience,
    token: Option<&str>,
    folder: &Path,
) -> anyhow::Result<Progress> {
    let hub = Hub::new(&server.endpoint, token, patience)?;
    let listing = hub.list(&repository("main")).await?;
    assert_eq!(listing.commit.as_deref(), Some(COMMIT));
    let mut last = Progress::default();
    Origin::Hub(hub)
        .pull(&listing, folder, &mut |progress| last = progress)
        .await?;
    Ok(last)
}

async fn pull(server: &FakeHub, folder: &Path) -> anyhow::Result<Progress> {
    pull_with(server, QUICK, None, folder).await
}

/// The folder has the wanted files, whole, and nothing else.
fn assert_whole(folder: &Path) {
    let there: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, WANTED.iter().map(|&name| name.to_owned()).collect());
    for (name, bytes) in files().iter().filter(|(name, _)| there.contains(*name)) {
        assert!(
            std::fs::read(folder.join(name)).unwrap() == *bytes,
            "{name} differs"
        );
    }
}

#[tokio::test]
async fn a_checkpoint_arrives_whole_and_the_token_stays_at_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let token = Some("hf_secret".to_owned());
    let server = FakeHub::start(
        files(),
        Faults {
            token: token.clone(),
            ..Faults::default()
        },
    );
    let progress = pull_with(&server, QUICK, token.as_deref(), dir.path())
        .await
        .unwrap();
    assert_eq!((progress.done, progress.total), (500_000, 500_000));
    assert_whole(dir.path());
    let log = server.log();
    assert!(log.iter().any(|asked| !asked.at_hub), "{log:?}");
    for asked in log {
        assert_eq!(asked.token.is_some(), asked.at_hub, "{asked:?}");
    }
}

#[tokio::test]
async fn cut_connections_are_gone_on_with_where_they_were_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(
        files(),
        Faults {
            cuts: vec![0, 1000, 150_000, 99_999, 1],
            ..Faults::default()
        },
    );
    pull(&server, dir.path()).await.unwrap();
    assert_whole(dir.path());
    let later: Vec<usize> = server.log().iter().filter_map(|asked| asked.from).collect();
    assert!(
        later.iter().any(|&from| from > 1),
        "nothing was gone on with: {later:?}"
    );
}

#[tokio::test]
async fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(files(), Faults::default());
    let once = Patience { attempts: 1, ..QUICK };
    // The tokenizer comes first and whole.
    server.faults().cuts = vec![70_000, 60_000, 100_000];
    let error = pull_with(&server, once, None, dir.path())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("run the same command to go on"), "{error}");
    server.faults().cuts.clear();
    let before = server.log().len();
    pull_with(&server, once, None, dir.path()).await.unwrap();
    assert_whole(dir.path());
    let log = server.log();
    let later: Vec<_> = log[before..]
        .iter()
        .filter(|asked| !asked.at_hub && asked.from.is_some())
        .collect();
    assert!(!later.is_empty(), "{:?}", &log[before..]);
    assert!(
        !log[before..]
            .iter()
            .any(|asked| asked.path.contains("tokenizer.json")),
        "it was whole already"
    );
}

#[tokio::test]
async fn a_server_without_ranges_or_sizes_serves_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(
        files(),
        Faults {
            no_ranges: true,
            bare: true,
            cuts: vec![150_000],
            ..Faults::default()
        },
    );
    pull(&server, dir.path()).await.unwrap();
    assert_whole(dir.path());
}

#[tokio::test]
async fn a_wrong_byte_is_fetched_again_and_never_kept() {
    let dir = tempfile::tempdir().unwrap();
    for bare in [false, true] {
        let server = FakeHub::start(
            files(),
            Faults {
                wrong: 1,
                bare,
                ..Faults::default()
            },
        );
        let folder = dir.path().join(if bare { "bare" } else { "full" });
        pull(&server, &folder).await.unwrap();
        assert_whole(&folder);
    }
    let server = FakeHub::start(
        files(),
        Faults {
            wrong: usize::MAX,
            ..Faults::default()
        },
    );
    let folder = dir.path().join("damaged");
    let error = pull(&server, &folder).await.unwrap_err().to_string();
    assert!(error.contains("arrived damaged"), "{error}");
    assert!(!folder.join("tokenizer.json").exists());
}

#[tokio::test]
async fn what_passes_is_waited_for_and_what_stays_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(
        files(),
        Faults {
            busy: 3,
            expired: 2,
            ..Faults::default()
        },
    );
    pull(&server, dir.path()).await.unwrap();
    assert_whole(dir.path());

    server.faults().busy = usize::MAX;
    let error = pull(&server, dir.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("429") && error.contains("tried 6 times"),
        "{error}"
    );
    assert_eq!(usize::MAX - server.faults().busy, 6);

    server.faults().busy = 0;
    server.faults().circle = true;
    let other = dir.path().join("circle");
    let error = pull(&server, &other).await.unwrap_err().to_string();
    assert!(
        error.contains("redirects for ever") && !error.contains("secret"),
        "{error}"
    );
}

#[tokio::test]
async fn a_silent_server_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(
        files(),
        Faults {
            silent: 1,
            ..Faults::default()
        },
    );
    let patience = Patience {
        silence: Duration::from_millis(500),
        ..QUICK
    };
    pull_with(&server, patience, None, dir.path()).await.unwrap();
    assert_whole(dir.path());
    server.faults().silent = usize::MAX;
    let other = dir.path().join("silent");
    let impatient = Patience {
        attempts: 2,
        ..patience
    };
    let error = pull_with(&server, impatient, None, &other)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("it takes too long"), "{error}");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_are_not_tried_again() {
    let refusal = async |faults: Faults, token: Option<&str>, revision: &str, part: &str| {
        let server = FakeHub::start(files(), faults);
        let hub = Hub::new(&server.endpoint, token, QUICK).unwrap();
        let error = hub.list(&repository(revision)).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
        assert!(error.is_final(), "{error}");
        assert_eq!(server.log().len(), 1);
    };
    let private = || Faults {
        token: Some("right".to_owned()),
        ..Faults::default()
    };
    refusal(private(), None, "main", "give a token by HF_TOKEN").await;
    refusal(private(), Some("wrong"), "main", "the token is valid").await;
    let gated = Faults {
        gated: true,
        ..Faults::default()
    };
    refusal(
        gated,
        Some("right"),
        "main",
        "accept its terms at http://localhost",
    )
    .await;
    refusal(Faults::default(), None, "v2", "but not this revision").await;

    let server = FakeHub::start(files(), Faults::default());
    let hub = Hub::new(&server.endpoint, None, QUICK).unwrap();
    assert_eq!(
        hub.list(&repository("v1/0")).await.unwrap().commit.as_deref(),
        Some(COMMIT)
    );
    let other = Repository {
        name: "org/other".to_owned(),
        revision: "main".to_owned(),
    };
    let error = hub.list(&other).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_is_no_llama_is_refused_before_its_weights_are_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files();
    files.insert(
        "config.json".to_owned(),
        br#"{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}"#.to_vec(),
    );
    let server = FakeHub::start(files, Faults::default());
    let error = pull(&server, dir.path()).await.unwrap_err();
    assert!(
        error
            .downcast_ref()
            .is_some_and(|error| matches!(error, FetchError::Checkpoint(_))),
        "{error}"
    );
    assert!(!server.log().iter().any(|asked| asked.path.contains("model-1")));
}

#[tokio::test]
async fn one_file_is_fetched_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeHub::start(files(), Faults::default());
    let hub = Hub::new(&server.endpoint, None, QUICK).unwrap();
    let listing = hub.list(&repository(COMMIT)).await.unwrap();
    let file = listing.gguf("small.gguf").unwrap();
    Origin::Hub(hub)
        .pull_file(&listing, &file, dir.path(), &mut |_| {})
        .await
        .unwrap();
    assert!(std::fs::read(dir.path().join("small.gguf")).unwrap() == files()["small.gguf"]);
    let error = listing.gguf("big.gguf").unwrap_err().to_string();
    assert!(error.contains("there are small.gguf"), "{error}");
}
