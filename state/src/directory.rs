//! The directory of a store: locked first, then read.
//!
//! ```text
//! <dir>/lock          held by flock while open
//! <dir>/format        "1"; written before `images` exists, so that images without it are damage
//! <dir>/instance-id   a UUID, made once: who this disk is, for as long as the disk lives
//! <dir>/images/       RocksDB
//! <dir>/wiped/        what `wipe` has set aside and not deleted yet
//! <dir>/room          while `check_room` looks for room
//! ```

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{ErrorKind, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{FORMAT, StateError};

/// A locked directory; the lock goes with this value, or with the process.
pub(crate) struct Directory {
    path: PathBuf,
    pub(crate) instance_id: String,
    _lock: File,
}

/// Throw the images in `dir` away, whatever state they are in; the instance id stays. Safe to repeat after a
/// crash.
///
/// # Errors
/// [`StateError::Locked`] while a store has it open, [`StateError::Io`].
pub fn wipe(dir: &Path) -> Result<(), StateError> {
    let _lock = lock(dir)?;
    let (images, wiped, format) = (dir.join("images"), dir.join("wiped"), dir.join("format"));
    remove_tree(&wiped)?;
    // Renamed first: half-deleted images must never be opened.
    match fs::rename(&images, &wiped) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(StateError::io(&images)(error)),
        _ => {}
    }
    match fs::remove_file(&format) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(StateError::io(&format)(error)),
        _ => {}
    }
    remove_tree(&wiped)
}

impl Directory {
    /// Lock, then make sure of the format and the instance id; creates what is missing.
    pub(crate) fn open(path: &Path) -> Result<Directory, StateError> {
        let lock = lock(path)?;
        check_format(path)?;
        let instance_id = instance_id(path)?;
        let directory = Directory { path: path.to_owned(), instance_id, _lock: lock };
        make_private(&directory.images())?;
        remove_tree(&path.join("wiped"))?;
        remove_room(path)?;
        Ok(directory)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }
}

pub(crate) fn lock(dir: &Path) -> Result<File, StateError> {
    make_private(dir)?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(StateError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(StateError::io(&path)(error)),
    }
}

fn check_format(dir: &Path) -> Result<(), StateError> {
    let path = dir.join("format");
    let damaged = |detail: String| Err(StateError::Corrupted { path: path.clone(), detail });
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(FORMAT) => Ok(()),
            Ok(found) if found > FORMAT => Err(StateError::Format { path, found, known: FORMAT }),
            _ => damaged(format!("not a format number: {:?}", text.chars().take(40).collect::<String>())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound && dir.join("images").exists() => {
            damaged("images without a format file".into())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => write_whole(dir, "format", &format!("{FORMAT}\n")),
        Err(error) if error.kind() == ErrorKind::InvalidData => damaged("not text".into()),
        Err(error) => Err(StateError::io(&path)(error)),
    }
}

/// An unreadable id is replaced: it only means that the process comes back as somebody new.
fn instance_id(dir: &Path) -> Result<String, StateError> {
    let path = dir.join("instance-id");
    match fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(id) = uuid::Uuid::try_parse(text.trim()) {
                return Ok(id.to_string());
            }
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {}
        Err(error) => return Err(StateError::io(&path)(error)),
    }
    let id = uuid::Uuid::new_v4().to_string();
    write_whole(dir, "instance-id", &format!("{id}\n"))?;
    Ok(id)
}

/// A file that is there with all of its text, or not at all, also after a power cut.
fn write_whole(dir: &Path, name: &str, text: &str) -> Result<(), StateError> {
    let (temporary, path) = (dir.join(format!("{name}.new")), dir.join(name));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(StateError::io(&path))
}

/// Images are customers' data: directories that we make are for our user alone.
fn make_private(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StateError::io(path))
}

/// What `check_room` writes; left behind by a process that was killed meanwhile.
pub(crate) fn room(dir: &Path) -> PathBuf {
    dir.join("room")
}

pub(crate) fn remove_room(dir: &Path) -> Result<(), StateError> {
    match fs::remove_file(room(dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StateError::io(dir)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StateError::io(path)(error)),
        _ => Ok(()),
    }
}
