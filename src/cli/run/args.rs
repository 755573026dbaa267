//! The options of `run`, and what they accept.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::config::RootKind;
use crate::sandbox::capabilities::{CapList, UnknownCapability};
use crate::sandbox::device::AskedDevice;
use crate::sandbox::network::PortName;
use crate::sandbox::rlimits::{self, Rlimit};
use crate::sandbox::seccomp::{GROUPS, GroupSet, Profile};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::AskedVolume;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        nomad-driver-exec2 run -- env\n  \
        nomad-driver-exec2 run --unveil r:/var/log -- ls /var/log\n  \
        nomad-driver-exec2 run --user www-data --unveil r:/srv/www --work-dir /srv/www --memory 200 -- python3 -m http.server\n  \
        nomad-driver-exec2 run --cap-add net_bind_service -- python3 -m http.server 80\n\n\
        The exit status is the command's, or 128 + N if signal N ended it; 125 if the sandbox could not be set up or the output of a successful command was lost, \
        126 if the command is not executable, 127 if it was not found.")]
pub(in crate::cli) struct Args {
    /// Grant an absolute path: MODES are any of r (read), w (write), x (execute, with r), c (create); may be repeated
    #[arg(long, value_name = "MODES:PATH")]
    pub(super) unveil: Vec<Unveil>,
    /// Mount a file or directory of the host at another path, read-only with :ro; may be repeated
    #[arg(long, value_name = "SOURCE:DESTINATION[:ro]", value_parser = volume)]
    pub(super) volume: Vec<AskedVolume>,
    /// Give the command a device of the host, at another path below /dev or with fewer of the permissions rwm; may be repeated
    #[arg(long, value_name = "SOURCE[:PATH[:PERMISSIONS]]", value_parser = device)]
    pub(super) device: Vec<AskedDevice>,
    /// Run as this user: a name, a uid, uid:gid, or nomad-N [default: an unused one of nomad-90000 to nomad-99999]
    #[arg(long)]
    pub(super) user: Option<String>,
    /// Limit the memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) memory: Option<i64>,
    /// Limit the CPU, in MHz
    #[arg(long, value_name = "MHZ", value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) cpu: Option<i64>,
    /// Limit the command's processes, getrlimit(2), for example nofile=1024:4096; may be repeated
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    pub(super) ulimit: Vec<(String, Rlimit)>,
    /// Let the command bind only to this TCP port or range, for example 8000-8010; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(super) bind: Option<Vec<Option<PortName>>>,
    /// Let the command connect only to this TCP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(super) connect: Option<Vec<Option<PortName>>>,
    /// Let the command bind only to this UDP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(super) bind_udp: Option<Vec<Option<PortName>>>,
    /// Let the command send only to this UDP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(super) connect_udp: Option<Vec<Option<PortName>>>,
    /// Grant a capability, for example net_bind_service; may be repeated
    #[arg(long, value_name = "CAP", value_parser = capability)]
    pub(super) cap_add: Vec<String>,
    /// Which system calls the command may make: all but those of some groups, or all
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    pub(super) seccomp: Profile,
    /// Allow a group of system calls, for example io_uring; may be repeated
    #[arg(long, value_name = "GROUP", value_parser = seccomp_group())]
    pub(super) seccomp_allow: Vec<GroupSet>,
    /// Set a variable, or pass on the caller's variable of this name; may be repeated [default: PATH, TERM, LANG, LC_*, TZ]
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<OsString>,
    /// Start in this directory, absolute or relative to the task's own [default: local]
    #[arg(long, value_name = "DIR")]
    pub(super) work_dir: Option<PathBuf>,
    /// Root directory of the task: private, with nothing in it but what is unveiled, or the host's
    #[arg(long, value_name = "ROOT", default_value = "private")]
    pub(super) root: RootKind,
    /// Grant only the paths of --unveil: no system paths, not even the task's own directories
    #[arg(long)]
    pub(super) no_defaults: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// Reads `SOURCE:DESTINATION[:ro]`.
fn volume(text: &str) -> Result<AskedVolume, String> {
    let (paths, read_only) = match text.strip_suffix(":ro") {
        Some(paths) => (paths, true),
        None => (text, false),
    };
    let (source, destination) = paths
        .split_once(':')
        .filter(|(_, destination)| !destination.contains(':'))
        .filter(|both| [both.0, both.1].iter().all(|path| is_plain(Path::new(path))))
        .ok_or(
            "write SOURCE:DESTINATION or SOURCE:DESTINATION:ro, with two absolute paths without `..`; for a destination in the command's own \
             directory, for example /task/local/data",
        )?;
    Ok(AskedVolume {
        source: source.to_owned(),
        destination: destination.to_owned(),
        read_only,
        propagation: "private".to_owned(),
        selinux_label: String::new(),
    })
}

/// Reads `SOURCE[:PATH[:PERMISSIONS]]`. What the parts may be is decided later, as for a job.
fn device(text: &str) -> Result<AskedDevice, Infallible> {
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    Ok(AskedDevice {
        source: source.to_owned(),
        destination: parts.next().filter(|path| !path.is_empty()).unwrap_or(source).to_owned(),
        permissions: parts.next().unwrap_or("rwm").to_owned(),
    })
}

/// Reads `NAME=SOFT[:HARD]`.
fn ulimit(text: &str) -> Result<(String, Rlimit), String> {
    let (name, limit) = text.split_once('=').ok_or("write NAME=VALUE or NAME=SOFT:HARD")?;
    let limit = rlimits::parse(name, limit);
    Ok((
        name.to_owned(),
        limit.map_err(|malformed| format!("{}; write {}", malformed.problem, malformed.write))?,
    ))
}

/// Reads `PORT`, `PORT-PORT` or `none`.
fn port(text: &str) -> Result<Option<PortName>, String> {
    let name = match text {
        "none" => return Ok(None),
        text => text.parse(),
    };
    match name {
        Ok(name @ PortName::Range(..)) => Ok(Some(name)),
        _ => Err("write a port from 0 to 65535, a range such as 8000-8010, or none".to_owned()),
    }
}

/// Checks the name of one capability while the command line is parsed.
fn capability(name: &str) -> Result<String, UnknownCapability> {
    CapList::from_names([name]).map(|_| name.to_owned())
}

/// Reads the name of one group of system calls.
fn seccomp_group() -> impl TypedValueParser<Value = GroupSet> {
    let names = GROUPS.iter().map(|group| PossibleValue::new(group.name).help(group.why));
    PossibleValuesParser::new(names).map(|name| GroupSet::named(&name).unwrap_or_default())
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}
