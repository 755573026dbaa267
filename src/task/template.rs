//! The template of the tasks' roots, as the plugin has it: two mount namespaces and what is in them.

mod process;
mod watch;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::process::{Hanging, Made};
use crate::record::run_dir::{self, NO_TASK, RunDirError, fnv1a};
use crate::sandbox::defaults::DEFAULTS;
use crate::sandbox::root::layout::Layout;
use crate::shim::template::{Identity, Request, Wanted};
use crate::sys::CallError;

pub(crate) use watch::{Keep, Watcher};

/// How long one default path may take to answer. A local file system needs microseconds; a file server that is alive, less
/// than this.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The most default paths that may fail to answer before the template is given up. All of them then wait for the same server.
const SKIPPED_MAX: usize = 8;
/// How long it may take altogether, so that task starts that wait for the first template are answered in time.
const BUILD_LIMIT: Duration = Duration::from_secs(18);

const _: () = assert!(BUILD_LIMIT.as_secs() >= ANSWER_LIMIT.as_secs() * (SKIPPED_MAX as u64 + 1));

/// A template that is complete.
#[derive(Debug)]
pub(crate) struct Template {
    pub namespace: OwnedFd,
    pub layout: Layout,
    identity: Identity,
    /// Default paths that it lacks because they did not answer.
    skipped: Vec<PathBuf>,
}

