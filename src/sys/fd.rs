//! File descriptors: taking over inherited ones, closing all others.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::clone::FIRST_FREE_FD;
use super::nix_errno;

/// Whether [`inherited`] was called.
static CLAIMED: AtomicBool = AtomicBool::new(false);

/// Takes ownership of the `N` descriptors that [`super::clone::spawn`] placed from `first` on, and marks them close-on-exec.
/// None for a number at which nothing is open.
///
/// Call it before the process opens anything: the numbers are taken for those of the parent.
///
/// # Errors
/// EBUSY: it was called before in this process, so the numbers have an owner. EINVAL: the numbers are not among those that
/// `spawn` places, between standard error and [`FIRST_FREE_FD`].
pub fn inherited<const N: usize>(first: RawFd) -> Result<[Option<OwnedFd>; N]> {
    let count = RawFd::try_from(N).unwrap_or(RawFd::MAX);
    if first <= libc::STDERR_FILENO || first.saturating_add(count) > FIRST_FREE_FD {
        return Err(Errno::EINVAL);
    }
    if CLAIMED.swap(true, Ordering::AcqRel) {
        return Err(Errno::EBUSY);
    }
    let mut next = first;
    Ok(std::array::from_fn(|_| {
        let number = next;
        next += 1;
        // SAFETY: F_SETFD takes integers only; it fails with EBADF if the number is not open.
        let marked = Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) });
        // SAFETY: the number is open (checked above) and in the range that only `spawn` fills, which closes all others in the
        // same exec; it is claimed once for the whole process, so nothing else here owns it.
        marked.ok().map(|_| unsafe { OwnedFd::from_raw_fd(number) })
    }))
}

/// A close-on-exec copy with a number of at least `first` (`F_DUPFD_CLOEXEC`, fcntl(2)).
pub(crate) fn duplicate_from(fd: BorrowedFd<'_>, first: RawFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, first).map_err(nix_errno)
}

/// Sets `O_NONBLOCK` for all who share the open file.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true).map_err(nix_errno)
}

/// Closes descriptors of the parent in a child that was made by [`super::clone::fork`]: it must not keep them, not even until
/// exec. Their owners belong to the parent's code, which the child never runs again.
pub(crate) fn close_in_child(fds: &[BorrowedFd<'_>]) {
    for fd in fds {
        // SAFETY: close takes an integer. In the child no owner of the number is used or dropped: it ends in exec or _exit.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
}

/// Marks every descriptor from `first` on close-on-exec: close_range(2) with `CLOSE_RANGE_CLOEXEC` (Linux 5.11).
pub(crate) fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: close_range takes integers only; with CLOSE_RANGE_CLOEXEC it closes nothing that is owned here.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// The most descriptors that [`send`] and [`receive`] pass with one message.
pub(crate) const MAX_PASSED: usize = 6;

/// Sends one message with descriptors (`SCM_RIGHTS`, unix(7)).
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::EINVAL);
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).map(drop).map_err(nix_errno)
}

/// Receives one message and its descriptors, which are close-on-exec. 0 bytes: the other end is closed.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).map_err(nix_errno)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // As in nix: what was cut off is no answer.
        return Err(Errno::ENOBUFS);
    }
    let mut received = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            received.extend(fds);
        }
    }
    Ok((message.bytes, received))
}

/// Opens a file with a descriptor number that is not used in a new process.
pub(crate) fn open_high(path: &str, flags: OFlag) -> Result<OwnedFd> {
    let low = open(path, flags | OFlag::O_CLOEXEC, Mode::empty())?;
    duplicate_from(low.as_fd(), super::clone::FIRST_FREE_FD)
}

/// Whether it is /dev/null, by whatever path: the character device 1:3 (null(4)).
pub(crate) fn is_null(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|found| {
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFCHR && found.st_rdev == makedev(1, 3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_of_a_spawn_can_be_claimed() {
        for first in [-1, 0, 2, FIRST_FREE_FD - 3, FIRST_FREE_FD] {
            assert_eq!(inherited::<4>(first).unwrap_err(), Errno::EINVAL, "{first}");
        }
    }
}
