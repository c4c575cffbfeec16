//! What authenticated links cost.

use std::process::Command;

use serde_json::Value;

use crate::harness::{model_dir, turn};

/// Measurements of which one must be within the bound: others may compute beside them.
const TRIES: usize = 3;

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
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let links = &report["links"];
        let (share, most) = (links["sealedShare"].as_f64(), links["most"].as_f64());
        println!("{links}");
        assert_eq!(most, Some(0.03), "the bound of the issue");
        if share.unwrap() <= 0.03 {
            return;
        }
        shares.push(share);
    }
    panic!("sealed links cost {shares:?} of decode, at most 0.03 are allowed");
}
