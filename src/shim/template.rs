//! The template: a mount namespace with what every task's root has in common, built by a short-lived process of this program
//! (`nomad-driver-exec2 template`).
//!
//! It is gone when it has handed two namespaces to the plugin: the template's, and an empty one of which the shim makes each
//! task's. Nothing is left on the host but the copies of /etc. The same process finds out whether the template is still what
//! the host has, and refreshes the copies: only a process can be given up if a file system does not answer.

mod build;
mod changes;
pub(crate) mod etc;
pub(crate) mod progress;
pub(crate) mod survey;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::sys::stat::{Mode, fstat, umask};
use serde::{Deserialize, Serialize};

use self::build::{build, build_empty, copy_namespace, namespace, open_directory};
use self::changes::Changes;
use self::progress::Progress;
use self::survey::{ETC, Survey};
use super::fds;
use crate::record::run_dir::fnv1a;
use crate::sandbox::root::layout::Layout;
use crate::sys;

/// The longest message between plugin and template process, bytes. A layout has some 10 KiB.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;
/// The most surveys for one report: each after the first one means that a link led to a directory that was not watched.
const SURVEYS_MAX: usize = 4;
/// Nobody but root writes.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// What the plugin asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    #[serde(with = "crate::os_path")]
    pub run_dir: PathBuf,
    /// Where the copies of /etc are, below the run directory.
    #[serde(with = "crate::os_path")]
    pub etc: PathBuf,
    pub wanted: Wanted,
    /// Default unveils that did not answer.
    #[serde(with = "crate::os_path::list")]
    pub skip: Vec<PathBuf>,
}

/// What a template process makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// The empty namespace only.
    Empty,
    /// The template, the empty namespace, and the copies.
    All,
    /// The copies, and the template unless it is the one with this [`Identity`].
    Newer(Identity),
    /// The copies only. Those of paths that are skipped stay as they are.
    Copies,
}

/// Equal for templates that show the same: a hash of the layout, and of device and inode of each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity(u64);

/// What the template process says, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// With the descriptor of the empty namespace.
    Empty,
    /// With an inotify(7) descriptor, which becomes readable when something has changed that this process looked at.
    Changes,
    /// With the descriptor of the template's namespace.
    Template { layout: Layout, identity: Identity },
    /// What failed is missing among the copies, or in the template.
    Done { warning: Option<String> },
    /// Nothing follows.
    Failed(String),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step} {path:?}: {}", .errno.desc())]
struct TemplateError {
    step: &'static str,
    path: PathBuf,
    errno: Errno,
}

type Result<T> = std::result::Result<T, TemplateError>;

fn failed(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> TemplateError {
    let path = path.into();
    move |errno| TemplateError { step, path, errno }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The entry point of `nomad-driver-exec2 template`.
pub fn main() -> ExitCode {
    let Ok([Some(socket), Some(progress)]) = sys::fd::inherited::<2>(fds::FIRST) else {
        return ExitCode::FAILURE;
    };
    match serve(socket.as_fd(), &mut Progress::from(progress)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(socket.as_fd(), &Report::Failed(error.to_string()), None);
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: BorrowedFd<'_>, progress: &mut Progress) -> Result<()> {
    // Where it hangs it does not notice that nobody listens any more. If the plugin is dead already, there is no request.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("set the death signal of", "this process"))?;
    let mut bytes = vec![0; MAX_MESSAGE];
    let length =
        recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).map_err(failed("read", "the request"))?;
    let request: Request =
        rmp_serde::from_slice(&bytes[..length]).map_err(|_| failed("read", "the request")(Errno::EPROTO))?;
    umask(UMASK);
    if matches!(request.wanted, Wanted::Empty | Wanted::All) {
        let host = namespace()?;
        let empty = build_empty(&request.run_dir)?;
        setns(host, CloneFlags::CLONE_NEWNS).map_err(failed("enter", "the host's mount namespace"))?;
        say(socket, &Report::Empty, Some(empty.as_fd()));
    }
    let warning = match request.wanted {
        Wanted::Empty => None,
        _ => look(&request, socket, |path| progress.look_at(path))?,
    };
    say(socket, &Report::Done { warning }, None);
    Ok(())
}

/// If nobody listens any more, nobody needs this process; it ends soon.
fn say(socket: BorrowedFd<'_>, report: &Report, fd: Option<BorrowedFd<'_>>) {
    let Ok(message) = rmp_serde::to_vec(report) else { return };
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let _ =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&message)], control, MsgFlags::MSG_NOSIGNAL, None);
}

