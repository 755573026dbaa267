//! `tests/messages.txt` lists every message that an operator can read, so that reviewers read them together and notice changes.
//! It is generated from the source: each text of an error, a log line, a task event or the command line, by room and kind.
//!
//! A literal in a known place (`#[error]`, `warn!`, clap's documentation …) is a message. Any other literal is one if it has
//! two words, so that no kind of message is missed; so a few texts that only programs read are listed as well.

mod common {
    pub(crate) mod messages;
}

use std::fs;
use std::path::{Path, PathBuf};

use common::messages::{Kind, Message, listing, of_file, of_source};

/// If set, the test writes the file instead of comparing it.
const WRITE: &str = "EXEC2_WRITE_MESSAGES";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files below `dir` that are compiled into the program.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All messages of the package and of the workspace's other members.
fn messages() -> Vec<Message> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for entry in fs::read_dir(root()).expect("the project").map(Result::unwrap) {
        let (manifest, src) = (entry.path().join("Cargo.toml"), entry.path().join("src"));
        if manifest.exists() && src.exists() {
            sources(&src, &mut files);
        }
    }
    let crates = root().join("crates");
    if crates.exists() {
        sources(&crates, &mut files);
    }
    files.retain(|path| {
        !path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "target")
    });
    let mut tests_only = Vec::new();
    let found: Vec<_> =
        files.iter().map(|path| (path, of_file(path, &read(path), &mut tests_only))).collect();
    found
        .into_iter()
        .filter(|(path, _)| !tests_only.iter().any(|test| path.starts_with(test)))
        .flat_map(|(path, messages)| messages.into_iter().map(|message| message.in_room_of(root(), path)))
        .collect()
}

#[test]
fn the_list_of_messages_is_up_to_date() {
    let path = root().join("tests/messages.txt");
    let now = listing(messages());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &now).unwrap();
        return;
    }
    let listed = read(&path);
    let only_in = |one: &str, other: &str, sign: char| {
        let lines = one.lines().filter(|line| !other.lines().any(|found| found == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    assert!(
        listed == now,
        "tests/messages.txt is not what the source says; read the changes, then write it with {WRITE}=1 cargo test --test messages\n{}{}",
        only_in(&listed, &now, '-'),
        only_in(&now, &listed, '+')
    );
}

#[test]
fn each_kind_of_message_is_found_in_the_program() {
    let found = messages();
    for kind in Kind::ALL {
        assert!(found.iter().any(|message| message.kind == kind), "no message of kind {kind:?}");
    }
}

#[test]
fn a_message_of_each_kind_is_found_in_planted_source() {
    let planted = r##"
        /// Not a message.
        #[derive(Debug, thiserror::Error)]
        enum Broken {
            #[error("failed to open {path:?}: {}", errno.desc())]
            Open { path: String },
            #[error(transparent)]
            Other(#[from] io::Error),
        }

        /// About the verb,
        /// in two lines.
        #[derive(Debug, clap::Args)]
        #[command(after_help = "Examples:\n  \
                                run")]
        struct Args {
            /// An option
            #[arg(long, value_name = "N")]
            option: u8,
        }

        options! {
            /// Not a message.
            struct Config {
                /// what the option is for
                ///
                /// Not a message.
                option: bool = Flag,
            }
        }

        fn log() {
            tracing::error!(error = x, "an error");
            warn!("a warning");
            info!("started");
            debug!("only for developers");
        }

        fn fail() -> anyhow::Result<()> {
            x().context("context")?;
            x().with_context(|| format!("more of {it}"))?;
            anyhow::ensure!(true, "ensured");
            if y { bail!("bailed {}", out) }
            x().map_err(|_| anyhow::anyhow!("any {what:?}"))?;
            x().map_err(CallError::on("clone the shim"))?;
            x().map_err(IoError::on("list", &path))?;
            x().map_err(self.failed("read", &path))?;
            return Err(IoError::new("rename", path, errno));
            Failure::new(Step::Mount, "/proc", errno).with_note("noted");
            Status::not_found("unknown task");
            say(&format!("said {it}\n"));
            x().expect("a promise");
            unreachable!("never");
            write!(f, "{x}: two words")?;
            let path = "/proc/self/status";
            let _ = match step { Mount => "mount", Log => "open log" };
            let _ = json!({"key": "a value of two"});
            Ok(())
        }

        #[cfg(test)]
        fn helper() { say("not a message") }

        #[cfg(test)]
        mod tests {
            fn test() { panic!("not a message") }
        }
    "##;
    let found = of_source(planted).iter().map(Message::to_string).collect::<Vec<_>>();
    let mut wanted = vec![
        r"cli: said {it}\n",
        "error: any {what:?}",
        "error: bailed {}",
        "error: context",
        "error: ensured",
        "error: failed to open {path:?}: {}",
        "error: more of {it}",
        "failure: /proc",
        "failure: noted",
        r"help: Examples:\n  run",
        "help: About the verb, in two lines.",
        "help: An option",
        "help: N",
        "log error: an error",
        "log info: started",
        "log warn: a warning",
        "option: what the option is for",
        "panic: a promise",
        "panic: never",
        "text: unknown task",
        "step: clone the shim",
        "step: list",
        "step: read",
        "step: rename",
        "text: a value of two",
        "text: mount",
        "text: open log",
        "text: {x}: two words",
    ];
    let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn a_module_of_tests_in_a_file_of_its_own_is_left_out() {
    let mut tests_only = Vec::new();
    let source = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"driver/more.rs\"]\nmod more;\nmod kept;";
    of_file(Path::new("src/driver.rs"), source, &mut tests_only);
    of_file(Path::new("src/host/mod.rs"), "#[cfg(test)]\nmod tests;", &mut tests_only);
    let wanted = [
        "src/driver/tests.rs",
        "src/driver/tests",
        "src/driver/more.rs",
        "src/host/tests.rs",
        "src/host/tests",
    ];
    assert_eq!(tests_only, wanted.map(PathBuf::from));
}
