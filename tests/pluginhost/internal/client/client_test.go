package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLogLines(t *testing.T) {
	good := `{"@level":"info","@message":"m","@module":"x","@timestamp":"2026-01-02T03:04:05.123456Z","k":1}`
	for _, c := range []struct {
		line  string
		fatal bool
		want  string
	}{
		{good, false, ""},
		{strings.Replace(good, "Z", "+02:00", 1), false, ""},
		{"plain text", false, "not one JSON object"},
		{good + good, false, "not one JSON object"},
		{strings.Replace(good, `"m"`, `{"a":1}`, 1), true, "would panic"},
		{strings.Replace(good, `"info"`, `3`, 1), true, "would panic"},
		{strings.Replace(good, ".123456Z", ".123Z", 1), false, "has not the form"},
		{strings.Replace(good, ".123456Z", ".123456789Z", 1), false, "has not the form"},
		{strings.Replace(good, "info", "notice", 1), false, "unknown @level"},
		{`{"@level":"info","@timestamp":"2026-01-02T03:04:05.123456Z"}`, false, "no @message"},
		{strings.Replace(good, `"m"`, `"`+strings.Repeat("m", maxLogLine)+`"`, 1), false, "more than"},
	} {
		fatal, err := checkLogLine([]byte(c.line))
		if fatal != c.fatal || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80s: fatal %v, error %v", c.line, fatal, err)
		}
	}
}

func TestStderrFilterDropsOnlyWhatPanics(t *testing.T) {
	good := `{"@level":"info","@message":"m","@timestamp":"2026-01-02T03:04:05.123456Z"}` + "\n"
	var out bytes.Buffer
	var reports []string
	filterStderr(&out, strings.NewReader(good+"text\n"+`{"@message":5}`+"\n"+good), func(s string) { reports = append(reports, s) })
	if out.String() != good+"text\n"+good {
		t.Errorf("passed on: %q", out.String())
	}
	if len(reports) != 2 {
		t.Errorf("reports: %q", reports)
	}
}

func TestStdoutFilter(t *testing.T) {
	for in, want := range map[string]int{
		"1|2|unix|/tmp/s|grpc|\n":                            0,
		"1|2|unix|/tmp/s|grpc|\nmore\n":                      1,
		"1|2|unix|/tmp/s|grpc|":                              1, // not flushed with its newline
		"1|2|tcp|127.0.0.1:1|grpc|\n":                        1,
		"1|2|unix|/tmp/s|grpc||true\n":                       1,
		"hello\n1|2|unix|/tmp/s|grpc|\n":                     2,
		"1|2|unix|/" + strings.Repeat("s", 107) + "|grpc|\n": 1,
		"1|2|unix|/" + strings.Repeat("s", 106) + "|grpc|\n": 0,
	} {
		var reports []string
		filterStdout(&bytes.Buffer{}, strings.NewReader(in), func(s string) { reports = append(reports, s) })
		if len(reports) != want {
			t.Errorf("%.60q: %q", in, reports)
		}
	}
}

func TestRestartPolicy(t *testing.T) {
	fail, ok := &exitResult{Code: 1}, &exitResult{}
	perm := fmt.Errorf("no")
	temp := &recoverableError{error: perm, recoverable: true}
	now := time.Now()
	tr := func(attempts int, mode string, onSuccess bool) *restartTracker {
		return &restartTracker{policy: Restart{Attempts: attempts, Interval: time.Hour, Mode: mode}, onSuccess: onSuccess}
	}
	check := func(r *restartTracker, startErr error, exit *exitResult, want string) {
		t.Helper()
		if got, reason, _ := r.next(startErr, exit, now); got != want {
			t.Errorf("got %s (%s), want %s", got, reason, want)
		}
	}
	check(tr(0, "fail", false), nil, fail, verdictGiveUp)
	check(tr(0, "fail", false), nil, ok, verdictTerminated)
	check(tr(0, "fail", true), nil, ok, verdictGiveUp)
	check(tr(1, "fail", true), nil, ok, verdictRestart)
	check(tr(1, "fail", false), nil, ok, verdictTerminated)
	check(tr(1, "fail", false), perm, nil, verdictGiveUp)
	check(tr(1, "fail", false), temp, nil, verdictRestart)
	check(tr(1, "fail", false), fmt.Errorf("again: %w", temp), nil, verdictRestart)
	r := tr(2, "fail", false)
	check(r, nil, fail, verdictRestart)
	check(r, nil, fail, verdictRestart)
	check(r, nil, fail, verdictGiveUp)
	now = now.Add(2 * time.Hour) // a new interval
	check(r, nil, fail, verdictRestart)
	d := tr(1, "delay", false)
	check(d, nil, fail, verdictRestart)
	if _, _, delay := d.next(nil, fail, now.Add(time.Minute)); delay != 59*time.Minute {
		t.Errorf("delay to the next interval: %v", delay)
	}
}

