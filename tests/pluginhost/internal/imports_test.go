package internal

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers are the packages from the bottom to the top: each may import only those
// of lower layers.
var layers = []string{
	"pb internal/ids internal/files internal/hcleval internal/users internal/cgroup internal/logmon internal/api internal/attack",
	"internal/cpu internal/violations internal/schema internal/netns internal/allocdir internal/agentconfig internal/jobspec",
	"internal/taskenv internal/plugin",
	"internal/client internal/harness internal/bench internal/testdevice",
	"internal/cli",
	"cmd/pluginhost cmd/bench cmd/attack",
}

// helpers are for tests and may be imported by tests only.
var helpers = []string{"internal/schema/schematest", "internal/plugin/plugintest"}

const module = "pluginhost/"

// packages returns what each package of the module imports from it, without its tests.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), "../"))
		for _, spec := range file.Imports {
			if imported, own := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module); own {
				out[name] = append(out[name], imported)
			}
		}
		if out[name] == nil {
			out[name] = []string{}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestImportsPointDownwards(t *testing.T) {
	layer := map[string]int{}
	for i, names := range layers {
		for name := range strings.FieldsSeq(names) {
			layer[name] = i
		}
	}
	seen := 0
	for name, imports := range packages(t) {
		if name == "gen" || slices.Contains(helpers, name) {
			continue // a module of its own; for tests
		}
		own, ok := layer[name]
		if !ok {
			t.Errorf("%s is in no layer", name)
		}
		seen++
		for _, imported := range imports {
			if slices.Contains(helpers, imported) || layer[imported] >= own {
				t.Errorf("%s imports %s", name, imported)
			}
		}
	}
	if seen != len(layer) {
		t.Errorf("%d packages of %d were found", seen, len(layer))
	}
}
