package schema

import (
	"encoding/json"
	"fmt"

	"pluginhost/internal/hcleval"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcldec"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"
)

// decode runs a config block, given as plain data, through a plugin's schema.
func decode(config map[string]any, spec hcldec.Spec, vars map[string]cty.Value) (cty.Value, error) {
	if config == nil {
		config = map[string]any{}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return cty.NilVal, err
	}
	file, diags := hcljson.Parse(raw, hcleval.InMemory)
	if diags.HasErrors() {
		return cty.NilVal, hcleval.DiagError(diags)
	}
	v, diags := hcldec.Decode(file.Body, spec, &hcl.EvalContext{Variables: vars, Functions: hcleval.Functions})
	if diags.HasErrors() {
		return cty.NilVal, hcleval.DiagError(diags)
	}
	return v, nil
}

// Pack returns the wire form of a config block, which is plain data: strings in
// it are HCL templates over vars, as in the Nomad client.
func Pack(config map[string]any, spec hcldec.Spec, vars map[string]cty.Value) ([]byte, error) {
	v, err := decode(config, spec, vars)
	if err != nil {
		return nil, fmt.Errorf("failed to parse config: %w", err)
	}
	raw, err := msgpack.Marshal(v, v.Type())
	if err != nil {
		return nil, fmt.Errorf("failed to encode driver config: %w", err)
	}
	return raw, nil
}
