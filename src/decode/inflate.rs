//! Stored bytes to record bytes: gzip with any number of members, zstd, or plain, told by the first bytes
//! and by nothing else.
//!
//! Two ways in: [`Inflater::whole`] for the objects that fit into memory, as nearly all do, and
//! [`Inflater::stream`] for the others. Both check every checksum, and both refuse what inflates too far.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::reject::Reason;

/// Below this size nothing is called a bomb: short logs repeat themselves a lot.
const RATIO_FLOOR: u64 = 16 << 20;

/// The window that every reader of zstd has to allow, and the largest that this one ever does.
const ZSTD_LEAST_WINDOW: u64 = 8 << 20;
const ZSTD_MOST_WINDOW: u64 = 128 << 20;

/// How an object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
    /// As it is.
    Plain,
}

impl Encoding {
    /// Told by the first four bytes.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct ObjectLimits {
    /// Inflated bytes.
    pub max_object: u64,
    /// Inflated bytes for each stored byte, once the object is beyond 16 MiB.
    pub max_ratio: u64,
    /// Bytes of what came before that zstd data may refer to, which have to be held for that.
    pub max_window: u64,
}

/// Why an object's bytes can't be had.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// The checksum is wrong, the data ends early, or something else follows it.
    #[error("the {encoding} data is broken: {what}")]
    Corrupt {
        /// gzip or zstd.
        encoding: &'static str,
        what: String,
    },
    /// More bytes than `limits.max_object`.
    #[error("it inflates to more than {limit} bytes (limits.max_object)")]
    TooLarge { limit: u64 },
    /// More bytes for each stored byte than `limits.max_ratio`.
    #[error("it inflates more than {limit} times (limits.max_ratio)")]
    Ratio { limit: u64 },
    /// zstd data that refers further back than `ObjectLimits::max_window`.
    #[error(
        "its zstd window is larger than a worker has memory for; raise `memory`, or compress it without --long"
    )]
    Window,
    /// Reading failed: says nothing about the object.
    #[error("reading failed: {0}")]
    Read(io::Error),
}

impl InflateError {
    /// The reject's code; none if the object itself is not to blame.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Corrupt { .. } => Some(Reason::CorruptCompression),
            Self::TooLarge { .. } | Self::Window => Some(Reason::ObjectTooLarge),
            Self::Ratio { .. } => Some(Reason::InflateRatio),
            Self::Read(_) => None,
        }
    }

    /// What an error of a decoding reader means.
    fn of(error: io::Error, encoding: &'static str) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            // The library has no other name for it.
            Err(error) if encoding == "zstd" && error.to_string().contains("too much memory") => Self::Window,
            Err(error) => Self::Corrupt { encoding, what: error.to_string() },
        }
    }
}

/// Inflates whole objects; its buffer is used for one after the other.
pub struct Inflater {
    limits: ObjectLimits,
    /// Objects that inflate to more are for [`stream`](Self::stream).
    whole_max: usize,
    buffer: Vec<u8>,
    gzip: gzip::Decompressor,
}

impl Inflater {
    /// An inflater that holds at most `whole_max` inflated bytes.
    pub fn new(limits: ObjectLimits, whole_max: usize) -> Self {
        Self { limits, whole_max, buffer: Vec::new(), gzip: gzip::Decompressor::new() }
    }

    /// All inflated bytes of an object; none if they are too many for [`whole_max`](Self::new).
    pub fn whole<'a>(&'a mut self, stored: &'a [u8]) -> Result<Option<&'a [u8]>, InflateError> {
        match Encoding::of(stored) {
            Encoding::Plain => {
                check(stored.len() as u64, 0, self.limits)?;
                Ok(Some(stored))
            }
            Encoding::Gzip => self.whole_gzip(stored),
            Encoding::Zstd => self.whole_zstd(stored),
        }
    }

