//! Starts a task: limits, run directory, shim, and the wait for exec. Blocking: not for the runtime's threads.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use super::processes::{Launched, Processes};
use super::spec::TaskSpec;
use super::template::{Foundation, Keep, TemplateError, Templates, Watcher};
use crate::cgroup::{self, Cgroup, CgroupError, MemoryMax};
use crate::record::identity::Identity;
use crate::record::key::{EmptyKey, Key};
use crate::record::reconcile;
use crate::record::run_dir::{self, RunDir, RunDirError};
use crate::sandbox::plan::{Namespace, Plan, Root};
use crate::shim::fds;
use crate::shim::report::{self, Receiver, StartError};
use crate::shim::spec::{PrivateRoot, ShimSpec, Stdio};
use crate::sys::{self, CallError};

/// How long a start may take, from clone to exec. The shim's own waits are bounded far below it; only a path on a file
/// system that hangs (a dead NFS server) takes longer, and Nomad's StartTask must not wait forever.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// What every start needs, opened once.
#[derive(Debug)]
pub struct Launcher {
    /// The running binary, so that an upgrade on disk never mixes two versions in one start.
    program: OwnedFd,
    run_dir: PathBuf,
    templates: Arc<Templates>,
    watcher: Mutex<Option<Watcher>>,
}

