//! SQS.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    MessageSystemAttributeName, QueueAttributeName,
};
use url::Url;

use super::{BATCH, Entry, Message, Queue, QueueError};
use crate::base::aws::Access;
use crate::base::failure::{Failure, FailureKind};
use crate::base::store::Permission;

/// The longest that SQS hides a message.
const MOST_SECONDS: u64 = 43_200;
const RECEIVE: &str = "sqs:ReceiveMessage";
const DELETE: &str = "sqs:DeleteMessage";
const HIDE: &str = "sqs:ChangeMessageVisibility";
const ATTRIBUTES: &str = "sqs:GetQueueAttributes";

#[derive(Debug)]
pub struct SqsQueue {
    url: String,
    client: Client,
}

impl SqsQueue {
    /// A queue by its URL. `custom_endpoint`: the environment names another address than AWS's.
    pub async fn open(url: &str, access: &Access, custom_endpoint: bool) -> Self {
        let parsed = Url::parse(url).ok();
        let host = parsed.as_ref().and_then(Url::host_str).unwrap_or_default();
        let at_aws = host.contains(".amazonaws.com");
        // The address of other buckets is none of a queue of AWS.
        let access = Access { endpoint: access.endpoint.clone().filter(|_| !at_aws), ..access.clone() };
        let config = access.resolve(region_of(host)).await;
        let mut builder = aws_sdk_sqs::config::Builder::from(&config);
        if !at_aws && !custom_endpoint && access.endpoint.is_none() {
            // Not AWS, and nobody says where: where its URL is.
            builder =
                builder.endpoint_url(parsed.map_or_else(String::new, |u| u.origin().ascii_serialization()));
        }
        Self::new(url, Client::from_conf(builder.build()))
    }

    /// A queue by its URL, over a client that is there already.
    pub fn new(url: &str, client: Client) -> Self {
        Self { url: url.to_owned(), client }
    }

    fn failed<E>(&self, doing: &'static str) -> impl Fn(E) -> QueueError + '_
    where
        Failure: for<'a> From<&'a E>,
    {
        move |error| QueueError { queue: self.url.clone(), doing, failure: Failure::from(&error) }
    }

    async fn receive_up_to(&self, most: usize, wait: Duration) -> Result<Vec<Message>, QueueError> {
        let request = self.client.receive_message().queue_url(&self.url).max_number_of_messages(most as i32);
        let request = request
            // Whole seconds, and none is another kind of poll: it asks few of the queue's servers.
            .wait_time_seconds(wait.as_millis().div_ceil(1000).min(20) as i32)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let answer = request.send().await.map_err(self.failed(RECEIVE))?;
        let message = |m: aws_sdk_sqs::types::Message| {
            let number = |name| m.attributes.as_ref().and_then(|a| a.get(&name)?.parse::<i64>().ok());
            Message {
                sent: number(MessageSystemAttributeName::SentTimestamp).map(|ms| ms * 1000),
                receives: number(MessageSystemAttributeName::ApproximateReceiveCount).unwrap_or(1) as u32,
                id: m.message_id.unwrap_or_default(),
                receipt: m.receipt_handle.unwrap_or_default(),
                body: m.body.unwrap_or_default(),
            }
        };
        Ok(answer.messages.unwrap_or_default().into_iter().map(message).collect())
    }

    /// Tries each right that reading the queue needs, by IAM action. A message that it receives is given back
    /// at once.
    pub async fn permissions(&self) -> Vec<Permission> {
        let told = |error: QueueError| error.failure.to_string();
        let attributes = self.visibility_timeout().await.map(drop).map_err(told);
        let received = match self.receive_up_to(1, Duration::ZERO).await {
            Ok(messages) => {
                let receipts: Vec<String> = messages.into_iter().map(|m| m.receipt).collect();
                // Whether that is allowed is found out below.
                let _ = self.hide(&receipts, Duration::ZERO).await;
                Ok(())
            }
            Err(error) => Err(told(error)),
        };
        // A receipt that is nobody's: whoever may ask is told that it is no good.
        let receipt = "AQEB-flarelake-check".to_owned();
        let deleted = self.client.delete_message().queue_url(&self.url).receipt_handle(&receipt).send().await;
        let hidden = self
            .client
            .change_message_visibility()
            .queue_url(&self.url)
            .receipt_handle(&receipt)
            .visibility_timeout(0);
        let hidden = hidden.send().await;
        let asked = |result: Result<(), Failure>| match result {
            Err(failure) if failure.kind == FailureKind::Wrong => Ok(()),
            other => other.map_err(|f| f.to_string()),
        };
        vec![
            (ATTRIBUTES, attributes),
            (RECEIVE, received),
            (DELETE, asked(deleted.map(drop).map_err(|e| Failure::from(&e)))),
            (HIDE, asked(hidden.map(drop).map_err(|e| Failure::from(&e)))),
        ]
    }
}

/// `sqs.eu-west-1.amazonaws.com`, or the older `eu-west-1.queue.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    let (before, _) = host.split_once(".amazonaws.com")?;
    before.strip_prefix("sqs.").or_else(|| before.strip_suffix(".queue"))
}