    fn whole_gzip<'a>(&'a mut self, stored: &'a [u8]) -> Result<Option<&'a [u8]>, InflateError> {
        let corrupt = |what: &str| InflateError::Corrupt { encoding: "gzip", what: what.to_owned() };
        let (mut from, mut to) = (0, 0);
        loop {
            match self.gzip.member(&stored[from..], &mut self.buffer[to..]) {
                gzip::Outcome::Done { read, written } => {
                    from += read;
                    to += written;
                    check(to as u64, stored.len() as u64, self.limits)?;
                    if stored[from..].iter().all(|b| *b == 0) {
                        return Ok(Some(&self.buffer[..to]));
                    }
                    if !stored[from..].starts_with(&[0x1f, 0x8b]) {
                        return Err(corrupt("something that is no gzip member follows the last one"));
                    }
                }
                gzip::Outcome::NeedsSpace => {
                    // The last four bytes tell the last member's size; a hint only, as they may lie.
                    let hint = stored.last_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b) as usize);
                    let wanted = (self.buffer.len() * 2).max(to + hint.min(self.whole_max)).max(1 << 20);
                    if self.buffer.len() >= self.whole_max {
                        return Ok(None);
                    }
                    self.buffer.resize(wanted.min(self.whole_max), 0);
                }
                gzip::Outcome::Bad => return Err(corrupt("a checksum is wrong, or the data ends early")),
            }
        }
    }

    fn whole_zstd<'a>(&'a mut self, stored: &'a [u8]) -> Result<Option<&'a [u8]>, InflateError> {
        let mut reader = Self::stream(stored, self.limits).map_err(|e| InflateError::of(e, "zstd"))?;
        self.buffer.clear();
        let read = (&mut reader).take(self.whole_max as u64 + 1).read_to_end(&mut self.buffer);
        read.map_err(|e| InflateError::of(e, "zstd"))?;
        Ok((self.buffer.len() <= self.whole_max).then_some(&self.buffer[..]))
    }

    /// The inflated bytes of `stored` as a stream. Its errors hold an [`InflateError`]: see [`cause`].
    pub fn stream<'a>(
        stored: impl Read + Send + 'a,
        limits: ObjectLimits,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let mut stored = BufReader::with_capacity(1 << 18, Counted { inner: stored, bytes: 0 });
        let encoding = Encoding::of(stored.fill_buf()?);
        Ok(match encoding {
            Encoding::Plain => {
                Box::new(Limited { inner: stored, bytes: 0, limits, read: |_| 0, encoding: "plain" })
            }
            Encoding::Gzip => {
                let inner = Members { inner: Some(GzDecoder::new(stored)) };
                Box::new(Limited { inner, bytes: 0, limits, read: Members::stored_bytes, encoding: "gzip" })
            }
            Encoding::Zstd => {
                let mut inner = zstd::stream::read::Decoder::with_buffer(stored)?;
                inner.window_log_max(limits.max_window.clamp(ZSTD_LEAST_WINDOW, ZSTD_MOST_WINDOW).ilog2())?;
                Box::new(Limited {
                    inner,
                    bytes: 0,
                    limits,
                    read: |d| d.get_ref().get_ref().bytes,
                    encoding: "zstd",
                })
            }
        })
    }
}

/// The inflate error inside an error that a [`stream`](Inflater::stream) gave.
pub fn cause(error: io::Error) -> InflateError {
    error.downcast::<InflateError>().unwrap_or_else(InflateError::Read)
}

fn check(inflated: u64, stored: u64, limits: ObjectLimits) -> Result<(), InflateError> {
    if inflated > limits.max_object {
        return Err(InflateError::TooLarge { limit: limits.max_object });
    }
    if stored > 0 && inflated > RATIO_FLOOR && inflated > stored.saturating_mul(limits.max_ratio) {
        return Err(InflateError::Ratio { limit: limits.max_ratio });
    }
    Ok(())
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        // What the source says is about reading, not about the data: marked here, where both can be told
        // apart.
        let n = self.inner.read(to).map_err(|e| io::Error::other(InflateError::Read(e)))?;
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Checks the limits on what passes, and turns decoding errors into [`InflateError`]s.
struct Limited<R> {
    inner: R,
    bytes: u64,
    limits: ObjectLimits,
    read: fn(&R) -> u64,
    encoding: &'static str,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to).map_err(|e| io::Error::other(InflateError::of(e, self.encoding)))?;
        self.bytes += n as u64;
        check(self.bytes, (self.read)(&self.inner), self.limits).map_err(io::Error::other)?;
        Ok(n)
    }
}

