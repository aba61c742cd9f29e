//! Why a record or an object could not become rows.

/// The fixed codes of `classification_failures.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    InvalidJson,
    InvalidUtf8,
    /// The line or the object ends inside the record.
    Incomplete,
    /// JSON, but not an object.
    NotAnObject,
    /// No JSON at all: a table, a log of another form, a file of another format.
    ForeignFormat,
    /// Larger than `limits.max_record`.
    RecordTooLarge,
    /// Nested deeper than `limits.max_depth`.
    TooDeep,
    /// No log type matches its fields.
    Unclassified,
    /// More than one log type matches its fields.
    Ambiguous,
    /// The log type's required time is missing, null or empty.
    MissingEventTime,
    /// The required time can't be read.
    InvalidEventTime,
    /// The required time is before 2010, after 2099, or more than a day after the object was written.
    ImplausibleEventTime,
    /// The object's compression is broken or ends early.
    CorruptCompression,
    /// The object inflates to more than `limits.max_object`.
    ObjectTooLarge,
    /// The object inflates by more than `limits.max_ratio`.
    InflateRatio,
    /// A message announced the object, and it is not there.
    Missing,
    /// A message announced an object of a bucket that its source doesn't list: it was not fetched.
    ForeignBucket,
    /// A notification that doesn't say what it has to.
    InvalidMessage,
}

impl Reason {
    pub const ALL: [Self; 18] = [
        Self::InvalidJson,
        Self::InvalidUtf8,
        Self::Incomplete,
        Self::NotAnObject,
        Self::ForeignFormat,
        Self::RecordTooLarge,
        Self::TooDeep,
        Self::Unclassified,
        Self::Ambiguous,
        Self::MissingEventTime,
        Self::InvalidEventTime,
        Self::ImplausibleEventTime,
        Self::CorruptCompression,
        Self::ObjectTooLarge,
        Self::InflateRatio,
        Self::Missing,
        Self::ForeignBucket,
        Self::InvalidMessage,
    ];

    /// The reason of a code.
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The code as it stands in the table.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Incomplete => "incomplete_record",
            Self::NotAnObject => "not_an_object",
            Self::ForeignFormat => "foreign_format",
            Self::RecordTooLarge => "record_too_large",
            Self::TooDeep => "too_deep",
            Self::Unclassified => "unclassified",
            Self::Ambiguous => "ambiguous",
            Self::MissingEventTime => "missing_event_time",
            Self::InvalidEventTime => "invalid_event_time",
            Self::ImplausibleEventTime => "implausible_event_time",
            Self::CorruptCompression => "corrupt_compression",
            Self::ObjectTooLarge => "object_too_large",
            Self::InflateRatio => "inflate_ratio",
            Self::Missing => "missing",
            Self::ForeignBucket => "foreign_bucket",
            Self::InvalidMessage => "invalid_message",
        }
    }
}

/// A record, or a whole object, that becomes no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub reason: Reason,
    /// What exactly is wrong, for a person.
    pub message: String,
    /// The log type that the record was tried as.
    pub log_type: Option<String>,
    /// Byte offset in the inflated object; none for a whole object.
    pub offset: Option<u64>,
    /// Length in bytes; none for a whole object.
    pub length: Option<u64>,
    /// The raw bytes, cut at 1 MiB; none for a whole object, which stays where it is.
    pub payload: Option<Vec<u8>>,
}
