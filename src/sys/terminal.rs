//! Terminals and pseudo-terminals: ioctl_tty(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::poll::{PollFd, PollFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use super::nix_errno;

/// Of both ends of a pseudo-terminal: neither becomes the controlling terminal.
const FLAGS: OpenptFlags = OpenptFlags::RDWR.union(OpenptFlags::NOCTTY).union(OpenptFlags::CLOEXEC);

/// Makes a pseudo-terminal: its master, non-blocking, and its slave. Neither becomes the controlling terminal. The slave is
/// opened through the master (`TIOCGPTPEER`, Linux 4.13), whatever is mounted at /dev/pts.
pub(crate) fn open_pair() -> Result<(OwnedFd, OwnedFd)> {
    pair_of(openpt(FLAGS).map_err(nix_errno)?)
}

/// The same in a mount of devpts that is open as `directory`.
pub(crate) fn open_pair_in(directory: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    pair_of(super::open::beneath(directory, Path::new("ptmx"), flags, ResolveFlag::empty())?)
}

fn pair_of(master: OwnedFd) -> Result<(OwnedFd, OwnedFd)> {
    unlockpt(&master).map_err(nix_errno)?;
    rustix::io::ioctl_fionbio(&master, true).map_err(nix_errno)?;
    let slave = slave_of(master.as_fd())?;
    Ok((master, slave))
}

/// The size of the window.
pub(crate) fn size(terminal: impl AsFd) -> Result<Winsize> {
    tcgetwinsize(terminal).map_err(nix_errno)
}

/// Sets the size of the window; if it differs, the foreground process group gets SIGWINCH.
pub(crate) fn set_size(terminal: impl AsFd, size: Winsize) -> Result<()> {
    tcsetwinsize(terminal, size).map_err(nix_errno)
}

/// The number of the terminal's device, makedev(3); what is open as /dev/tty has that of the terminal that this means.
pub(crate) fn device(terminal: impl AsFd) -> Result<u32> {
    let mut device: libc::c_uint = 0;
    // SAFETY: TIOCGDEV writes one unsigned int, which lives over the call.
    Errno::result(unsafe {
        libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGDEV as _, &raw mut device)
    })?;
    Ok(device)
}

/// Makes each read from the master begin with a zero byte, or return one byte that reports a change of the slave (`TIOCPKT`).
pub(crate) fn report_changes(master: impl AsFd) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: TIOCPKT reads one int, which lives over the call.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCPKT as _, &raw const on) })
        .map(drop)
}

/// Opens the slave of a master once more.
fn slave_of(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    ioctl_tiocgptpeer(master, FLAGS).map_err(nix_errno)
}

/// Bytes that were written to the master and not read from the slave.
pub(crate) fn unread(master: impl AsFd) -> Result<u64> {
    let slave = slave_of(master.as_fd())?;
    // poll(2) of an empty terminal waits for bytes that the kernel has not passed on yet.
    super::poll::now(&mut [PollFd::new(slave.as_fd(), PollFlags::POLLIN)])?;
    // FIONREAD has the number of TIOCINQ.
    rustix::io::ioctl_fionread(slave).map_err(nix_errno)
}

/// Hangs the slave up (`TIOCVHANGUP`): its foreground process group gets SIGHUP and SIGCONT, and its readers get the end of file.
pub(crate) fn hang_up(master: impl AsFd) -> Result<()> {
    let slave = slave_of(master.as_fd())?;
    // SAFETY: TIOCVHANGUP takes no argument.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCVHANGUP as _, 0) }).map(drop)
}

/// Makes the terminal open at `number` (0, 1 or 2) the controlling terminal of this process, which leads a session without one.
pub(crate) fn take_control(number: RawFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(standard(number)?).map_err(nix_errno)
}

/// Releases the controlling terminal without the hang-up that the end of the session's leader causes: that would discard what has not
/// been read from the master.
pub(crate) fn give_up_control(number: RawFd) -> Result<()> {
    // SAFETY: TIOCNOTTY takes no argument; a number that is not open is EBADF.
    Errno::result(unsafe { libc::ioctl(number, libc::TIOCNOTTY as _, 0) }).map(drop)
}