/// Why a task did not start. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Id(#[from] EmptyKey),
    #[error(transparent)]
    System(#[from] CallError),
    #[error("failed to encode the task specification: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error(transparent)]
    Template(#[from] Arc<TemplateError>),
    #[error(transparent)]
    End(#[from] reconcile::EndError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl LaunchError {
    /// Whether the job is at fault, so that Nomad should not try again on this host.
    pub fn is_jobs_fault(&self) -> bool {
        matches!(self, Self::Start(StartError::Failed(failure)) if failure.is_jobs_fault())
    }
}

impl Launcher {
    pub fn new(run_dir: &Path) -> Result<Self, LaunchError> {
        let program =
            open_high("/proc/self/exe", OFlag::O_PATH).map_err(CallError::on("open /proc/self/exe"))?;
        let copy = sys::fd::duplicate_from(program.as_fd(), sys::clone::FIRST_FREE_FD)
            .map_err(CallError::on("duplicate a descriptor"))?;
        let templates = Arc::new(Templates::new(copy, run_dir));
        Ok(Self { program, run_dir: run_dir.to_owned(), templates, watcher: Mutex::default() })
    }

    /// From now on, or no longer, keeps the template and the copies of /etc up to date: for tasks that run already as well.
    pub(crate) fn keep_template(&self, keep: bool) {
        self.watch(keep.then_some(Keep::Template));
    }

    /// Keeps the copies of /etc up to date, for a task of this process. Another process on this host may do the same, but none
    /// has to.
    pub(crate) fn keep_copies(&self) {
        self.watch(Some(Keep::Copies));
    }

    fn watch(&self, keep: Option<Keep>) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_some() == keep.is_some() {
            return;
        }
        *watcher = keep.and_then(|keep| {
            let started = Watcher::start(Arc::clone(&self.templates), keep);
            let report =
                |error: &io::Error| tracing::warn!("failed to watch the host's /etc for changes: {error}");
            started.inspect_err(report).ok()
        });
    }

    /// Removes the records of tasks that Nomad no longer knows; see [`reconcile::sweep`].
    pub fn sweep(&self) -> Vec<RunDir> {
        reconcile::sweep(&self.run_dir)
    }

    /// The entries of all tasks on this host, including those of `run`.
    pub fn entries(&self) -> Vec<RunDir> {
        run_dir::entries(&self.run_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to list the run directories of running tasks");
            Vec::new()
        })
    }

    pub fn run_dir(&self, task_id: Key<'_>) -> RunDir {
        RunDir::of(&self.run_dir, task_id)
    }

    /// Whether a task runs that this plugin does not know.
    pub fn runs_unknown(&self, task_id: Key<'_>) -> bool {
        !reconcile::ended(&self.run_dir(task_id))
    }

    /// Ends a task that this plugin does not know, if it still runs, and removes its records.
    pub fn end_unknown(&self, task_id: Key<'_>) -> Result<(), LaunchError> {
        let run_dir = self.run_dir(task_id);
        reconcile::end_earlier(&run_dir)?;
        Ok(run_dir.remove()?)
    }

    /// Starts the task and returns when its program runs, or says which step failed. Earlier starts and
    /// other invocations of the same task are ended first.
    pub fn launch(&self, spec: &TaskSpec) -> Result<Launched, LaunchError> {
        let id = spec.id.key();
        let cgroup = spec.plan.resources.cgroup.as_deref().map(Cgroup::open).transpose()?;
        if let Some(cgroup) = &cgroup {
            cgroup.apply(&spec.plan.resources.limits)?;
            cgroup.has_cpu()?;
        }
        let oom_before = cgroup.as_ref().map(Cgroup::oom).transpose()?.flatten().unwrap_or_default();
        let run_dir = self.run_dir(id);
        reconcile::end_siblings(&self.run_dir, id)?;
        reconcile::end_earlier(&run_dir)?;
        let exit = run_dir.create()?;
        match self.start(spec, cgroup.as_ref(), &run_dir, exit) {
            Ok(processes) => {
                let started_at = SystemTime::now();
                Ok(Launched { processes, cgroup, run_dir, started_at, oom_before })
            }
            Err(error) => {
                // The records of a task that hangs are kept: the next start of it, or DestroyTask, tries to end it again.
                if reconcile::ended(&run_dir)
                    && let Err(error) = run_dir.remove()
                {
                    tracing::warn!(%error, "failed to remove the directory of a task that did not start");
                }
                Err(error)
            }
        }
    }

    /// The running binary.
    pub(super) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The shim and the task, both running. A shim whose task did not start is killed and reaped.
    fn start(
        &self,
        spec: &TaskSpec,
        cgroup: Option<&Cgroup>,
        run_dir: &RunDir,
        exit: File,
    ) -> Result<Processes, LaunchError> {
        run_dir.record_spec(&spec.stored())?;
        let foundation = match spec.plan.root {
            Root::Private { defaults } => Some(self.templates.get(defaults)?),
            Root::Host => None,
        };
        let root = foundation.as_ref().and_then(|foundation| private_root(spec, foundation));
        let spec_fd = spec_file(spec, root.as_ref())?;
        let (receiver, report) = report::pair().map_err(CallError::on("make the report socket"))?;
        let session = run_dir.new_session_file()?;
        let given = [spec_fd.as_fd(), report.as_fd(), exit.as_fd(), session.as_fd()];
        let given = given.into_iter().chain(cgroup.map(Cgroup::dir_fd));
        let of_root = foundation.iter().flat_map(|Foundation { empty, template }| {
            [Some(empty.as_fd()), template.as_ref().map(|template| template.namespace.as_fd())]
        });
        let given = given.chain(of_root.flatten());
        let passed: Vec<OwnedFd> = given
            .map(|fd| sys::fd::duplicate_from(fd, sys::clone::FIRST_FREE_FD))
            .collect::<Result<_, _>>()
            .map_err(CallError::on("duplicate a descriptor for the shim"))?;
        let numbered: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        let null = match spec.command.stdio {
            Stdio::Fifos { .. } | Stdio::Null => Some(Null::open().map_err(CallError::on("open /dev/null"))?),
            Stdio::Inherited => None,
        };
        let shims = cgroup.and_then(shims_cgroup);
        let child = sys::clone::spawn(&sys::clone::Spawn {
            program: self.program.as_fd(),
            argv: &[c"nomad-driver-exec2", c"shim"],
            namespaces: clone_flags(&spec.plan),
            cgroup: shims.as_ref().map(Cgroup::dir_fd),
            fds: &numbered,
            first_fd: fds::SPEC,
            stdio: null.as_ref().map(Null::stdio),
            report: passed[1].as_fd(),
        })
        .map_err(CallError::on("clone the shim"))?;
        // The shim has its own copies; these would keep the socket open.
        drop((report, passed));
        let shim = child.pidfd;
        match started(&shim, &receiver, run_dir) {
            Ok((shim_id, leader, leader_id)) => {
                Ok(Processes { shim, shim_id, leader: Some(leader), leader_id })
            }
            Err(error) => {
                if let Err(error) = reconcile::end(shim) {
                    tracing::error!(%error, "failed to end a task that did not start");
                }
                Err(error)
            }
        }
    }
}

/// /dev/null, opened for one start. Tasks must not share an open file: each could change its status flags, locks and owner of
/// signals (fcntl(2), flock(2)) for the others.
struct Null {
    read: OwnedFd,
    write: OwnedFd,
}

