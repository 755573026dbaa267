//! `check`: what this host provides, what is missing and how to fix it.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::config::RootKind;
use crate::host::{self, Health, Host, State, Wanted};
use crate::sandbox::seccomp::Profile;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// The plugin's option root: whether tasks have a private root directory or the host's
    #[arg(long, value_name = "ROOT", default_value = "private")]
    root: RootKind,
    /// The plugin's option seccomp: which system calls tasks may make
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    seccomp: Profile,
}

/// Probes this host and prints the result as a table or as JSON. The exit status is 0 if the driver would be healthy, else 1;
/// it does not change if the reader closes the pipe (`check | head -1`).
pub(super) fn main(args: &Args) -> ExitCode {
    let host = match host::probe() {
        Ok(host) => host,
        Err(error) => {
            let _ = writeln!(io::stderr(), "failed to probe this host: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = Wanted { root: args.root, seccomp: args.seccomp };
    let mut stdout = io::stdout().lock();
    let written = if args.json {
        write_json(&mut stdout, &host, wanted)
    } else {
        write_table(&mut stdout, &host, wanted)
    };
    match written.and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            // The output is lost, for example on a full disk or a closed descriptor.
            let _ = writeln!(io::stderr(), "failed to write to standard output: {e}");
            ExitCode::FAILURE
        }
        _ if host.health(wanted) == Health::Healthy => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn write_table(out: &mut impl Write, host: &Host, wanted: Wanted) -> io::Result<()> {
    let width = host.requirements.iter().map(|r| r.name.len()).max().unwrap_or(0);
    for r in &host.requirements {
        writeln!(out, "{:<7}  {:<width$}  {}", word(&r.state), r.name, r.found)?;
        if let Some(fix) = fix(&r.state) {
            writeln!(out, "{:<7}  {:<width$}  fix: {fix}", "", "")?;
        }
    }
    writeln!(out)?;
    match host.health(wanted) {
        Health::Healthy => writeln!(out, "Nomad would find the exec2 driver healthy on this host."),
        Health::Unhealthy(_) => writeln!(out, "Nomad would find the exec2 driver unhealthy on this host."),
        Health::Undetected(_) => writeln!(out, "Nomad would not detect the exec2 driver on this host."),
    }
}

fn word(state: &State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Missing { .. } => "missing",
        State::Unknown => "unknown",
    }
}

fn fix(state: &State) -> Option<&str> {
    match state {
        State::Missing { fix, .. } => Some(fix),
        State::Ok | State::Unknown => None,
    }
}

/// The object of `check --json`. Compatible changes only add fields.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    healthy: bool,
    /// `healthy`, `unhealthy` or `undetected`, as Nomad would see it.
    health: &'static str,
    /// Empty when healthy.
    reason: String,
    kernel: &'a str,
    landlock_abi: Option<u32>,
    /// Numbers of the errata that are fixed; null if the kernel does not say.
    landlock_errata: Option<&'a [u32]>,
    cgroup_controllers: &'a [String],
    requirements: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'static str,
    /// `ok`, `missing` or `unknown`.
    state: &'static str,
    found: &'a str,
    fix: Option<&'a str>,
}

fn write_json(out: &mut impl Write, host: &Host, wanted: Wanted) -> io::Result<()> {
    let (health, reason) = match host.health(wanted) {
        Health::Healthy => ("healthy", String::new()),
        Health::Unhealthy(reason) => ("unhealthy", reason),
        Health::Undetected(reason) => ("undetected", reason),
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        healthy: health == "healthy",
        health,
        reason,
        kernel: &host.kernel,
        landlock_abi: host.landlock_abi,
        landlock_errata: host.landlock_errata.as_deref(),
        cgroup_controllers: &host.controllers,
        requirements: host
            .requirements
            .iter()
            .map(|r| Line { name: r.name, state: word(&r.state), found: &r.found, fix: fix(&r.state) })
            .collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Requirement, Severity};

    const DEFAULT: Wanted = Wanted { root: RootKind::Private, seccomp: Profile::Default };

    fn sample() -> Host {
        let missing = State::Missing { fix: "run as root".to_owned(), severity: Severity::Undetected };
        Host {
            requirements: vec![
                Requirement { name: "root", found: "uid 1000".to_owned(), state: missing },
                Requirement { name: "controllers", found: "cpu".to_owned(), state: State::Ok },
                Requirement { name: "kill", found: "not visible".to_owned(), state: State::Unknown },
            ],
            landlock_abi: Some(6),
            landlock_errata: Some(vec![1, 3]),
            controllers: vec!["cpu".to_owned()],
            kernel: "6.12.0".to_owned(),
        }
    }

    fn table(host: &Host) -> String {
        let mut out = Vec::new();
        write_table(&mut out, host, DEFAULT).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_ends_with_the_verdict() {
        assert_eq!(
            table(&sample()),
            "missing  root         uid 1000\n\
             \u{20}                     fix: run as root\n\
             ok       controllers  cpu\n\
             unknown  kill         not visible\n\
             \n\
             Nomad would not detect the exec2 driver on this host.\n"
        );
        let mut host = sample();
        host.requirements.remove(0);
        assert!(table(&host).ends_with("healthy on this host.\n"));
        let fix = "set root = \"host\"".to_owned();
        let state = State::Missing { fix, severity: Severity::OwnRoot };
        host.requirements.push(Requirement { name: "own root", found: "no mqueue".to_owned(), state });
        assert!(table(&host).ends_with("unhealthy on this host.\n"), "{}", table(&host));
        let mut out = Vec::new();
        write_table(&mut out, &host, Wanted { root: RootKind::Host, ..DEFAULT }).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("missing  own root"), "it is still listed: {out}");
        assert!(out.ends_with("find the exec2 driver healthy on this host.\n"), "{out}");
    }

    #[test]
    fn json_for_scripts() {
        let mut out = Vec::new();
        write_json(&mut out, &sample(), DEFAULT).unwrap();
        let got: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            got,
            serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "healthy": false,
                "health": "undetected",
                "reason": "root: uid 1000; run as root",
                "kernel": "6.12.0",
                "landlock_abi": 6,
                "landlock_errata": [1, 3],
                "cgroup_controllers": ["cpu"],
                "requirements": [
                    {"name": "root", "state": "missing", "found": "uid 1000", "fix": "run as root"},
                    {"name": "controllers", "state": "ok", "found": "cpu", "fix": null},
                    {"name": "kill", "state": "unknown", "found": "not visible", "fix": null},
                ],
            })
        );
    }

    #[test]
    fn a_closed_pipe_is_an_error_not_a_panic() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for result in
            [write_table(&mut Closed, &sample(), DEFAULT), write_json(&mut Closed, &sample(), DEFAULT)]
        {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
        }
    }
}
