package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// tracer prints what happens, for people or as JSON lines.
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

// oneshotVerb launches a plugin, runs one job with it, shows everything, and
// exits with the exit code of the task that failed first, or 0.
func oneshotVerb(args []string, out io.Writer) error {
	f := newFlags("run")
	plugin := f.String("plugin", "nomad-driver-exec2", "plugin binary")
	asJSON := f.Bool("json", false, "JSON lines")
	strict := f.Bool("strict", false, "exit 70 on a protocol violation")
	verbose := f.Bool("verbose", false, "show the plugin's debug log")
	var configs pathFlags
	f.Var(&configs, "config", "agent configuration, for the plugin's block")
	vars := varFlags{}
	f.Var(vars, "var", "key=value")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("usage: pluginhost run [--plugin BIN] [--config AGENT.hcl] [--var k=v] [--json] JOB")
	}
	job, err := readJobFile(f.Arg(0), vars)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(*plugin)
	if err != nil {
		return err
	}
	cfg, err := loadAgentConfig(configs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pluginhost-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Tasks must be able to walk to their folders below it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	cfg.PluginDir, cfg.MountsDir = "", ""
	cfg.setDataDir(filepath.Join(dir, "data"))
	t := &tracer{out: out, json: *asJSON, start: time.Now()}
	code, err := oneshot(t, cfg, bin, job, *verbose, *strict)
	if err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// violationExit is sysexits' EX_SOFTWARE.
const violationExit = 70

func oneshot(t *tracer, cfg *AgentConfig, bin string, job *Job, verbose, strict bool) (int, error) {
	level := hclog.Warn
	if verbose {
		level = hclog.Trace
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "pluginhost", Level: level, Output: logTrace{t}, DisableTime: true})
	a, err := newAgent(cfg, log)
	if err != nil {
		return 0, err
	}
	a.trace = func(tr *taskRunner, ev *TaskEvent) {
		t.say("event", tr.task.Name+": "+ev.Type+": "+ev.DisplayMessage, map[string]any{"task": tr.task.Name, "type": ev.Type, "details": ev.Details})
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer a.stop()
	t.say("launch", bin+" (three times, as Nomad does)", nil)
	config := cfg.Plugins[filepath.Base(bin)]
	if err := a.startPlugin(bin, config); err != nil {
		return 0, err
	}
	for name, m := range a.managers {
		fp := m.fingerprint()
		t.say("plugin", fmt.Sprintf("driver %q, version %s, pid %d, starts took %s", name, m.info.GetPluginVersion(), m.current.pid, strings.Join(m.timings(), ", ")), nil)
		t.say("schema", fmt.Sprintf("task options: %s", strings.Join(schemaNames(m.schema), ", ")), nil)
		t.say("fingerprint", fmt.Sprintf("detected %v, healthy %v: %s", fp.Detected, fp.Healthy, fp.HealthDescription), map[string]any{"fingerprint": fp})
		for _, k := range sortedKeys(fp.Attributes) {
			t.say("fingerprint", k+" = "+fp.Attributes[k], nil)
		}
	}
	_, ids, err := a.register(job)
	if err != nil {
		return 0, err
	}
	code := a.watch(ctx, t, ids)
	if err := a.collectGarbage(); err != nil {
		t.say("cleanup", err.Error(), nil)
	}
	if v := a.violations.all(); strict && len(v) > 0 {
		return violationExit, fmt.Errorf("%d protocol violations, the first: %s", len(v), v[0].Text)
	}
	return code, nil
}

// watch follows the allocs to their ends. An interrupt stops them.
func (a *Agent) watch(ctx context.Context, t *tracer, ids []string) int {
	var logs sync.WaitGroup
	for _, id := range ids {
		ar := a.allocs[id]
		for _, tr := range ar.tasks {
			for _, kind := range []string{"stdout", "stderr"} {
				logs.Add(1)
				go func() { defer logs.Done(); followLog(t, tr, kind) }()
			}
		}
	}
	code := 0
	for _, id := range ids {
		ar := a.allocs[id]
		select {
		case <-ar.done:
		case <-ctx.Done():
			t.say("stop", "interrupted: stopping the job", nil)
			for _, other := range ids {
				a.allocs[other].stop()
			}
			<-ar.done
		}
	}
	logs.Wait()
	for _, id := range ids {
		s := a.allocs[id].store.snapshot()
		for _, name := range sortedKeys(s.TaskStates) {
			c, text := taskExit(s.TaskStates[name])
			t.say("exit", name+": "+text, map[string]any{"task": name, "code": c})
			if code == 0 {
				code = c
			}
		}
	}
	return code
}

// taskExit sums up a task's end: its exit code, 128 + signal, or 1.
func taskExit(ts *TaskState) (int, string) {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if ev := ts.Events[i]; ev.Type == eventTerminated {
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
		c, err := readLog(tr.dir.Logs, tr.task.Name+"."+kind, index, offset, over)
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
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// logTrace puts log lines into the trace.
type logTrace struct{ t *tracer }

func (l logTrace) Write(b []byte) (int, error) {
	l.t.say("log", string(b), nil)
	return len(b), nil
}
