//! Frames between ranks. Whoever makes them must stand on the wire and speak the handshake, so tests of engine and worker try it, over real sockets.

use anyhow::{Context, Result, ensure};
use llamero_tests::paths;

use super::attempts::Section;

const FORGERIES: &str = "worker/engine/src/mesh/forgery_tests.rs";
const HANDSHAKES: &str = "worker/engine/src/mesh/handshake_tests.rs";
const PROCESSES: &str = "worker/server/tests/processes/faults.rs";

/// What is tried, where its test lies, its name, and what comes of it.
const HELD: [(&str, &str, &str, &str); 9] = [
    (
        "a replayed frame",
        FORGERIES,
        "replayed_reordered_and_missing_frames_end_the_link",
        "the link ends",
    ),
    (
        "frames in another order, or one left out",
        FORGERIES,
        "replayed_reordered_and_missing_frames_end_the_link",
        "the link ends",
    ),
    (
        "records of one frame that change places",
        FORGERIES,
        "records_of_a_large_frame_cannot_change_places",
        "the link ends",
    ),
    (
        "a frame that is cut off",
        FORGERIES,
        "a_frame_that_is_cut_off_is_never_taken_for_a_whole_one",
        "the link ends",
    ),
    (
        "a frame of another generation, epoch or key",
        FORGERIES,
        "frames_of_another_era_or_key_end_the_link",
        "the link ends",
    ),
    (
        "an abort that blames a rank",
        FORGERIES,
        "a_forged_abort_blames_nobody",
        "the link ends, and nobody is blamed",
    ),
    (
        "a handshake without the group's key",
        HANDSHAKES,
        "a_stranger_learns_nothing_and_ends_nothing",
        "closed, with no word of the group",
    ),
    (
        "connections that say nothing",
        HANDSHAKES,
        "silent_strangers_keep_no_peer_out",
        "closed, and peers still get in",
    ),
    (
        "openings with another key at a group that serves, and Hellos for later eras behind such",
        PROCESSES,
        "strangers_on_a_rank_port_disturb_nobody",
        "closed; the group's era and its stream go on, byte for byte",
    ),
];

/// Each is held by a test, which must be there.
pub(super) fn all() -> Result<Section> {
    let mut section = Section::new(
        "Frames between ranks",
        "Held by tests of engine and worker over real sockets, which run with every change; this run checks that they are there.",
    );
    for (what, file, name, answer) in HELD {
        let text = std::fs::read_to_string(paths::root().join(file)).with_context(|| format!("no {file}"))?;
        ensure!(
            text.contains(&format!("::test]\nasync fn {name}()"))
                || text.contains(&format!("#[test]\nfn {name}()")),
            "{file} has no test {name}"
        );
        section.add(what, format!("rank, 18100: `{name}`"), answer);
    }
    Ok(section)
}
