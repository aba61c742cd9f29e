//! What every queue has to do, whatever it is made of: the same contract for the one in memory and for SQS'
//! wire.

use crate::memory_queue::MemoryQueue;
use std::time::Duration;

use flarelake::source::queue::{BATCH, Entry, Queue};

/// `send` sends a body; the queue's visibility timeout is two seconds.
pub async fn keeps_the_contract<S: AsyncFn(String)>(queue: &dyn Queue, send: S) {
    let soon = Duration::from_secs(1);
    assert_eq!(queue.visibility_timeout().await.expect("told"), Duration::from_secs(2));
    assert_eq!(
        queue.receive(Duration::ZERO).await.expect("an answer").len(),
        0,
        "an empty queue has nothing"
    );

    // Received messages are hidden, and come again when the lease ends, under another receipt.
    send("first".into()).await;
    let first = queue.receive(soon).await.expect("an answer").remove(0);
    assert_eq!((first.body.as_str(), first.receives), ("first", 1));
    assert!(first.sent.is_some_and(|at| at > 1_700_000_000_000_000), "sent at {:?}", first.sent);
    assert_eq!(
        queue.receive(Duration::ZERO).await.expect("an answer").len(),
        0,
        "a received message is hidden"
    );
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let again = queue.receive(soon).await.expect("an answer").remove(0);
    assert_eq!((again.id.as_str(), again.receives), (first.id.as_str(), 2));
    assert_ne!(again.receipt, first.receipt);

    // An extended lease holds beyond its first end.
    let receipt = [again.receipt.clone()];
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(queue.hide(&receipt, Duration::from_secs(3)).await.expect("an answer"), [Entry::Done]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(queue.receive(Duration::ZERO).await.expect("an answer").len(), 0, "the lease was extended");

    // Zero gives it back at once.
    assert_eq!(queue.hide(&receipt, Duration::ZERO).await.expect("an answer"), [Entry::Done]);
    let back = queue.receive(soon).await.expect("an answer").remove(0);
    assert_eq!(back.id, first.id);

    // Deletes tell entry by entry what became of them.
    let answers = queue.delete(&[back.receipt.clone(), "nobody's".into()]).await.expect("an answer");
    assert_eq!(answers[0], Entry::Done);
    assert_ne!(answers[1], Entry::Done, "a receipt that is nobody's deletes nothing");
    assert_eq!(
        queue.hide(&[back.receipt], soon).await.expect("an answer"),
        [Entry::Lost],
        "a deleted message has no lease"
    );

    // More than ten at a time, in order.
    for n in 0..25 {
        send(format!("many {n}")).await;
    }
    let mut many = Vec::new();
    while many.len() < 25 {
        let batch = queue.receive(soon).await.expect("an answer");
        assert!((1..=10).contains(&batch.len()), "{} in a batch", batch.len());
        many.extend(batch);
    }
    let receipts: Vec<String> = many.into_iter().map(|m| m.receipt).collect();
    for batch in receipts.chunks(BATCH) {
        assert_eq!(
            queue.hide(batch, Duration::from_secs(20)).await.expect("an answer"),
            vec![Entry::Done; batch.len()]
        );
        assert_eq!(queue.delete(batch).await.expect("an answer"), vec![Entry::Done; batch.len()]);
    }
    tokio::time::sleep(Duration::from_millis(2300)).await;
    assert_eq!(queue.receive(Duration::ZERO).await.expect("an answer").len(), 0, "deleted messages are gone");
}

#[tokio::test]
async fn a_queue_in_memory_keeps_the_contract() {
    let queue = MemoryQueue::new("contract", Duration::from_secs(2));
    keeps_the_contract(&queue, async |body| queue.send(body)).await;
}
