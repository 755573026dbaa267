//! A bounded queue before the host's pipe, so that logging never waits for a host that does not read.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait, besides the 64 KiB of the pipe. Further lines are dropped and counted.
const BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Default)]
pub(crate) struct LogQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Lines that had no room since the last time that the queue was empty.
    dropped: u64,
    writing: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0 && !self.writing
    }
}

impl LogQueue {
    /// Never waits for the reader.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > BYTES_MAX {
            state.dropped += 1;
        } else {
            state.bytes += line.len();
            state.lines.push_back(line.into());
        }
        self.changed.notify_all();
    }

    /// Waits for the next line and passes it to `write`. When the queue is empty and lines were dropped, that is the line that `dropped`
    /// makes of their number.
    pub(crate) fn write_next(&self, write: impl FnOnce(&[u8]), dropped: impl FnOnce(u64) -> String) {
        let waiting = |state: &mut State| state.lines.is_empty() && state.dropped == 0;
        let mut state =
            self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front();
        let missing = if line.is_none() { std::mem::take(&mut state.dropped) } else { 0 };
        state.bytes -= line.as_ref().map_or(0, |line| line.len());
        state.writing = true;
        drop(state);
        match line {
            Some(line) => write(&line),
            None => write(dropped(missing).as_bytes()),
        }
        self.state().writing = false;
        self.changed.notify_all();
    }

    /// Waits until everything is written, `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        let busy = |state: &mut State| !state.is_idle();
        drop(self.changed.wait_timeout_while(self.state(), limit, busy));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Instant;

    use super::*;

    /// A thread that writes into the channel, which has no room: each line waits for its reader.
    fn writer(queue: &Arc<LogQueue>) -> mpsc::Receiver<String> {
        let (sender, reader) = mpsc::sync_channel(0);
        let queue = Arc::clone(queue);
        std::thread::spawn(move || {
            let mut open = true;
            while open {
                let write = |line: &[u8]| open = sender.send(String::from_utf8_lossy(line).into()).is_ok();
                queue.write_next(write, |count| format!("{count} dropped"));
            }
        });
        reader
    }

    #[test]
    fn a_stuck_reader_blocks_no_writer_and_gets_the_number_of_dropped_lines() {
        let queue = Arc::new(LogQueue::default());
        let reader = writer(&queue);
        let line = |number: usize| format!("{number:01023} ");
        let fits = BYTES_MAX / 1024;
        // One may be out of the queue already, waiting for the reader.
        for number in 0..fits + 10 {
            queue.push(line(number).as_bytes());
        }
        let start = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(start.elapsed() >= Duration::from_millis(50), "there is something left to write");
        let mut read = Vec::new();
        while read.last().is_none_or(|last: &String| !last.ends_with("dropped")) {
            read.push(reader.recv_timeout(Duration::from_secs(20)).unwrap());
        }
        let last = read.pop().unwrap();
        assert_eq!(last, format!("{} dropped", fits + 10 - read.len()));
        // The one that was taken out may have made room for a later one.
        assert!(read.iter().take(fits).enumerate().all(|(number, read)| *read == line(number)), "the oldest");
        assert!(read.is_sorted(), "in order");
        queue.push(b"after");
        assert_eq!(reader.recv_timeout(Duration::from_secs(20)).unwrap(), "after");
        queue.flush(Duration::from_secs(20));
        assert!(queue.state().is_idle());
    }
}
