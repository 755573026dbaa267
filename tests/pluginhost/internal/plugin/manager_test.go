package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
)

// fakePlugin is a manager for the fake plugin, started, and what it reported.
type fakePlugin struct {
	*driverManager
	log     string
	mu      sync.Mutex
	reports []string
	events  chan *pb.DriverTaskEvent
	cancel  context.CancelFunc
}

func (f *fakePlugin) reported() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.reports)
}

func prepareFake(t *testing.T, mode string) *fakePlugin {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakePlugin{log: filepath.Join(dir, "calls"), events: make(chan *pb.DriverTaskEvent, 10)}
	t.Setenv("FAKE_LOG", f.log)
	t.Setenv("FAKE_MODE", mode)
	t.Setenv("FAKE_MARK", "inherited")
	f.driverManager = &driverManager{
		bin: self, topo: &topology{Cores: []core{{ID: 0, Guess: 1000}}}, log: hclog.NewNullLogger(), state: filepath.Join(dir, "reattach.json"),
		report: func(s string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.reports = append(f.reports, s)
		},
		onEvent: func(ev *pb.DriverTaskEvent) { f.events <- ev },
	}
	return f
}

func (f *fakePlugin) begin(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	if err := f.start(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); f.stop() })
}

// calls returns the noted calls, one list for each process in its order.
func (f *fakePlugin) calls(t *testing.T) [][]string {
	t.Helper()
	raw, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	index := map[string]int{}
	for _, line := range splitLines(raw) {
		pid, text, _ := strings.Cut(string(line), " ")
		i, ok := index[pid]
		if !ok {
			i = len(out)
			index[pid] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], text)
	}
	return out
}

func TestThreeLaunches(t *testing.T) {
	f := prepareFake(t, "")
	f.begin(t)
	<-f.events // the last stream is open
	got := f.calls(t)
	launch := `launch ppid_env=inherited sockdir=""`
	const packed = "81a7656e61626c6564c3" // {"enabled": true}
	want := [][]string{
		{launch, "PluginInfo", "ConfigSchema"},
		{launch, "SetConfig nomad=false cores=false " + packed, "SetConfig nomad=false cores=false " + packed},
		{launch, "SetConfig nomad=true cores=true " + packed, "Capabilities", "TaskConfigSchema"},
	}
	if len(got) != 3 {
		t.Fatalf("%d launches: %q", len(got), got)
	}
	streams := got[2][len(want[2]):]
	got[2] = got[2][:len(want[2])]
	for i := range want {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("launch %d:\n got %q\nwant %q", i+1, got[i], want[i])
		}
	}
	slices.Sort(streams)
	if !slices.Equal(streams, []string{"Fingerprint", "TaskEvents"}) {
		t.Errorf("streams: %q", streams)
	}
	if fp := f.fingerprint(); !fp.Healthy || fp.Attributes["driver.fake.n"] != "5MiB" {
		t.Errorf("fingerprint: %+v", fp)
	}
	f.cancel()
	f.stop()
	if got := f.calls(t); !slices.Contains(got[2], "Shutdown") {
		t.Errorf("no Driver.Shutdown: %q", got[2])
	}
	if r := f.reported(); len(r) != 0 {
		t.Errorf("violations of a good plugin: %q", r)
	}
}

func TestRefusedConfigFailsTheStart(t *testing.T) {
	f := prepareFake(t, "refuse")
	err := f.start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "enabled must be true") {
		t.Errorf("error %v", err)
	}
	f = prepareFake(t, "")
	f.config = map[string]any{"enabld": true}
	if err := f.start(t.Context()); err == nil || !strings.Contains(err.Error(), "enabld") {
		t.Errorf("error %v", err)
	}
}

func TestViolationsAreReported(t *testing.T) {
	f := prepareFake(t, "badlog,endstream")
	f.begin(t)
	want := []string{"Fingerprint stream ended"}
	waitFor(t, "reports", func() bool { return containsAll(f.reported(), want) })

	f = prepareFake(t, "badlog")
	f.begin(t)
	want = []string{"not one JSON object", "would panic"}
	waitFor(t, "reports", func() bool { return containsAll(f.reported(), want) })
}

func TestStartErrors(t *testing.T) {
	f := prepareFake(t, "")
	f.begin(t)
	d, err := f.dispense()
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"temporary": true, "permanent": false, "plain": false} {
		_, err := d.startTask(&pb.TaskConfig{Id: id})
		if err == nil || isRecoverable(err) != want {
			t.Errorf("%s: error %v, recoverable %v", id, err, isRecoverable(err))
		}
	}
	if ev := driverFailureEvent(&recoverableError{errors.New("x"), true}); ev.Details["recoverable"] != "true" {
		t.Errorf("event %+v", ev)
	}
	if h, err := d.startTask(&pb.TaskConfig{Id: "fine"}); err != nil || h.GetConfig().GetId() != "fine" {
		t.Errorf("%v, %v", h, err)
	}
	if len(f.reported()) != 0 {
		t.Errorf("reports %q", f.reported())
	}
	for _, id := range []string{"nohandle", "unavailable"} {
		if _, err := d.startTask(&pb.TaskConfig{Id: id}); err == nil {
			t.Errorf("%s: no error", id)
		}
	}
	if !containsAll(f.reported(), []string{"lacks handle.config", "although the plugin lives"}) {
		t.Errorf("reports %q", f.reported())
	}
}

func TestADeadPluginIsReplaced(t *testing.T) {
	f := prepareFake(t, "")
	f.begin(t)
	<-f.events
	d, err := f.dispense()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(d.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-f.events // from the new one
	d2, err := f.dispense()
	if err != nil || d2.pid == d.pid {
		t.Fatalf("pid %d, %v", d2.pid, err)
	}
	if err := d2.recoverTask(&pb.TaskHandle{Config: &pb.TaskConfig{Id: "x"}}); err != nil {
		t.Fatal(err)
	}
	if got := f.calls(t)[3]; !slices.Contains(got, `RecoverTask id="" handle="x"`) {
		t.Errorf("%q", got)
	}
	if r := f.reported(); len(r) != 0 {
		t.Errorf("reports %q", r)
	}
}

func TestALivingPluginIsTakenOver(t *testing.T) {
	f := prepareFake(t, "")
	f.begin(t)
	<-f.events
	d, err := f.dispense()
	if err != nil {
		t.Fatal(err)
	}
	// A second host with the same state, as after a crash of the first.
	second := &driverManager{
		bin: f.bin, topo: f.topo, log: f.driverManager.log, state: f.state, report: f.report,
		onEvent: func(*pb.DriverTaskEvent) {},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := second.start(ctx); err != nil {
		t.Fatal(err)
	}
	d2, err := second.dispense()
	if err != nil || d2.pid != d.pid || !d2.reattached {
		t.Fatalf("pid %d instead of %d, %v", d2.pid, d.pid, err)
	}
	got := f.calls(t)[2]
	if n := count(got, "SetConfig"); n != 1 {
		t.Errorf("SetConfig was called %d times: a plugin that is taken over gets none", n)
	}
	if n := count(got, "PluginInfo"); n != 1 {
		t.Errorf("PluginInfo was called %d times", n)
	}
}

func count(list []string, prefix string) int {
	n := 0
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

func containsAll(list, parts []string) bool {
	for _, p := range parts {
		if !slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, p) }) {
			return false
		}
	}
	return true
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 100 {
		if f() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}
