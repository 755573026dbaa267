package harness

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pluginhost/internal/logmon"
	"pluginhost/internal/plugin/plugintest"
	"pluginhost/pb"

	"github.com/vmihailenco/msgpack/v5"
)

// The test binary is also the fake plugin and the log collector.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "logmon" {
		if err := logmon.Serve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	plugintest.Main(m)
}

// shell runs commands like a scenario: each one by itself, with the plugin running
// in between.
type shell struct {
	t    *testing.T
	fake *plugintest.Fake
	dir  string
	file string
}

const task = `{
  "config": {"command": "sh", "args": ["-c", "echo ${NOMAD_TASK_NAME} $${x}"]},
  "cpu": 500, "memory": 64,
  "env": {"GREETING": "hello ${NOMAD_JOB_NAME}"},
  "mounts": [{"task_path": "/data", "host_path": "/srv/data", "readonly": true, "propagation_mode": "private"}],
  "devices": [{"task_path": "/dev/null", "host_path": "/dev/null", "cgroup_permissions": "rw"}],
  "dns": {"servers": ["192.0.2.53"]},
  "network_isolation_spec": {"mode": "GROUP", "path": "/var/run/netns/x", "hostsConfig": {"hostname": "h", "address": "192.0.2.1"}}
}`

func newShell(t *testing.T, modes ...string) *shell {
	t.Helper()
	s := &shell{t: t, fake: plugintest.New(t, modes...), dir: t.TempDir()}
	s.file = filepath.Join(s.dir, "web.json")
	if err := os.WriteFile(s.file, []byte(task), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(stateEnv, filepath.Join(s.dir, "state"))
	t.Setenv(pluginEnv, s.fake.Bin)
	t.Cleanup(func() { s.run(0, "plugin", "stop") })
	return s
}

// run runs one command, which has to exit with code, and returns its stdout.
func (s *shell) run(code int, verb string, args ...string) string {
	s.t.Helper()
	return s.runWith("", code, verb, args...)
}

func (s *shell) runWith(stdin string, code int, verb string, args ...string) string {
	s.t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{verb, "-plain"}, args...)
	if got := Main(context.Background(), args, strings.NewReader(stdin), &out, &errs); got != code {
		s.t.Fatalf("task %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.String(), errs.String())
	}
	if code == exitUsage {
		return errs.String()
	}
	return out.String()
}

// json runs one command and returns its answer.
func (s *shell) json(code int, verb string, args ...string) map[string]any {
	s.t.Helper()
	return s.parse(s.run(code, verb, args...))
}

func (s *shell) parse(text string) map[string]any {
	s.t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	return v
}

// at follows a path of keys in an answer.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

func (s *shell) want(got any, want any) {
	s.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("got %v, want %v", got, want)
	}
}

// calls are those of all processes of the plugin, without the process that Nomad's
// three launches would need.
func (s *shell) calls() []string { return slices.Concat(s.fake.Calls(s.t)...) }

func TestATasksLife(t *testing.T) {
	s := newShell(t)
	started := s.json(0, "start", s.file)
	s.want(at(started, "handle", "state"), "RUNNING")
	s.want(at(started, "violations"), nil)
	config := at(started, "handle", "config")
	s.want(at(config, "name"), "web")
	s.want(at(config, "env", "GREETING"), "hello web")
	s.want(at(config, "dns", "servers"), []string{"192.0.2.53"})
	s.want(at(config, "network_isolation_spec", "path"), "/var/run/netns/x")
	s.want(at(config, "resources", "linux_resources", "memory_limit_bytes"), 64<<20)
	if mounts := at(config, "mounts").([]any); at(mounts[0], "host_path") != "/srv/data" || at(mounts[0], "readonly") != true {
		t.Errorf("mounts %v", mounts)
	}
	if devices := at(config, "devices").([]any); at(devices[0], "cgroup_permissions") != "rw" {
		t.Errorf("devices %v", devices)
	}
	s.want(decodeConfig(t, config)["args"], []any{"-c", "echo web ${x}"})

	s.want(at(s.json(0, "stats", s.file), "stats", "agg_resource_usage", "memory", "rss"), 1)
	s.want(strings.Count(s.run(0, "stats", "-count", "2", "-interval", "1ms", s.file), `"stats"`), 2)
	s.want(at(s.json(0, "inspect", s.file), "task", "state"), "RUNNING")
	s.json(0, "signal", "-s", "SIGHUP", s.file)
	s.want(at(s.json(exitRPC, "destroy", s.file), "error", "code"), "FailedPrecondition")
	s.want(at(s.json(exitRPC, "wait", "-timeout", "10ms", s.file), "error", "code"), "DeadlineExceeded")
	s.json(0, "stop", "-s", "SIGTERM", "-timeout", "3s", s.file)
	s.want(at(s.json(0, "wait", s.file), "result", "signal"), 15)
	s.want(at(s.json(0, "inspect", s.file), "task", "state"), "EXITED")
	s.json(0, "destroy", s.file)
	s.want(at(s.json(exitRPC, "inspect", s.file), "error", "code"), "NotFound")

	id := at(config, "id").(string)
	calls := s.calls()
	for _, want := range []string{"SignalTask " + id + " SIGHUP", "StopTask " + id + " SIGTERM 3s", "DestroyTask " + id + " force=false"} {
		if !slices.Contains(calls, want) {
			t.Errorf("%q is not in %q", want, calls)
		}
	}
	if n := len(s.fake.Calls(t)); n != 1 {
		t.Errorf("%d processes of the plugin instead of one that keeps running", n)
	}
	s.run(0, "violations")
}

