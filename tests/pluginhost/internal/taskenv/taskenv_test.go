package taskenv

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/schema"
	"pluginhost/internal/schema/schematest"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/vmihailenco/msgpack/v5"
)

func ptr[T any](v T) *T { return &v }

func TestTaskEnvironment(t *testing.T) {
	j := &nomad.Job{ID: ptr("j"), Meta: map[string]string{"owner": "job", "a": "1"}}
	j.Canonicalize()
	a := &nomad.Allocation{
		ID: "01234567-89ab-cdef-0123-456789abcdef", Name: "j.g[0]", JobID: "j", Job: j, TaskGroup: "g",
		AllocatedResources: &nomad.AllocatedResources{Shared: nomad.AllocatedSharedResources{
			Ports: []nomad.PortMapping{{Label: "web-ui", Value: 20000, To: 80, HostIP: "10.0.0.1"}},
		}},
		NetworkStatus: &nomad.AllocNetworkStatus{InterfaceName: "eth0", Address: "172.26.64.2"},
	}
	task := &nomad.Task{
		Name: "t", Meta: map[string]string{"owner": "task"}, Resources: &nomad.Resources{MemoryMB: ptr(32)},
		Env: map[string]string{"X": "${NOMAD_ALLOC_ID}:${attr.kernel.name}:${nope}", "PATH": "/task"},
	}
	e := Build(Input{
		Alloc: a, Group: &nomad.TaskGroup{Meta: map[string]string{"owner": "group"}}, Task: task, CPU: 100,
		Node: map[string]string{"attr.kernel.name": "linux"}, AllocDir: "/a", LocalDir: "/l", SecretsDir: "/s",
		HostEnv:     []string{"PATH=/host", "LANG=C", "VAULT_TOKEN=secret", "NOMAD_JOB_ID=fake"},
		TemplateEnv: map[string]string{"T": "1"}, Tokens: map[string]string{"default": "tok"},
	})
	for k, want := range map[string]string{
		"NOMAD_SHORT_ALLOC_ID": "01234567", "NOMAD_TASK_DIR": "/l", "NOMAD_JOB_ID": "j", "NOMAD_CPU_LIMIT": "100",
		"X": "01234567-89ab-cdef-0123-456789abcdef:linux:${nope}", "PATH": "/task", "LANG": "C", "T": "1",
		"NOMAD_META_OWNER": "task", "NOMAD_META_owner": "task", "NOMAD_META_a": "1", "NOMAD_TOKEN": "tok",
		"NOMAD_PORT_web_ui": "80", "NOMAD_HOST_PORT_web_ui": "20000", "NOMAD_ADDR_web_ui": "10.0.0.1:20000",
		"NOMAD_ALLOC_ADDR_web_ui": "172.26.64.2:80", "NOMAD_IP_web_ui": "10.0.0.1",
	} {
		if e.Vars[k] != want {
			t.Errorf("%s is %q, not %q", k, e.Vars[k], want)
		}
	}
	for _, k := range []string{"VAULT_TOKEN", "NOMAD_MEMORY_MAX_LIMIT", "NOMAD_TOKEN_default"} {
		if v, ok := e.Vars[k]; ok {
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
	dir := allocdir.New(base, base+"/m", "alloc", "task")
	for _, d := range []string{dir.Local, dir.Shared, dir.Secrets} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(dir.Local, "link")); err != nil {
		t.Fatal(err)
	}
	env := &Env{Vars: map[string]string{"NOMAD_TASK_DIR": dir.MountLocal(), "NOMAD_SECRETS_DIR": dir.MountSecrets()}}
	render := func(dest, perms string) error {
		tm := &nomad.Template{EmbeddedTmpl: ptr("x"), DestPath: &dest, Perms: &perms}
		tm.Canonicalize()
		_, err := RenderTemplates(&nomad.Task{Templates: []*nomad.Template{tm}}, env, dir)
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

func TestConfigStringsAreTemplates(t *testing.T) {
	env := &Env{
		Vars: map[string]string{"NOMAD_TASK_DIR": "/t", "A.B": "dotted"},
		node: map[string]string{"node.unique.id": "n1", "attr.kernel.name": "linux", "meta.rack": "r7"},
	}
	spec, err := schema.Convert(schematest.TaskSpec())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := schema.Pack(map[string]any{
		"command": "${NOMAD_TASK_DIR}/x",
		"args":    []any{"${attr.kernel.name}", "${node.unique.id}", "${meta.rack}", `${env["A.B"]}`, "${node.attr.kernel.name}", "$${raw}"},
	}, spec, env.Names())
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := msgpack.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	if out["command"] != "/t/x" {
		t.Errorf("command %v", out["command"])
	}
	want := []any{"linux", "n1", "r7", "dotted", "linux", "${raw}"}
	for i, a := range out["args"].([]any) {
		if a != want[i] {
			t.Errorf("args[%d] is %v, not %v", i, a, want[i])
		}
	}
}
