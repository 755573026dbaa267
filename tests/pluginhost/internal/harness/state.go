package harness

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"pluginhost/internal/agentconfig"
	"pluginhost/internal/cpu"
	"pluginhost/internal/files"
	"pluginhost/internal/logmon"
	"pluginhost/internal/plugin"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// The environment variables of the flags -plugin and -state.
const (
	pluginEnv = "PLUGINHOST_PLUGIN"
	stateEnv  = "PLUGINHOST_STATE"
)

// defaultState is not below /run, which many hosts mount noexec: the directories
// of the tasks are in it.
const defaultState = "/var/lib/pluginhost"

// defaultPlugin is looked up in PATH.
const defaultPlugin = "nomad-driver-exec2"

func (o *options) declare(f *flag.FlagSet) {
	f.StringVar(&o.plugin, "plugin", os.Getenv(pluginEnv), "the plugin's binary; default $"+pluginEnv+", the running one, or "+defaultPlugin+" in PATH")
	state := os.Getenv(stateEnv)
	if state == "" {
		state = defaultState
	}
	f.StringVar(&o.state, "state", state, "directory for the state and for the tasks' directories; default $"+stateEnv)
	f.StringVar(&o.config, "config", "", "agent configuration with the plugin's block, for the plugin's start")
	f.BoolVar(&o.plain, "plain", os.Geteuid() != 0, "directories without owners and mounts, and no cgroup; default if not root")
	f.BoolVar(&o.asIs, "as-is", false, "send the TaskConfig as it is in the file, and make nothing")
}

func (o *options) path(name string) string { return filepath.Join(o.state, name) }

// The files of the state directory.
func (o *options) lockFile() string        { return o.path("lock") }
func (o *options) pluginFile() string      { return o.path("plugin.json") }
func (o *options) pluginOutput() string    { return o.path("plugin.stdout") }
func (o *options) pluginLog() string       { return o.path("plugin.log") }
func (o *options) logs() *logmon.Collector { return logmon.New(o.path("logmon.sock")) }

// pluginState has what later commands need to find or restart the plugin.
type pluginState struct {
	plugin.Reattach
	Bin    string
	Config map[string]any
}

