package agentconfig

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

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
		c, err := Load([]string{path})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(c.Plugins["p"], want) || c.TotalCPU != 4000 || c.PluginDir != "/d/plugins" || c.MountsDir != "/alloc_mounts" {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if _, err := Load([]string{dir}); err != nil {
		t.Errorf("a directory: %v", err)
	}
}
