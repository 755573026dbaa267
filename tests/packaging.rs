//! The packaged files match the binary: the shell completions are those of its command line, the man page has every command,
//! and every place that documents the options has each of them with its type and its default.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap_complete::{Shell, generate};
use nomad_driver_exec2::cli;
use nomad_driver_exec2::config::{DriverConfig, Form, PluginConfig, Row};

const NAME: &str = env!("CARGO_PKG_NAME");
/// If set, the test writes the completions instead of comparing them.
const UPDATE: &str = "UPDATE_COMPLETIONS";

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// clap_complete 4.6 spells the dashes of a program's name in two ways, so the commands of a program with dashes are never
/// completed.
fn with_one_name_for_each_state(script: &[u8]) -> Vec<u8> {
    let states = NAME.replace('-', "__subcmd__");
    String::from_utf8_lossy(script).replace(&states, &NAME.replace('-', "__")).into_bytes()
}

/// What Bash proposes for a line that ends with an unfinished word.
#[test]
fn bash_completes_the_options_of_a_verb() {
    let function = format!("_{}", NAME.replace('-', "__"));
    let script = packaging("completions").join(format!("{NAME}.bash"));
    let complete = format!(
        "type -t compgen >/dev/null || exit 77; source '{}'; COMP_WORDS=({NAME} run --un); COMP_CWORD=2; \
         {function} {NAME} --un run; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let bash = std::process::Command::new("bash").args(["--norc", "-c", &complete]).output();
    let bash = match bash {
        Ok(bash) if bash.status.code() != Some(77) => bash,
        _ => {
            let why = "bash_completes_the_options_of_a_verb was not run: no bash with completion is here\n";
            std::io::stderr().write_all(why.as_bytes()).unwrap();
            return;
        }
    };
    assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), "--unveil", "{bash:?}");
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
        if matches!(shell, Shell::Bash) {
            made = with_one_name_for_each_state(&made);
        }
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
fn the_man_page_and_the_readme_have_every_verb_and_its_options() {
    let page = read(&packaging(&format!("{NAME}.8")));
    let readme = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
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
            let named = ["`", " "].iter().any(|end| readme.contains(&format!("`--{long}{end}")));
            assert!(named || long == "help", "README.md has no --{long} of {name}");
            options += 1;
        }
    }
    assert!(options > 5, "clap was not asked for the options");
}

/// A text of the package: the part between two markers.
fn section(text: &str, begin: &str, end: &str) -> String {
    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("no {begin:?}"));
    rest.split(end).next().unwrap_or_default().to_owned()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The options of the plugin and of a job.
fn tables() -> [Vec<Row>; 2] {
    let tables = [PluginConfig::options(), DriverConfig::options()];
    assert!(tables.iter().all(|rows| rows.len() > 4), "{tables:?}");
    tables
}

/// The default, or the text in its place.
fn default(row: &Row) -> &str {
    row.default.as_deref().unwrap_or("required")
}

#[test]
fn every_option_has_a_summary_of_one_line() {
    for row in tables().iter().flatten() {
        assert!(row.summary.len() > 10 && !row.summary.ends_with([',', '.']), "{row:?}");
    }
}

#[test]
fn the_readme_has_every_option_with_its_type_and_default() {
    let readme = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    for (rows, heading) in tables().iter().zip(["## Options of the plugin", "## Options of a task"]) {
        // The next table has another subject.
        let part = section(&readme, heading, "\n## ");
        let part = section(&part, "| option | type | default | |\n|---|---|---|---|\n", "\n\n");
        let mut documented: Vec<String> =
            part.lines().map(|line| line.splitn(5, " | ").take(3).collect::<Vec<_>>().join(" | ")).collect();
        let mut wanted: Vec<(String, &Row)> = rows
            .iter()
            .map(|row| {
                let default =
                    row.default.as_ref().map_or("required".to_owned(), |value| format!("`{value}`"));
                (format!("| `{}` | {} | {default}", row.name, row.takes), row)
            })
            .collect();
        documented.sort();
        wanted.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (line, row) in &wanted {
            assert!(documented.contains(line), "README.md, {heading}: write {line} | {} |", row.summary);
        }
        assert_eq!(documented.len(), wanted.len(), "README.md, {heading}: an option that is none");
    }
}

#[test]
fn the_man_page_has_every_option_with_its_type_and_default() {
    let page = read(&packaging(&format!("{NAME}.8")));
    let page = section(&page, "\n.Sh CONFIGURATION\n", "\n.Sh ");
    let (of_plugin, of_task) = page.split_once("\nA job's\n").unwrap();
    let pages = [of_plugin, of_task];
    for (row, page) in
        tables().iter().zip(pages).flat_map(|(table, page)| table.iter().map(move |row| (row, page)))
    {
        let item = section(page, &format!("\n.It Cm {}\n", row.name), "\n.It ");
        let takes = row.takes.replace('`', "");
        let wanted = match &row.default {
            Some(default) => format!("\nType: {takes}.\nDefault: {default}.\n"),
            None => format!("\nType: {takes}.\nRequired.\n"),
        };
        let item = format!("\n{item}\n");
        assert!(item.contains(&wanted), "the man page, {}: write {wanted}", row.name);
    }
    let items = page.lines().filter(|line| line.starts_with(".It ")).count();
    assert_eq!(items, tables().iter().flatten().count(), "the man page: an option that is none");
}

