//! Which task the operator means.

use anyhow::bail;

use crate::record::run_dir::RunDir;
use crate::record::spec::StoredSpec;

/// A running task on this host.
#[derive(Debug)]
pub(super) struct Found {
    pub run_dir: RunDir,
    pub spec: StoredSpec<'static>,
}

impl Found {
    /// How it is named in the list.
    fn row(&self) -> [&str; 4] {
        let alloc = if self.spec.alloc.is_empty() { "-" } else { &self.spec.alloc };
        [&self.spec.name, alloc, &self.spec.user.name, &self.spec.task]
    }
}

/// All of the entries whose shim runs. What cannot be read is left out: it belongs to another version, or is being made or removed.
pub(super) fn running(entries: Vec<RunDir>) -> Vec<Found> {
    let found = |run_dir: RunDir| {
        run_dir.shim()?.open().ok()??;
        let spec = run_dir.spec().ok()??;
        Some(Found { run_dir, spec })
    };
    let mut tasks: Vec<_> = entries.into_iter().filter_map(found).collect();
    tasks.sort_by(|a, b| a.row().cmp(&b.row()));
    tasks
}

/// The task with this id or name, or of the allocation whose id begins like this; `ALLOC/TASK` is both.
pub(super) fn choose(tasks: Vec<Found>, wanted: &str) -> anyhow::Result<Found> {
    let matching: [fn(&Found, &str) -> bool; 3] = [
        |task, wanted| task.spec.task == wanted,
        |task, wanted| task.spec.name == wanted,
        |task, wanted| {
            let (alloc, name) =
                wanted.split_once('/').map_or((wanted, None), |(alloc, name)| (alloc, Some(name)));
            !alloc.is_empty()
                && task.spec.alloc.starts_with(alloc)
                && name.is_none_or(|name| task.spec.name == name)
        },
    ];
    let (mut tasks, mut hits) = (tasks, Vec::new());
    for matches in matching {
        (hits, tasks) = tasks.into_iter().partition(|task| matches(task, wanted));
        if !hits.is_empty() {
            break;
        }
    }
    match hits.len() {
        0 => bail!("no running task of this driver is named {wanted:?}; without a name, exec lists them"),
        1 => Ok(hits.remove(0)),
        _ => bail!(
            "{wanted:?} means more than one task; write the id of one of them, or ALLOC/TASK:\n{}",
            table(&hits)
        ),
    }
}

/// Control characters are escaped: a name is the job submitter's choice, and the terminal is the operator's.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// A line for each task.
pub(super) fn table(tasks: &[Found]) -> String {
    let head = [["TASK", "ALLOCATION", "USER", "ID"]];
    let shown = |row: [&str; 4]| row.map(printable);
    let rows: Vec<_> = head.into_iter().chain(tasks.iter().map(Found::row)).map(shown).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |row: &[String; 4]| {
        let [name, alloc, user, id] = row;
        let [first, second, third] = widths;
        format!("{name:<first$}  {alloc:<second$}  {user:<third$}  {id}\n")
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::record::key::Key;
    use crate::users::User;

    fn task(id: &str, alloc: &str, name: &str) -> Found {
        let (task, alloc, name) = (id.to_owned(), alloc.to_owned(), name.to_owned());
        let user = std::borrow::Cow::Owned(User::unknown("nomad-80000", 80_000, 80_000));
        let spec = StoredSpec {
            task: task.into(),
            alloc: alloc.into(),
            name: name.into(),
            user,
            plan: Default::default(),
        };
        Found { run_dir: RunDir::of(Path::new("/run/x"), Key::new(id).unwrap()), spec }
    }

    fn tasks() -> Vec<Found> {
        vec![
            task("aaa1/web/1", "aaa1", "web"),
            task("aaa1/log/2", "aaa1", "log"),
            task("aab2/web/3", "aab2", "web"),
            task("ccc3/db/4", "ccc3", "db"),
            task("run-7-8", "", "sh"),
        ]
    }

    fn chosen(wanted: &str) -> Result<String, String> {
        choose(tasks(), wanted).map(|found| found.spec.task.into_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_task_is_found_by_id_name_or_allocation() {
        assert_eq!(chosen("aab2/web/3").unwrap(), "aab2/web/3");
        assert_eq!(chosen("db").unwrap(), "ccc3/db/4");
        assert_eq!(chosen("ccc").unwrap(), "ccc3/db/4");
        assert_eq!(chosen("aaa/log").unwrap(), "aaa1/log/2");
        assert_eq!(chosen("run-7-8").unwrap(), "run-7-8");
    }

    #[test]
    fn an_ambiguous_name_is_refused_with_what_it_may_mean() {
        for (wanted, ids) in [("web", ["aaa1/web/1", "aab2/web/3"]), ("aaa1", ["aaa1/web/1", "aaa1/log/2"])] {
            let error = chosen(wanted).unwrap_err();
            assert!(ids.iter().all(|id| error.contains(id)) && !error.contains("ccc3"), "{error}");
        }
        assert!(chosen("aa/web").is_err());
    }

    #[test]
    fn what_no_task_is_named_is_refused() {
        for wanted in ["", "/web", "x", "aaa1/x", "run"] {
            assert!(chosen(wanted).unwrap_err().starts_with("no running task"), "{wanted}");
        }
    }

    #[test]
    fn a_name_cannot_control_the_terminal_or_add_a_line() {
        let table = table(&[task("aaa1/\u{9b}2J/1", "aaa1", "\u{1b}]0;x\u{7}\nroot  größe")]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(!table.chars().any(|character| character.is_control() && character != '\n'), "{table:?}");
        assert!(table.contains("\\u{1b}]0;x\\u{7}\\nroot  größe") && table.contains("\\u{9b}2J"), "{table}");
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let table = table(&tasks());
        assert_eq!(table.lines().count(), 6);
        assert_eq!(table.lines().last().unwrap(), "sh    -           nomad-80000  run-7-8");
    }
}
