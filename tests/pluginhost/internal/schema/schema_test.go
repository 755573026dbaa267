package main

import (
	"bytes"
	"strings"
	"testing"

	"pluginhost/pb"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/zclconf/go-cty/cty"
)

// Short forms of the wire's spec messages.

func attr(name, ty string, required bool) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Attr{Attr: &pb.Attr{Name: name, Type: ty, Required: required}}}
}

func literal(src string) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Literal{Literal: &pb.Literal{Value: src}}}
}

func orElse(primary *pb.Spec, src string) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Default{Default: &pb.Default{Primary: primary, Default: literal(src)}}}
}

func object(attrs map[string]*pb.Spec) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Object{Object: &pb.Object{Attributes: attrs}}}
}

// taskSpec is a schema with each kind that drivers commonly use.
func taskSpec() *pb.Spec {
	return object(map[string]*pb.Spec{
		"command": attr("command", "string", true),
		"args":    attr("args", "list(string)", false),
		"flag":    orElse(attr("flag", "bool", false), "true"),
		"text":    orElse(attr("text", "string", false), `"a\nb"`),
		"count":   attr("count", "number", false),
		"labels":  attr("labels", "list(map(string))", false),
		"mount": {Block: &pb.Spec_BlockList{BlockList: &pb.BlockList{Name: "mount", Nested: object(map[string]*pb.Spec{
			"source": attr("source", "string", true),
		})}}},
		"logging": {Block: &pb.Spec_BlockValue{BlockValue: &pb.Block{Name: "logging", Nested: object(map[string]*pb.Spec{
			"type": orElse(attr("type", "string", false), `"journald"`),
		})}}},
	})
}

// pack runs a config through spec and reads the wire form back.
func pack(t *testing.T, spec *pb.Spec, config map[string]any, vars map[string]cty.Value) map[string]any {
	t.Helper()
	dec, err := convertSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := packConfig(config, dec, vars)
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
	out := pack(t, taskSpec(), map[string]any{"command": "sh"}, nil)
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
	out := pack(t, taskSpec(), map[string]any{
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

func TestBadConfigsAreRefused(t *testing.T) {
	dec, err := convertSpec(taskSpec())
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
		_, err := packConfig(config, dec, map[string]cty.Value{"NOMAD_TASK_DIR": cty.StringVal("/")})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v does not speak of %q", config, err, want)
		}
	}
}

func TestBadSpecsAreRefused(t *testing.T) {
	for name, spec := range map[string]*pb.Spec{
		"empty":               {},
		"nil":                 nil,
		"bad type":            object(map[string]*pb.Spec{"a": attr("a", "strin", false)}),
		"bad literal":         object(map[string]*pb.Spec{"a": literal("${")}),
		"nameless":            attr("", "string", false),
		"name not in default": object(map[string]*pb.Spec{"a": orElse(attr("", "string", false), "1")}),
		"block_map":           {Block: &pb.Spec_BlockMap{BlockMap: &pb.BlockMap{Name: "m", Nested: object(nil)}}},
		"missing nested":      {Block: &pb.Spec_BlockValue{BlockValue: &pb.Block{Name: "m"}}},
	} {
		if _, err := convertSpec(spec); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestImpliedNames(t *testing.T) {
	out := pack(t, object(map[string]*pb.Spec{"a": attr("", "string", false)}), map[string]any{"a": "x"}, nil)
	if out["a"] != "x" {
		t.Errorf("an attribute without a name takes its key: %v", out)
	}
}

func TestConfigStringsAreTemplates(t *testing.T) {
	env := &taskEnv{
		env:  map[string]string{"NOMAD_TASK_DIR": "/t", "A.B": "dotted"},
		node: map[string]string{"node.unique.id": "n1", "attr.kernel.name": "linux", "meta.rack": "r7"},
	}
	out := pack(t, taskSpec(), map[string]any{
		"command": "${NOMAD_TASK_DIR}/x",
		"args":    []any{"${attr.kernel.name}", "${node.unique.id}", "${meta.rack}", `${env["A.B"]}`, "${node.attr.kernel.name}", "$${raw}"},
	}, env.vars())
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
