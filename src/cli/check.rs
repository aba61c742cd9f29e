//! `flarelake check`: can this configuration work?

use std::fmt::Write as _;

use super::{End, Settings, output, parts};
use crate::base::store::{Permission, Store};
use crate::config::{self, Source};
use crate::source::bucket;
use crate::source::queue::sqs::SqsQueue;

/// What was found, line by line.
#[derive(Default)]
struct Findings {
    text: String,
    missing: usize,
}

impl Findings {
    /// Rights on `resource`, as a policy names it.
    fn add(&mut self, what: &str, resource: &str, tried: Vec<Permission>) {
        for (action, result) in tried {
            // A folder knows no IAM.
            let action = if what.starts_with("lake ") && !what.starts_with("lake s3://") {
                action.trim_start_matches("s3:")
            } else {
                action
            };
            match result {
                Ok(()) => _ = writeln!(self.text, "ok       {what}: {action}"),
                Err(why) if action.ends_with("DeleteObject") => {
                    let _ = writeln!(
                        self.text,
                        "note     {what}: {action} is not allowed: only upkeep (vacuum) needs it: {why}"
                    );
                }
                Err(why) => {
                    self.missing += 1;
                    let _ = writeln!(self.text, "MISSING  {what}: {action} on {resource}\n         {why}");
                }
            }
        }
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(self.text, "note     {text}");
    }
}

pub async fn run(settings: Settings) -> anyhow::Result<End> {
    // A configuration that can't be read has ended the program before; a route's log type is looked up here.
    parts::routed_log_types(&settings, &settings.config.source)?;
    let mut found = Findings::default();
    let url = settings.config.lake()?;
    let store = Store::open(url, &settings.config.reach()).await?;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    found.add(&format!("lake {url}"), &arn("s3", &format!("{rest}/*")), store.permissions().await);
    if settings.config.source.is_empty() {
        found.note("no [[source]] is configured: backfill works, ingest has nothing to read");
    }
    for source in &settings.config.source {
        check_source(source, &mut found).await;
    }
    let missing = found.missing;
    let _ = match missing {
        0 => writeln!(found.text, "everything is there"),
        _ => writeln!(found.text, "{missing} missing: allow the actions named above, or correct the names"),
    };
    output::say(found.text)?;
    Ok(if missing == 0 { End::Done } else { End::Incomplete })
}

async fn check_source(source: &Source, found: &mut Findings) {
    let id = &source.id;
    match &source.queue {
        Some(url) => {
            let queue = SqsQueue::open(url, &source.aws, config::sqs_has_custom_endpoint()).await;
            let parts: Vec<&str> = url.rsplit('/').take(2).collect();
            let resource = arn("sqs", &format!("…:{}:{}", parts.get(1).unwrap_or(&""), parts[0]));
            found.add(&format!("source {id}: queue {url}"), &resource, queue.permissions().await);
        }
        None => found.note(&format!("source {id}: no queue: ingest reads nothing of it")),
    }
    if source.queue.is_some() && source.buckets.is_empty() {
        found.note(&format!(
            "source {id}: no buckets: whatever its queue announces becomes a reject; records in messages land"
        ));
    }
    let client = source.aws.s3(config::s3_has_custom_endpoint()).await;
    for name in &source.buckets {
        found.add(
            &format!("source {id}: bucket {name}"),
            &format!("{} and /*", arn("s3", name)),
            bucket::permissions(&client, name).await,
        );
    }
}

fn arn(service: &str, resource: &str) -> String {
    if service == "s3" { format!("arn:aws:s3:::{resource}") } else { format!("arn:aws:{service}:{resource}") }
}
