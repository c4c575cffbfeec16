//! The answer does not depend on the number of ranks.

use llamero_proto::v1::{FinishReason, PodReport};
use rustix::process::Signal;

use crate::harness::{Worker, all_serve, begin, complete, finish, sampled_story, send, story, turn};

#[tokio::test]
async fn the_text_is_the_same_on_one_two_and_three_ranks() {
    let _turn = turn().await;
    let mut answers = Vec::new();
    for tensor in [1, 2, 3] {
        let worker = Worker::alone(tensor, &[]).await;
        let greedy = complete(&worker, story(48)).await.unwrap();
        let sampled = complete(&worker, sampled_story(48)).await.unwrap();
        assert_eq!(
            (greedy.reason, greedy.output_tokens),
            (Some(FinishReason::Length), 48)
        );
        assert!(
            greedy.text.split_whitespace().count() > 20,
            "no text: {:?}",
            greedy.text
        );
        answers.push((greedy, sampled));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    assert_ne!(answers[0].0.text, answers[0].1.text, "sampling does nothing");
}

/// Several requests at once, so that the stages work on different ones; then a rank of the last stage is killed.
#[tokio::test]
async fn the_text_is_the_same_in_two_stages_also_when_one_is_lost() {
    let _turn = turn().await;
    let requests = || [story(48), sampled_story(48), story(20)];
    let at_once = async |worker: &Worker| {
        let [a, b, c] = requests().map(|request| complete(worker, request));
        let (a, b, c) = tokio::join!(a, b, c);
        [a.unwrap(), b.unwrap(), c.unwrap()]
    };
    let whole = at_once(&Worker::alone(1, &[]).await).await;
    let worker = Worker::alone(2, &["--pipeline", "2"]).await;
    assert_eq!(at_once(&worker).await, whole);

    let before = worker.report_when("all serve", all_serve).await;
    let (head, mut stream) = begin(&worker, story(48), 3).await;
    send(before.ranks[3].pid, Signal::KILL);
    assert_eq!(finish(head, &mut stream).await.unwrap(), whole[0]);
    let after = worker
        .report_when("the last stage is whole again", |report| {
            report.ranks[3].restarts == 1 && all_serve(report)
        })
        .await;
    let pids = |report: &PodReport| [0, 1, 2].map(|rank| report.ranks[rank].pid);
    assert_eq!(pids(&before), pids(&after), "the others keep their processes");
}

#[tokio::test]
async fn an_answer_goes_on_behind_tokens_of_another_group() {
    let _turn = turn().await;
    let worker = Worker::alone(2, &[]).await;
    let whole = complete(&worker, sampled_story(40)).await.unwrap();
    for cut in [1, 17, 39, 40] {
        let mut request = sampled_story(40);
        request.resume_token_ids = whole.token_ids[..cut].to_vec();
        let rest = complete(&worker, request).await.unwrap();
        assert_eq!(rest.token_ids, whole.token_ids[cut..], "cut at {cut}");
        assert!(
            whole.text.ends_with(&rest.text),
            "{:?} is not the end of {:?}",
            rest.text,
            whole.text
        );
        assert_eq!(
            (rest.output_tokens, rest.reason),
            (40, Some(FinishReason::Length))
        );
    }
}