/// What became of each entry of a batch, by what the answer says of some.
fn entries(count: usize, failed: Vec<BatchResultErrorEntry>) -> Vec<Entry> {
    let mut failed: HashMap<String, BatchResultErrorEntry> =
        failed.into_iter().map(|f| (f.id.clone(), f)).collect();
    let entry = |n: usize| match failed.remove(&n.to_string()) {
        None => Entry::Done,
        Some(f) if is_lost(f.code()) => Entry::Lost,
        Some(f) => Entry::Failed(format!("{}: {}", f.code, f.message.unwrap_or_default())),
    };
    (0..count).map(entry).collect()
}

fn is_lost(code: &str) -> bool {
    // Also in the older protocol's spelling, and for a message that was deleted meanwhile.
    ["ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"]
        .iter()
        .any(|lost| code.contains(lost))
}

#[async_trait]
impl Queue for SqsQueue {
    fn url(&self) -> &str {
        &self.url
    }

    async fn visibility_timeout(&self) -> Result<Duration, QueueError> {
        let name = QueueAttributeName::VisibilityTimeout;
        let request = self.client.get_queue_attributes().queue_url(&self.url).attribute_names(name.clone());
        let answer = request.send().await.map_err(self.failed(ATTRIBUTES))?;
        let seconds = answer.attributes().and_then(|a| a.get(&name)).and_then(|text| text.parse().ok());
        Ok(Duration::from_secs(seconds.unwrap_or(30)))
    }

    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        self.receive_up_to(BATCH, wait).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<Vec<Entry>, QueueError> {
        let mut request = self.client.delete_message_batch().queue_url(&self.url);
        for (n, receipt) in receipts.iter().enumerate() {
            let entry =
                DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(receipt).build();
            request = request.entries(entry.expect("id and receipt are set"));
        }
        let answer = request.send().await.map_err(self.failed(DELETE))?;
        Ok(entries(receipts.len(), answer.failed))
    }

    async fn hide(&self, receipts: &[String], timeout: Duration) -> Result<Vec<Entry>, QueueError> {
        let seconds = timeout.as_secs().min(MOST_SECONDS) as i32;
        let mut request = self.client.change_message_visibility_batch().queue_url(&self.url);
        for (n, receipt) in receipts.iter().enumerate() {
            let entry =
                ChangeMessageVisibilityBatchRequestEntry::builder().id(n.to_string()).receipt_handle(receipt);
            request =
                request.entries(entry.visibility_timeout(seconds).build().expect("id and receipt are set"));
        }
        let answer = request.send().await.map_err(self.failed(HIDE))?;
        Ok(entries(receipts.len(), answer.failed))
    }
}