impl Null {
    fn open() -> nix::Result<Self> {
        let open = |flags| open_high("/dev/null", flags);
        Ok(Self { read: open(OFlag::O_RDONLY)?, write: open(OFlag::O_WRONLY)? })
    }

    fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        [self.read.as_fd(), self.write.as_fd(), self.write.as_fd()]
    }
}

/// Opens a file with a descriptor number that is not used in a new process.
pub(super) fn open_high(path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let low = open(path, flags | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::fd::duplicate_from(low.as_fd(), sys::clone::FIRST_FREE_FD)
}

/// Records the shim's identity, lets it continue, and waits until the task runs. Returns the shim's identity, and the task's
/// pidfd and identity.
fn started(
    shim: &OwnedFd,
    receiver: &Receiver,
    run_dir: &RunDir,
) -> Result<(Identity, OwnedFd, Option<Identity>), LaunchError> {
    let shim_id = Identity::behind(shim).map_err(CallError::on("identify the shim"))?;
    run_dir.record_shim(&shim_id)?;
    receiver.go_on();
    let task = receiver.wait(START_LIMIT)?;
    let task_id = match Identity::behind(&task) {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => None,
        found => Some(found.map_err(CallError::on("identify the task"))?),
    };
    Ok((shim_id, task, task_id))
}

/// The namespaces of the shim and its task as flags of clone(2).
fn clone_flags(plan: &Plan) -> u64 {
    let flag = |namespace: &Namespace| match namespace {
        Namespace::Pid => libc::CLONE_NEWPID,
        Namespace::Mount => libc::CLONE_NEWNS,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
    };
    plan.namespaces.own.iter().fold(0, |flags, namespace| flags | u64::from(flag(namespace).unsigned_abs()))
}

/// The task's root, if it gets one of its own.
fn private_root(spec: &TaskSpec, foundation: &Foundation) -> Option<PrivateRoot> {
    let own = spec.root.as_ref()?;
    let resources = &spec.plan.resources;
    Some(PrivateRoot {
        layout: foundation.template.as_ref().map(|template| template.layout.clone()),
        dirs: own.dirs.clone(),
        files: own.files.clone(),
        shm_size: match resources.limits.memory_max {
            MemoryMax::Bytes(bytes) => Some(bytes),
            MemoryMax::Max => None,
        },
        cgroup_root: resources.cgroup.is_some().then(|| cgroup::MOUNT_POINT.into()),
    })
}

fn spec_file(spec: &TaskSpec, root: Option<&PrivateRoot>) -> Result<File, LaunchError> {
    let bytes = ShimSpec::encode_parts(&spec.user, &spec.plan, &spec.command, root)?;
    Ok(sealed(&bytes)?)
}

/// A sealed memfd: nothing on disk, nothing in `ps`, and nobody can change it any more.
pub(super) fn sealed(bytes: &[u8]) -> Result<File, CallError> {
    let memfd = memfd_create(c"exec2-spec", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(CallError::on("make a memfd for the spec"))?;
    let mut file = File::from(memfd);
    file.write_all(bytes).map_err(CallError::on("write the spec"))?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(CallError::on("seal the spec"))?;
    Ok(file)
}

/// The cgroup of the shims, a sibling of the tasks' cgroups. Without it they stay in the plugin's, where stopping
/// nomad.service would kill them: so it is a warning.
pub(super) fn shims_cgroup(task: &Cgroup) -> Option<Cgroup> {
    Cgroup::shims_for(task.path())
        .inspect_err(|error| tracing::warn!(%error, "failed to open the cgroup of the shims; the shim stays in the plugin's cgroup"))
        .ok()
}

#[cfg(test)]
mod tests {
    use nix::fcntl::FcntlArg;

    use super::*;

    #[test]
    fn each_start_has_an_open_null_device_of_its_own() {
        let (one, other) = (Null::open().unwrap(), Null::open().unwrap());
        let flags = |fd: BorrowedFd<'_>| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        let [input, output, error] = one.stdio();
        assert_eq!(flags(input) & OFlag::O_ACCMODE, OFlag::O_RDONLY);
        for fd in [output, error] {
            assert_eq!(flags(fd) & OFlag::O_ACCMODE, OFlag::O_WRONLY);
        }
        fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert!(flags(output).contains(OFlag::O_NONBLOCK));
        assert!(!flags(input).contains(OFlag::O_NONBLOCK));
        assert!(
            other.stdio().into_iter().all(|fd| !flags(fd).contains(OFlag::O_NONBLOCK)),
            "another start's"
        );
    }
}
