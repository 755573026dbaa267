package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcldec"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"
)

// decodeConfig runs a config block, given as plain data, through a plugin's
// schema: strings are HCL templates over vars, as in the Nomad client.
func decodeConfig(config map[string]any, spec hcldec.Spec, vars map[string]cty.Value) (cty.Value, error) {
	if config == nil {
		config = map[string]any{}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return cty.NilVal, err
	}
	file, diags := hcljson.Parse(raw, "config")
	if diags.HasErrors() {
		return cty.NilVal, diagError(diags)
	}
	v, diags := hcldec.Decode(file.Body, spec, &hcl.EvalContext{Variables: vars, Functions: jobFunctions})
	if diags.HasErrors() {
		return cty.NilVal, diagError(diags)
	}
	return v, nil
}

// encodeConfig is the wire form of a decoded config block.
func encodeConfig(v cty.Value) ([]byte, error) { return msgpack.Marshal(v, v.Type()) }

// packConfig decodes and encodes in one step.
func packConfig(config map[string]any, spec hcldec.Spec, vars map[string]cty.Value) ([]byte, error) {
	v, err := decodeConfig(config, spec, vars)
	if err != nil {
		return nil, fmt.Errorf("failed to parse config: %w", err)
	}
	raw, err := encodeConfig(v)
	if err != nil {
		return nil, fmt.Errorf("failed to encode driver config: %w", err)
	}
	return raw, nil
}

// diagError joins diagnostics into one line each.
func diagError(diags hcl.Diagnostics) error {
	var errs []error
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		where := ""
		if d.Subject != nil && d.Subject.Filename != "config" {
			where = d.Subject.String() + ": "
		}
		errs = append(errs, fmt.Errorf("%s%s: %s", where, d.Summary, d.Detail))
	}
	return errors.Join(errs...)
}
