package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The log collector is a process of its own, like Nomad's logmon, so that a
// task can write to its fifos while the host is down or restarting. One
// collector serves all tasks.

// closeTolerance is how long the collector still reads after a task's end.
const closeTolerance = 2 * time.Second

// logRequest is one line of JSON on the collector's socket.
type logRequest struct {
	Op     string // start, stop, ping, exit
	Key    string // alloc/task
	Dir    string
	Task   string
	Max    Logs
	Stdout string // fifo
	Stderr string // fifo
}

type logAnswer struct{ Error string }

// fifoPaths are the names that Nomad gives a task's two log fifos.
func fifoPaths(logDir, task string) (stdout, stderr string) {
	return filepath.Join(logDir, "."+task+".stdout.fifo"), filepath.Join(logDir, "."+task+".stderr.fifo")
}

// logmonCall sends one request and waits for the answer.
func logmonCall(socket string, req logRequest) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return err
	}
	var ans logAnswer
	if err := json.NewDecoder(conn).Decode(&ans); err != nil {
		return err
	}
	if ans.Error != "" {
		return errors.New(ans.Error)
	}
	return nil
}

// logmonStart is held while somebody looks for the collector and starts it: a second one would take the socket of the first.
var logmonStart sync.Mutex

// ensureLogmon starts the collector unless one already answers.
func ensureLogmon(socket string) error {
	logmonStart.Lock()
	defer logmonStart.Unlock()
	if logmonCall(socket, logRequest{Op: "ping"}) == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "logmon", socket)
	cmd.Args[0] = "pluginhost" // never "nomad": the verb is ours
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // reap it, should it die before us
	for range 500 {
		if err = logmonCall(socket, logRequest{Op: "ping"}); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("the log collector does not answer on %s: %w", socket, err)
}

// stopLogmon ends the collector, for a host that leaves nothing behind.
func stopLogmon(socket string) {
	// It exits without an answer.
	_ = logmonCall(socket, logRequest{Op: "exit"})
}

// collector is the state of the collector process.
type collector struct {
	mu    sync.Mutex
	tasks map[string]*logTask
}

type logTask struct {
	pumps [2]*pump
}

// runLogmon serves requests until it is killed.
func runLogmon(socket string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	c := &collector{tasks: map[string]*logTask{}}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var req logRequest
			if json.NewDecoder(conn).Decode(&req) != nil {
				return
			}
			var ans logAnswer
			if err := c.handle(req); err != nil {
				ans.Error = err.Error()
			}
			json.NewEncoder(conn).Encode(ans)
		}()
	}
}

func (c *collector) handle(req logRequest) error {
	switch req.Op {
	case "ping":
		return nil
	case "start":
		return c.start(req)
	case "exit":
		os.Exit(0)
	case "stop":
		c.mu.Lock()
		t := c.tasks[req.Key]
		delete(c.tasks, req.Key)
		c.mu.Unlock()
		if t != nil {
			t.close()
		}
		return nil
	}
	return fmt.Errorf("unknown request %q", req.Op)
}

func (c *collector) start(req logRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tasks[req.Key]; t != nil {
		if t.running() {
			return nil
		}
		t.close()
	}
	t := &logTask{}
	for i, side := range []struct{ fifo, name string }{{req.Stdout, "stdout"}, {req.Stderr, "stderr"}} {
		if err := unix.Mkfifo(side.fifo, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkfifo", Path: side.fifo, Err: err}
		}
		rot, err := newRotator(req.Dir, req.Task+"."+side.name, req.Max)
		if err != nil {
			return err
		}
		t.pumps[i] = newPump(side.fifo, rot)
	}
	c.tasks[req.Key] = t
	return nil
}

func (t *logTask) running() bool { return t.pumps[0].running() && t.pumps[1].running() }

func (t *logTask) close() {
	var wg sync.WaitGroup
	for _, p := range t.pumps {
		wg.Add(1)
		go func() { defer wg.Done(); p.close() }()
	}
	wg.Wait()
}

// pump copies from a fifo to a log until the last writer has closed it.
type pump struct {
	path     string
	out      io.WriteCloser
	finished chan struct{}
	mu       sync.Mutex
	in       *os.File
	closing  bool
}

func newPump(path string, out io.WriteCloser) *pump {
	p := &pump{path: path, out: out, finished: make(chan struct{})}
	go p.run()
	return p
}

func (p *pump) run() {
	defer close(p.finished)
	// Blocks until a writer comes, as Nomad's reader does.
	fd, err := unix.Open(p.path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Fprintf(os.Stderr, "logmon: open %s: %v\n", p.path, err)
		return
	}
	in := os.NewFile(uintptr(fd), p.path)
	p.mu.Lock()
	p.in = in
	closing := p.closing
	p.mu.Unlock()
	if !closing {
		if _, err := io.Copy(p.out, in); err != nil && !errors.Is(err, os.ErrClosed) {
			fmt.Fprintf(os.Stderr, "logmon: copy from %s: %v\n", p.path, err)
		}
	}
	in.Close()
}

func (p *pump) running() bool {
	select {
	case <-p.finished:
		return false
	default:
		return true
	}
}

// close waits a little for the writers to go, then ends the pump.
func (p *pump) close() {
	select {
	case <-p.finished:
	case <-time.After(closeTolerance):
		p.mu.Lock()
		p.closing = true
		if p.in != nil {
			p.in.Close()
		}
		opened := p.in != nil
		p.mu.Unlock()
		if !opened {
			// Still waiting for a first writer: be one, for a moment.
			if fd, err := unix.Open(p.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
			}
		}
	}
	p.out.Close()
}
