package plugin_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pluginhost/internal/plugin"
	"pluginhost/internal/plugin/plugintest"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
)

func TestMain(m *testing.M) { plugintest.Main(m) }

// fakePlugin is a manager for the fake plugin and what it reported.
type fakePlugin struct {
	*plugintest.Fake
	*plugin.Manager
	opts    plugin.Options
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

func prepare(t *testing.T, modes ...string) *fakePlugin {
	t.Helper()
	f := &fakePlugin{Fake: plugintest.New(t, modes...), events: make(chan *pb.DriverTaskEvent, 10)}
	f.opts = plugin.Options{
		Bin: f.Fake.Bin, Label: "fake", Topology: &pb.ClientTopology{Cores: []*pb.ClientTopologyCore{{}}},
		State: filepath.Join(t.TempDir(), "reattach.json"), Log: hclog.NewNullLogger(),
		Report: func(s string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.reports = append(f.reports, s)
		},
		OnEvent: func(ev *pb.DriverTaskEvent) { f.events <- ev },
	}
	return f
}

// begin starts the fake plugin until the end of the test.
func begin(t *testing.T, modes ...string) *fakePlugin {
	t.Helper()
	f := prepare(t, modes...)
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	m, err := plugin.Start(ctx, f.opts)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	f.Manager = m
	t.Cleanup(func() { cancel(); m.Stop() })
	return f
}

func TestThreeLaunches(t *testing.T) {
	f := begin(t)
	<-f.events // the last stream is open
	got := f.Calls(t)
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
	if fp := f.Fingerprint(); !fp.Healthy || fp.Attributes["driver.fake.n"] != "5MiB" {
		t.Errorf("fingerprint: %+v", fp)
	}
	f.cancel()
	f.Stop()
	if got := f.Calls(t); !slices.Contains(got[2], "Shutdown") {
		t.Errorf("no Driver.Shutdown: %q", got[2])
	}
	if r := f.reported(); len(r) != 0 {
		t.Errorf("violations of a good plugin: %q", r)
	}
}

func TestRefusedConfigFailsTheStart(t *testing.T) {
	f := prepare(t, plugintest.RefuseConfig)
	if _, err := plugin.Start(t.Context(), f.opts); err == nil || !strings.Contains(err.Error(), "enabled must be true") {
		t.Errorf("error %v", err)
	}
	f = prepare(t)
	f.opts.Config = map[string]any{"enabld": true}
	if _, err := plugin.Start(t.Context(), f.opts); err == nil || !strings.Contains(err.Error(), "enabld") {
		t.Errorf("error %v", err)
	}
}

func TestViolationsAreReported(t *testing.T) {
	f := begin(t, plugintest.BadLog, plugintest.EndStream)
	want := []string{"Fingerprint stream ended"}
	plugintest.Eventually(t, "reports", func() bool { return containsAll(f.reported(), want) })

	f = begin(t, plugintest.BadLog)
	want = []string{"not one JSON object", "would panic"}
	plugintest.Eventually(t, "reports", func() bool { return containsAll(f.reported(), want) })
}

func TestStartErrors(t *testing.T) {
	f := begin(t)
	d, err := f.Dispense()
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"temporary": true, "permanent": false, "plain": false} {
		_, err := d.StartTask(&pb.TaskConfig{Id: id})
		if err == nil || plugin.IsRecoverable(err) != want {
			t.Errorf("%s: error %v, recoverable %v", id, err, plugin.IsRecoverable(err))
		}
	}
	if h, err := d.StartTask(&pb.TaskConfig{Id: "fine"}); err != nil || h.GetConfig().GetId() != "fine" {
		t.Errorf("%v, %v", h, err)
	}
	if len(f.reported()) != 0 {
		t.Errorf("reports %q", f.reported())
	}
	for _, id := range []string{"nohandle", "unavailable"} {
		if _, err := d.StartTask(&pb.TaskConfig{Id: id}); err == nil {
			t.Errorf("%s: no error", id)
		}
	}
	if !containsAll(f.reported(), []string{"lacks handle.config", "although the plugin lives"}) {
		t.Errorf("reports %q", f.reported())
	}
}

func TestADeadPluginIsReplaced(t *testing.T) {
	f := begin(t)
	<-f.events
	d, err := f.Dispense()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(d.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-f.events // from the new one
	d2, err := f.Dispense()
	if err != nil || d2.Pid == d.Pid {
		t.Fatalf("pid %d, %v", d2.Pid, err)
	}
	if err := d2.RecoverTask(&pb.TaskHandle{Config: &pb.TaskConfig{Id: "x"}}); err != nil {
		t.Fatal(err)
	}
	if got := f.Calls(t)[3]; !slices.Contains(got, `RecoverTask id="" handle="x" state=""`) {
		t.Errorf("%q", got)
	}
	if r := f.reported(); len(r) != 0 {
		t.Errorf("reports %q", r)
	}
}

func TestALivingPluginIsTakenOver(t *testing.T) {
	f := begin(t)
	<-f.events
	d, err := f.Dispense()
	if err != nil {
		t.Fatal(err)
	}
	// A second host with the same state, as after a crash of the first.
	opts := f.opts
	opts.OnEvent = func(*pb.DriverTaskEvent) {}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	second, err := plugin.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	d2, err := second.Dispense()
	if err != nil || d2.Pid != d.Pid || !d2.Reattached {
		t.Fatalf("pid %d instead of %d, %v", d2.Pid, d.Pid, err)
	}
	got := f.Calls(t)[2]
	if n := count(got, "SetConfig"); n != 1 {
		t.Errorf("SetConfig was called %d times: a plugin that is taken over gets none", n)
	}
	if n := count(got, "PluginInfo"); n != 1 {
		t.Errorf("PluginInfo was called %d times", n)
	}
}

func TestRawCalls(t *testing.T) {
	f := begin(t)
	d, err := f.Dispense()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := d.Call(t.Context(), "PluginInfo", []byte("{}"))
	if err != nil || !strings.Contains(string(raw), `"1.2.3"`) {
		t.Errorf("%s, %v", raw, err)
	}
	list, err := d.Stream(t.Context(), "Fingerprint", []byte("{}"), 1)
	if err != nil || len(list) != 1 || !strings.Contains(string(list[0]), "HEALTHY") {
		t.Errorf("%s, %v", list, err)
	}
	for _, name := range []string{"Fingerprint", "Nope"} {
		if _, err := d.Call(t.Context(), name, []byte("{}")); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := d.Call(t.Context(), "PluginInfo", []byte(`{"nope": 1}`)); err == nil {
		t.Error("an unknown field was accepted")
	}
	for _, name := range []string{"PluginInfo", "ExecTaskStreaming"} {
		if _, err := d.Stream(t.Context(), name, []byte("{}"), 1); err == nil {
			t.Errorf("%s: no error", name)
		}
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