func TestTaskEnvironment(t *testing.T) {
	j := &Job{ID: "j", Name: "j", Namespace: "default", Region: "global", Meta: map[string]string{"owner": "job", "a": "1"}}
	a := &Alloc{
		ID: "01234567-89ab-cdef-0123-456789abcdef", Name: "j.g[0]", JobID: "j", Job: j, TaskGroup: "g",
		Ports:         []allocPort{{Label: "web-ui", Value: 20000, To: 80, HostIP: "10.0.0.1"}},
		NetworkStatus: &NetworkStatus{InterfaceName: "eth0", Address: "172.26.64.2"},
	}
	task := &Task{
		Name: "t", Meta: map[string]string{"owner": "task"}, Resources: Resources{CPU: 100, MemoryMB: 32},
		Env: map[string]string{"X": "${NOMAD_ALLOC_ID}:${attr.kernel.name}:${nope}", "PATH": "/task"},
	}
	e := buildEnv(envInput{
		alloc: a, group: &TaskGroup{Meta: map[string]string{"owner": "group"}}, task: task, cpu: 100,
		node: map[string]string{"attr.kernel.name": "linux"}, allocDir: "/a", localDir: "/l", secretsDir: "/s",
		hostEnv:     []string{"PATH=/host", "LANG=C", "VAULT_TOKEN=secret", "NOMAD_JOB_ID=fake"},
		templateEnv: map[string]string{"T": "1"}, tokens: map[string]string{"default": "tok"},
	})
	for k, want := range map[string]string{
		"NOMAD_SHORT_ALLOC_ID": "01234567", "NOMAD_TASK_DIR": "/l", "NOMAD_JOB_ID": "j", "NOMAD_CPU_LIMIT": "100",
		"X": "01234567-89ab-cdef-0123-456789abcdef:linux:${nope}", "PATH": "/task", "LANG": "C", "T": "1",
		"NOMAD_META_OWNER": "task", "NOMAD_META_owner": "task", "NOMAD_META_a": "1", "NOMAD_TOKEN": "tok",
		"NOMAD_PORT_web_ui": "80", "NOMAD_HOST_PORT_web_ui": "20000", "NOMAD_ADDR_web_ui": "10.0.0.1:20000",
		"NOMAD_ALLOC_ADDR_web_ui": "172.26.64.2:80", "NOMAD_IP_web_ui": "10.0.0.1",
	} {
		if e.env[k] != want {
			t.Errorf("%s is %q, not %q", k, e.env[k], want)
		}
	}
	for _, k := range []string{"VAULT_TOKEN", "NOMAD_MEMORY_MAX_LIMIT", "NOMAD_TOKEN_default"} {
		if v, ok := e.env[k]; ok {
			t.Errorf("%s = %q should not be there", k, v)
		}
	}
}

func TestTemplates(t *testing.T) {
	env := map[string]string{"X": "1"}
	if out, err := renderTemplate("a {{ env \"X\" }} {{- \" b\" }}\n${Y}", env); err != nil || out != "a 1 b\n${Y}" {
		t.Errorf("%q, %v", out, err)
	}
	for _, bad := range []string{`{{ key "x" }}`, `{{ with secret "x" }}{{ end }}`, `{{ nomadVar "x" }}`, `{{`} {
		if _, err := renderTemplate(bad, env); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestTemplateDestinations(t *testing.T) {
	base := t.TempDir()
	dir := newTaskDir(base, base+"/m", "alloc", "task")
	for _, d := range []string{dir.Local, dir.Shared, dir.Secrets} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(dir.Local, "link")); err != nil {
		t.Fatal(err)
	}
	env := &taskEnv{env: map[string]string{"NOMAD_TASK_DIR": dir.mountLocal(), "NOMAD_SECRETS_DIR": dir.mountSecrets()}}
	render := func(dest, perms string) error {
		_, err := renderTemplates(&Task{Templates: []Template{{Data: "x", Destination: dest, Perms: perms, UID: -1, GID: -1}}}, env, dir)
		return err
	}
	for dest, want := range map[string]string{
		"local/a/b":              filepath.Join(dir.Local, "a/b"),
		"${NOMAD_TASK_DIR}/c":    filepath.Join(dir.Local, "c"),
		"${NOMAD_SECRETS_DIR}/d": filepath.Join(dir.Secrets, "d"),
	} {
		if err := render(dest, "0755"); err != nil {
			t.Errorf("%s: %v", dest, err)
		}
		if st, err := os.Stat(want); err != nil || st.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", dest, st, err)
		}
	}
	for _, dest := range []string{"../x", "/etc/x", "local/link/x"} {
		if err := render(dest, "0644"); err == nil {
			t.Errorf("%s: no error", dest)
		}
	}
	if err := render("local/x", "0999"); err == nil {
		t.Error("perms 0999: no error")
	}
}