/// Surveys the host, refreshes the copies, and builds the template if one is wanted. Returns what went wrong on the way.
fn look(request: &Request, socket: BorrowedFd<'_>, mut at: impl FnMut(&Path)) -> Result<Option<String>> {
    // Mounts can be copied only in the namespace in which they were opened. To compare needs no namespace, which would cost as
    // much as the host has mounts.
    let copied_namespace = match request.wanted {
        Wanted::All => Some(copy_namespace(MsFlags::MS_SLAVE)?),
        _ => None,
    };
    let (mut survey, unwatched) = watched_survey(&request.skip, socket, &mut at);
    let etc = &request.etc;
    let whole = request.skip.is_empty();
    let mut copied = update_etc(etc, &survey, whole, &mut at)?;
    let namespace = match (request.wanted, copied_namespace) {
        (Wanted::Newer(known), None) if known != identity(&survey, etc)? => {
            let namespace = copy_namespace(MsFlags::MS_SLAVE)?;
            survey = survey::survey(&request.skip, &mut at);
            // It may have found a directory of /etc that the first one did not.
            copied = update_etc(etc, &survey, whole, at)?.or(copied);
            namespace
        }
        (_, Some(namespace)) => namespace,
        _ => return Ok(copied.or(unwatched)),
    };
    let identity = identity(&survey, etc)?;
    let (layout, lost) = build(&request.run_dir, etc, survey)?;
    say(socket, &Report::Template { layout, identity }, Some(namespace.as_fd()));
    let lost = lost.map(|path| format!("failed to unveil the default {path:?}"));
    Ok(lost.or(copied).or(unwatched))
}

/// A survey in whose directories every later change is noticed by the descriptor that the plugin gets.
fn watched_survey(
    skip: &[PathBuf],
    socket: BorrowedFd<'_>,
    at: &mut impl FnMut(&Path),
) -> (Survey, Option<String>) {
    let mut found = survey::survey(skip, &mut *at);
    let mut watch = || -> nix::Result<(Survey, OwnedFd)> {
        let mut changes = Changes::new()?;
        for _ in 0..SURVEYS_MAX {
            if !changes.add(&found.directories, skip, &mut *at)? {
                break;
            }
            found = survey::survey(skip, &mut *at);
        }
        Ok((std::mem::take(&mut found), changes.into_fd()))
    };
    match watch() {
        Ok((found, changes)) => {
            say(socket, &Report::Changes, Some(changes.as_fd()));
            (found, None)
        }
        Err(errno) => {
            let warning = format!("failed to watch the default unveils for changes: {}", errno.desc());
            (found, Some(warning))
        }
    }
}

fn identity(survey: &Survey, etc: &Path) -> Result<Identity> {
    let etc = open_directory(etc)?;
    let number = |fd: &OwnedFd| fstat(fd).map(|found| (found.st_dev, found.st_ino));
    let numbers = survey.places.values().chain([&etc]).map(number).collect::<nix::Result<Vec<_>>>();
    let numbers = numbers.map_err(failed("stat", "the default unveils"))?;
    let bytes = rmp_serde::to_vec(&(&survey.layout, numbers));
    Ok(Identity(fnv1a(&bytes.map_err(|_| failed("encode", "the layout")(Errno::EINVAL))?)))
}

/// Returns what went wrong with single files: a root without them is better than none.
fn update_etc(
    directory: &Path,
    survey: &Survey,
    whole: bool,
    at: impl FnMut(&Path),
) -> Result<Option<String>> {
    let Some(tree) = survey.layout.trees.iter().find(|tree| tree.path == Path::new(ETC)) else {
        return Ok(None);
    };
    etc::make_directory(directory).map_err(|error| failed("make", directory)(errno_of(&error)))?;
    Ok(etc::update(directory, tree, &survey.made, whole, at).err().map(|error| error.to_string()))
}
