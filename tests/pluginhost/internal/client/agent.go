// Package client is a Nomad agent as far as tests of a driver need one: it places
// jobs, takes tasks through their lives, and serves the command line.
package client

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

	"pluginhost/internal/agentconfig"
	"pluginhost/internal/api"
	"pluginhost/internal/cgroup"
	"pluginhost/internal/cpu"
	"pluginhost/internal/ids"
	"pluginhost/internal/logmon"
	"pluginhost/internal/netns"
	"pluginhost/internal/plugin"
	"pluginhost/internal/users"
	"pluginhost/internal/violations"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"
)

// headerTimeout bounds how long a client of the socket may take for its headers.
const headerTimeout = 10 * time.Second

// Agent stands in for a Nomad agent that is server and client in one.
type Agent struct {
	cfg        *agentconfig.Config
	log        hclog.Logger
	violations *violations.Log
	topo       *cpu.Topology
	nodeID     string
	allocsDir  string
	stateDir   string
	logs       *logmon.Collector
	hostIP     string
	users      *users.Pool
	managers   map[string]*plugin.Manager // by driver name
	// trace gets every task event, for RunOnce.
	trace func(*taskRunner, *nomad.TaskEvent)

	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	jobs   map[string]*nomad.Job
	allocs map[string]*allocRunner
	used   map[int]bool // ports
	cores  map[int]bool // reserved
	events []api.DriverEvent
	serial uint64
}

// New checks the configuration and makes the agent's directories and cgroups.
func New(cfg *agentconfig.Config, log hclog.Logger) (*Agent, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("pluginhost must run as root: it makes cgroups, mounts and network namespaces")
	}
	if !filepath.IsAbs(cfg.DataDir) {
		return nil, fmt.Errorf("data_dir %q must be an absolute path", cfg.DataDir)
	}
	stateDir := filepath.Join(cfg.DataDir, "client")
	a := &Agent{
		cfg: cfg, log: log, allocsDir: filepath.Join(cfg.DataDir, "alloc"), stateDir: stateDir,
		users: users.NewPool(), managers: map[string]*plugin.Manager{}, jobs: map[string]*nomad.Job{}, allocs: map[string]*allocRunner{},
		used: map[int]bool{}, cores: map[int]bool{}, hostIP: netns.HostAddress(), trace: func(*taskRunner, *nomad.TaskEvent) {},
		logs: logmon.New(filepath.Join(stateDir, "logmon.sock")),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	if err := a.makeDirs(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	var err error
	if a.nodeID, err = nodeID(filepath.Join(stateDir, "client-id")); err != nil {
		return nil, err
	}
	echo := func(v violations.Violation) { log.Error("PROTOCOL VIOLATION", "plugin", v.Plugin, "text", v.Text) }
	if a.violations, err = violations.Open(filepath.Join(stateDir, "violations.jsonl"), echo); err != nil {
		return nil, err
	}
	if a.topo, err = cpu.Read(cfg.TotalCPU); err != nil {
		return nil, err
	}
	if err := cgroup.Init(cpu.List(a.topo.IDs())); err != nil {
		return nil, fmt.Errorf("failed to prepare the cgroups: %w", err)
	}
	if err := a.partition(); err != nil {
		return nil, fmt.Errorf("failed to prepare the cgroups: %w", err)
	}
	return a, nil
}

func (a *Agent) makeDirs() error {
	if err := os.MkdirAll(a.cfg.DataDir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(a.stateDir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{a.allocsDir, a.cfg.MountsDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// nodeID is the id that an earlier agent stored in file, or a new one.
func nodeID(file string) (string, error) {
	if raw, err := os.ReadFile(file); err == nil {
		return string(raw), nil
	}
	id := ids.New()
	return id, os.WriteFile(file, []byte(id), 0o600)
}

// startPlugins launches every executable of the plugin directory that has a
// plugin block. Any failure fails the agent, as in Nomad.
func (a *Agent) startPlugins() error {
	entries, err := os.ReadDir(a.cfg.PluginDir)
	if err != nil {
		return fmt.Errorf("failed to read plugin_dir: %w", err)
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
			return fmt.Errorf("failed to start plugin %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (a *Agent) startPlugin(bin string, config map[string]any) error {
	label := filepath.Base(bin)
	m, err := plugin.Start(a.ctx, plugin.Options{
		Bin: bin, Label: label, Config: config, Topology: a.topo.Proto(), Log: a.log.Named("plugin"),
		State:   filepath.Join(a.stateDir, "reattach-"+label+".json"),
		Report:  func(text string) { a.violations.Add(label, text) },
		OnEvent: a.driverEvent,
	})
	if err != nil {
		return err
	}
	a.managers[m.Info.GetName()] = m
	return nil
}

// driverEvent records an event of the driver and shows it at its task.
func (a *Agent) driverEvent(ev *pb.DriverTaskEvent) {
	a.mu.Lock()
	a.events = append(a.events, api.DriverEvent{
		Time: ev.GetTimestamp().AsTime(), TaskID: ev.GetTaskId(), AllocID: ev.GetAllocId(), TaskName: ev.GetTaskName(),
		Message: ev.GetMessage(), Annotations: ev.GetAnnotations(),
	})
	ar := a.allocs[ev.GetAllocId()]
	a.mu.Unlock()
	if ar == nil || ar.tasks[ev.GetTaskName()] == nil {
		a.log.Warn("event for an unknown task", "alloc", ev.GetAllocId(), "task", ev.GetTaskName(), "message", ev.GetMessage())
		return
	}
	te := newEvent(nomad.TaskDriverMessage, ev.GetMessage(), details{"driver_message": ev.GetMessage()})
	maps.Copy(te.Details, ev.GetAnnotations())
	ar.tasks[ev.GetTaskName()].emit(te)
}

// Run serves the command line on socket until ctx ends, then stops the plugins.
func (a *Agent) Run(ctx context.Context, socket string) error {
	defer a.stop()
	if err := a.startPlugins(); err != nil {
		return err
	}
	if err := a.restoreAll(); err != nil {
		return err
	}
	l, err := listenUnix(socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: headerTimeout}
	go srv.Serve(l)
	a.log.Info("pluginhost is ready", "socket", socket, "node", a.nodeID)
	<-ctx.Done()
	a.log.Info("stopping; tasks keep running")
	srv.Close()
	return nil
}

// stop leaves the tasks alone and ends the plugins.
func (a *Agent) stop() {
	a.cancel()
	var wg sync.WaitGroup
	for _, m := range a.managers {
		wg.Add(1)
		go func() { defer wg.Done(); m.Stop() }()
	}
	wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ar := range a.allocs {
		if !ar.store.snapshot().terminal() {
			return // its tasks still write
		}
	}
	a.logs.Exit()
}

// nodeVars are the values of ${node.…}, ${attr.…} and ${meta.…}.
func (a *Agent) nodeVars() map[string]string {
	out := map[string]string{
		"node.region": "global", "node.unique.id": a.nodeID, "node.unique.name": a.cfg.Name, "node.class": "",
		"node.datacenter": datacenter, "node.pool": nodePool,
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
		"cpu.numcores": fmt.Sprint(len(a.topo.Cores)), "cpu.totalcompute": fmt.Sprint(a.topo.Total()),
	}
	for _, name := range slices.Sorted(maps.Keys(a.managers)) {
		fp := a.managers[name].Fingerprint()
		if fp.Detected {
			out["driver."+name] = "1"
		}
		maps.Copy(out, fp.Attributes)
	}
	return out
}
