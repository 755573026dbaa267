//! ExecTask and ExecTaskStreaming: a session's input, output and end as messages.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::status::RpcError;
use crate::proto::driver::{
    ExecTaskResponse, ExecTaskStreamingIoOperation as Operation, ExecTaskStreamingRequest as Request,
    ExecTaskStreamingResponse as Answer, ExitResult, exec_task_streaming_request::TerminalSize,
};
use crate::shim::exit::Exit;
use crate::shim::report::SessionEnd;
use crate::sys;
use crate::task::exec::streams::{Output, end_of_file, write_all};
use crate::task::exec::{NotRun, Session};

/// How many answers may wait for a slow reader, beside what gRPC itself buffers. The command then waits, and nobody else.
const BACKLOG: usize = 1;

/// Bytes of output that ExecTask returns, the last ones: what Nomad's own drivers keep of a check.
const CAPTURED: usize = 4 * 1024;

/// How long a client that sends heartbeats may be silent. Nomad's command line and web interface send one every 10 s.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);

/// Runs the command to its end, or to the timeout, which begins when the command does.
pub(super) async fn run(mut session: Session, limit: Option<Duration>) -> Result<ExecTaskResponse, RpcError> {
    let mut tail = Tail::default();
    let finished = async {
        session.started().await?;
        let (end, ended) = watch::channel(false);
        let output = session.take_ends().stdout;
        let read = async {
            let Some(output) = output else { return };
            let mut output = Output::new(&output, ended);
            while let Some(chunk) = output.next().await {
                tail.push(&chunk);
            }
        };
        let wait = async {
            let finished = session.ended().await;
            end.send_replace(true);
            finished
        };
        let both = async { tokio::join!(wait, read).0 };
        match limit {
            Some(limit) => {
                timeout(limit, both).await.map_err(|_| limit).map_or_else(Limited::Over, Limited::Ended)
            }
            None => Limited::Ended(both.await),
        }
        .into_result()
    };
    let result = match finished.await {
        Ok(end) => exit_result(end),
        Err(Stopped::Timeout(limit)) => {
            session.cancel().await;
            return Err(RpcError::ExecTimeout(limit));
        }
        Err(Stopped::NotRun(error)) => {
            tail.push(error.to_string().as_bytes());
            tail.push(b"\n");
            ExitResult { exit_code: error.code(), ..ExitResult::default() }
        }
    };
    Ok(ExecTaskResponse { stdout: tail.0, stderr: Vec::new(), result: Some(result) })
}

/// The end of a command with a time limit.
enum Limited {
    Ended(Result<SessionEnd, NotRun>),
    Over(Duration),
}

enum Stopped {
    NotRun(NotRun),
    Timeout(Duration),
}

impl Limited {
    fn into_result(self) -> Result<SessionEnd, Stopped> {
        match self {
            Self::Ended(ended) => ended.map_err(Stopped::NotRun),
            Self::Over(limit) => Err(Stopped::Timeout(limit)),
        }
    }
}

impl From<NotRun> for Stopped {
    fn from(error: NotRun) -> Self {
        Self::NotRun(error)
    }
}

/// The last [`CAPTURED`] bytes.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(CAPTURED)..];
        let surplus = (self.0.len() + bytes.len()).saturating_sub(CAPTURED);
        self.0.drain(..surplus);
        self.0.extend_from_slice(bytes);
    }
}

fn exit_result(end: SessionEnd) -> ExitResult {
    let exit = Exit::from_wait_status(end.status);
    ExitResult { exit_code: exit.code, signal: exit.signal, oom_killed: end.oom_killed }
}

type Answers = mpsc::Sender<Result<Answer, Status>>;

