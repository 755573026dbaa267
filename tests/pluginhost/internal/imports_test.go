package internal

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers are the packages from the bottom to the top: each may import only those
// of lower layers.
var layers = []string{
	"pb internal/ids internal/files internal/hcleval internal/users internal/cgroup internal/logmon internal/api",
	"internal/cpu internal/violations internal/schema internal/netns internal/allocdir internal/agentconfig internal/jobspec",
	"internal/taskenv internal/plugin",
	"internal/client internal/harness",
	"internal/cli",
	"cmd/pluginhost",
}

// helpers are for tests and may be imported by tests only.
var helpers = []string{"internal/schema/schematest", "internal/plugin/plugintest"}

func TestImportsPointDownwards(t *testing.T) {
	const module = "pluginhost/"
	layer := map[string]int{}
	for i, names := range layers {
		for name := range strings.FieldsSeq(names) {
			layer[name] = i
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		names := strings.Fields(line)
		name := strings.TrimPrefix(names[0], module)
		if slices.Contains(helpers, name) || name == "internal" {
			continue
		}
		own, ok := layer[name]
		if !ok {
			t.Errorf("%s is in no layer", name)
		}
		seen++
		for _, imported := range names[1:] {
			other, ok := strings.CutPrefix(imported, module)
			if !ok {
				continue
			}
			if slices.Contains(helpers, other) || layer[other] >= own {
				t.Errorf("%s imports %s", name, other)
			}
		}
	}
	if seen != len(layer) {
		t.Errorf("%d packages of %d were found", seen, len(layer))
	}
}
