//! The end of a child, by any signal: nix's `WaitStatus` has no real-time signals, so its wait fails after it has reaped the child.
//!
//! A child, each of its threads, and what it clones with `CLONE_PARENT` can make this process their tracer without asking it
//! (`PTRACE_TRACEME`, ptrace(2)). They stop then at every signal, and a thread of them that has ended holds back the end of its
//! process. So each that stops is let go, and each that has ended is reaped.

use nix::Result;
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{WaitOptions, wait, waitpid};

use super::nix_errno;

/// Waits for any child to end and reaps it: its PID, and its status as in wait(2).
pub(crate) fn any_child() -> Result<(Pid, i32)> {
    // None is for WNOHANG only.
    reap(WaitOptions::empty())?.ok_or(Errno::ECHILD)
}

/// The same without waiting; none: no child has ended.
pub(crate) fn any_child_now() -> Result<Option<(Pid, i32)>> {
    reap(WaitOptions::NOHANG)
}

fn reap(options: WaitOptions) -> Result<Option<(Pid, i32)>> {
    loop {
        let Some((pid, status)) = wait(options).map_err(nix_errno)? else { return Ok(None) };
        let pid = Pid::from_raw(pid.as_raw_nonzero().get());
        match status.stopping_signal() {
            // On failure it was killed meanwhile.
            Some(signal) => drop(let_go(pid, signal)),
            None => return Ok(Some((pid, status.as_raw()))),
        }
    }
}

/// Reaps the children that have ended, except `kept`, without waiting. Returns whether that one has ended.
pub(crate) fn reap_others(kept: Pid) -> Result<bool> {
    while let Some((pid, change)) = look()? {
        match change {
            Change::Stopped(signal) => {
                if let_go(pid, signal).is_err() {
                    // It was killed meanwhile; its end is another SIGCHLD.
                    return Ok(false);
                }
            }
            Change::Ended if pid == kept => return Ok(true),
            Change::Ended => {
                let number = rustix::process::Pid::from_raw(pid.as_raw());
                waitpid(number, WaitOptions::NOHANG).map_err(nix_errno)?;
            }
        }
    }
    Ok(false)
}

enum Change {
    Ended,
    /// By this signal.
    Stopped(i32),
}

/// A child that has ended or stopped, and stays so. None: there is none.
fn look() -> Result<Option<(Pid, Change)>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: siginfo_t is a plain C struct of integers and pointers for which all zeroes is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t, which lives over the call.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let change = match info.si_code {
        libc::CLD_TRAPPED | libc::CLD_STOPPED => Change::Stopped(status),
        _ => Change::Ended,
    };
    Ok((pid != 0).then_some((Pid::from_raw(pid), change)))
}

/// Ends the tracing of a child that has stopped, and delivers the signal that stopped it; the SIGTRAP that follows exec is for the tracer.
fn let_go(pid: Pid, signal: i32) -> Result<()> {
    let signal = if signal == libc::SIGTRAP { 0 } else { signal };
    // SAFETY: PTRACE_DETACH takes a PID, an ignored address and a signal's number as an integer.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid.as_raw(), 0, libc::c_long::from(signal)) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, exit};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, raise};

    use super::*;

    const ROLE: &str = "EXEC2_TEST_WAIT_ROLE";
    const CODE: i32 = 5;
    const PATIENCE: Duration = Duration::from_secs(30);

    fn again(test: &str, role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("sys::wait::tests::{test}")]).env(ROLE, role);
        command.stdout(std::process::Stdio::null());
        command
    }

    /// Runs the roles in processes of their own, since a waiter takes the children of other tests as well.
    fn in_roles(test: &str, wait: fn(Pid) -> Result<bool>, traced: fn() -> i32) {
        match std::env::var(ROLE).as_deref() {
            Ok("traced") => exit(traced()),
            Ok(_) => {
                let child = again(test, "traced").spawn().unwrap();
                exit(i32::from(!wait(Pid::from_raw(child.id() as i32)).unwrap()));
            }
            Err(_) => {
                let mut waiter = again(test, "waiter").spawn().unwrap();
                let deadline = Instant::now() + PATIENCE;
                while waiter.try_wait().unwrap().is_none() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = waiter.kill();
                assert_eq!(waiter.wait().unwrap().code(), Some(0));
            }
        }
    }

    fn be_traced() {
        // SAFETY: PTRACE_TRACEME takes no argument.
        Errno::result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).unwrap();
    }

    fn ends_as_child(pid: Pid) -> Result<bool> {
        Ok(any_child()? == (pid, CODE << 8))
    }

    fn ends_as_kept(pid: Pid) -> Result<bool> {
        while !reap_others(pid)? {
            std::thread::sleep(Duration::from_millis(5));
        }
        ends_as_child(pid)
    }

    fn stop_and_end(signal: Signal) -> i32 {
        be_traced();
        raise(signal).unwrap();
        CODE
    }

    fn end_with_a_traced_thread() -> i32 {
        std::thread::spawn(be_traced).join().unwrap();
        CODE
    }

    #[test]
    fn a_traced_child_that_stops_has_not_ended() {
        let test = "a_traced_child_that_stops_has_not_ended";
        in_roles(test, ends_as_child, || stop_and_end(Signal::SIGTRAP));
    }

    #[test]
    fn a_traced_child_that_stops_is_let_go() {
        let test = "a_traced_child_that_stops_is_let_go";
        // Its default is to be ignored.
        in_roles(test, ends_as_kept, || stop_and_end(Signal::SIGURG));
    }

    #[test]
    fn a_traced_thread_does_not_hold_back_the_end_of_its_process() {
        let test = "a_traced_thread_does_not_hold_back_the_end_of_its_process";
        in_roles(test, ends_as_kept, end_with_a_traced_thread);
    }
}