/// The answers of a session. If the caller hangs up, the session ends.
pub(super) fn stream(
    session: Session,
    requests: Streaming<Request>,
) -> ReceiverStream<Result<Answer, Status>> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        tokio::select! {
            () = serve(session, requests, &sender) => {}
            () = sender.closed() => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn serve(mut session: Session, requests: Streaming<Request>, answers: &Answers) {
    let terminal = match session.started().await {
        Ok(terminal) => terminal.map(Arc::new),
        Err(error) => {
            let result = refusal(&error, "\n", answers).await;
            return end_with(result, answers).await;
        }
    };
    let new_line = if terminal.is_some() { "\r\n" } else { "\n" };
    let ends = session.take_ends();
    let (end, ended) = watch::channel(false);
    let input = match &terminal {
        Some(terminal) => Input::Terminal { master: Arc::clone(terminal), in_line: false },
        None => Input::Pipe(ends.stdin),
    };
    let stdout = match (&terminal, &ends.stdout) {
        (Some(terminal), _) => Some(&**terminal),
        (None, stdout) => stdout.as_ref(),
    };
    let wait = async {
        let finished = session.ended().await;
        end.send_replace(true);
        finished
    };
    let copy = async {
        tokio::join!(
            wait,
            forward(stdout, ended.clone(), answers, on_stdout),
            forward(ends.stderr.as_ref(), ended.clone(), answers, on_stderr)
        )
        .0
    };
    let finished = tokio::select! {
        finished = copy => finished,
        () = feed(requests, input) => {
            session.cancel().await;
            let _ = answers.send(Err(RpcError::ClientGone.into())).await;
            return;
        }
    };
    let result = match finished {
        Ok(end) => exit_result(end),
        Err(error) => refusal(&error, new_line, answers).await,
    };
    end_with(result, answers).await;
}

/// Where the client's input goes.
enum Input {
    /// None once it is closed.
    Pipe(Option<AsyncFd<OwnedFd>>),
    Terminal {
        master: Arc<AsyncFd<OwnedFd>>,
        /// Whether the last byte was not the end of a line.
        in_line: bool,
    },
}

/// Passes on what the client sends. Returns only if the client is gone without a word: Nomad keeps the stream open until the next
/// output then, but the client's heartbeats, messages without content, are missing. A client that sends none is not expected to.
async fn feed(mut requests: impl Stream<Item = Result<Request, Status>> + Unpin, mut input: Input) {
    let mut beats = false;
    loop {
        let limit = if beats { CLIENT_LIMIT } else { Duration::MAX };
        let request = match timeout(limit, requests.next()).await {
            Err(_) => return,
            Ok(Some(Ok(request))) => request,
            Ok(None | Some(Err(_))) => break,
        };
        let Request { setup, tty_size, stdin } = request;
        beats |= setup.is_none() && tty_size.is_none() && stdin.is_none();
        if let Some(size) = tty_size {
            input.resize(&size);
        }
        if let Some(Operation { data, close }) = stdin {
            input.write(&data).await;
            if close {
                input.close().await;
            }
        }
    }
    input.close().await;
    std::future::pending().await
}

impl Input {
    async fn write(&mut self, data: &[u8]) {
        match self {
            // The command has closed its end: what follows is discarded, as a pipe's writer would learn by SIGPIPE.
            Self::Pipe(pipe) => {
                if let Some(open) = pipe
                    && write_all(open, data).await.is_err()
                {
                    *pipe = None;
                }
            }
            Self::Terminal { master, in_line } => {
                if let Some(last) = data.last() {
                    *in_line = !matches!(last, b'\n' | b'\r');
                    let _ = write_all(master, data).await;
                }
            }
        }
    }

    async fn close(&mut self) {
        match self {
            Self::Pipe(pipe) => *pipe = None,
            Self::Terminal { master, in_line } => {
                // In the middle of a line the first one only ends the read of that.
                let count = if std::mem::take(in_line) { 2 } else { 1 };
                let _ = write_all(master, &vec![end_of_file(master); count]).await;
            }
        }
    }

    fn resize(&self, size: &TerminalSize) {
        let Self::Terminal { master, .. } = self else { return };
        // A size that a terminal cannot have is ignored.
        if let (Ok(ws_row), Ok(ws_col)) = (u16::try_from(size.height), u16::try_from(size.width)) {
            let _ = sys::terminal::set_size(
                master.get_ref(),
                Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 },
            );
        }
    }
}

/// Copies output to the client until its end.
async fn forward(
    source: Option<&AsyncFd<OwnedFd>>,
    ended: watch::Receiver<bool>,
    answers: &Answers,
    wrap: fn(Operation) -> Answer,
) {
    let Some(source) = source else { return };
    let mut output = Output::new(source, ended);
    while let Some(data) = output.next().await {
        if answers.send(Ok(wrap(Operation { data, close: false }))).await.is_err() {
            return;
        }
    }
}

fn on_stdout(operation: Operation) -> Answer {
    Answer { stdout: Some(operation), ..Answer::default() }
}

fn on_stderr(operation: Operation) -> Answer {
    Answer { stderr: Some(operation), ..Answer::default() }
}

fn exited(result: ExitResult) -> Answer {
    Answer { exited: true, result: Some(result), ..Answer::default() }
}

/// Shows the client why the command did not run, as a shell does. Returns what stands for its end.
async fn refusal(error: &NotRun, new_line: &str, answers: &Answers) -> ExitResult {
    let data = format!("nomad-driver-exec2: {error}{new_line}").into_bytes();
    let _ = answers.send(Ok(on_stderr(Operation { data, close: false }))).await;
    ExitResult { exit_code: error.code(), ..ExitResult::default() }
}

