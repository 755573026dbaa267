//! What is packaged beside the binary says what the binary does: the shell completions are those of its command line,
//! and the man page and the example configuration leave no verb and no option out.

use std::path::{Path, PathBuf};

use clap_complete::{Shell, generate};
use nomad_driver_exec2::cli;
use nomad_driver_exec2::config::{PluginConfig, TaskConfig};
use nomad_driver_exec2::proto::hclspec::spec::Block;

const NAME: &str = env!("CARGO_PKG_NAME");
/// Set to anything, the test writes the completions instead of comparing them.
const UPDATE: &str = "UPDATE_COMPLETIONS";

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_completions_are_those_of_the_command_line() {
    let files = [
        (Shell::Bash, format!("{NAME}.bash")),
        (Shell::Zsh, format!("_{NAME}")),
        (Shell::Fish, format!("{NAME}.fish")),
    ];
    for (shell, file) in files {
        let path = packaging("completions").join(file);
        let mut made = Vec::new();
        generate(shell, &mut cli::command(), NAME, &mut made);
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(
            read(&path).as_bytes() == made,
            "{} is not what the command line says; run {UPDATE}=1 cargo test --test packaging",
            path.display()
        );
    }
}

#[test]
fn the_man_page_has_every_verb_and_option() {
    let page = read(&packaging(&format!("{NAME}.8")));
    let mut options = 0;
    for verb in cli::command().get_subcommands() {
        let name = verb.get_name();
        assert!(page.contains(&format!("\n.Cm {name}\n")), "the synopsis has no {name}");
        assert!(page.contains(&format!("\n.It Cm {name}\n")), "the description has no {name}");
        for long in verb.get_arguments().filter_map(|argument| argument.get_long()) {
            let option = format!("Fl -{long}");
            let found = page.lines().any(|line| {
                line.split_once(&option).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(' '))
            });
            assert!(found || long == "help", "the man page has no --{long} of {name}");
            options += 1;
        }
    }
    assert!(options > 5, "clap was not asked for the options");
    for option in PluginConfig::OPTIONS {
        assert!(page.contains(&format!(".It Cm {option}\n")), "the man page has no {option}");
    }
    let Some(Block::Object(task)) = TaskConfig::schema().block else { panic!("the schema is no object") };
    assert!(task.attributes.len() > 5, "the schema was not asked for the options");
    for option in task.attributes.keys() {
        let found = page
            .lines()
            .any(|line| line.strip_prefix(".Cm ").and_then(|rest| rest.split(' ').next()) == Some(option));
        assert!(found, "the man page has no {option} of a job");
    }
}

#[test]
fn the_example_configuration_shows_every_option() {
    let example = read(&packaging("examples/exec2.hcl"));
    for option in PluginConfig::OPTIONS {
        assert!(
            example.lines().any(|line| line.trim_start().starts_with(&format!("{option} = "))),
            "the example does not set {option}"
        );
    }
}
