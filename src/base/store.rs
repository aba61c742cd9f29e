//! A lake's or a bucket's URL to an object store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode};
use url::Url;

use super::aws::{Access, ChainCredentials};
use super::clock::Clock;
use super::durable::{self, DurableFileSystem};

/// Puts of one new key at once, of which one may win.
const RACERS: usize = 8;
/// Races that one alone has to win.
const RACES: usize = 3;
/// Races that are run, if some tell nothing because an answer was lost.
const MOST_RACES: usize = 8;

/// Long enough for a file of a few dozen MB on a slow line; a connection that hangs longer is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a folder and not a URL of a known kind.
    #[error("`{url}` is neither a folder nor an s3:// URL: {why}")]
    Url {
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store's settings are wrong.
    #[error("can't set up access to {url}: {source}; look at [store] and the AWS_* environment variables")]
    Settings { url: String, source: object_store::Error },
    #[error("{doing} {url}: {source}")]
    Request { doing: &'static str, url: String, source: object_store::Error },
    /// Two writers could overwrite each other's commits.
    #[error(
        "{url} lets two writers create the same key: it has no conditional put (If-None-Match), so nothing can land there exactly once; use a store that has it, such as AWS S3, MinIO or R2"
    )]
    Unguarded { url: String },
}

/// An object store and the place in it that a URL names.
#[derive(Debug, Clone)]
pub struct Store {
    /// Rooted at the bucket, or at `/`.
    pub objects: Arc<dyn ObjectStore>,
    /// Ends in `/`.
    pub url: Url,
    /// The URL's path in `objects`.
    pub root: Path,
    /// This machine's.
    pub clock: Clock,
}

/// How a lake on S3 is reached, and what its objects are encrypted with.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    pub access: Access,
    /// `aws:kms`, `aws:kms:dsse` or `AES256`; none leaves it to the bucket.
    pub encryption: Option<String>,
    /// The key of KMS; none is the account's own.
    pub kms_key_id: Option<String>,
    /// The AWS_* variables.
    pub environment: Vec<(String, String)>,
}

impl Reach {
    async fn builder(&self, bucket: String) -> AmazonS3Builder {
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        let mut endpoint = None;
        for (name, value) in &self.environment {
            let Ok(key) = name.to_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
            if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) {
                endpoint = Some(value.as_str());
            }
            builder = builder.with_config(key, value);
        }
        let resolved = self.access.resolve(None).await;
        if let Some(credentials) = ChainCredentials::new(&resolved) {
            builder = builder.with_credentials(Arc::new(credentials));
        }
        if let Some(region) = resolved.region() {
            builder = builder.with_region(region.as_ref());
        }
        if let Some(own) = &self.access.endpoint {
            (builder, endpoint) = (builder.with_endpoint(own), Some(own.as_str()));
        }
        for (name, value) in
            [("aws_server_side_encryption", &self.encryption), ("aws_sse_kms_key_id", &self.kms_key_id)]
        {
            if let (Ok(key), Some(value)) = (name.parse::<AmazonS3ConfigKey>(), value) {
                builder = builder.with_config(key, value);
            }
        }
        let plain_http = endpoint.is_some_and(|e| e.starts_with("http://"));
        let client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(plain_http);
        builder.with_client_options(client)
    }
}

/// What came of a race of puts.
enum Race {
    /// One has won, and every other was told so.
    One,
    /// More than one has won.
    Several,
    /// Nothing was put.
    None(object_store::Error),
    /// Who has won is not known.
    Unknown(object_store::Error),
}

impl Store {
    /// Opens `file:///…`, `s3://bucket/prefix`, or a bare path, which may not exist yet.
    pub async fn open(url: &str, reach: &Reach) -> Result<Self, StoreError> {
        if url.starts_with("s3://") || url.starts_with("s3a://") {
            return Self::open_s3(url, reach).await;
        }
        Self::open_folder(url)
    }

    fn open_folder(url: &str) -> Result<Self, StoreError> {
        let wrong = |why: &str| StoreError::Url { url: url.to_owned(), why: why.to_owned() };
        let path = match url.strip_prefix("file://") {
            Some(_) => Url::parse(url)
                .ok()
                .and_then(|u| u.to_file_path().ok())
                .ok_or_else(|| wrong("not a file path"))?,
            None if url.contains("://") => return Err(wrong("unknown scheme")),
            None if url.is_empty() => return Err(wrong("it is empty")),
            None => PathBuf::from(url),
        };
        let absolute = std::path::absolute(&path).map_err(|e| wrong(&e.to_string()))?;
        // A lake reached over a link is the same lake.
        let absolute = absolute.canonicalize().unwrap_or(absolute);
        if absolute.exists() && !absolute.is_dir() {
            return Err(wrong("it is a file"));
        }
        let text = absolute.to_str().ok_or_else(|| wrong("the path is not UTF-8"))?;
        if text.contains('\\') || percent_escaped(text) {
            // Readers decode a table's path once more than it was encoded.
            return Err(wrong(
                "readers of Delta tables can't reach a path with a backslash, or with % and two hex digits; use another folder",
            ));
        }
        let url = Url::from_directory_path(&absolute).map_err(|()| wrong("not a folder's path"))?;
        let root = Path::from_absolute_path(&absolute).map_err(|e| wrong(&e.to_string()))?;
        Ok(Self { objects: Arc::new(DurableFileSystem::new()), url, root, clock: Clock::system() })
    }

