//! Failed requests of any service, classified by what the caller should do.

/// What a failed request asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The caller may not: someone has to change a policy.
    Denied,
    /// Too many requests: go slower.
    Throttled,
    /// There is no such thing.
    NotFound,
    /// It is another than it was (If-Match).
    Changed,
    /// The service, or the way to it, is at fault: try again later.
    Unavailable,
    /// It is this one object that can't be had: it is archived, or named as nothing can be.
    Unreadable,
    /// The request is wrong, and will be.
    Wrong,
}

impl FailureKind {
    /// As it stands in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::NotFound => "not_found",
            Self::Changed => "changed",
            Self::Unavailable => "unavailable",
            Self::Unreadable => "unreadable",
            Self::Wrong => "wrong",
        }
    }
}

/// A failed request, told without a credential.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it asks of the caller.
    pub kind: FailureKind,
    /// What the service said, or what happened on the way.
    pub message: String,
}
