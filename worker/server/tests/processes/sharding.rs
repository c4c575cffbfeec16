//! The answer does not depend on the number of ranks.

use llamero_proto::v1::FinishReason;

use crate::harness::{Worker, complete, sampled_story, story, turn};

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