/// Every member of a gzip stream, one after the other; zeros after the last one are padding.
struct Members<R: BufRead> {
    /// None after the last member.
    inner: Option<GzDecoder<R>>,
}

impl<R: Read> Members<BufReader<Counted<R>>> {
    fn stored_bytes(&self) -> u64 {
        self.inner.as_ref().map_or(0, |decoder| decoder.get_ref().get_ref().bytes)
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = self.inner.as_mut().filter(|_| !to.is_empty()) {
            match decoder.read(to)? {
                0 => self.next_member()?,
                n => return Ok(n),
            }
        }
        Ok(0)
    }
}

impl<R: BufRead> Members<R> {
    fn next_member(&mut self) -> io::Result<()> {
        let Some(stored) = self.inner.as_mut().map(GzDecoder::get_mut) else { return Ok(()) };
        let mut padding = false;
        loop {
            let rest = stored.fill_buf()?;
            let zeros = rest.iter().take_while(|b| **b == 0).count();
            if rest.is_empty() {
                self.inner = None;
                return Ok(());
            }
            if zeros == 0 {
                break;
            }
            padding = true;
            stored.consume(zeros);
        }
        if padding || stored.fill_buf()?[0] != 0x1f {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "something that is no gzip member follows the last one",
            ));
        }
        // A new decoder starts on the bytes that are left.
        self.inner = self.inner.take().map(|done| GzDecoder::new(done.into_inner()));
        Ok(())
    }
}

mod gzip {
    //! One gzip member with libdeflate, which is four times as fast as a streaming decoder. The safe wrapper
    //! crates don't tell how much input a member took, without which members can't be told from garbage.
    #![allow(unsafe_code)]

    use libdeflate_sys as sys;

    /// What came of a member.
    pub enum Outcome {
        /// Inflated, checksum verified.
        Done {
            /// Bytes of input that the member took.
            read: usize,
            /// Bytes of output.
            written: usize,
        },
        /// The output doesn't fit.
        NeedsSpace,
        /// Not a whole, intact member.
        Bad,
    }

    /// libdeflate's decompressor.
    pub struct Decompressor(std::ptr::NonNull<sys::libdeflate_decompressor>);

    // SAFETY: the decompressor is plain memory without ties to a thread; it is used by one at a time (&mut).
    unsafe impl Send for Decompressor {}

    impl Decompressor {
        pub fn new() -> Self {
            // SAFETY: no arguments; null means out of memory.
            let raw = unsafe { sys::libdeflate_alloc_decompressor() };
            Self(std::ptr::NonNull::new(raw).expect("out of memory"))
        }

        /// Inflates the member at the head of `from` into `to`.
        pub fn member(&mut self, from: &[u8], to: &mut [u8]) -> Outcome {
            let (mut read, mut written) = (0, 0);
            // SAFETY: both slices are valid for their lengths, and the results are written to live variables.
            let result = unsafe {
                sys::libdeflate_gzip_decompress_ex(
                    self.0.as_ptr(),
                    from.as_ptr().cast(),
                    from.len(),
                    to.as_mut_ptr().cast(),
                    to.len(),
                    &mut read,
                    &mut written,
                )
            };
            match result {
                sys::libdeflate_result_LIBDEFLATE_SUCCESS => Outcome::Done { read, written },
                sys::libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE => Outcome::NeedsSpace,
                _ => Outcome::Bad,
            }
        }
    }

    impl Drop for Decompressor {
        fn drop(&mut self) {
            // SAFETY: allocated by libdeflate, freed once.
            unsafe { sys::libdeflate_free_decompressor(self.0.as_ptr()) }
        }
    }
}
