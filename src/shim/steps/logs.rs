//! Nomad's log FIFOs.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdout, fchown};

use super::Result;
use super::paths::{open_beneath, own_directory, path_of};
use crate::sandbox::place::Place;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::{ShimSpec, Stdio};

/// How long the log FIFOs may have no reader. Nomad's log collector opens them before Nomad starts the task, so a missing reader
/// has died or is being restarted.
const LOG_READER_WAIT: Duration = Duration::from_secs(5);
/// Pause between two attempts: the only other way to wait for a reader of a FIFO is to block without a limit.
const LOG_READER_PAUSE: Duration = Duration::from_millis(5);

/// The FIFOs, opened for writing.
#[derive(Debug)]
pub(crate) struct Logs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

pub(crate) fn open_logs(spec: &ShimSpec) -> Result<Option<Logs>> {
    let (stdout, stderr) = match &spec.command.stdio {
        Stdio::Fifos { stdout, stderr } => (stdout, stderr),
        // The shim has them already.
        Stdio::Null | Stdio::Inherited => return Ok(None),
    };
    Ok(Some(Logs { stdout: open_log(stdout, spec)?, stderr: open_log(stderr, spec)? }))
}

/// Opens a log FIFO for writing, makes sure that it is one, and gives it to the task's user, so that the task can open
/// /dev/stdout again. Later steps use the descriptor: the name may mean another file by then.
fn open_log(place: &Place, spec: &ShimSpec) -> Result<OwnedFd> {
    let failed = |errno| Failure::new(Step::Log, path_of(place), errno);
    let deadline = Instant::now() + LOG_READER_WAIT;
    let fifo = loop {
        // Without O_NONBLOCK this would block forever without a reader.
        match open_log_fifo(place, spec) {
            Ok(fifo) => break fifo,
            Err(Errno::ENXIO) if Instant::now() < deadline => std::thread::sleep(LOG_READER_PAUSE),
            Err(Errno::ENXIO) => {
                return Err(failed(Errno::ENXIO).with_note(format!(
                    "no process reads the log FIFO, waited {} s",
                    LOG_READER_WAIT.as_secs()
                )));
            }
            Err(errno) => return Err(failed(errno)),
        }
    };
    let kind = SFlag::from_bits_truncate(fstat(&fifo).map_err(failed)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO {
        return Err(Failure::text(Step::Log, path_of(place), "it is not a FIFO".into()));
    }
    fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_WRONLY)).map_err(failed)?;
    fchown(&fifo, Some(Uid::from_raw(spec.user.uid)), Some(Gid::from_raw(spec.user.gid))).map_err(failed)?;
    Ok(fifo)
}

fn open_log_fifo(place: &Place, spec: &ShimSpec) -> nix::Result<OwnedFd> {
    // A log lies below the task's own directory, and nowhere else.
    let Place::Beneath { root, path } = place else { return Err(Errno::EINVAL) };
    if *root != spec.plan.task_dir {
        return Err(Errno::EINVAL);
    }
    open_beneath(&own_directory(spec, path)?, path, OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)
}

/// Standard output and error of the task.
pub(crate) fn attach_logs(logs: Option<Logs>) -> Result<()> {
    let Some(Logs { stdout, stderr }) = logs else { return Ok(()) };
    dup2_stdout(&stdout).map_err(|errno| Failure::new(Step::Stdio, "stdout", errno))?;
    dup2_stderr(&stderr).map_err(|errno| Failure::new(Step::Stdio, "stderr", errno))
}
