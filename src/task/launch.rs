//! Starts a task: limits, run directory, shim, and the wait for exec. Blocking: not for the runtime's threads.

mod shim;
mod spare;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

pub(super) use self::shim::shims_cgroup;

use self::shim::{Kind, NewShim};
use self::spare::Spares;
use super::processes::{Launched, Processes};
use super::spec::TaskSpec;
use super::template::{Foundation, Keep, TemplateError, Templates, Watcher};
use crate::cgroup::{self, Cgroup, CgroupError, MemoryMax};
use crate::record::identity::Identity;
use crate::record::key::{EmptyKey, Key};
use crate::record::reconcile;
use crate::record::run_dir::{self, RunDir, RunDirError};
use crate::sandbox::names::Reachable;
use crate::sandbox::plan::Root;
use crate::shim::report::StartError;
use crate::shim::spec::{PrivateRoot, ShimSpec};
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
    spares: Spares,
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
        let program = sys::fd::open_high("/proc/self/exe", OFlag::O_PATH)
            .map_err(CallError::on("open /proc/self/exe"))?;
        let copy = sys::fd::duplicate_from(program.as_fd(), sys::clone::FIRST_FREE_FD)
            .map_err(CallError::on("duplicate a descriptor"))?;
        sys::slots::reserve(program.as_fd());
        // Now, so that the plugin has as many descriptors before the first start as after it. An error is that of the start.
        let _ = super::null::open(OFlag::O_RDONLY);
        let templates = Arc::new(Templates::new(copy, run_dir));
        Ok(Self {
            program,
            run_dir: run_dir.to_owned(),
            templates,
            watcher: Mutex::default(),
            spares: Spares::default(),
        })
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

    /// Whether a task of this specification, which has been started, is left without a name server that it can reach.
    pub(crate) fn lacks_name_server(&self, spec: &TaskSpec) -> bool {
        spec.root.as_ref().is_some_and(|own| own.needs_name_server)
            && self.templates.get(true).is_ok_and(|found| {
                found.template.is_some_and(|template| template.layout.name_servers == Reachable::None)
            })
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
        let kind = Kind::of(spec, cgroup.as_ref())?;
        let spare = self.spares.take(&kind);
        let shim = spare.map_or_else(|| NewShim::spawn(self.program.as_fd(), &kind), Ok)?;
        if let Some(cgroup) = &cgroup {
            cgroup.apply(&spec.plan.resources.limits)?;
            cgroup.has_cpu()?;
        }
        let oom_before = cgroup.as_ref().map(Cgroup::oom).transpose()?.flatten().unwrap_or_default();
        let run_dir = self.run_dir(id);
        reconcile::end_siblings(&self.run_dir, id)?;
        reconcile::end_earlier(&run_dir)?;
        let exit = run_dir.create()?;
        match self.start(spec, &kind, shim, cgroup.as_ref(), &run_dir, &exit) {
            Ok(processes) => {
                self.spares.expect(kind);
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

    /// Starts the shim of the next task, if one is known to fit that. Blocks for about a millisecond.
    pub fn make_spare(&self) -> Result<(), LaunchError> {
        self.spares.make(self.program.as_fd())
    }

    /// The running binary.
    pub(super) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The shim and the task, both running. A shim whose task did not start is killed and reaped.
    fn start(
        &self,
        spec: &TaskSpec,
        kind: &Kind,
        mut shim: NewShim,
        cgroup: Option<&Cgroup>,
        run_dir: &RunDir,
        exit: &File,
    ) -> Result<Processes, LaunchError> {
        run_dir.record_spec(&spec.stored())?;
        let foundation = match spec.plan.root {
            Root::Private { defaults } => Some(self.templates.get(defaults)?),
            Root::Host => None,
        };
        let root = foundation.as_ref().and_then(|foundation| private_root(spec, foundation));
        let spec_fd = spec_file(spec, root.as_ref())?;
        let session = run_dir.new_session_file()?;
        let of_root = foundation.iter().flat_map(|Foundation { empty, template }| {
            [Some(empty.as_fd()), template.as_ref().map(|template| template.namespace.as_fd())]
        });
        let given =
            [spec_fd.as_fd(), exit.as_fd(), session.as_fd()].into_iter().chain(cgroup.map(Cgroup::dir_fd));
        let given: Vec<_> = given.chain(of_root.flatten()).collect();
        let mut started = start_task(&shim, run_dir, &given);
        if shim.is_spare() && matches!(started, Err(LaunchError::Start(StartError::ShimDied))) {
            tracing::warn!(
                "the shim that was started ahead of its task has been killed; the task gets another one"
            );
            shim.end()?;
            run_dir.forget_shim()?;
            shim = NewShim::spawn(self.program.as_fd(), kind)?;
            started = start_task(&shim, run_dir, &given);
        }
        let (shim_id, leader, leader_id) = started?;
        let shim = shim.into_pidfd().ok_or(StartError::ShimDied)?;
        Ok(Processes { shim, shim_id, leader: Some(leader), leader_id })
    }
}

/// Records the shim and lets it start the task. Returns the shim's identity, the task's pidfd and identity.
fn start_task(
    shim: &NewShim,
    run_dir: &RunDir,
    given: &[BorrowedFd<'_>],
) -> Result<(Identity, OwnedFd, Option<Identity>), LaunchError> {
    let id = shim.identity()?;
    // First, so that the next plugin finds the task if this one dies.
    run_dir.record_shim(&id)?;
    let (leader, leader_id) = shim.start(given)?;
    Ok((id, leader, leader_id))
}

/// The task's root, if it gets one of its own.
fn private_root(spec: &TaskSpec, foundation: &Foundation) -> Option<PrivateRoot> {
    let own = spec.root.as_ref()?;
    let resources = &spec.plan.resources;
    Some(PrivateRoot {
        layout: foundation.template.as_ref().map(|template| template.layout.clone()),
        dirs: own.dirs.clone(),
        files: own.files.clone(),
        hostname: own.hostname.clone(),
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
