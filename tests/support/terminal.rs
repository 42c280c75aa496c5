//! A terminal of its own for a child: a pseudo-terminal of a chosen size, and what was written to it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

/// The side of the one who looks at it.
pub struct Terminal {
    ours: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A terminal of so many columns and lines, and what a child takes for its stdout.
    #[allow(unsafe_code)] // openpty(3) gives plain descriptors.
    pub fn open(columns: u16, lines: u16) -> (Terminal, Stdio) {
        let (mut ours, mut theirs) = (-1, -1);
        let size = size(columns, lines);
        // SAFETY: the two numbers and the size live until the call is over; name and settings may be null.
        let answer = unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(answer, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: the call succeeded, so both are open, and nobody else has them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (File::from(ours.try_clone().unwrap()), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // An error says that the other side is closed.
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                to.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        (Terminal { ours, written }, theirs.into())
    }

    /// Gives it another size. A child that it does not control has to be told by SIGWINCH.
    #[allow(unsafe_code)] // ioctl(2) is unsafe by type.
    pub fn resize(&self, columns: u16, lines: u16) {
        let size = size(columns, lines);
        // SAFETY: TIOCSWINSZ reads one `winsize`, which lives until the call is over.
        let answer = unsafe { libc::ioctl(self.ours.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(answer, 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
    }

    /// All that was written to it so far.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// The lines of the last picture that is complete: from the upper left corner to where the rest is cleared.
    pub fn picture(&self) -> Vec<String> {
        let written = self.written();
        let Some(end) = written.rfind("\x1b[J") else { return Vec::new() };
        let begin = written[..end].rfind("\x1b[H").map_or(0, |home| home + "\x1b[H".len());
        written[begin..end].lines().map(|line| line.replace("\x1b[K", "").trim_end().to_string()).collect()
    }
}

fn size(columns: u16, lines: u16) -> libc::winsize {
    libc::winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
