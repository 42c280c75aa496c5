//! Room on the disk: how much there is, and whether it is enough for a store that has met a full one.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use crate::{StateError, directory};

/// Bytes of one write.
const PIECE: usize = 64 << 10;

/// Bytes that this user may still write to the file system of `dir`; quotas are not looked at.
///
/// # Errors
/// When the system does not tell.
#[allow(unsafe_code)] // statvfs(3) fills a plain struct.
pub fn free(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: a struct of numbers, for which zeros are values.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and both live until the call is over.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether a store in `dir` that has met a full disk is worth opening again: the system counts `needed` free bytes, and `written`
/// of them, at least [`StateOptions::room`](crate::StateOptions::room), can be written there, and reach the disk. They are really
/// written, and removed again: the system's count knows of no quota. While the count is too low nothing is written, or whoever
/// shares the disk would run out of room as well. Makes the directory if there is none.
///
/// # Errors
/// [`StateError::Full`] if there is not enough; [`StateError::Locked`] while a store in `dir` is open,
/// [`StateError::Io`].
pub fn check_room(dir: &Path, needed: u64, written: u64) -> Result<(), StateError> {
    // Whoever clears a store makes room: it is looked at when they are done.
    let _lock = directory::lock(dir)?;
    // Before counting: what an earlier look left is room.
    directory::remove_room(dir)?;
    // A system that does not tell how much there is, is asked by writing.
    if let Ok(free) = free(dir)
        && free < needed
    {
        let detail = format!("{} MiB are free, {} MiB are needed", free >> 20, needed.div_ceil(1 << 20));
        return Err(StateError::Full { operation: "look for room", path: dir.to_owned(), detail });
    }
    let path = directory::room(dir);
    let written = fill(&path, written.min(needed)).map_err(StateError::io(&path));
    directory::remove_room(dir)?;
    written
}

fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut piece = vec![0; PIECE];
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes.div_ceil(PIECE as u64) {
        // Xorshift: what a file system can't compress away.
        for word in piece.chunks_exact_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.copy_from_slice(&noise.to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StateOptions, Store};

    #[test]
    fn a_look_for_room_says_what_is_missing_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let small = StateOptions { memory: StateOptions::LEAST_MEMORY, ..StateOptions::default() };
        // As if a process had been killed while it looked.
        std::fs::write(directory::room(dir.path()), "left behind").unwrap();
        check_room(dir.path(), small.room(), small.room()).unwrap();
        assert!(!directory::room(dir.path()).exists());
        let error = check_room(dir.path(), u64::MAX, small.room()).unwrap_err();
        assert!(matches!(&error, StateError::Full { detail, .. } if detail.contains("are needed")), "{error}");
        assert!(!directory::room(dir.path()).exists());

        std::fs::write(directory::room(dir.path()), "left behind").unwrap();
        let store = Store::open(dir.path(), &small).unwrap();
        assert!(!directory::room(dir.path()).exists());
        assert!(matches!(check_room(dir.path(), small.room(), small.room()), Err(StateError::Locked(_))));
        drop(store);
        check_room(dir.path(), small.room(), small.room()).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_from_every_other_failure() {
        let path = Path::new("d");
        for code in [libc::ENOSPC, libc::EDQUOT] {
            let error = StateError::io(path)(io::Error::from_raw_os_error(code));
            assert!(matches!(error, StateError::Full { .. }), "{error}");
        }
        let error = StateError::io(path)(io::Error::from_raw_os_error(libc::EACCES));
        assert!(matches!(error, StateError::Io { .. }), "{error}");
    }
}
