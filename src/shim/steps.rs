//! The steps of [`super::setup`], one file each.

mod devices;
mod exec;
mod inherited;
mod landlock;
mod logs;
mod mounts;
mod network;
mod null;
mod paths;
mod record;
mod root;
mod seccomp;
mod session;
mod unveil_policy;
mod user;
mod work_dir;

pub(super) use exec::exec;
pub(super) use inherited::{limit_open_files, raise_limits, reset_inherited, set_limits, set_oom_score_adj};
pub(super) use landlock::{build_entered_ruleset, build_root_ruleset, build_ruleset, restrict};
pub(super) use logs::{Copies, LogFiles, Logs, attach_logs, open_logs};
pub(super) use mounts::{seal_proc, seals_proc, separate_mounts};
pub(super) use network::{join_network, set_hostname};
pub(super) use null::name_null_streams;
pub(super) use paths::{file_type, writable};
pub(super) use record::record_session;
pub(super) use root::{Namespaces as RootNamespaces, enter_root};
pub(super) use seccomp::filter;
pub(super) use session::{die_with_parent, join_session, lead_session};
pub(super) use user::{become_user, drop_privileges, hide};
pub(super) use work_dir::{enter_work_dir, open_work_dir};

use super::report::Failure;

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;
