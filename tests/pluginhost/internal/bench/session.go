package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pluginhost/pb"
)

// session is one way to run a command in a running task: ExecTaskStreaming.
type session struct {
	d    *driver
	task string
}

func (s session) name() string { return s.d.label + ", session" }

func (s session) end() {}

// start runs the brief program; answer is when the caller knows how it ended.
func (s session) start() (first, answer time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	stream, err := s.d.proc.DriverClient.ExecTaskStreaming(ctx)
	if err != nil {
		return 0, 0, err
	}
	setup := &pb.ExecTaskStreamingRequest_Setup{TaskId: s.task, Command: brief}
	if err := stream.Send(&pb.ExecTaskStreamingRequest{Setup: setup}); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return 0, 0, fmt.Errorf("ExecTaskStreaming: %w", err)
		}
		if first == 0 && len(message.GetStdout().GetData()) > 0 {
			first = time.Since(began)
		}
		if !message.GetExited() {
			continue
		}
		answer = time.Since(began)
		if code := message.GetResult().GetExitCode(); code != 0 || first == 0 {
			return 0, 0, fmt.Errorf("the command ended with %d, after %v of output", code, first)
		}
		return first, answer, nil
	}
}

// bySessions measures a command in a running task beside a plain child process, a
// start of a task, and nsenter, which enters the same namespaces and nothing else.
func (o *options) bySessions(host *host, subjects []subject, results *Results) error {
	for _, s := range subjects {
		d, ok := s.(*driver)
		if !ok {
			continue
		}
		o.say("%s: commands in a running task", d.name())
		starts, notes, err := o.sessions(host, subjects[0], d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name(), err)
		}
		for _, note := range notes {
			results.Notes = append(results.Notes, "sessions: "+note)
		}
		results.Sessions = append(results.Sessions, Sessions{Subject: d.name(), Starts: starts})
	}
	return nil
}

func (o *options) sessions(host *host, floor subject, d *driver) (map[string]Start, []string, error) {
	defer d.release()
	if err := d.prepare(1); err != nil {
		return nil, nil, err
	}
	if err := d.hold(0); err != nil {
		return nil, nil, err
	}
	a := d.allocs[0]
	inside, err := os.ReadFile(filepath.Join(a.scope(), "cgroup.procs"))
	if err != nil {
		return nil, nil, err
	}
	pid, _, ok := strings.Cut(string(inside), "\n")
	if !ok {
		return nil, nil, fmt.Errorf("%s has no process", a.scope())
	}
	out, err := newPipe(filepath.Join(host.base, d.label+".nsenter.fifo"))
	if err != nil {
		return nil, nil, err
	}
	enter := []string{"nsenter", "--target", pid, "--mount", "--pid", "--ipc", "--uts", "--net", "--"}
	return o.measure([]subject{floor, d, session{d, a.config.Id}, &command{label: "nsenter", wrapper: enter, out: out}})
}
