//! The command itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::stat;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::execve;

use super::Result;
use crate::shim::report::{Failure, Reporter, Step};
use crate::shim::spec::{Command, DEFAULT_PATH, candidates};

/// Longest argument or environment entry that execve(2) takes, bytes with the final NUL: MAX_ARG_STRLEN is 32 pages.
const MAX_ARG_STRLEN: usize = 128 * 1024;

/// Tries each path that the command may have, as execvp(3) does.
pub(crate) fn exec(command: &Command, reporter: &Reporter) -> Result<Infallible> {
    let c_string = |text: &str| {
        CString::new(text)
            .map_err(|_| Failure::text(Step::Exec, text, "a NUL byte cannot be passed to a program".into()))
    };
    let args: Vec<CString> = std::iter::once(&command.program)
        .chain(&command.args)
        .map(|arg| c_string(arg))
        .collect::<Result<_>>()?;
    let env: Vec<CString> = command.env.iter().map(|entry| c_string(entry)).collect::<Result<_>>()?;
    reporter.about_to_exec().map_err(|errno| Failure::new(Step::Exec, &command.program, errno))?;
    let mut refused: Option<PathBuf> = None;
    for path in candidates(&command.program, command.env("PATH")) {
        let program = CString::new(path.as_os_str().as_bytes()).map_err(|_| not_found(command))?;
        match execve(&program, &args, &env) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::ENAMETOOLONG) if !command.program.contains('/') => {}
            // A directory of PATH that may not be searched is skipped.
            Err(Errno::EACCES) if command.program.contains('/') || stat(&path).is_ok() => {
                refused.get_or_insert(path);
            }
            Err(Errno::EACCES) => {}
            Err(errno) => return Err(not_executed(command, &path, errno)),
        }
    }
    Err(refused.map_or_else(|| not_found(command), |path| not_executed(command, &path, Errno::EACCES)))
}

fn not_found(command: &Command) -> Failure {
    let failure = Failure::new(Step::Exec, &command.program, Errno::ENOENT);
    if command.program.is_empty() {
        return failure.with_note("the command is empty; write the name or the path of a program");
    }
    if command.program.contains('/') {
        return failure
            .with_note("the program, or the interpreter that it names, does not exist or is not unveiled");
    }
    failure.with_note(format!("not found in PATH={}", command.env("PATH").unwrap_or(DEFAULT_PATH)))
}

fn not_executed(command: &Command, path: &Path, errno: Errno) -> Failure {
    let failure = Failure::new(Step::Exec, path.display().to_string(), errno);
    let noexec = || statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC));
    match errno {
        Errno::EACCES if noexec() => failure.with_note(
            "it is mounted noexec, as are secrets/, /etc, and what is unveiled below /tmp without x: put the program into local/ or \
             alloc/, or unveil it with rx",
        ),
        Errno::EACCES => {
            failure.with_note("it is not executable for the task's user, or not unveiled with x")
        }
        Errno::EPERM => failure.with_note(
            "the file has capabilities, getcap(8), that the task cannot have: remove them with setcap -r, or use a copy",
        ),
        Errno::E2BIG => failure.with_note(too_big(command)),
        // execve(2), after a change of the user id.
        Errno::EAGAIN => failure.with_note("the user has more processes on this host than ulimit nproc allows"),
        _ => failure,
    }
}

/// Names the cause of E2BIG: one argument or variable, or all of them together.
fn too_big(command: &Command) -> String {
    let largest =
        command.env.iter().max_by_key(|entry| entry.len()).filter(|entry| entry.len() >= MAX_ARG_STRLEN);
    if let Some(entry) = largest {
        let name = entry.split('=').next().unwrap_or_default();
        return format!(
            "the environment variable {name:?} has {} bytes, and the kernel takes {MAX_ARG_STRLEN} each; put the value \
             into a file",
            entry.len()
        );
    }
    if let Some(argument) = command.args.iter().position(|arg| arg.len() >= MAX_ARG_STRLEN) {
        return format!(
            "args[{argument}] is longer than the {MAX_ARG_STRLEN} bytes that the kernel takes for each"
        );
    }
    let all = command.args.iter().chain(&command.env).map(|text| text.len() + 1).sum::<usize>();
    format!("arguments and environment have {all} bytes, more than a quarter of the limit of the stack")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::spec::Stdio;

    fn command(env: &[String], args: &[String]) -> Command {
        let (program, stdio) = ("env".into(), Stdio::Null);
        Command { program, args: args.to_vec(), env: env.to_vec(), stdio, foreground: None }
    }

    #[test]
    fn what_is_too_big_for_execve_is_named() {
        let long = "x".repeat(MAX_ARG_STRLEN);
        assert!(
            too_big(&command(&["A=1".into(), format!("SECRET={long}")], &[]))
                .contains("\"SECRET\" has 131079 bytes")
        );
        assert!(too_big(&command(&[], &["a".into(), long])).starts_with("args[1] is longer"));
        let many = vec!["x".repeat(999); 3000];
        assert!(too_big(&command(&[], &many)).contains("have 3000000 bytes"));
    }

    #[test]
    fn a_missing_command_says_where_it_was_looked_for() {
        let of = |program: &str| {
            let command = Command { program: program.into(), ..command(&["PATH=/a:/b".into()], &[]) };
            not_found(&command).to_string()
        };
        assert!(of("web").ends_with("(not found in PATH=/a:/b)"));
        assert!(of("/opt/web").contains("interpreter"));
        assert!(of("").contains("the command is empty"));
    }
}
