//! What authenticated links cost.

use std::process::Command;

use serde_json::Value;

use crate::harness::{model_dir, turn};

/// Measurements whose median must be within the bound: others may compute beside one of them.
const TRIES: usize = 3;
/// The share of decode that docs/performance.md allows.
const MOST: f64 = 0.03;

/// Of decode at two ranks over TCP, as `bench` measures it: links as they are beside sealed ones, in the same run.
#[tokio::test]
#[ignore = "measures for half a minute, alone"]
async fn sealed_links_cost_no_more_of_decode_than_their_bound() {
    let _turn = turn().await;
    let mut shares = Vec::new();
    for _ in 0..TRIES {
        let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
            .args(["bench", "--json", "--prefill", "64", "--batch", "2"])
            .arg(model_dir())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let links = &report["links"];
        let (share, most) = (links["sealedShare"].as_f64(), links["most"].as_f64());
        println!("{links}");
        assert_eq!(most, Some(MOST), "the bound of docs/performance.md");
        shares.push(share.unwrap());
    }
    shares.sort_by(f64::total_cmp);
    assert!(
        shares[TRIES / 2] <= MOST,
        "sealed links cost {shares:?} of decode, at most {MOST} are allowed"
    );
}
