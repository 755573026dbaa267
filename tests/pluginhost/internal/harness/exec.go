package harness

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"pluginhost/internal/plugin"
	"pluginhost/pb"

	"google.golang.org/protobuf/types/known/durationpb"
)

// stdinChunk is how much of stdin goes into one message, as in Nomad's client.
const stdinChunk = 2048

// terminalSize is -size and -resize, "24x80".
type terminalSize struct{ rows, columns int32 }

func (s *terminalSize) String() string { return "" }

func (s *terminalSize) Set(text string) error {
	if _, err := fmt.Sscanf(text, "%dx%d", &s.rows, &s.columns); err != nil {
		return fmt.Errorf("%q is not ROWSxCOLUMNS", text)
	}
	return nil
}

func (s *terminalSize) message() *pb.ExecTaskStreamingRequest {
	return &pb.ExecTaskStreamingRequest{TtySize: &pb.ExecTaskStreamingRequest_TerminalSize{Height: s.rows, Width: s.columns}}
}

// execFlags are those of the exec verb.
type execFlags struct {
	stream       bool
	tty          bool
	stdin        string
	keepOpen     bool
	size, resize terminalSize
	heartbeat    time.Duration
}

func (e *execFlags) declare(f *flag.FlagSet) {
	f.BoolVar(&e.stream, "stream", false, "ExecTaskStreaming instead of ExecTask")
	f.BoolVar(&e.tty, "tty", false, "with -stream: ask for a terminal")
	f.Var(&e.size, "size", "with -stream: ROWSxCOLUMNS of the terminal at its start")
	f.Var(&e.resize, "resize", "with -stream: ROWSxCOLUMNS after the first output")
	f.StringVar(&e.stdin, "stdin", "", "with -stream: file for stdin, - for the harness's own; default empty")
	f.BoolVar(&e.keepOpen, "keep-open", false, "with -stream: do not close stdin at its end")
	f.DurationVar(&e.heartbeat, "heartbeat", 0, "with -stream: send empty messages at this interval")
}

// execResult is what the harness prints of an exec.
type execResult struct {
	Stdout     output          `json:"stdout"`
	Stderr     output          `json:"stderr"`
	Result     json.RawMessage `json:"result,omitempty"`
	Violations []string        `json:"violations,omitempty"`
	Error      *rpcError       `json:"error,omitempty"`
}

func execVerb(c *command) func() error {
	var e execFlags
	e.declare(c.flags)
	timeout := c.flags.Duration("timeout", 0, "of the command; with -stream, of the call; 0: none")
	return func() error {
		args := c.rest
		if len(args) > 0 && args[0] == "--" {
			args = args[1:]
		}
		s, p, err := c.open()
		if err != nil {
			return err
		}
		var r *execResult
		if e.stream {
			r, err = c.execStream(p, s.task.Id, args, e, *timeout)
		} else {
			r, err = c.execUnary(p, s.task.Id, args, *timeout)
		}
		if err != nil {
			return err
		}
		if err := printJSON(c.out, r); err != nil {
			return err
		}
		if r.Error != nil {
			return errPrinted
		}
		return nil
	}
}

func (c *command) execUnary(p *plugin.Process, id string, args []string, timeout time.Duration) (*execResult, error) {
	resp, err := p.DriverClient.ExecTask(c.ctx, &pb.ExecTaskRequest{TaskId: id, Command: args, Timeout: durationpb.New(timeout)})
	if err != nil {
		return &execResult{Error: newRPCError(err)}, nil
	}
	r := &execResult{Stdout: resp.GetStdout(), Stderr: resp.GetStderr(), Violations: plugin.ExecGaps(resp)}
	return r, r.setResult(resp.GetResult())
}

func (r *execResult) setResult(result *pb.ExitResult) (err error) {
	if result != nil {
		r.Result, err = plugin.JSON(result)
	}
	return err
}

func (c *command) execStream(p *plugin.Process, id string, args []string, e execFlags, timeout time.Duration) (*execResult, error) {
	stdin, err := c.openStdin(e.stdin)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	ctx, cancel := context.WithCancel(c.ctx)
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(c.ctx, timeout)
	}
	defer cancel()
	stream, err := p.DriverClient.ExecTaskStreaming(ctx)
	if err != nil {
		return &execResult{Error: newRPCError(err)}, nil
	}
	setup := &pb.ExecTaskStreamingRequest_Setup{TaskId: id, Command: args, Tty: e.tty}
	sender := &execSender{stream: stream, firstOutput: make(chan struct{})}
	go sender.run(ctx, setup, e, stdin)
	return receiveExec(stream, sender.firstOutput)
}

