package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"pluginhost/internal/agentconfig"
	"pluginhost/internal/logmon"
	"pluginhost/internal/schema"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
)

// tracer prints each step, as text or as JSON lines.
type tracer struct {
	mu    sync.Mutex
	out   io.Writer
	json  bool
	start time.Time
}

// say prints one step. fields go into the JSON form, text is the readable one.
func (t *tracer) say(kind, text string, fields map[string]any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := time.Since(t.start)
	if !t.json {
		for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
			fmt.Fprintf(t.out, "%9.3fs  %-11s %s\n", at.Seconds(), kind, line)
		}
		return
	}
	m := map[string]any{"seconds": at.Seconds(), "kind": kind, "text": text}
	maps.Copy(m, fields)
	raw, err := json.Marshal(m)
	if err == nil {
		fmt.Fprintf(t.out, "%s\n", raw)
	}
}

// Once is one job to run without an agent that serves a command line.
type Once struct {
	Config *agentconfig.Config // its directories are replaced by temporary ones
	Plugin string              // the binary
	Job    *nomad.Job
	Out    io.Writer
	JSON   bool // a JSON object a line instead of text
	// Verbose shows the plugin's debug log; Strict fails on a protocol violation.
	Verbose, Strict bool
}

// violationExit is sysexits' EX_SOFTWARE.
const violationExit = 70

// Run launches the plugin, runs the job with it and shows everything. It returns
// the exit code of the first task that failed, or 0.
func (o Once) Run() (code int, err error) {
	bin, err := filepath.Abs(o.Plugin)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "pluginhost-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// Tasks must be able to walk to their directories below it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return 0, err
	}
	o.Config.PluginDir, o.Config.MountsDir = "", ""
	o.Config.SetDataDir(filepath.Join(dir, "data"))
	t := &tracer{out: o.Out, json: o.JSON, start: time.Now()}
	level := hclog.Warn
	if o.Verbose {
		level = hclog.Trace
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "pluginhost", Level: level, Output: logTrace{t}, DisableTime: true})
	a, err := New(o.Config, log)
	if err != nil {
		return 0, err
	}
	a.trace = func(tr *taskRunner, ev *nomad.TaskEvent) {
		t.say("event", tr.task.Name+": "+ev.Type+": "+ev.DisplayMessage, map[string]any{"task": tr.task.Name, "type": ev.Type, "details": ev.Details})
	}
	defer a.stop()
	return a.runOnce(t, bin, o.Job, o.Strict)
}

func (a *Agent) runOnce(t *tracer, bin string, job *nomad.Job, strict bool) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	t.say("launch", bin+" (three times, as Nomad does)", nil)
	if err := a.startPlugin(bin, a.cfg.Plugins[filepath.Base(bin)]); err != nil {
		return 0, err
	}
	if err := a.showPlugins(t); err != nil {
		return 0, err
	}
	_, allocs, err := a.register(job)
	if err != nil {
		return 0, err
	}
	code = a.watch(ctx, t, allocs)
	if err := a.collectGarbage(); err != nil {
		t.say("cleanup", err.Error(), nil)
	}
	if v := a.violations.All(); strict && len(v) > 0 {
		return violationExit, fmt.Errorf("%d protocol violations, the first: %s", len(v), v[0].Text)
	}
	return code, nil
}

// showPlugins prints the plugins, their versions and their capabilities.
func (a *Agent) showPlugins(t *tracer) error {
	for name, m := range a.managers {
		d, err := m.Dispense()
		if err != nil {
			return err
		}
		fp := m.Fingerprint()
		t.say("plugin", fmt.Sprintf("driver %q, version %s, pid %d, starts took %s", name, m.Info.GetPluginVersion(), d.Pid, strings.Join(m.History().Launches, ", ")), nil)
		t.say("schema", "task options: "+strings.Join(schema.Names(m.Schema), ", "), nil)
		t.say("fingerprint", fmt.Sprintf("detected %v, healthy %v: %s", fp.Detected, fp.Healthy, fp.HealthDescription), map[string]any{"fingerprint": fp})
		for _, k := range slices.Sorted(maps.Keys(fp.Attributes)) {
			t.say("fingerprint", k+" = "+fp.Attributes[k], nil)
		}
	}
	return nil
}

// watch follows the allocs to their ends. An interrupt stops them.
func (a *Agent) watch(ctx context.Context, t *tracer, watched []string) int {
	var logs sync.WaitGroup
	for _, id := range watched {
		ar := a.allocs[id]
		for _, tr := range ar.tasks {
			for _, kind := range []string{"stdout", "stderr"} {
				logs.Add(1)
				go func() { defer logs.Done(); followLog(t, tr, kind) }()
			}
		}
	}
	code := 0
	for _, id := range watched {
		ar := a.allocs[id]
		select {
		case <-ar.done:
		case <-ctx.Done():
			t.say("stop", "interrupted: stopping the job", nil)
			for _, other := range watched {
				a.allocs[other].stop()
			}
			<-ar.done
		}
	}
	logs.Wait()
	for _, id := range watched {
		s := a.allocs[id].store.snapshot()
		for _, name := range slices.Sorted(maps.Keys(s.TaskStates)) {
			c, text := taskExit(s.TaskStates[name])
			t.say("exit", name+": "+text, map[string]any{"task": name, "code": c})
			if code == 0 {
				code = c
			}
		}
	}
	return code
}

// taskExit returns a task's exit code, 128 + signal, or 1 if it never started.
func taskExit(ts *nomad.TaskState) (int, string) {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if ev := ts.Events[i]; ev.Type == nomad.TaskTerminated {
			if ev.ExitCode == 0 && ev.Signal != 0 {
				return 128 + ev.Signal, ev.DisplayMessage
			}
			return ev.ExitCode, ev.DisplayMessage
		}
	}
	if ts.Failed {
		return 1, "never started"
	}
	return 0, "never started, not failed"
}

// logPause is the interval for polling a log without new data.
const logPause = 50 * time.Millisecond

// followLog prints a task's log lines as they come.
func followLog(t *tracer, tr *taskRunner, kind string) {
	index, offset, rest := 0, int64(0), ""
	for {
		over := false
		select {
		case <-tr.done:
			over = true
		default:
		}
		c, err := logmon.Read(tr.dir.Logs, tr.task.Name, kind, index, offset, over)
		if err != nil {
			t.say(kind, err.Error(), nil)
			return
		}
		index, offset = c.Index, c.Offset
		rest += string(c.Data)
		for {
			line, more, ok := strings.Cut(rest, "\n")
			if !ok {
				break
			}
			t.say(kind, tr.task.Name+" | "+line, map[string]any{"task": tr.task.Name, "line": line})
			rest = more
		}
		if c.Done {
			if rest != "" {
				t.say(kind, tr.task.Name+" | "+rest, map[string]any{"task": tr.task.Name, "line": rest})
			}
			return
		}
		if len(c.Data) == 0 {
			time.Sleep(logPause)
		}
	}
}

// logTrace puts log lines into the trace.
type logTrace struct{ t *tracer }

func (l logTrace) Write(b []byte) (int, error) {
	l.t.say("log", string(b), nil)
	return len(b), nil
}
