//! Local files: which files of a folder or a glob are read, and how.
//!
//! Others write to drop folders. An entry there is read only if it is a file, and if no link leads to it: a
//! link may lead anywhere, and a FIFO or a device may block forever. In a path that a person names, links are
//! followed.
//!
//! A file is identified by the hash of its bytes. A large one is hashed first and decoded in a second pass:
//! if the decoded bytes don't have that hash, the file changed in between, and none of it may land.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::decode::object::{ContentHash, PassingHash};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The system says so.
    #[error("{path}: can't be read: {source}")]
    Read { path: String, source: io::Error },
    /// It was named, and is something that may never answer.
    #[error(
        "{path}: not read: it is {what}, not a file; its output can be piped in: flarelake backfill - < FIFO"
    )]
    NoFile { path: String, what: &'static str },
    /// A link has come into its path since it was listed.
    #[error(
        "{path}: not read: a symbolic link has come into its path since it was listed; --follow-links follows links"
    )]
    Link { path: String },
    /// Someone wrote to it while it was read.
    #[error("{path}: {Changed}: nothing of it lands; run it again when its writer is done with it")]
    Changed { path: String },
}

/// What is read is not what it was before.
#[derive(Debug, thiserror::Error)]
#[error("it changed while it was read")]
pub struct Changed;

/// Whether symbolic links are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// They are.
    Follow,
    /// They are passed over, and counted.
    PassOver,
}

/// A file that was named or listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is. Where links are passed over this is the canonical path.
    pub path: PathBuf,
    /// Whether links may lead to it.
    pub links: Links,
}

/// A file's bytes, and what they are known by.
#[derive(Debug)]
pub struct ReadFile {
    /// Its canonical path.
    pub path: PathBuf,
    /// The hash of its bytes.
    pub hash: ContentHash,
    pub size: u64,
    /// When it was written.
    pub modified: Option<std::time::SystemTime>,
    pub content: Content,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum Content {
    /// At hand.
    Whole(Bytes),
    /// To be read once more.
    Hashed(HashedFile),
}

impl LocalFile {
    /// Reads and hashes it. Its bytes are kept if they are at most `whole`.
    pub fn read(&self, whole: u64) -> Result<ReadFile, LocalError> {
        let failed = |source| LocalError::Read { path: self.path.display().to_string(), source };
        let (path, mut file, before) = self.open()?;
        let mut bytes = Vec::new();
        if before.len() <= whole {
            bytes.reserve(before.len() as usize + 1);
            (&mut file).take(whole + 1).read_to_end(&mut bytes).map_err(failed)?;
        }
        let is_whole = before.len() <= whole && bytes.len() as u64 <= whole;
        let hash = if is_whole {
            ContentHash::of(&bytes[..])
        } else {
            bytes = Vec::new();
            file.rewind().and_then(|()| ContentHash::of(&mut file))
        };
        let hash = hash.map_err(failed)?;
        let size = file.stream_position().map_err(failed)?;
        let after = file.metadata().map_err(failed)?;
        if (before.len(), before.modified().ok()) != (after.len(), after.modified().ok()) {
            return Err(LocalError::Changed { path: self.path.display().to_string() });
        }
        let content = if is_whole {
            Content::Whole(bytes.into())
        } else {
            file.rewind().map_err(failed)?;
            Content::Hashed(HashedFile {
                file,
                hash: hash.clone(),
                size,
                passed: PassingHash::default(),
                bytes: 0,
            })
        };
        Ok(ReadFile { path, hash, size, modified: after.modified().ok(), content })
    }

    /// What is no file is not opened. If something else takes its place at this very moment, it is neither
    /// followed nor waited for.
    fn open(&self) -> Result<(PathBuf, File, Metadata), LocalError> {
        let shown = || self.path.display().to_string();
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ELOOP) => LocalError::Link { path: shown() },
            _ => LocalError::Read { path: shown(), source },
        };
        let is_file = |metadata: Metadata| match kind(metadata.file_type()) {
            None => Ok(metadata),
            Some(what) => Err(LocalError::NoFile { path: shown(), what }),
        };
        let canonical = self.path.canonicalize().map_err(failed)?;
        if self.links == Links::PassOver && canonical != self.path {
            return Err(LocalError::Link { path: shown() });
        }
        is_file(canonical.symlink_metadata().map_err(failed)?)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&canonical).map_err(failed)?;
        let metadata = is_file(file.metadata().map_err(failed)?)?;
        Ok((canonical, file, metadata))
    }
}

