//! The task's output: Nomad's log FIFOs, or without its log collector the journal or files.

mod files;
mod journal;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdout, fchown};

use super::Result;
use super::paths::{open_beneath, own_directory, path_of};
use crate::sandbox::place::Place;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::{OwnOutput, ShimSpec, Stdio};

pub(crate) use files::LogFiles;
use journal::Priority;

/// How long the log FIFOs may have no reader. Nomad's log collector opens them before Nomad starts the task, so a missing reader
/// has died or is being restarted.
const LOG_READER_WAIT: Duration = Duration::from_secs(5);
/// Pause between two attempts: the only other way to wait for a reader of a FIFO is to block without a limit.
const LOG_READER_PAUSE: Duration = Duration::from_millis(5);

/// Both streams, opened for writing.
#[derive(Debug)]
pub(crate) struct Logs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Whether they are FIFOs, which the task can open again only if Landlock allows it.
    pub(crate) fifos: bool,
}

/// What the shim copies to where.
pub(crate) type Copies = [(OwnedFd, LogFiles); 2];

pub(crate) fn open_logs(spec: &ShimSpec) -> Result<(Option<Logs>, Option<Copies>)> {
    match &spec.command.stdio {
        Stdio::Fifos { stdout, stderr } => {
            let (stdout, stderr) = (open_log(stdout, spec)?, open_log(stderr, spec)?);
            Ok((Some(Logs { stdout, stderr, fifos: true }), None))
        }
        Stdio::Own(output) => match to_journal(spec, output)? {
            Some(logs) => Ok((Some(logs), None)),
            None => to_files(spec, output).map(|(logs, copies)| (Some(logs), Some(copies))),
        },
        // The shim has them already.
        Stdio::Null | Stdio::Inherited => Ok((None, None)),
    }
}

/// None: this host has no journald.
fn to_journal(spec: &ShimSpec, output: &OwnOutput) -> Result<Option<Logs>> {
    let path = Path::new(journal::SOCKET);
    let open = |priority| {
        journal::open(path, &output.identifier, priority)
            .map_err(|errno| Failure::new(Step::Log, path.display().to_string(), errno))
    };
    let (Some(stdout), Some(stderr)) = (open(Priority::Info)?, open(Priority::Error)?) else {
        return Ok(None);
    };
    // The note is all that is written there, and the output is where it should be without it: a task can rename the directory.
    let Ok(directory) = log_directory(spec) else { return Ok(Some(Logs { stdout, stderr, fifos: false })) };
    let unit = spec.plan.resources.cgroup.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
    let note = format!(
        "The output of this task is in the journal of its node, not here. On the node, as root:\n  \
         journalctl -t '{}'\n  journalctl _SYSTEMD_UNIT={}\n",
        output.identifier,
        unit.display()
    );
    for name in output.names() {
        let _ = files::leave_note(&directory, &name, &note);
    }
    Ok(Some(Logs { stdout, stderr, fifos: false }))
}

fn to_files(spec: &ShimSpec, output: &OwnOutput) -> Result<(Logs, Copies)> {
    let create = |name: String| {
        let path = format!("{LOG_DIRECTORY}/{name}");
        let failed = |errno| Failure::new(Step::Log, path.clone(), errno);
        let files = LogFiles::create(log_directory(spec)?, name).map_err(failed)?;
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        give(&write, spec).map_err(failed)?;
        Ok::<_, Failure>((write, (read, files)))
    };
    let [stdout, stderr] = output.names();
    let ((stdout, out), (stderr, err)) = (create(stdout)?, create(stderr)?);
    Ok((Logs { stdout, stderr, fifos: false }, [out, err]))
}

/// The allocation's log directory, in which Nomad looks for logs.
const LOG_DIRECTORY: &str = "alloc/logs";

fn log_directory(spec: &ShimSpec) -> Result<OwnedFd> {
    let path = Path::new(LOG_DIRECTORY);
    own_directory(spec, path)
        .and_then(|root| open_beneath(&root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY))
        .map_err(|errno| Failure::new(Step::Log, LOG_DIRECTORY, errno))
}

/// To the task's user, so that the task can open /dev/stdout again.
fn give(output: &OwnedFd, spec: &ShimSpec) -> nix::Result<()> {
    fchown(output, Some(Uid::from_raw(spec.user.uid)), Some(Gid::from_raw(spec.user.gid)))
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
    give(&fifo, spec).map_err(failed)?;
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
    let Some(Logs { stdout, stderr, .. }) = logs else { return Ok(()) };
    dup2_stdout(&stdout).map_err(|errno| Failure::new(Step::Stdio, "stdout", errno))?;
    dup2_stderr(&stderr).map_err(|errno| Failure::new(Step::Stdio, "stderr", errno))
}
