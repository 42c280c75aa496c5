//! What can go wrong, named by what the caller can do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use afterimage_proto::{Mark, WireError};

use crate::PositionId;

/// What lies behind RocksDB's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// No room on the disk.
    Full,
    /// What is there contradicts itself, or lacks a part.
    Damage,
    Other,
}

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
            StateError::Poisoned(reason) => cause(reason) == Cause::Full,
            _ => false,
        }
    }

    /// Whether damage is the reason, also that of an earlier failed write.
    pub fn is_damage(&self) -> bool {
        match self {
            StateError::Corrupted { .. } => true,
            StateError::Poisoned(reason) => cause(reason) == Cause::Damage,
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

    pub(crate) fn engine(operation: &'static str, path: &Path, error: rocksdb::Error) -> StateError {
        let (path, detail) = (path.to_owned(), error.into_string());
        match cause(&detail) {
            Cause::Damage => StateError::Corrupted { path, detail },
            Cause::Full => StateError::Full { operation, path, detail },
            Cause::Other => StateError::Engine { operation, path, detail },
        }
    }

    pub(crate) fn wire(path: &Path, error: WireError) -> StateError {
        match error {
            WireError::Future { found, known, .. } => StateError::Format { path: path.to_owned(), found, known },
            other => StateError::Corrupted { path: path.to_owned(), detail: other.to_string() },
        }
    }
}

/// Damage, a full disk and everything else are told apart by RocksDB's own words: no more of its status passes through its
/// C interface, and the crate's `ErrorKind` is read from the same text. Only where RocksDB itself puts them they count, for a
/// file's name and what the system says of another file stand in the text as well:
///
/// ```text
/// IO error: No space left on device: While appending to file: <file>: No space left on device
/// ^ code    ^ its second code        ^ what was done, to what         ^ the system's words
/// ```
fn cause(said: &str) -> Cause {
    if said.starts_with("Corruption: ") {
        return Cause::Damage;
    }
    let Some(rest) = said.strip_prefix("IO error: ") else { return Cause::Other };
    let second = |code: &str| rest.strip_prefix(code).is_some_and(|more| more.is_empty() || more.starts_with(": "));
    // A file that should be there is damage too: a full disk or a missing permission must stay apart from it, since
    // wiping doesn't mend those.
    if second("No such file or directory") {
        Cause::Damage
    // RocksDB has no second code for EDQUOT.
    } else if second("No space left on device") || rest.ends_with(": Disk quota exceeded") {
        Cause::Full
    } else {
        Cause::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_read_from_rocksdbs_own_words_only() {
        for (said, wanted) in [
            // As RocksDB puts ENOSPC, EDQUOT, EFBIG, damage, ENOENT and EACCES.
            (
                "IO error: No space left on device: While appending to file: /s/images/000008.log: No space left on device",
                Cause::Full,
            ),
            ("IO error: No space left on device", Cause::Full),
            ("IO error: While appending to file: /s/images/000008.log: Disk quota exceeded", Cause::Full),
            ("IO error: While appending to file: /s/images/000008.log: File too large", Cause::Other),
            (
                "Corruption: block checksum mismatch: stored(context removed) = 862056504, computed = 2499480469, type = 4  in /s/images/000017.sst offset 3999 size 4033, block_type = Data",
                Cause::Damage,
            ),
            (
                "IO error: No such file or directory: While open a file for random read: /s/images/000012.sst: No such file or directory",
                Cause::Damage,
            ),
            ("IO error: While open a file for appending: /s/images/LOCK: Permission denied", Cause::Other),
            // What only looks like it: names of files, and one file's trouble told beside another's.
            (
                "IO error: While open a file for appending: /No space left on device/000008.log: Permission denied",
                Cause::Other,
            ),
            (
                "IO error: While open a file for appending: /No such file or directory/x: Permission denied",
                Cause::Other,
            ),
            ("IO error: While open a file for appending: /a: Disk quota exceeded/x: Permission denied", Cause::Other),
            ("IO error: No space left on devices", Cause::Other),
            ("Corruption: while reading /s: No space left on device", Cause::Damage),
            ("Invalid argument: No space left on device: x", Cause::Other),
            ("Corruptions of a kind", Cause::Other),
            ("a writer panicked between check and write", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(cause(said), wanted, "{said}");
            let poisoned = StateError::Poisoned(said.to_owned());
            assert_eq!(poisoned.is_full(), wanted == Cause::Full, "{said}");
            assert_eq!(poisoned.is_damage(), wanted == Cause::Damage, "{said}");
        }
    }
}