/// What something is that is no file; none: it is one.
fn kind(of: FileType) -> Option<&'static str> {
    match of {
        _ if of.is_file() => None,
        _ if of.is_symlink() => Some("a symbolic link"),
        _ if of.is_dir() => Some("a folder"),
        _ if of.is_fifo() => Some("a FIFO"),
        _ if of.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// A large file that is read once more, open since it was hashed: replacing it doesn't change what is read,
/// and writing to it is noticed at its end at the latest.
#[derive(Debug)]
pub struct HashedFile {
    file: File,
    hash: ContentHash,
    size: u64,
    passed: PassingHash,
    bytes: u64,
}

impl Read for HashedFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(to)?;
        self.passed.update(&to[..n]);
        self.bytes += n as u64;
        let is_over = n == 0 && !to.is_empty();
        if self.bytes > self.size || is_over && self.passed.clone().finish() != self.hash {
            return Err(io::Error::other(Changed));
        }
        Ok(n)
    }
}

/// What was met and not read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PassedOver {
    /// Symbolic links.
    pub links: u64,
    /// FIFOs, sockets, devices.
    pub others: u64,
}

impl std::ops::AddAssign for PassedOver {
    fn add_assign(&mut self, other: Self) {
        self.links += other.links;
        self.others += other.others;
    }
}

/// What a path brings, by name.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files, and what can't be looked into.
    pub files: Vec<Result<LocalFile, LocalError>>,
    /// What is none of these.
    pub passed_over: PassedOver,
}

/// Every file that `path` brings, which is a file, a folder or a glob; none if nothing is there.
pub fn list(path: &str, links: Links) -> Result<Option<Listing>, glob::PatternError> {
    let mut listing = Listing::default();
    let mut is_there = true;
    let named = Path::new(path);
    if named.is_dir() {
        let root = if links == Links::Follow { Ok(named.to_owned()) } else { named.canonicalize() };
        match root {
            Ok(root) => listing.folder(&root, links),
            Err(e) => listing.failed(named, e),
        }
    } else if named.symlink_metadata().is_ok() {
        listing.files.push(Ok(LocalFile { path: named.to_owned(), links: Links::Follow }));
    } else {
        let literal = literal(named);
        is_there = false;
        for found in glob::glob(path)? {
            is_there = true;
            let at = found.as_ref().map_or_else(|e| e.path().to_owned(), PathBuf::clone);
            let listed =
                found.map_err(io::Error::from).and_then(|path| listing.matched(path, &literal, links));
            if let Err(e) = listed {
                listing.failed(&at, e);
            }
        }
    }
    Ok(is_there.then_some(listing))
}

/// The folders that a pattern names without a wildcard: a person means these, whatever leads to them.
fn literal(pattern: &Path) -> PathBuf {
    let is_literal = |c: &Component<'_>| !c.as_os_str().as_encoded_bytes().iter().any(|b| b"*?[".contains(b));
    pattern.components().filter(|c| *c != Component::CurDir).take_while(is_literal).collect()
}

impl Listing {
    fn failed(&mut self, path: &Path, source: io::Error) {
        self.files.push(Err(LocalError::Read { path: path.display().to_string(), source }));
    }

    /// Everything below a folder. Below a canonical one every path is canonical, as long as nobody puts a
    /// link into it.
    fn folder(&mut self, folder: &Path, links: Links) {
        for entry in walkdir::WalkDir::new(folder).follow_links(links == Links::Follow).sort_by_file_name() {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => self.found(entry.file_type(), entry.into_path(), links),
                Err(e) => {
                    let at = e.path().unwrap_or(folder).to_owned();
                    self.failed(&at, e.into());
                }
            }
        }
    }

    /// `path` fits a pattern that begins with the folders of `literal`.
    fn matched(&mut self, path: PathBuf, literal: &Path, links: Links) -> io::Result<()> {
        let (path, kind) = match links {
            Links::Follow => (path.clone(), path.metadata()?.file_type()),
            Links::PassOver => {
                let Some(path) = without_links(&path, literal)? else {
                    self.passed_over.links += 1;
                    return Ok(());
                };
                let kind = path.symlink_metadata()?.file_type();
                (path, kind)
            }
        };
        if kind.is_dir() {
            self.folder(&path, links);
        } else {
            self.found(kind, path, links);
        }
        Ok(())
    }

    fn found(&mut self, kind: FileType, path: PathBuf, links: Links) {
        match kind {
            _ if kind.is_file() => self.files.push(Ok(LocalFile { path, links })),
            _ if kind.is_symlink() => self.passed_over.links += 1,
            _ => self.passed_over.others += 1,
        }
    }
}

/// The canonical path of what was found below the folders of `literal`; none if a link leads there.
fn without_links(found: &Path, literal: &Path) -> io::Result<Option<PathBuf>> {
    let found: PathBuf = found.components().filter(|c| *c != Component::CurDir).collect();
    let below = found.strip_prefix(literal).unwrap_or(&found);
    let mut path = fs::canonicalize(if literal.as_os_str().is_empty() { Path::new(".") } else { literal })?;
    for part in below.components() {
        match part {
            // Without links the folder above is what stands before.
            Component::ParentDir => _ = path.pop(),
            part => path.push(part),
        }
        if path.symlink_metadata()?.is_symlink() {
            return Ok(None);
        }
    }
    Ok(Some(path))
}