    async fn open_s3(text: &str, reach: &Reach) -> Result<Self, StoreError> {
        let wrong = |why: &str| StoreError::Url { url: text.to_owned(), why: why.to_owned() };
        let mut url = Url::parse(&text.replacen("s3a://", "s3://", 1)).map_err(|e| wrong(&e.to_string()))?;
        let bucket =
            url.host_str().filter(|b| !b.is_empty()).ok_or_else(|| wrong("it names no bucket"))?.to_owned();
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let root = Path::from_url_path(url.path()).map_err(|e| wrong(&e.to_string()))?;
        let objects = reach
            .builder(bucket)
            .await
            .build()
            .map_err(|source| StoreError::Settings { url: text.to_owned(), source })?;
        Ok(Self { objects: Arc::new(objects), url, root, clock: Clock::system() })
    }

    /// Makes sure that of puts of one new key, however many at once, one wins: what every commit relies on. A
    /// store that looks first and puts then would pass if they came one after the other.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let failed = |doing, source| StoreError::Request { doing, url: self.url.to_string(), source };
        let (mut won, mut last) = (0, None);
        for _ in 0..MOST_RACES {
            match self.race().await {
                Race::One => won += 1,
                Race::Several => return Err(StoreError::Unguarded { url: self.url.to_string() }),
                Race::None(error) => return Err(failed("can't write to", error)),
                Race::Unknown(error) => last = Some(error),
            }
            if won == RACES {
                return Ok(());
            }
        }
        let nothing =
            || object_store::Error::Generic { store: "probe", source: "no race was told the end of".into() };
        Err(failed("can't probe", last.unwrap_or_else(nothing)))
    }

    async fn race(&self) -> Race {
        let key = self.root.clone().join(format!("_probe-{}", super::new_uuid()));
        let puts = (0..RACERS).map(|_| self.objects.put_opts(&key, "probe".into(), PutMode::Create.into()));
        let answers = futures::future::join_all(puts).await;
        let won = answers.iter().filter(|answer| answer.is_ok()).count();
        let (exists, errors): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .filter_map(Result::err)
            .partition(|e| matches!(e, object_store::Error::AlreadyExists { .. }));
        if won + exists.len() > 0 {
            // A writer needs no right to delete; the probe is a few bytes, and no reader sees it.
            self.objects
                .delete(&key)
                .await
                .unwrap_or_else(|e| tracing::debug!(%key, error = %e, "the probe's key stays"));
        }
        match (won, errors.into_iter().next()) {
            (2.., _) => Race::Several,
            (1, None) => Race::One,
            (0, Some(error)) if exists.is_empty() => Race::None(error),
            // A put that failed may have won. If none has won, one did whose answer was lost, and met its own
            // key when it was repeated.
            (_, Some(error)) => Race::Unknown(error),
            (_, None) => exists.into_iter().next().map_or(Race::One, Race::Unknown),
        }
    }

    /// Puts a key that only this process knows.
    async fn put_new(&self, key: &Path) -> object_store::Result<()> {
        match self.objects.put_opts(key, "probe".into(), PutMode::Create.into()).await {
            // Nobody else writes it: the answer to a first try was lost.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// What time it is by the store: when it says that a key was written which is put just now. In
    /// microseconds since the epoch.
    pub async fn now_micros(&self) -> Result<i64, StoreError> {
        let failed = |source| StoreError::Request {
            doing: "can't ask the time of",
            url: self.url.to_string(),
            source,
        };
        let key = self.root.clone().join(format!("_probe-{}", super::new_uuid()));
        self.put_new(&key).await.map_err(failed)?;
        let written = self.objects.head(&key).await;
        self.objects
            .delete(&key)
            .await
            .unwrap_or_else(|e| tracing::debug!(%key, error = %e, "the probe's key stays"));
        Ok(written.map_err(failed)?.last_modified.timestamp_micros())
    }

    /// Removes files of a local lake that were begun before a time, in microseconds since the epoch, and
    /// never finished. Listings don't show them. How many.
    pub async fn remove_unfinished(&self, before: i64, dry_run: bool) -> std::io::Result<u64> {
        let Ok(folder) = self.url.to_file_path() else { return Ok(0) };
        let task = tokio::task::spawn_blocking(move || durable::remove_unfinished(&folder, before, dry_run));
        task.await.map_err(std::io::Error::other)?
    }
}

/// A right, by its IAM action, and whether it is there.
pub type Permission = (&'static str, Result<(), String>);

impl Store {
    /// Tries each right that a writer needs, on a key of its own. `s3:DeleteObject` comes last: only upkeep
    /// needs it.
    pub async fn permissions(&self) -> Vec<Permission> {
        let key = self.root.clone().join(format!("_probe-{}", super::new_uuid()));
        let told = |e: object_store::Error| e.to_string();
        let put = self.put_new(&key).await.map_err(told);
        let mut tried = vec![("s3:PutObject", put.clone())];
        if put.is_ok() {
            tried.push(("put-if-absent (If-None-Match)", self.probe().await.map_err(|e| e.to_string())));
            tried.push(("s3:GetObject", self.objects.get(&key).await.map(drop).map_err(told)));
        }
        let listed = self.objects.list_with_delimiter(Some(&self.root)).await;
        tried.push(("s3:ListBucket", listed.map(drop).map_err(told)));
        if put.is_ok() {
            tried.push(("s3:DeleteObject", self.objects.delete(&key).await.map_err(told)));
        }
        tried
    }
}

/// Whether the text holds what looks like a percent-encoded byte.
fn percent_escaped(text: &str) -> bool {
    text.as_bytes().windows(3).any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit())
}
