//! What can go wrong, named by what the caller can do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use afterimage_proto::{Mark, WireError};

use crate::PositionId;

/// How the system says ENOSPC and EDQUOT.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process, or another `Store` in this one, has the directory open. Choose another directory, or
    /// wait until that process is gone: the lock goes with it, also after kill -9.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Written by a later release. Run that release, or [`wipe`](crate::wipe): nothing is lost but time.
    #[error("{} has format {found}, this release knows {known}", path.display())]
    Format {
        /// The file or directory that says so.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The greatest format known here.
        known: u32,
    },
    /// The files contradict themselves or lack a part. [`wipe`](crate::wipe) and open again: everything in the
    /// store can be had from the sink.
    #[error("{} is corrupted: {detail}", path.display())]
    Corrupted {
        /// The store's directory, or the file in it.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A mark that doesn't follow from the stored one: another sink, a lower epoch, the same epoch under
    /// another token, or a smaller `next` or `inval_seq`. Nothing was written. A position goes back only
    /// through [`clear`](crate::Store::clear) or [`begin`](crate::Store::begin).
    #[error("mark {offered:?} does not follow {stored:?}")]
    Rewound {
        /// The mark in the store.
        stored: Box<Mark>,
        /// The mark in the batch.
        offered: Box<Mark>,
    },
    /// Records for a position that has no mark, neither in the store nor in the batch: nobody could ever say
    /// what they are worth. Nothing was written.
    #[error("position {0} has no mark to go with its records")]
    Unmarked(PositionId),
    /// An earlier write failed, so memory and disk may differ. Drop the store and open it again: what was
    /// written whole is there.
    #[error("poisoned by an earlier failed write: {0}")]
    Poisoned(String),
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No room is left on the disk, or none that this user may use. Nothing else is wrong: make some,
    /// [`check_room`](crate::check_room) tells when there is enough, then drop the store and open it again.
    #[error("{operation} in {}: no room on the disk: {detail}", path.display())]
    Full {
        /// What was being done.
        operation: &'static str,
        /// The store's directory, or a file in it.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// RocksDB refused (too many open files, a broken disk, …).
    #[error("{operation} in {}: {detail}", path.display())]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The store's directory.
        path: PathBuf,
        /// What RocksDB said.
        detail: String,
    },
}

impl StateError {
    /// Whether a full disk is the reason, also that of an earlier failed write.
    pub fn is_full(&self) -> bool {
        match self {
            StateError::Full { .. } => true,
            StateError::Poisoned(reason) => says_full(reason),
            _ => false,
        }
    }

    /// Whether damage is the reason, also that of an earlier failed write.
    pub fn is_damage(&self) -> bool {
        match self {
            StateError::Corrupted { .. } => true,
            // As RocksDB begins its words for it.
            StateError::Poisoned(reason) => reason.starts_with("Corruption"),
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StateError + '_ {
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                StateError::Full { operation: "write", path: path.to_owned(), detail: source.to_string() }
            }
            _ => StateError::Io { path: path.to_owned(), source },
        }
    }

    /// Damage, a full disk and everything else are told apart by RocksDB's own words for it: it passes the system's on.
    pub(crate) fn engine(operation: &'static str, path: &Path, error: rocksdb::Error) -> StateError {
        let (path, kind) = (path.to_owned(), error.kind());
        let detail = error.into_string();
        // A file that should be there is damage too, though RocksDB calls it an I/O error: a full disk or a
        // missing permission must stay apart from it, since wiping doesn't mend those.
        if kind == rocksdb::ErrorKind::Corruption || detail.contains("No such file or directory") {
            StateError::Corrupted { path, detail }
        } else if says_full(&detail) {
            StateError::Full { operation, path, detail }
        } else {
            StateError::Engine { operation, path, detail }
        }
    }

    pub(crate) fn wire(path: &Path, error: WireError) -> StateError {
        match error {
            WireError::Future { found, known, .. } => StateError::Format { path: path.to_owned(), found, known },
            other => StateError::Corrupted { path: path.to_owned(), detail: other.to_string() },
        }
    }
}

fn says_full(text: &str) -> bool {
    FULL.iter().any(|words| text.contains(words))
}