#[test]
fn the_example_configuration_sets_every_option_to_its_default() {
    let example = read(&packaging("examples/exec2.hcl"));
    let config = section(&example, "  config {\n", "\n  }\n");
    let mut set: Vec<_> =
        config.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let [options, _] = tables();
    let line = |row: &Row| {
        let equals = if matches!(row.form, Form::Entries | Form::Block(_)) { " " } else { " = " };
        format!("{}{equals}{}", row.name, default(row))
    };
    // A block with a label cannot be shown without one: it is in a comment.
    let (labelled, others): (Vec<_>, Vec<_>) =
        options.iter().partition(|row| matches!(row.form, Form::Labelled(_)));
    for row in labelled {
        assert!(config.contains(&format!("# {} \"", row.name)), "{}", row.name);
    }
    let mut wanted: Vec<_> = others.into_iter().map(line).collect();
    set.sort_unstable();
    wanted.sort();
    assert_eq!(set, wanted);
}

/// A value of HCL in Nix syntax: the same except for lists.
fn nix(hcl: &str) -> String {
    match hcl.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(items) => words(&format!("[ {} ]", items.replace(", ", " "))),
        None if hcl == "{}" => "{ }".to_owned(),
        None => hcl.to_owned(),
    }
}

/// Separates the values of an option that takes no others.
const ALTERNATIVE: &str = " or ";

/// The type of an option in the NixOS module, and its name in the module's documentation.
fn nix_type(row: &Row) -> (String, String) {
    let named = |type_: &str, name: &str| (type_.to_owned(), name.to_owned());
    match row.form {
        Form::Attribute("string") if row.takes.contains(ALTERNATIVE) => {
            let values: Vec<_> = row
                .takes
                .split(ALTERNATIVE)
                .flat_map(|some| some.split(", "))
                .map(|value| value.replace('`', ""))
                .collect();
            (format!("lib.types.enum [ {} ]", values.join(" ")), format!("one of {}", values.join(", ")))
        }
        Form::Attribute("bool") => named("lib.types.bool", "boolean"),
        // -1 stands for no limit.
        Form::Attribute("number") if row.summary.contains("-1") => named("lib.types.int", "signed integer"),
        Form::Attribute("number") => named("lib.types.ints.unsigned", "unsigned integer, meaning >=0"),
        Form::Entries => named("lib.types.attrsOf lib.types.str", "attribute set of string"),
        Form::Block(_) => named("lib.types.attrsOf lib.types.anything", "attribute set of anything"),
        Form::Labelled(_) => named(
            "lib.types.attrsOf (lib.types.attrsOf lib.types.anything)",
            "attribute set of attribute set of anything",
        ),
        Form::Attribute("string") => named("lib.types.str", "string"),
        Form::Attribute("list(string)") => named("lib.types.listOf lib.types.str", "list of string"),
        form => panic!("{}: this test has no type of Nix for {form:?}", row.name),
    }
}

#[test]
fn the_nixos_module_has_every_option_with_its_type_and_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let module = read(&root.join("nix/module.nix"));
    let settings = section(&module, "settings = lib.mkOption {", "validateConfig = lib.mkOption {");
    let page = read(&root.join("docs/nixos.md"));
    let strings = words(&section(&module, "  strings =\n", "};"));
    let [options, _] = tables();
    for row in &options {
        let (type_, type_name) = nix_type(row);
        let default = nix(default(row));
        let definition =
            words(&section(&settings, &format!("\n            {} = ", row.name), "\n            }"));
        let definition = if definition.starts_with("strings [") { &strings } else { &definition };
        for part in [format!("type = {type_};"), format!("default = {default};")] {
            assert!(definition.contains(&part), "nix/module.nix, {}: write {part}", row.name);
        }
        let heading = format!("### services.nomad-driver-exec2.settings.{}\n", row.name);
        let documented = words(&section(&page, &heading, "\n### "));
        assert!(documented.contains(&format!("Type: {type_name} Default: ")), "docs/nixos.md, {}", row.name);
        let (inline, block) = (format!("Default: `{default}`"), format!("Default: ```nix {default} ```"));
        assert!(
            documented.contains(&inline) || documented.contains(&block),
            "docs/nixos.md, {}: {inline}",
            row.name
        );
    }
    let documented = page.matches("### services.nomad-driver-exec2.settings.").count();
    assert_eq!(documented, options.len(), "docs/nixos.md: an option that is none");
}