/// The last answers. If the client is gone, nobody needs them.
async fn end_with(result: ExitResult, answers: &Answers) {
    let close = || Operation { data: Vec::new(), close: true };
    for answer in [on_stdout(close()), on_stderr(close()), exited(result)] {
        let _ = answers.send(Ok(answer)).await;
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use tokio::io::Interest;

    use super::*;

    const BEAT: Duration = Duration::from_secs(10);

    fn beat() -> Result<Request, Status> {
        Ok(Request::default())
    }

    fn size() -> Result<Request, Status> {
        Ok(Request { tty_size: Some(TerminalSize { height: 1, width: 1 }), ..Request::default() })
    }

    /// Whether the client counts as gone within an hour after it has sent these and keeps the stream open.
    async fn gone(messages: Vec<Result<Request, Status>>) -> bool {
        let requests = tokio_stream::iter(messages).chain(tokio_stream::pending());
        timeout(60 * CLIENT_LIMIT, feed(requests, Input::Pipe(None))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_heartbeats_stop_is_gone() {
        assert!(gone(vec![beat()]).await);
        assert!(gone(vec![size(), beat(), size()]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_heartbeats_may_be_silent() {
        assert!(!gone(vec![]).await);
        assert!(!gone(vec![size()]).await);
        // one that has closed its side, or the stream, is noticed by other means
        let closed = tokio_stream::iter(vec![beat()]);
        assert!(timeout(60 * CLIENT_LIMIT, feed(closed, Input::Pipe(None))).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_keep_a_silent_client() {
        let (sender, receiver) = mpsc::channel(1);
        let beats = async {
            for _ in 0..60 {
                sender.send(beat()).await.unwrap();
                tokio::time::sleep(BEAT).await;
            }
        };
        tokio::select! {
            () = beats => {}
            () = feed(ReceiverStream::new(receiver), Input::Pipe(None)) => panic!("the client counts as gone"),
        }
    }

    #[test]
    fn the_last_bytes_of_the_output_are_kept() {
        let mut tail = Tail::default();
        tail.push(b"first ");
        tail.push(&vec![b'x'; CAPTURED - 4]);
        assert_eq!((tail.0.len(), &tail.0[..5]), (CAPTURED, &b"rst x"[..]));
        tail.push(&[b'y'; 3 * CAPTURED]);
        tail.push(b"end");
        assert_eq!(tail.0.len(), CAPTURED);
        assert!(tail.0.ends_with(b"yyend"));
    }

    #[test]
    fn an_end_has_the_code_or_the_signal() {
        let of = |status| exit_result(SessionEnd { status, oom_killed: status == 9 });
        assert_eq!(of(7 << 8), ExitResult { exit_code: 7, signal: 0, oom_killed: false });
        assert_eq!(of(9), ExitResult { exit_code: 137, signal: 9, oom_killed: true });
    }

    #[tokio::test]
    async fn a_closed_input_closes_the_pipe_and_ends_a_line_of_a_terminal() {
        let (mut reader, writer) = pipe().unwrap();
        sys::fd::set_nonblocking(&writer).unwrap();
        let mut input =
            Input::Pipe(Some(sys::async_fd::register(writer.into(), Interest::WRITABLE).unwrap()));
        input.write(b"abc").await;
        input.close().await;
        input.write(b"late").await;
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abc");

        let (master, slave) = sys::terminal::open_pair().unwrap();
        let master = Arc::new(sys::async_fd::register(master, Interest::WRITABLE).unwrap());
        let mut input = Input::Terminal { master, in_line: false };
        let mut slave = std::fs::File::from(slave);
        let mut read = [0; 64];
        input.write(b"line\nrest").await;
        input.close().await;
        assert_eq!(slave.read(&mut read).unwrap(), 5);
        assert_eq!((slave.read(&mut read).unwrap(), slave.read(&mut read).unwrap()), (4, 0));
        input.write(b"line\n").await;
        input.close().await;
        assert_eq!((slave.read(&mut read).unwrap(), slave.read(&mut read).unwrap()), (5, 0));
        input.resize(&TerminalSize { height: 7, width: 9 });
        input.resize(&TerminalSize { height: -1, width: 100_000 });
        let size = sys::terminal::size(&slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (7, 9));
    }

    #[tokio::test]
    async fn a_long_output_arrives_whole_and_in_order() {
        let (reader, mut writer) = pipe().unwrap();
        sys::fd::set_nonblocking(&reader).unwrap();
        let source = sys::async_fd::register(reader.into(), Interest::READABLE).unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let written = bytes.clone();
        let (end, ended) = watch::channel(false);
        // The pipe stays open, as if another process of the task held it.
        let writes = std::thread::spawn(move || {
            std::io::Write::write_all(&mut writer, &written).unwrap();
            end.send_replace(true);
            (writer, end)
        });
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        let copies = tokio::spawn(async move { forward(Some(&source), ended, &sender, on_stdout).await });
        let mut arrived = Vec::new();
        while let Some(Ok(Answer { stdout: Some(Operation { data, .. }), .. })) = receiver.recv().await {
            arrived.extend_from_slice(&data);
        }
        copies.await.unwrap();
        drop(writes.join().unwrap());
        assert!(arrived == bytes, "{} of {} bytes", arrived.len(), bytes.len());
    }
}
