package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"pluginhost/internal/cgroup"

	"golang.org/x/sys/unix"
)

// floorLabel is the plain child process, to which everything is compared.
const floorLabel = "vfork + exec"

// The programs of the tasks: one that writes a byte and ends, and one that lasts.
var (
	brief   = []string{"/bin/echo", "x"}
	forever = []string{"/bin/sleep", "100000"}
)

// subject is one way to start a program.
type subject interface {
	name() string
	// start runs the brief program to its end. answer is when the caller knows that
	// the program runs.
	start() (first, answer time.Duration, err error)
	end()
}

// lasting is a subject that is also measured while its programs run.
type lasting interface {
	subject
	// prepare makes what count programs need and what does not belong to a start:
	// directories, mounts, cgroups.
	prepare(count int) error
	// hold starts the lasting program with a number.
	hold(number int) error
	// memory reads what is in use, after a pause.
	memory() (memory, error)
	// statistics is the CPU time in ms that a second of statistics costs.
	statistics(time.Duration) (float64, error)
	release() error
}

// pipe is a fifo with both ends open, so that no read returns at its end.
type pipe struct {
	path string
	fd   int
}

func newPipe(path string) (*pipe, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &pipe{path: path, fd: fd}, nil
}

// firstByte blocks until something was written.
func (p *pipe) firstByte(limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		left := int(time.Until(end).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, max(left, 0))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return &os.PathError{Op: "poll", Path: p.path, Err: err}
		case n == 0:
			return fmt.Errorf("the program wrote nothing within %v", limit)
		}
		_, err = unix.Read(p.fd, make([]byte, 16))
		return err
	}
}

// patience bounds a start; an emulated CPU is slow.
const patience = time.Minute

// command runs programs as children of this process, by a wrapper if there is one.
type command struct {
	label   string
	wrapper []string
	scope   *os.File // the cgroup that the child is made in; nil: that of this process
	out     *pipe
	scopes  []*os.File // of lasting programs, if there is a scope
	running []*exec.Cmd
}

func (c *command) name() string { return c.label }

func (c *command) command(program []string, scope *os.File) *exec.Cmd {
	line := append(append([]string{}, c.wrapper...), program...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if scope != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(scope.Fd())}
	}
	return cmd
}

func (c *command) start() (first, answer time.Duration, err error) {
	cmd := c.command(brief, c.scope)
	output, err := os.OpenFile(c.out.path, os.O_WRONLY, 0)
	if err != nil {
		return 0, 0, err
	}
	defer output.Close()
	cmd.Stdout = output
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	answer = time.Since(began)
	if err := c.out.firstByte(patience); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return 0, 0, err
	}
	first = time.Since(began)
	return first, answer, cmd.Wait()
}

func (c *command) end() {
	c.release()
	if c.scope != nil {
		removeScope(c.scope)
	}
}

func (c *command) prepare(count int) error {
	for c.scope != nil && len(c.scopes) < count {
		scope, err := newScope(fmt.Sprint("floor-", len(c.scopes)))
		if err != nil {
			return err
		}
		c.scopes = append(c.scopes, scope)
	}
	return nil
}

func (c *command) hold(number int) error {
	var scope *os.File
	if c.scope != nil {
		scope = c.scopes[number]
	}
	cmd := c.command(forever, scope)
	if err := cmd.Start(); err != nil {
		return err
	}
	c.running = append(c.running, cmd)
	return nil
}

func (c *command) memory() (memory, error) {
	m, err := readMemory(os.Getpid())
	m.plugin = 0 // that is this process
	return m, err
}

func (c *command) statistics(time.Duration) (float64, error) { return 0, nil }

func (c *command) release() error {
	for _, cmd := range c.running {
		cmd.Process.Kill()
		cmd.Wait()
	}
	for _, scope := range c.scopes {
		removeScope(scope)
	}
	c.running, c.scopes = nil, nil
	return nil
}

// newScope makes a cgroup with a task's limits for plain processes.
func newScope(name string) (*os.File, error) {
	path := cgroup.TaskPath("bench", name, false)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	limits := map[string]string{
		"cpu.max":    fmt.Sprint(quotaUS, " ", periodUS),
		"memory.max": fmt.Sprint(memoryMB << 20),
	}
	for file, value := range limits {
		if err := os.WriteFile(filepath.Join(path, file), []byte(value), 0o644); err != nil {
			return nil, err
		}
	}
	return os.Open(path)
}

func removeScope(scope *os.File) {
	scope.Close()
	cgroup.Remove(scope.Name())
}

// once hides that a command can last.
type once struct{ subject }

// bubblewrap makes a root and namespaces as the driver does.
var bubblewrap = []string{
	"bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--new-session", "--die-with-parent", "--cap-drop", "ALL",
	"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc",
	"--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
	"--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--",
}

// systemdRun makes a service with the program's output as its own.
var systemdRun = []string{"systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--"}

// peers are a plain child, which is the floor, and the sandboxes that work here.
func peers(host *host, say func(string, ...any)) ([]subject, error) {
	scope, err := newScope("floor")
	if err != nil {
		return nil, err
	}
	commands := []*command{{label: floorLabel}, {label: floorLabel + " in a cgroup", scope: scope}}
	for _, c := range []*command{{label: "bubblewrap", wrapper: bubblewrap}, {label: "systemd-run", wrapper: systemdRun}} {
		line := append(append([]string{}, c.wrapper...), brief...)
		if output, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			say("without %s: %v %s", c.label, err, output)
			continue
		}
		commands = append(commands, c)
	}
	var list []subject
	for i, c := range commands {
		if c.out, err = newPipe(filepath.Join(host.base, fmt.Sprint("peer-", i))); err != nil {
			return list, err
		}
		if c.scope != nil || c.label == "bubblewrap" {
			list = append(list, c)
		} else {
			list = append(list, once{c})
		}
	}
	return list, nil
}
