// Package logmon collects the output of tasks, like Nomad's logmon: in a process
// of its own, so that a task can write to its fifos while the host is down or
// restarting. One collector serves all tasks.
package logmon

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

// closeTolerance is how long the collector still reads after a task's end.
const closeTolerance = 2 * time.Second

// The collector answers at once; these bound the wait for one that hangs or
// that is still starting.
const (
	dialTimeout = 5 * time.Second
	startTries  = 500
	startPause  = 20 * time.Millisecond
)

// The operations of a request.
const (
	opPing  = "ping"
	opStart = "start"
	opStop  = "stop"
	opExit  = "exit"
)

// request is one line of JSON on the collector's socket.
type request struct {
	Op   string
	Key  string
	Task Task
}

type response struct{ Error string }

// Task is a task whose output is collected.
type Task struct {
	Dir           string // of the log files and the fifos
	Name          string
	MaxFiles      int
	MaxFileSizeMB int
}

// Fifos are the names that Nomad gives a task's two log fifos.
func Fifos(logDir, task string) (stdout, stderr string) {
	return filepath.Join(logDir, "."+task+".stdout.fifo"), filepath.Join(logDir, "."+task+".stderr.fifo")
}

// Collector is the client's side: the collector process that serves a socket.
type Collector struct {
	socket string
	// starting is held during the start: a second collector would take over
	// the socket of the first.
	starting sync.Mutex
}

// New returns the collector of a socket; Ensure starts its process.
func New(socket string) *Collector { return &Collector{socket: socket} }

// Ensure starts the process unless one already answers. "logmon SOCKET" as
// arguments of this program must call Serve.
func (c *Collector) Ensure() error {
	c.starting.Lock()
	defer c.starting.Unlock()
	if c.call(request{Op: opPing}) == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "logmon", c.socket)
	cmd.Args[0] = "pluginhost" // never "nomad": the verb is ours
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // reaps it if it exits before us
	for range startTries {
		if err = c.call(request{Op: opPing}); err == nil {
			return nil
		}
		time.Sleep(startPause)
	}
	return fmt.Errorf("failed to reach the log collector on %s: %w", c.socket, err)
}

// Start makes a task's fifos and collects its output under key.
func (c *Collector) Start(key string, t Task) error {
	return c.call(request{Op: opStart, Key: key, Task: t})
}

// Stop reads what is left of a task's output and closes its log.
func (c *Collector) Stop(key string) error { return c.call(request{Op: opStop, Key: key}) }

// Exit ends the process, for a host that leaves nothing behind.
func (c *Collector) Exit() {
	// It exits without an answer.
	_ = c.call(request{Op: opExit})
}

// call sends one request and waits for the answer.
func (c *Collector) call(req request) error {
	conn, err := net.DialTimeout("unix", c.socket, dialTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return err
	}
	var resp response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		return err
	}
	if resp.Error != "" {
		return errors.New(resp.Error)
	}
	return nil
}

// collector is the state of the collector process.
type collector struct {
	mu    sync.Mutex
	tasks map[string]*pumps
}

// pumps are those of a task's stdout and stderr.
type pumps [2]*pump

// Serve is the collector process: it serves requests until it is killed.
func Serve(socket string) error {
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
	c := &collector{tasks: map[string]*pumps{}}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var req request
			if json.NewDecoder(conn).Decode(&req) != nil {
				return
			}
			var resp response
			if err := c.handle(req); err != nil {
				resp.Error = err.Error()
			}
			json.NewEncoder(conn).Encode(resp)
		}()
	}
}

func (c *collector) handle(req request) error {
	switch req.Op {
	case opPing:
		return nil
	case opStart:
		return c.start(req.Key, req.Task)
	case opExit:
		os.Exit(0)
	case opStop:
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

func (c *collector) start(key string, task Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.tasks[key]; p != nil {
		if p.running() {
			return nil
		}
		p.close()
	}
	p := &pumps{}
	stdout, stderr := Fifos(task.Dir, task.Name)
	for i, side := range []struct{ fifo, name string }{{stdout, "stdout"}, {stderr, "stderr"}} {
		if err := unix.Mkfifo(side.fifo, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkfifo", Path: side.fifo, Err: err}
		}
		rot, err := newRotator(task, side.name)
		if err != nil {
			return err
		}
		p[i] = newPump(side.fifo, rot)
	}
	c.tasks[key] = p
	return nil
}

func (p *pumps) running() bool { return p[0].running() && p[1].running() }

func (p *pumps) close() {
	var wg sync.WaitGroup
	for _, p := range p {
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
		fmt.Fprintf(os.Stderr, "logmon: failed to open %s: %v\n", p.path, err)
		return
	}
	in := os.NewFile(uintptr(fd), p.path)
	p.mu.Lock()
	p.in = in
	closing := p.closing
	p.mu.Unlock()
	if !closing {
		if _, err := io.Copy(p.out, in); err != nil && !errors.Is(err, os.ErrClosed) {
			fmt.Fprintf(os.Stderr, "logmon: failed to copy from %s: %v\n", p.path, err)
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
