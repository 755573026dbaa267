package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// defaultSocket is where an agent serves the command line.
const defaultSocket = "/run/pluginhost.sock"

// socketEnv overrides defaultSocket, for more than one agent on a host.
const socketEnv = "PLUGINHOST_SOCK"

// Agent stands in for a Nomad agent that is server and client in one.
type Agent struct {
	cfg        *AgentConfig
	log        hclog.Logger
	violations *violationLog
	topo       *topology
	nodeID     string
	allocsDir  string
	stateDir   string
	logSocket  string
	hostIP     string
	users      *userPool
	managers   map[string]*driverManager // by driver name
	// trace gets every task event, for the one-shot mode.
	trace func(*taskRunner, *TaskEvent)

	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	jobs   map[string]*Job
	allocs map[string]*allocRunner
	ports  map[int]bool
	cores  map[int]bool
	events []driverEvent
	serial uint64
}

// driverEvent is a TaskEvents message, as `events` prints it.
type driverEvent struct {
	Time        time.Time
	TaskID      string
	AllocID     string
	TaskName    string
	Message     string
	Annotations map[string]string
}

// newAgent checks the configuration and makes the agent's folders.
func newAgent(cfg *AgentConfig, log hclog.Logger) (*Agent, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("pluginhost must run as root: it makes cgroups, mounts and network namespaces")
	}
	if !filepath.IsAbs(cfg.DataDir) {
		return nil, fmt.Errorf("data_dir %q must be an absolute path", cfg.DataDir)
	}
	a := &Agent{
		cfg: cfg, log: log, allocsDir: filepath.Join(cfg.DataDir, "alloc"), stateDir: filepath.Join(cfg.DataDir, "client"),
		users: newUserPool(), managers: map[string]*driverManager{}, jobs: map[string]*Job{}, allocs: map[string]*allocRunner{},
		ports: map[int]bool{}, cores: map[int]bool{}, hostIP: hostAddress(), trace: func(*taskRunner, *TaskEvent) {},
	}
	a.logSocket = filepath.Join(a.stateDir, "logmon.sock")
	a.ctx, a.cancel = context.WithCancel(context.Background())
	if err := os.MkdirAll(cfg.DataDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(a.stateDir, 0o700); err != nil {
		return nil, err
	}
	for _, dir := range []string{a.allocsDir, cfg.MountsDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	idFile := filepath.Join(a.stateDir, "client-id")
	if raw, err := os.ReadFile(idFile); err == nil {
		a.nodeID = string(raw)
	} else {
		a.nodeID = newUUID()
		if err := os.WriteFile(idFile, []byte(a.nodeID), 0o600); err != nil {
			return nil, err
		}
	}
	var err error
	if a.violations, err = openViolations(filepath.Join(a.stateDir, "violations.jsonl")); err != nil {
		return nil, err
	}
	a.violations.echo = func(v Violation) { log.Error("PROTOCOL VIOLATION", "plugin", v.Plugin, "text", v.Text) }
	if a.topo, err = readTopology(cfg.TotalCPU); err != nil {
		return nil, err
	}
	if err := initCgroups(cpuList(a.topo.ids())); err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	if err := a.partition(); err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	return a, nil
}

// startPlugins launches every executable of the plugin folder that has a
// plugin block. Any failure fails the agent, as in Nomad.
func (a *Agent) startPlugins() error {
	entries, err := os.ReadDir(a.cfg.PluginDir)
	if err != nil {
		return fmt.Errorf("plugin_dir: %w", err)
	}
	for _, e := range entries {
		bin := filepath.Join(a.cfg.PluginDir, e.Name())
		st, err := os.Stat(bin)
		if err != nil {
			return err
		}
		if st.IsDir() || st.Mode()&0o111 == 0 {
			continue
		}
		config, ok := a.cfg.Plugins[e.Name()]
		if !ok {
			a.log.Warn("skipping external plugin without a plugin block", "plugin", e.Name())
			continue
		}
		if err := a.startPlugin(bin, config); err != nil {
			return fmt.Errorf("plugin %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (a *Agent) startPlugin(bin string, config map[string]any) error {
	label := filepath.Base(bin)
	m := &driverManager{
		bin: bin, config: config, topo: a.topo, log: a.log.Named("plugin"),
		state:   filepath.Join(a.stateDir, "reattach-"+label+".json"),
		report:  func(text string) { a.violations.add(label, "%s", text) },
		onEvent: a.driverEvent,
	}
	if err := m.start(a.ctx); err != nil {
		return err
	}
	a.managers[m.info.GetName()] = m
	return nil
}

// driverEvent records an event of the driver and shows it at its task.
func (a *Agent) driverEvent(ev *pb.DriverTaskEvent) {
	a.mu.Lock()
	a.events = append(a.events, driverEvent{
		Time: ev.GetTimestamp().AsTime(), TaskID: ev.GetTaskId(), AllocID: ev.GetAllocId(), TaskName: ev.GetTaskName(),
		Message: ev.GetMessage(), Annotations: ev.GetAnnotations(),
	})
	ar := a.allocs[ev.GetAllocId()]
	a.mu.Unlock()
	if ar == nil || ar.tasks[ev.GetTaskName()] == nil {
		a.log.Warn("event for an unknown task", "alloc", ev.GetAllocId(), "task", ev.GetTaskName(), "message", ev.GetMessage())
		return
	}
	te := newEvent(eventDriver, ev.GetMessage()).with("driver_message", ev.GetMessage())
	maps.Copy(te.Details, ev.GetAnnotations())
	ar.tasks[ev.GetTaskName()].emit(te)
}

// run serves the command line until ctx ends, then stops the plugins.
func (a *Agent) run(ctx context.Context, socket string) error {
	if err := a.startPlugins(); err != nil {
		a.stop()
		return err
	}
	if err := a.restoreAll(); err != nil {
		a.stop()
		return err
	}
	l, err := listenUnix(socket)
	if err != nil {
		a.stop()
		return err
	}
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	a.log.Info("pluginhost is ready", "socket", socket, "node", a.nodeID)
	<-ctx.Done()
	a.log.Info("stopping; tasks keep running")
	srv.Close()
	a.stop()
	return nil
}

// stop leaves the tasks alone and ends the plugins.
func (a *Agent) stop() {
	a.cancel()
	var wg sync.WaitGroup
	for _, m := range a.managers {
		wg.Add(1)
		go func() { defer wg.Done(); m.stop() }()
	}
	wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ar := range a.allocs {
		if !ar.store.snapshot().terminal() {
			return // its tasks still write
		}
	}
	stopLogmon(a.logSocket)
}

// nodeVars are the names that ${node.…}, ${attr.…} and ${meta.…} stand for.
func (a *Agent) nodeVars() map[string]string {
	out := map[string]string{
		"node.region": "global", "node.unique.id": a.nodeID, "node.unique.name": a.cfg.Name, "node.class": "",
		"node.datacenter": "dc1", "node.pool": "default",
	}
	for k, v := range a.attributes() {
		out["attr."+k] = v
	}
	for k, v := range a.cfg.Meta {
		out["meta."+k] = v
	}
	return out
}

// attributes are the node's, with those of the drivers.
func (a *Agent) attributes() map[string]string {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail with a valid pointer
	host, _ := os.Hostname()
	out := map[string]string{
		"kernel.name": "linux", "kernel.version": unix.ByteSliceToString(uts.Release[:]), "cpu.arch": runtime.GOARCH,
		"unique.hostname": host, "unique.network.ip-address": a.hostIP, "nomad.version": "pluginhost",
		"cpu.numcores": fmt.Sprint(len(a.topo.Cores)), "cpu.totalcompute": fmt.Sprint(a.topo.total()),
	}
	for _, name := range slices.Sorted(maps.Keys(a.managers)) {
		fp := a.managers[name].fingerprint()
		if fp.Detected {
			out["driver."+name] = "1"
		}
		maps.Copy(out, fp.Attributes)
	}
	return out
}
