//! Access to AWS and what speaks its protocols: the standard credential chain, another account's role, and
//! errors classified by what the caller should do.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::clock;
use super::failure::{Failure, FailureKind};
use async_trait::async_trait;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::config::ProvideCredentials as _;
use aws_sdk_sqs::config::SharedCredentialsProvider;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::retry::RetryConfig;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use serde::Deserialize;
use tokio::sync::Mutex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// To an answer's first byte: longer than the longest poll.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Before an error is given to the caller, who backs off more slowly.
const ATTEMPTS: u32 = 3;
/// What signatures name where nothing tells the region: what stores other than AWS expect.
const DEFAULT_REGION: &str = "us-east-1";

/// How to reach an account; what is not said comes from the standard environment and profile chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// A profile of the AWS configuration files: for credentials of its own.
    pub profile: Option<String>,
    /// A role to take on.
    pub role_arn: Option<String>,
    /// What that role's trust policy asks for.
    pub external_id: Option<String>,
    pub region: Option<String>,
    /// Another address than AWS's, `http://` or `https://`: of its buckets, and of a queue whose URL is not
    /// AWS's.
    pub endpoint: Option<String>,
}

impl Access {
    /// The SDK's settings. `region`: used where neither these settings nor the environment name one.
    pub async fn resolve(&self, region: Option<&str>) -> SdkConfig {
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(ANSWER_TIMEOUT).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
        // A region that is known is not asked for: on a machine outside AWS the asking takes seconds.
        if let Some(region) = self.region.as_deref().or(region) {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(profile) = &self.profile {
            // Said so, and not by default: before the environment's credentials.
            let provider = ProfileFileCredentialsProvider::builder().profile_name(profile).build();
            loader = loader.profile_name(profile).credentials_provider(provider);
        }
        let mut config = loader.load().await;
        if config.region().is_none() {
            config = config.into_builder().region(Region::from_static(DEFAULT_REGION)).build();
        }
        if let Some(role) = &self.role_arn {
            let mut provider = AssumeRoleProvider::builder(role).session_name("flarelake").configure(&config);
            if let Some(id) = &self.external_id {
                provider = provider.external_id(id);
            }
            let credentials = SharedCredentialsProvider::new(provider.build().await);
            config = config.into_builder().credentials_provider(credentials).build();
        }
        // After the role, which is asked for where roles are.
        match &self.endpoint {
            Some(endpoint) => config.into_builder().endpoint_url(endpoint).build(),
            None => config,
        }
    }

    /// A client for the account's buckets. `custom_endpoint`: whether the environment names another address
    /// than AWS's.
    pub async fn s3(&self, custom_endpoint: bool) -> aws_sdk_s3::Client {
        let config = self.resolve(None).await;
        let config = aws_sdk_s3::config::Builder::from(&config)
            // Other stores have no host name for each bucket.
            .force_path_style(custom_endpoint || self.endpoint.is_some())
            .response_checksum_validation(aws_sdk_s3::config::ResponseChecksumValidation::WhenRequired)
            .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired);
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

impl<E: ProvideErrorMetadata + Error + 'static> From<&SdkError<E, HttpResponse>> for Failure {
    fn from(error: &SdkError<E, HttpResponse>) -> Self {
        if let Some(credentials) = chain(error).find_map(|cause| cause.downcast_ref::<CredentialsError>()) {
            return no_credentials(credentials);
        }
        let status = error.raw_response().map_or(0, |r| r.status().as_u16());
        let Some(code) = error.as_service_error().and_then(|e| e.code()) else {
            let kind = match status {
                401 | 403 => FailureKind::Denied,
                404 => FailureKind::NotFound,
                412 => FailureKind::Changed,
                429 | 503 => FailureKind::Throttled,
                300..=499 => FailureKind::Wrong,
                _ => FailureKind::Unavailable,
            };
            let status = if status > 0 { format!("HTTP {status}: ") } else { String::new() };
            return Self { kind, message: status + &innermost(error) };
        };
        let message = error.as_service_error().and_then(|e| e.message()).unwrap_or("no message");
        Self { kind: kind_of(code, status), message: format!("{code}: {message}") }
    }
}

impl Failure {
    /// One that the body of an answer brought.
    pub fn on_the_way(error: &(dyn Error + 'static)) -> Self {
        Self { kind: FailureKind::Unavailable, message: innermost(error) }
    }
}

fn kind_of(code: &str, status: u16) -> FailureKind {
    // SQS' older protocol puts a name space before its codes.
    match code.rsplit('.').next().unwrap_or(code) {
        "AccessDenied"
        | "AccessDeniedException"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidClientTokenId"
        | "InvalidSecurity"
        | "InvalidToken"
        | "AllAccessDisabled"
        | "UnrecognizedClientException"
        | "KMS.AccessDeniedException" => FailureKind::Denied,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "KmsThrottled"
        | "OverLimit" => FailureKind::Throttled,
        "NoSuchKey" | "NoSuchBucket" | "NoSuchVersion" | "NonExistentQueue" | "QueueDoesNotExist"
        | "NotFound" => FailureKind::NotFound,
        "PreconditionFailed" => FailureKind::Changed,
        "InvalidObjectState" | "InvalidRequest" | "InvalidArgument" | "InvalidURI" | "KeyTooLongError" => {
            FailureKind::Unreadable
        }
        _ if status == 403 => FailureKind::Denied,
        // A redirect says that the region or the endpoint is another.
        _ if (300..500).contains(&status) => FailureKind::Wrong,
        _ => FailureKind::Unavailable,
    }
}

/// An error, and what caused it, and so on.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The last cause in a chain of errors: the ones before it say that something failed, this one what.
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn no_credentials(error: &CredentialsError) -> Failure {
    // Nothing is configured, or who should give them did not: that may pass.
    let kind = match error {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            FailureKind::Denied
        }
        _ => FailureKind::Unavailable,
    };
    let mut told: Vec<String> = chain(error).map(ToString::to_string).collect();
    told.dedup();
    Failure {
        kind,
        message: format!(
            "no AWS credentials: {}; look at AWS_PROFILE, AWS_ACCESS_KEY_ID or the role",
            told.join(": ")
        ),
    }
}

/// Credentials without an end are asked for again after this: another program may have renewed them.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// The standard credential chain for the lake's store.
#[derive(Debug)]
pub struct ChainCredentials {
    provider: SharedCredentialsProvider,
    held: Mutex<Option<(Arc<AwsCredential>, SystemTime)>>,
}

impl ChainCredentials {
    /// Of resolved settings; none if these are without credentials.
    pub fn new(config: &SdkConfig) -> Option<Self> {
        Some(Self { provider: config.credentials_provider()?, held: Mutex::default() })
    }
}

#[async_trait]
impl CredentialProvider for ChainCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut held = self.held.lock().await;
        let now = clock::system_time();
        if let Some((credential, _)) = held.as_ref().filter(|(_, until)| now < *until) {
            return Ok(credential.clone());
        }
        let found = self.provider.provide_credentials().await;
        let found = found.map_err(|e| object_store::Error::Generic {
            store: "S3",
            source: no_credentials(&e).message.into(),
        })?;
        let until = found.expiry().map_or(now + ASK_AGAIN, |end| end - ASK_AGAIN);
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *held = Some((credential.clone(), until));
        Ok(credential)
    }
}