func TestTemplateEnv(t *testing.T) {
	got := map[string]string{}
	if err := parseEnvFile("# c\nA=1\n\nB = x y\nC=\"q\\n\"\n", got); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"A": "1", "B": " x y", "C": "q\n"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if parseEnvFile("nonsense", got) == nil {
		t.Error("no error")
	}
}

func TestAgentConfigForms(t *testing.T) {
	dir := t.TempDir()
	want := map[string]any{"unveil_paths": []any{"r:/x"}, "flag": true}
	for name, src := range map[string]string{
		"a.hcl":  "data_dir = \"/d\"\nplugin \"p\" {\n config {\n  unveil_paths = [\"r:/x\"]\n  flag = true\n }\n}\nclient {\n cpu_total_compute = 4000\n}\nserver { enabled = true }\n",
		"b.json": `{"data_dir":"/d","plugin":{"p":{"config":{"unveil_paths":["r:/x"],"flag":true}}},"client":{"cpu_total_compute":4000}}`,
		"c.json": `{"data_dir":"/d","plugin":[{"p":[{"config":[{"unveil_paths":["r:/x"],"flag":true}]}]}],"client":[{"cpu_total_compute":4000}]}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := loadAgentConfig([]string{path})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(c.Plugins["p"], want) || c.TotalCPU != 4000 || c.PluginDir != "/d/plugins" || c.MountsDir != "/alloc_mounts" {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if _, err := loadAgentConfig([]string{dir}); err != nil {
		t.Errorf("a folder: %v", err)
	}
}

func TestLogCollector(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr := fifoPaths(dir, "t")
	c := &collector{tasks: map[string]*logTask{}}
	if err := c.start(logRequest{Key: "k", Dir: dir, Task: "t", Max: Logs{MaxFiles: 2, MaxFileSizeMB: 1}, Stdout: stdout, Stderr: stderr}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(stdout)
	if err != nil || st.Mode() != os.ModeNamedPipe|0o600 {
		t.Fatalf("fifo: %v, %v", st, err)
	}
	w, err := os.OpenFile(stdout, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1023) + "\n"
	for range 3 * 1024 {
		if _, err := w.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	c.tasks["k"].close() // stderr never had a writer: must not hang
	if got := logIndexes(dir, "t.stdout"); !reflect.DeepEqual(got, []int{1, 2}) {
		t.Errorf("files %v: two of three are kept", got)
	}
	chunk, err := readLog(dir, "t.stdout", 0, 0, true)
	if err != nil || chunk.Index != 1 || len(chunk.Data) != 1<<20 {
		t.Errorf("chunk: index %d, %d bytes, %v", chunk.Index, len(chunk.Data), err)
	}
	chunk, err = readLog(dir, "t.stdout", 2, 1<<20, true)
	if err != nil || !chunk.Done {
		t.Errorf("the end: %+v, %v", chunk, err)
	}
}

func TestLogFilesAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(target, filepath.Join(dir, "t.stdout.0")); err != nil {
		t.Fatal(err)
	}
	if _, err := newRotator(dir, "t.stdout", Logs{MaxFiles: 1, MaxFileSizeMB: 1}); err == nil {
		t.Error("a link out of the log folder was opened")
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a file outside was created")
	}
}

func TestSmallThings(t *testing.T) {
	if got, err := parseCPUList("0-2,5"); err != nil || !reflect.DeepEqual(got, []int{0, 1, 2, 5}) {
		t.Errorf("%v, %v", got, err)
	}
	for want, list := range map[string][]int{" ": nil, "3": {3}, "0-2,5,7-8": {7, 0, 2, 1, 8, 5}} {
		if got := cpuList(list); got != want {
			t.Errorf("%v: %q", list, got)
		}
	}
	for v, want := range map[string]bool{"1.2.3": true, "v2.0.0": true, "0.1.0-rc.1+x": true, "1.2": false, "": false, "a.b.c": false, "1.2.3.4": false} {
		if validVersion(v) != want {
			t.Errorf("version %q", v)
		}
	}
	if a, err := bridgeAddress(map[string]bool{"172.26.64.2": true}); err != nil || a != "172.26.64.3" {
		t.Errorf("%s, %v", a, err)
	}
	p := &userPool{next: dynamicUserMax, used: map[int]bool{dynamicUserMin: true}}
	a, _ := p.acquire()
	b, _ := p.acquire()
	if a != "nomad-89999" || b != "nomad-80001" {
		t.Errorf("%s, %s", a, b)
	}
	if id := newUUID(); len(id) != 36 || id[14] != '4' {
		t.Errorf("uuid %s", id)
	}
	if s, d := clientStatus(map[string]*TaskState{"a": {State: stateDead}, "b": {State: stateRunning}}); s != "running" || d == "" {
		t.Errorf("%s", s)
	}
}