func (c *command) openStdin(path string) (io.ReadCloser, error) {
	switch path {
	case "":
		return os.Open(os.DevNull)
	case "-":
		return io.NopCloser(c.stdin), nil
	}
	return os.Open(path)
}

// execSender sends what the driver gets during a streaming exec. A failed send
// needs no report: the receiver gets the reason.
type execSender struct {
	stream      pb.Driver_ExecTaskStreamingClient
	firstOutput chan struct{} // closed after the first output
}

// run sends the setup, then the terminal's size, stdin and heartbeats. Messages of
// one stream must not be sent at the same time, so all are sent here.
func (s *execSender) run(ctx context.Context, setup *pb.ExecTaskStreamingRequest_Setup, e execFlags, stdin io.Reader) {
	if s.stream.Send(&pb.ExecTaskStreamingRequest{Setup: setup}) != nil {
		return
	}
	if e.size != (terminalSize{}) && s.stream.Send(e.size.message()) != nil {
		return
	}
	firstOutput := s.firstOutput
	if e.resize == (terminalSize{}) {
		firstOutput = nil
	}
	var beat <-chan time.Time
	if e.heartbeat > 0 {
		ticker := time.NewTicker(e.heartbeat)
		defer ticker.Stop()
		beat = ticker.C
	}
	chunks := readChunks(ctx, stdin, !e.keepOpen)
	for {
		var msg *pb.ExecTaskStreamingRequest
		select {
		case op, ok := <-chunks:
			if !ok {
				chunks = nil
				continue
			}
			msg = &pb.ExecTaskStreamingRequest{Stdin: op}
		case <-firstOutput:
			firstOutput, msg = nil, e.resize.message()
		case <-beat:
			msg = &pb.ExecTaskStreamingRequest{}
		case <-ctx.Done():
			return
		}
		if s.stream.Send(msg) != nil {
			return
		}
	}
}

// readChunks reads stdin to its end, and then closes the task's if that is wanted.
func readChunks(ctx context.Context, stdin io.Reader, closing bool) <-chan *pb.ExecTaskStreamingIOOperation {
	chunks := make(chan *pb.ExecTaskStreamingIOOperation)
	send := func(op *pb.ExecTaskStreamingIOOperation) bool {
		select {
		case chunks <- op:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		defer close(chunks)
		for {
			buf := make([]byte, stdinChunk)
			n, err := stdin.Read(buf)
			if n > 0 && !send(&pb.ExecTaskStreamingIOOperation{Data: buf[:n]}) {
				return
			}
			if err != nil {
				break
			}
		}
		if closing {
			send(&pb.ExecTaskStreamingIOOperation{Close: true})
		}
	}()
	return chunks
}

// receiveExec collects the answers until the driver ends the stream.
func receiveExec(stream pb.Driver_ExecTaskStreamingClient, firstOutput chan<- struct{}) (*execResult, error) {
	r := &execResult{}
	var stdoutClosed, stderrClosed, exited, any bool
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.Error = newRPCError(err)
			return r, nil
		}
		if exited {
			r.breach("a message after the one with the exit result")
		}
		r.collect("stdout", resp.GetStdout(), &r.Stdout, &stdoutClosed)
		r.collect("stderr", resp.GetStderr(), &r.Stderr, &stderrClosed)
		if !any && len(r.Stdout)+len(r.Stderr) > 0 {
			any = true
			close(firstOutput)
		}
		if !resp.GetExited() {
			continue
		}
		exited = true
		if resp.GetResult() == nil {
			r.breach("exited without a result")
		}
		if err := r.setResult(resp.GetResult()); err != nil {
			return nil, err
		}
	}
	if !exited {
		r.breach("the stream ended without an exit result")
	}
	return r, nil
}

// collect adds the data of one message to what came before.
func (r *execResult) collect(name string, op *pb.ExecTaskStreamingIOOperation, into *output, closed *bool) {
	if *closed && len(op.GetData()) > 0 {
		r.breach("data on " + name + " after its end")
	}
	*into = append(*into, op.GetData()...)
	*closed = *closed || op.GetClose()
}

func (r *execResult) breach(text string) {
	r.Violations = append(r.Violations, "ExecTaskStreaming: "+text)
}