/// Makes this process's group the foreground group of its controlling terminal, open at `number` (0, 1 or 2). SIGTTOU must be blocked.
pub(crate) fn come_to_foreground(number: RawFd) -> Result<()> {
    nix::unistd::tcsetpgrp(standard(number)?, nix::unistd::getpgrp())
}

/// A descriptor that is inherited and stays open as long as the process: 0, 1 or 2.
pub(crate) fn standard(number: RawFd) -> Result<BorrowedFd<'static>> {
    if !(0..=2).contains(&number) {
        return Err(Errno::EBADF);
    }
    // SAFETY: it is not -1, and nothing in the shim closes one of these three; if it is not open, fcntl says EBADF.
    let standard = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(standard).map(|_| standard).map_err(nix_errno)
}

/// Sends SIGINT, SIGQUIT or SIGTSTP to the foreground process group of the slave (`TIOCSIG` on the master).
pub(crate) fn signal_foreground(master: impl AsFd, signal: i32) -> Result<()> {
    // SAFETY: TIOCSIG takes the signal's number as an integer.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), TIOCSIG, signal) }).map(drop)
}

/// Of `asm-generic/ioctls.h`; the libc crate does not have it for every target.
const TIOCSIG: libc::Ioctl = libc::_IOW::<libc::c_int>('T' as u32, 0x36);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn output_of_the_slave_is_read_from_the_master() {
        let (master, slave) = open_pair().unwrap();
        assert!(nix::unistd::isatty(&slave).unwrap());
        File::from(slave.try_clone().unwrap()).write_all(b"x\n").unwrap();
        let mut text = [0; 3];
        // It may arrive in parts.
        File::from(master.try_clone().unwrap()).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"x\r\n");
        let wanted = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        set_size(&master, wanted).unwrap();
        let found = size(&slave).unwrap();
        assert_eq!((found.ws_row, found.ws_col), (33, 77));
    }

    #[test]
    fn unread_bytes_are_counted_and_a_hang_up_ends_the_input() {
        let (master, slave) = open_pair().unwrap();
        assert_eq!(unread(&master), Ok(0));
        File::from(master.try_clone().unwrap()).write_all(b"line\n").unwrap();
        assert_eq!(unread(&master), Ok(5));
        let mut reader = File::from(slave.try_clone().unwrap());
        let mut text = [0; 8];
        assert_eq!(reader.read(&mut text).unwrap(), 5);
        assert_eq!(unread(&master), Ok(0));
        assert_eq!(device(&slave), device(&reader));
        assert_ne!(device(&slave), device(&open_pair().unwrap().1));
        if hang_up(&master) == Err(Errno::EPERM) {
            // Not as root.
            return;
        }
        assert_eq!(reader.read(&mut text).unwrap(), 0);
    }

    #[test]
    fn a_change_is_reported_before_later_output() {
        use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
        let (master, slave) = open_pair().unwrap();
        report_changes(&master).unwrap();
        let mut modes = tcgetattr(&slave).unwrap();
        modes.local_flags.insert(LocalFlags::EXTPROC);
        tcsetattr(&slave, SetArg::TCSANOW, &modes).unwrap();
        let (mut writer, mut reader) = (File::from(slave), File::from(master));
        let mut text = [0; 8];
        assert_eq!(reader.read(&mut text).unwrap(), 1);
        assert_ne!(text[0], 0);
        writer.write_all(b"x").unwrap();
        assert_eq!((reader.read(&mut text).unwrap(), &text[..2]), (2, &b"\0x"[..]));
    }

    #[test]
    fn a_file_that_is_not_a_terminal_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(size(&null).map(drop), Err(Errno::ENOTTY));
        assert_eq!(device(&null), Err(Errno::ENOTTY));
        assert!(unread(&null).is_err() && hang_up(&null).is_err() && report_changes(&null).is_err());
        assert_eq!(take_control(null.as_raw_fd()), Err(Errno::EBADF), "not one of the standard three");
        assert_eq!(come_to_foreground(null.as_raw_fd()), Err(Errno::EBADF));
        assert!(signal_foreground(&null, libc::SIGINT).is_err());
        assert_eq!(standard(3).map(drop), Err(Errno::EBADF));
    }
}