/// What a root is built from.
#[derive(Debug, Clone)]
pub(crate) struct Foundation {
    /// A mount namespace with one empty directory.
    pub empty: Arc<OwnedFd>,
    /// None without the default unveils.
    pub template: Option<Arc<Template>>,
}

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("failed to make the template of the tasks' roots: {0}")]
    System(#[from] CallError),
    #[error("the template of the tasks' roots: {0}")]
    Failed(String),
    #[error("failed to make the template of the tasks' roots: its process ended early")]
    Ended,
    #[error("failed to make the template of the tasks' roots: {0:?} does not answer")]
    Silent(PathBuf),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

/// Builds the template when it is first needed, replaces it when the host changes, and keeps the copies of /etc up to date.
#[derive(Debug)]
pub(crate) struct Templates {
    /// This program, opened `O_PATH`.
    program: OwnedFd,
    run_dir: PathBuf,
    /// Locked only for a moment: starts do not wait for a template while there is one.
    current: Mutex<Current>,
    /// Locked while a process is at work.
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Current {
    empty: Option<Arc<OwnedFd>>,
    template: Option<Arc<Template>>,
}

#[derive(Debug, Default)]
struct Work {
    hanging: Hanging,
    /// Default paths that did not answer when they were last looked at.
    silent: Vec<PathBuf>,
    /// Of the last process: see [`Made::changes`].
    changes: Option<OwnedFd>,
    /// The last warning, which is not repeated.
    warning: Option<String>,
    /// The last failure, for all who waited for it.
    failed: Option<(Instant, Arc<TemplateError>)>,
}

/// How much of what did not answer is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Silent,
    No,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Templates {
    pub(crate) fn new(program: OwnedFd, run_dir: &Path) -> Self {
        Self { program, run_dir: run_dir.to_owned(), current: Mutex::default(), work: Mutex::default() }
    }

    /// What there is now; only the first call waits until it is made, at most [`BUILD_LIMIT`] for each who asks.
    pub(crate) fn get(&self, defaults: bool) -> Result<Foundation, Arc<TemplateError>> {
        let asked = Instant::now();
        if let Some(found) = self.found(defaults) {
            return Ok(found);
        }
        let mut work = lock(&self.work);
        if let Some(found) = self.found(defaults) {
            return Ok(found);
        }
        if let Some((at, error)) = &work.failed
            && *at >= asked
        {
            return Err(Arc::clone(error));
        }
        let made = match defaults {
            true => self.look(&mut work, Keep::Template, Retry::No),
            false => self.make(&mut work, Wanted::Empty, &[], Instant::now() + BUILD_LIMIT),
        };
        let made = made.map_err(Arc::new).inspect_err(|error| {
            work.failed = Some((Instant::now(), Arc::clone(error)));
        });
        made.and_then(|()| self.found(defaults).ok_or(Arc::new(TemplateError::Ended)))
    }

    fn found(&self, defaults: bool) -> Option<Foundation> {
        let current = lock(&self.current);
        let template = match defaults {
            true => Some(Arc::clone(current.template.as_ref()?)),
            false => None,
        };
        Some(Foundation { empty: Arc::clone(current.empty.as_ref()?), template })
    }

    /// Brings copies and template up to date. An error leaves the old ones in use.
    fn refresh(&self, keep: Keep, retry: Retry) {
        let mut work = lock(&self.work);
        if let Err(error) = self.look(&mut work, keep, retry) {
            warn_once(&mut work, format!("failed to refresh the template of the tasks' roots: {error}"));
        }
    }

    /// The descriptor that becomes readable when something has changed since the last look.
    fn take_changes(&self) -> Option<OwnedFd> {
        lock(&self.work).changes.take()
    }

    /// Default paths that do not answer are left out, with a warning: a dead file server must not keep every task from starting.
    /// A template that has them stays in use.
    fn look(&self, work: &mut Work, keep: Keep, retry: Retry) -> Result<(), TemplateError> {
        let deadline = Instant::now() + BUILD_LIMIT;
        let may_hang = work.hanging.count() < SKIPPED_MAX;
        let mut skip = match retry {
            Retry::Silent if may_hang => Vec::new(),
            _ => work.silent.clone(),
        };
        loop {
            match self.make(work, self.wanted(keep, &skip), &skip, deadline) {
                Err(TemplateError::Silent(path)) if skip.len() < SKIPPED_MAX && !skip.contains(&path) => {
                    if !work.silent.contains(&path) {
                        tracing::warn!("{}", self.silence(&path));
                    }
                    skip.push(path);
                    skip.sort();
                }
                made => {
                    for path in work.silent.iter().filter(|path| made.is_ok() && !skip.contains(path)) {
                        tracing::info!("the default unveil {path:?} answers again");
                    }
                    work.silent = skip;
                    return made;
                }
            }
        }
    }

    fn silence(&self, path: &Path) -> String {
        let seconds = ANSWER_LIMIT.as_secs();
        let then = match &lock(&self.current).template {
            Some(_) => "the template of the tasks' roots stays as it is",
            None => "tasks that start now do not have it",
        };
        format!("the default unveil {path:?} does not answer within {seconds} s; {then}")
    }

    fn wanted(&self, keep: Keep, skip: &[PathBuf]) -> Wanted {
        match (keep, &lock(&self.current).template) {
            (Keep::Template, None) => Wanted::All,
            // One that has more than is available now stays in use.
            (Keep::Template, Some(template)) if skip.is_empty() || template.skipped == skip => {
                Wanted::Newer(template.identity)
            }
            _ => Wanted::Copies,
        }
    }

    /// Runs a process, and takes over what it made.
    fn make(
        &self,
        work: &mut Work,
        wanted: Wanted,
        skip: &[PathBuf],
        deadline: Instant,
    ) -> Result<(), TemplateError> {
        run_dir::make_base(&self.run_dir)?;
        let request = Request {
            run_dir: self.run_dir.clone(),
            etc: self.run_dir.join(etc_name()),
            wanted,
            skip: skip.to_vec(),
        };
        let limits = (ANSWER_LIMIT, deadline);
        let made = process::run(self.program.as_fd(), &request, limits, &mut work.hanging)?;
        let Made { empty, template, changes, warning } = made;
        work.changes = changes;
        match warning {
            Some(warning) => warn_once(work, warning),
            None => work.warning = None,
        }
        let mut current = lock(&self.current);
        if let Some(empty) = empty {
            current.empty.get_or_insert(Arc::new(empty));
        }
        if let Some(template) = template {
            tracing::debug!(
                first = current.template.is_none(),
                "the template of the tasks' roots is complete"
            );
            current.template = Some(Arc::new(Template { skipped: skip.to_vec(), ..template }));
        }
        Ok(())
    }
}

fn warn_once(work: &mut Work, warning: String) {
    if work.warning.as_ref() != Some(&warning) {
        tracing::warn!("{warning}");
        work.warning = Some(warning);
    }
}

/// Changed with the names that the driver itself adds to /etc: roots of another version may lack what these lead to.
const ETC_FORM: &str = "names in /.task";

/// The name of the directory with the copies of /etc: one for all processes with the same default unveils. Another version of
/// the driver may have others, and would remove what it does not copy.
fn etc_name() -> String {
    let defaults: Vec<_> = DEFAULTS.iter().flat_map(|default| [default.path, "\n"]).collect();
    let form = [&defaults.concat(), ETC_FORM].concat();
    format!("{NO_TASK}etc-{:016x}", fnv1a(form.as_bytes()))
}
