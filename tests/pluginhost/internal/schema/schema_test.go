package schema_test

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"

	"pluginhost/internal/schema"
	"pluginhost/internal/schema/schematest"
	"pluginhost/pb"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/zclconf/go-cty/cty"
)

// pack runs a config through spec and reads the wire form back.
func pack(t *testing.T, spec *pb.Spec, config map[string]any, vars map[string]cty.Value) map[string]any {
	t.Helper()
	dec, err := schema.Convert(spec)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := schema.Pack(config, dec, vars)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := msgpack.NewDecoder(bytes.NewReader(raw)).Decode(&out); err != nil {
		t.Fatalf("%x: %v", raw, err)
	}
	return out
}

func TestEveryAttributeIsPresentOnTheWire(t *testing.T) {
	out := pack(t, schematest.TaskSpec(), map[string]any{"command": "sh"}, nil)
	for _, key := range []string{"command", "args", "flag", "text", "count", "labels", "mount", "logging"} {
		if _, ok := out[key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	if out["command"] != "sh" || out["flag"] != true || out["text"] != "a\nb" {
		t.Errorf("values or defaults: %v", out)
	}
	if out["args"] != nil || out["count"] != nil || out["logging"] != nil {
		t.Errorf("absent attributes must be nil: %v", out)
	}
	if list, ok := out["mount"].([]any); !ok || len(list) != 0 {
		t.Errorf("an absent block list must be empty, not %v", out["mount"])
	}
}

func TestValuesConvertToTheSchemasTypes(t *testing.T) {
	out := pack(t, schematest.TaskSpec(), map[string]any{
		"command": int64(7), "args": []any{"a", int64(1), true}, "flag": "false", "count": 1.5,
		"labels":  []any{map[string]any{"a": "b"}},
		"mount":   []any{map[string]any{"source": "/x"}, map[string]any{"source": "/y"}},
		"logging": []any{map[string]any{}},
	}, nil)
	args, ok := out["args"].([]any)
	if out["command"] != "7" || !ok || len(args) != 3 || args[1] != "1" || args[2] != "true" {
		t.Errorf("strings: %v", out)
	}
	if out["flag"] != false || out["count"] != 1.5 {
		t.Errorf("bool, number: %v", out)
	}
	if mounts := out["mount"].([]any); len(mounts) != 2 || mounts[1].(map[string]any)["source"] != "/y" {
		t.Errorf("blocks: %v", out["mount"])
	}
	if out["logging"].(map[string]any)["type"] != "journald" {
		t.Errorf("default in a nested block: %v", out["logging"])
	}
}

// The driver's unit test values_convert_as_in_go_cty expects the same.
func TestStringsAndNumbersConvertInBothDirections(t *testing.T) {
	for flag, want := range map[any]bool{"true": true, "1": true, "false": false, "0": false} {
		out := pack(t, schematest.TaskSpec(), map[string]any{"command": 5.0, "flag": flag}, nil)
		if out["flag"] != want || out["command"] != "5" {
			t.Errorf("%q: %v", flag, out)
		}
	}
	dec, err := schema.Convert(schematest.TaskSpec())
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []any{int64(1), int64(0), "yes", "True", " true", ""} {
		if _, err := schema.Pack(map[string]any{"command": "a", "flag": flag}, dec, nil); err == nil {
			t.Errorf("%q is accepted as a boolean", flag)
		}
	}
	out := pack(t, schematest.TaskSpec(), map[string]any{
		"command": "a", "args": []any{int64(7), int64(-1), uint64(math.MaxUint64), 1.5, 1e3, true},
	}, nil)
	if want := []any{"7", "-1", "18446744073709551615", "1.5", "1000", "true"}; !reflect.DeepEqual(out["args"], want) {
		t.Errorf("args: %v", out["args"])
	}
}

func TestBadConfigsAreRefused(t *testing.T) {
	dec, err := schema.Convert(schematest.TaskSpec())
	if err != nil {
		t.Fatal(err)
	}
	for want, config := range map[string]map[string]any{
		"command":       {},
		"Extraneous":    {"command": "x", "nonsense": 1},
		"Unknown varia": {"command": "${NOMAD_NOPE}"},
		"bool":          {"command": "x", "flag": "maybe"},
		"source":        {"command": "x", "mount": []any{map[string]any{}}},
	} {
		_, err := schema.Pack(config, dec, map[string]cty.Value{"NOMAD_TASK_DIR": cty.StringVal("/")})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v does not speak of %q", config, err, want)
		}
	}
}

func TestBadSpecsAreRefused(t *testing.T) {
	for name, spec := range map[string]*pb.Spec{
		"empty":               {},
		"nil":                 nil,
		"bad type":            schematest.Object(map[string]*pb.Spec{"a": schematest.Attr("a", "strin", false)}),
		"bad literal":         schematest.Object(map[string]*pb.Spec{"a": schematest.Literal("${")}),
		"nameless":            schematest.Attr("", "string", false),
		"name not in default": schematest.Object(map[string]*pb.Spec{"a": schematest.OrElse(schematest.Attr("", "string", false), "1")}),
		"block_map":           {Block: &pb.Spec_BlockMap{BlockMap: &pb.BlockMap{Name: "m", Nested: schematest.Object(nil)}}},
		"missing nested":      {Block: &pb.Spec_BlockValue{BlockValue: &pb.Block{Name: "m"}}},
	} {
		if _, err := schema.Convert(spec); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestImpliedNames(t *testing.T) {
	out := pack(t, schematest.Object(map[string]*pb.Spec{"a": schematest.Attr("", "string", false)}), map[string]any{"a": "x"}, nil)
	if out["a"] != "x" {
		t.Errorf("an attribute without a name takes its key: %v", out)
	}
}