// decodeConfig returns the driver config that went over the wire.
func decodeConfig(t *testing.T, config any) map[string]any {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(at(config, "msgpack_driver_config").(string))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := msgpack.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStartErrorsSayWhetherTheyAreRecoverable(t *testing.T) {
	s := newShell(t)
	for id, want := range map[string]rpcError{
		"temporary": {Code: "FailedPrecondition", Message: "try later", Recoverable: true},
		"permanent": {Code: "FailedPrecondition", Message: "try later"},
		"plain":     {Code: "Unknown", Message: "never"},
	} {
		if err := os.WriteFile(s.file, []byte(`{"id": "`+id+`", "config": {"command": "x"}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		var got struct{ Error rpcError }
		if err := json.Unmarshal([]byte(s.run(exitRPC, "start", s.file)), &got); err != nil || got.Error != want {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
	}
	if err := os.WriteFile(s.file, []byte(`{"id": "nohandle", "config": {"command": "x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(at(s.json(0, "start", s.file), "violations"), "[StartTask: the answer lacks handle.config: the Nomad agent would panic]")
}

func TestExec(t *testing.T) {
	s := newShell(t)
	s.run(0, "start", s.file)
	got := s.json(0, "exec", "-timeout", "5s", s.file, "--", "echo", "a", "-b")
	s.want(at(got, "stdout"), "a -b\n")
	s.want(at(got, "result", "exit_code"), 0)
	got = s.json(0, "exec", s.file, "exit", "7")
	s.want(at(got, "stderr"), "failed\n")
	s.want(at(got, "result", "exit_code"), 7)
	s.want(at(s.json(exitRPC, "exec", s.file, "nope"), "error", "code"), "InvalidArgument")
	if calls := strings.Join(s.calls(), "\n"); !strings.Contains(calls, `["echo" "a" "-b"] 5s`) {
		t.Errorf("calls %s", calls)
	}
}

func TestExecStreaming(t *testing.T) {
	s := newShell(t)
	s.run(0, "start", s.file)
	stdin := strings.Repeat("0123456789abcdef", 1000) // several messages
	got := s.parse(s.runWith(stdin, 0, "exec", "-stream", "-stdin", "-", s.file, "--", "5"))
	s.want(at(got, "stdout"), stdin)
	s.want(at(got, "stderr"), "tty=false\n")
	s.want(at(got, "result", "exit_code"), 5)
	s.want(at(got, "violations"), nil)

	// The fake ends when stdin is closed, so the sizes must come before that.
	fifo, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	time.AfterFunc(300*time.Millisecond, func() { w.Close() })
	got = s.json(0, "exec", "-stream", "-tty", "-size", "24x80", "-resize", "50x132", "-heartbeat", "20ms",
		"-stdin", fmt.Sprintf("/proc/self/fd/%d", fifo.Fd()), s.file, "0")
	stderr := at(got, "stderr").(string)
	if !strings.HasPrefix(stderr, "tty=true\nsize=24x80\n") || !strings.Contains(stderr, "size=50x132\n") || !strings.Contains(stderr, "heartbeat\n") {
		t.Errorf("stderr %q", stderr)
	}

	got = s.json(exitRPC, "exec", "-stream", "-keep-open", "-timeout", "100ms", s.file, "0")
	s.want(at(got, "error", "code"), "DeadlineExceeded")
	s.want(at(got, "stderr"), "tty=false\n")
}

func TestADriverWithoutExec(t *testing.T) {
	s := newShell(t, plugintest.NoExec)
	s.run(0, "start", s.file)
	for _, args := range [][]string{{s.file, "id"}, {"-stream", s.file, "id"}} {
		got := s.json(exitRPC, "exec", args...)
		s.want(at(got, "error", "code"), "Unimplemented")
		s.want(at(got, "error", "recoverable"), false)
	}
}

func TestOutputThatIsNotText(t *testing.T) {
	for in, want := range map[string]string{"a\"\n": `"a\"\n"`, "\xff": `{"base64":"/w=="}`} {
		if got, err := json.Marshal(output(in)); err != nil || string(got) != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

func TestAKilledPluginIsReplacedAndRecovers(t *testing.T) {
	s := newShell(t)
	id := at(s.json(0, "start", s.file), "handle", "config", "id").(string)
	pid := at(s.json(0, "plugin", "pid"), "pid")
	s.want(at(s.json(0, "plugin", "kill"), "pid"), pid)
	t.Setenv(pluginEnv, "") // the state says what to start
	s.want(at(s.json(exitRPC, "inspect", s.file), "error", "code"), "NotFound")
	s.json(0, "recover", s.file)
	s.want(at(s.json(0, "inspect", s.file), "task", "state"), "RUNNING")
	if at(s.json(0, "plugin", "pid"), "pid") == pid {
		t.Error("the killed plugin is still there")
	}
	if want := fmt.Sprintf("RecoverTask id=\"\" handle=%q state=%q", id, "state of "+id); !slices.Contains(s.calls(), want) {
		t.Errorf("%q is not in %q", want, s.calls())
	}
	s.want(strings.Contains(s.run(exitUsage, "recover", s.other("never.json")), "start it first"), true)
}

// other writes another task's file.
func (s *shell) other(name string) string {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(task), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func TestARunningPluginIsNotExchanged(t *testing.T) {
	s := newShell(t)
	s.run(0, "plugin", "pid")
	if got := s.run(exitUsage, "plugin", "-plugin", "/bin/true", "pid"); !strings.Contains(got, "task plugin stop") {
		t.Errorf("%q", got)
	}
	s.run(0, "plugin", "stop")
	if calls := s.calls(); !slices.Contains(calls, "Shutdown") {
		t.Errorf("no Driver.Shutdown: %q", calls)
	}
	if got := s.run(exitUsage, "plugin", "-plugin", "/bin/true", "pid"); !strings.Contains(got, "before the handshake") {
		t.Errorf("%q", got)
	}
}

func TestThePluginBlockIsKeptOverARestart(t *testing.T) {
	s := newShell(t)
	label := filepath.Base(s.fake.Bin)
	config := filepath.Join(s.dir, "agent.hcl")
	if err := os.WriteFile(config, []byte("plugin \""+label+"\" {\n  config {\n    enabled = false\n  }\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(0, "plugin", "-config", config, "pid")
	s.run(0, "plugin", "kill")
	s.run(0, "plugin", "pid")
	const packed = "81a7656e61626c6564c2" // {"enabled": false}
	var seen int
	for _, call := range s.calls() {
		if strings.HasPrefix(call, "SetConfig nomad=true cores=true "+packed) {
			seen++
		}
	}
	s.want(seen, 2)
}

func TestViolationsInThePluginsOutput(t *testing.T) {
	s := newShell(t, plugintest.BadLog)
	s.run(0, "rpc", "-count", "1", "Fingerprint")
	plugintest.Eventually(t, "bad lines are found", func() bool {
		var out bytes.Buffer
		return Main(t.Context(), []string{"violations"}, nil, &out, &out) == exitRPC && strings.Contains(out.String(), "would panic")
	})
}

func TestRPC(t *testing.T) {
	s := newShell(t)
	s.want(at(s.json(0, "rpc", "PluginInfo"), "name"), "fake")
	s.want(at(s.json(0, "rpc", "-count", "1", "TaskEvents"), "message"), "hello")
	s.want(at(s.json(exitRPC, "rpc", "InspectTask", `{"task_id": "x"}`), "error", "code"), "NotFound")
}

func TestPrepareThenStartAsIs(t *testing.T) {
	s := newShell(t)
	prepared := s.json(0, "prepare", s.file)
	stdout := at(prepared, "stdout_path").(string)
	if st, err := os.Stat(stdout); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("%s: %v, %v", stdout, st, err)
	}
	local := at(prepared, "env", "NOMAD_TASK_DIR").(string)
	if st, err := os.Stat(local); err != nil || !st.IsDir() {
		t.Errorf("%s: %v, %v", local, st, err)
	}
	prepared["user"] = "changed"
	raw, err := json.Marshal(prepared)
	if err != nil {
		t.Fatal(err)
	}
	asIs := filepath.Join(s.dir, "as-is.json")
	if err := os.WriteFile(asIs, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	started := s.json(0, "start", "-as-is", asIs)
	config := at(started, "handle", "config")
	s.want(at(config, "user"), "changed")
	s.want(at(config, "id"), at(prepared, "id"))
	s.want(at(config, "stdout_path"), stdout)
	s.want(decodeConfig(t, config)["command"], "sh")

	w, err := os.OpenFile(stdout, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("from the task\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	plugintest.Eventually(t, "the log has the line", func() bool { return s.run(0, "logs", s.file) == "from the task\n" })
	s.run(0, "cleanup", s.file)
	if _, err := os.Stat(local); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", local, err)
	}
}

func TestGivenPathsAreKept(t *testing.T) {
	s := newShell(t)
	if err := os.WriteFile(s.file, []byte(`{
		"config": {"command": "x"}, "alloc_dir": "/srv/alloc", "stdout_path": "/dev/null", "stderr_path": "/dev/null", "user": "root",
		"resources": {"linux_resources": {"cpuset_cgroup": "/sys/fs/cgroup/x"}}, "env": {"NOMAD_SECRETS_DIR": "/elsewhere"}
	}`), 0o600); err != nil {
		t.Fatal(err)
	}
	config := at(s.json(0, "start", s.file), "handle", "config")
	s.want(at(config, "alloc_dir"), "/srv/alloc")
	s.want(at(config, "env", "NOMAD_TASK_DIR"), "/srv/alloc/web/local")
	s.want(at(config, "env", "NOMAD_SECRETS_DIR"), "/elsewhere")
	s.want(at(config, "resources", "linux_resources", "cpuset_cgroup"), "/sys/fs/cgroup/x")
	s.want(at(config, "user"), "root")
	s.want(at(config, "stdout_path"), "/dev/null")
}

func TestBadFilesAreRefused(t *testing.T) {
	s := newShell(t)
	for text, want := range map[string]string{
		`{`:                               "unexpected end",
		`{"confg": {}}`:                   "confg",
		`{"config": {"nonsense": 1}}`:     "nonsense",
		`{"config": {"command": "${x}"}}`: "Unknown variable",
		`{"config": {}, "msgpack_driver_config": "gA=="}`:                       "not both",
		`{"memory": 1, "resources": {"allocated_resources": {}}, "config": {}}`: "not both",
		`{"network_isolation_spec": {"mode": "NOWHERE"}}`:                       "NOWHERE",
	} {
		if err := os.WriteFile(s.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.run(exitUsage, "start", s.file); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not contain %q", text, got, want)
		}
	}
	for _, args := range [][]string{{}, {"nope"}, {"start"}, {"plugin", "nope"}, {"exec", "-size", "x", s.file}, {"start", "/nonexistent.json"}} {
		var out, errs bytes.Buffer
		if code := Main(t.Context(), args, nil, &out, &errs); code != exitUsage || errs.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, errs.String())
		}
	}
}

// brokenStream answers a streaming exec with its messages.
type brokenStream struct {
	pb.Driver_ExecTaskStreamingClient
	messages []*pb.ExecTaskStreamingResponse
}

func (b *brokenStream) Recv() (*pb.ExecTaskStreamingResponse, error) {
	if len(b.messages) == 0 {
		return nil, io.EOF
	}
	m := b.messages[0]
	b.messages = b.messages[1:]
	return m, nil
}

func TestBreachesOfTheExecStreamAreReported(t *testing.T) {
	data := &pb.ExecTaskStreamingIOOperation{Data: []byte("x")}
	exited := &pb.ExecTaskStreamingResponse{Exited: true, Result: &pb.ExitResult{ExitCode: 1}}
	for want, messages := range map[string][]*pb.ExecTaskStreamingResponse{
		"without an exit result":  {{Stdout: data}},
		"exited without a result": {{Exited: true}},
		"after the one with":      {exited, {Stderr: data}},
		"data on stdout after":    {{Stdout: &pb.ExecTaskStreamingIOOperation{Close: true}}, {Stdout: data}, exited},
	} {
		r, err := receiveExec(&brokenStream{messages: messages}, make(chan struct{}))
		if err != nil || len(r.Violations) != 1 || !strings.Contains(r.Violations[0], want) {
			t.Errorf("%s: %q, %v", want, r.Violations, err)
		}
	}
	r, err := receiveExec(&brokenStream{messages: []*pb.ExecTaskStreamingResponse{{Stdout: data}, exited}}, make(chan struct{}))
	if err != nil || len(r.Violations) != 0 || string(r.Stdout) != "x" {
		t.Errorf("a good stream: %+v, %v", r, err)
	}
}