// lock takes the state directory for this process until unlock is called.
func (o *options) lock() (unlock func(), err error) {
	// Tasks must be able to walk to their directories in it.
	if err := os.MkdirAll(o.state, 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(o.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return func() { f.Close() }, nil
}

// attach connects to the running plugin, or starts it.
func (c *command) attach() (*plugin.Process, error) {
	unlock, err := c.opts.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var st pluginState
	if err := files.ReadJSON(c.opts.pluginFile(), &st); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if st.Pid != 0 {
		p, err := plugin.Attach(st.Reattach, hclog.NewNullLogger())
		if err == nil {
			return p, c.opts.isRunning(st.Bin)
		}
	}
	return c.launch(st)
}

// isRunning returns an error if another plugin than bin was asked for.
func (o *options) isRunning(bin string) error {
	if o.plugin == "" {
		return nil
	}
	wanted, err := findPlugin(o.plugin)
	if err == nil && wanted != bin {
		err = fmt.Errorf("the running plugin is %s: end it with \"task plugin stop\" before you start %s", bin, wanted)
	}
	return err
}

func findPlugin(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// launch starts a plugin that outlives this process. last is the one before, which
// decides what the flags do not.
func (c *command) launch(last pluginState) (*plugin.Process, error) {
	name := c.opts.plugin
	if name == "" {
		name = last.Bin
	}
	if name == "" {
		name = defaultPlugin
	}
	bin, err := findPlugin(name)
	if err != nil {
		return nil, err
	}
	config := last.Config
	if c.opts.config != "" {
		agent, err := agentconfig.Load([]string{c.opts.config})
		if err != nil {
			return nil, err
		}
		config = agent.Plugins[filepath.Base(bin)]
	}
	topo, err := cpu.Read(0)
	if err != nil {
		return nil, err
	}
	info, err := plugin.Detach(bin, c.opts.pluginOutput(), c.opts.pluginLog())
	if err != nil {
		return nil, err
	}
	p, err := plugin.Attach(info, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	if err := c.configure(p, config, topo); err != nil {
		p.Kill(func(string) {})
		return nil, err
	}
	return p, files.WriteJSON(c.opts.pluginFile(), pluginState{Reattach: info, Bin: bin, Config: config})
}

func (c *command) configure(p *plugin.Process, config map[string]any, topo *cpu.Topology) error {
	_, packed, err := p.Describe(c.ctx, config)
	if err != nil {
		return err
	}
	if err := p.Configure(c.ctx, packed, topo.Proto()); err != nil {
		return err
	}
	return p.Init(c.ctx)
}

// pluginVerb shows or ends the plugin's process.
func pluginVerb(c *command) func() error {
	return func() error {
		switch c.file {
		case "pid":
			p, err := c.attach()
			if err != nil {
				return err
			}
			return printJSON(c.out, map[string]any{"pid": p.Pid, "socket": p.ReattachInfo().Socket, "log": c.opts.pluginLog()})
		case "kill":
			return c.endPlugin(func(st pluginState) error {
				if err := syscall.Kill(st.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return err
				}
				return awaitExit(st.Pid)
			})
		case "stop":
			c.opts.logs().Exit()
			return c.endPlugin(c.shutdown)
		}
		return fmt.Errorf("%q is none of pid, kill, stop", c.file)
	}
}

// endPlugin ends a running plugin and forgets its process, but not how to start it.
func (c *command) endPlugin(end func(pluginState) error) error {
	unlock, err := c.opts.lock()
	if err != nil {
		return err
	}
	defer unlock()
	var st pluginState
	err = files.ReadJSON(c.opts.pluginFile(), &st)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.Pid == 0 {
		return printJSON(c.out, map[string]any{"pid": 0})
	}
	if err != nil {
		return err
	}
	if err := end(st); err != nil {
		return err
	}
	pid := st.Pid
	st.Reattach = plugin.Reattach{}
	if err := files.WriteJSON(c.opts.pluginFile(), st); err != nil {
		return err
	}
	return printJSON(c.out, map[string]any{"pid": pid})
}

// shutdown ends the plugin like a stopping agent. A plugin that has already exited
// is not an error.
func (c *command) shutdown(st pluginState) error {
	p, err := plugin.Attach(st.Reattach, hclog.NewNullLogger())
	if err != nil {
		return nil
	}
	if err := p.Shutdown(c.ctx); err != nil {
		return err
	}
	var slow error
	p.Kill(func(text string) { slow = errors.New(text) })
	return slow
}

const (
	exitTries = 500
	exitPause = 10 * time.Millisecond
)

// awaitExit waits until a killed process no longer runs.
func awaitExit(pid int) error {
	for range exitTries {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && isZombie(stat) {
			return nil
		}
		time.Sleep(exitPause)
	}
	return fmt.Errorf("pid %d is still there %v after SIGKILL", pid, exitTries*exitPause)
}

// violationsVerb checks what the plugin wrote since its start.
func violationsVerb(c *command) func() error {
	return func() error {
		stdout, err := os.Open(c.opts.pluginOutput())
		if err != nil {
			return err
		}
		defer stdout.Close()
		stderr, err := os.Open(c.opts.pluginLog())
		if err != nil {
			return err
		}
		defer stderr.Close()
		list := []string{}
		plugin.CheckOutput(stdout, stderr, func(text string) { list = append(list, text) })
		if err := printJSON(c.out, list); err != nil {
			return err
		}
		if len(list) > 0 {
			return errPrinted
		}
		return nil
	}
}

// taskState has what later commands need about a task.
type taskState struct {
	ID     string
	Handle []byte // a marshalled TaskHandle
}

func (o *options) taskFile(id string) string {
	return filepath.Join(o.state, "tasks", url.PathEscape(id)+".json")
}
