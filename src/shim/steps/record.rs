//! The record for sessions in the task.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Result;
use crate::record::session::SessionRecord;
use crate::sandbox::root::RootRule;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;

/// Stores what only this process knows exactly: the rules of the task's own root, and the environment that the task gets. It must not
/// be computed again for a session, because host and agent change.
pub(crate) fn record_session(spec: &ShimSpec, rules: Option<&[RootRule]>, file: &File) -> Result<()> {
    let record = SessionRecord { env: Cow::Borrowed(&spec.command.env), rules: rules.map(Cow::Borrowed) };
    let written =
        record.encode().map_err(std::io::Error::from).and_then(|bytes| file.write_all_at(&bytes, 0));
    written.map_err(|error| Failure::io(Step::Record, "the rules and the environment", &error))
}
