//! What the options ask for, in the terms of a job and of an agent.

use std::ffi::OsString;
use std::num::NonZeroU64;

use anyhow::Context;

use super::Args;
use crate::cgroup::{Limits, ResourceRequest};
use crate::cli::cpu::mhz_per_core;
use crate::config::{PluginConfig, RootKind};
use crate::sandbox::capabilities::{AllowedCaps, CapList, CapSet};
use crate::sandbox::network::{Lists, PortName};
use crate::sandbox::policy::{Ask, Policy};
use crate::sandbox::rlimits::Rlimits;
use crate::sandbox::seccomp::Allowed;
use crate::users::IdRanges;

/// The command and its arguments, which must be text: a task's spec holds only text.
pub(super) fn command(args: &Args) -> anyhow::Result<(String, Vec<String>)> {
    let text = |(place, arg): (usize, &OsString)| {
        arg.clone().into_string().map_err(|arg| {
            let what = if place == 0 { "the command".to_owned() } else { format!("argument {place}") };
            anyhow::anyhow!("{what} {arg:?} is not UTF-8, which tasks do not support; pass a directory or a shell pattern instead")
        })
    };
    let mut all = args.command.iter().enumerate().map(text);
    let command = all.next().context("the command is missing; write it after --")??;
    Ok((command, all.collect::<Result<_, _>>()?))
}

/// What the options ask for.
pub(super) fn ask<'a>(args: &'a Args, cap_add: CapList, network: Lists<'a>) -> Ask<'a> {
    Ask {
        unveil: &args.unveil,
        cap_add,
        work_dir: args.work_dir.as_deref(),
        volumes: &args.volume,
        devices: &args.device,
        network,
        seccomp: Some(args.seccomp),
        seccomp_allow: args.seccomp_allow.iter().copied().collect(),
        ..Ask::default()
    }
}

static NO_IDS: IdRanges = IdRanges::NONE;

/// Who calls this is root, and decides.
pub(super) fn policy<'a>(
    args: &Args,
    allow_caps: CapSet,
    plugin: &'a PluginConfig,
    ulimit: &'a Rlimits,
) -> Policy<'a> {
    Policy {
        own_root: args.root == RootKind::Private,
        unveil_defaults: !args.no_defaults,
        unveil_by_task: true,
        unveil_allow: &[],
        unveil_deny: &[],
        allow_caps: AllowedCaps::only(allow_caps),
        ulimit,
        pids_max: 0,
        memory_swap: -1,
        denied_uids: &NO_IDS,
        denied_gids: &NO_IDS,
        allow_seccomp: Allowed::EVERYTHING,
        ..plugin.policy()
    }
}

/// The ports of one option.
pub(super) fn ports(names: &[Option<PortName>]) -> Vec<PortName> {
    names.iter().flatten().cloned().collect()
}

pub(super) fn limits(args: &Args) -> anyhow::Result<Limits> {
    let mhz_per_core: Option<NonZeroU64> = match args.cpu {
        Some(_) => Some(
            mhz_per_core().context("the kernel does not report the speed of this CPU; leave out --cpu")?,
        ),
        None => None,
    };
    let asked = Limits::plan(
        &ResourceRequest {
            memory_mb: args.memory.unwrap_or(0),
            memory_max_mb: 0,
            cpu_mhz: args.cpu.unwrap_or(0),
            cores: None,
            oom_group: false,
        },
        mhz_per_core,
    );
    let none = Limits::UNLIMITED;
    Ok(Limits {
        memory_max: if args.memory.is_some() { asked.memory_max } else { none.memory_max },
        cpu_max: if args.cpu.is_some() { asked.cpu_max } else { none.cpu_max },
        ..none
    })
}

/// The controllers that the requested limits need.
pub(super) fn asked(args: &Args) -> Vec<&'static str> {
    let all = [("memory", args.memory.is_some()), ("cpu", args.cpu.is_some())];
    all.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| name).collect()
}
