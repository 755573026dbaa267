// Package schema decodes config blocks by the schema that a plugin sent, and
// encodes them for the wire.
package schema

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"pluginhost/pb"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// specFunctions are the functions that the wire contract allows in literals.
var specFunctions = map[string]function.Function{
	"abs": stdlib.AbsoluteFunc, "coalesce": stdlib.CoalesceFunc, "concat": stdlib.ConcatFunc,
	"hasindex": stdlib.HasIndexFunc, "int": stdlib.IntFunc, "jsondecode": stdlib.JSONDecodeFunc,
	"jsonencode": stdlib.JSONEncodeFunc, "length": stdlib.LengthFunc, "lower": stdlib.LowerFunc,
	"max": stdlib.MaxFunc, "min": stdlib.MinFunc, "reverse": stdlib.ReverseFunc,
	"strlen": stdlib.StrlenFunc, "substr": stdlib.SubstrFunc, "upper": stdlib.UpperFunc,
}

// Convert turns the schema that a plugin sent into one that the HCL decoder runs.
func Convert(spec *pb.Spec) (hcldec.Spec, error) { return specNode(spec, "", "schema") }

// specNode converts one node. implied is its key in the enclosing object; path
// is for messages.
func specNode(spec *pb.Spec, implied, path string) (hcldec.Spec, error) {
	if spec == nil || spec.GetBlock() == nil {
		return nil, fmt.Errorf("%s: empty spec", path)
	}
	switch b := spec.GetBlock().(type) {
	case *pb.Spec_Object:
		out := hcldec.ObjectSpec{}
		for name, child := range b.Object.GetAttributes() {
			s, err := specNode(child, name, path+"."+name)
			if err != nil {
				return nil, err
			}
			out[name] = s
		}
		return out, nil
	case *pb.Spec_Array:
		out := hcldec.TupleSpec{}
		for i, child := range b.Array.GetValues() {
			s, err := specNode(child, "", fmt.Sprintf("%s[%d]", path, i))
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
		return out, nil
	case *pb.Spec_Attr:
		return attrNode(b.Attr, implied, path)
	case *pb.Spec_BlockAttrs:
		name, err := specName(b.BlockAttrs.GetName(), implied, path)
		if err != nil {
			return nil, err
		}
		ty, err := specType(b.BlockAttrs.GetType(), path)
		if err != nil {
			return nil, err
		}
		return &hcldec.BlockAttrsSpec{TypeName: name, ElementType: ty, Required: b.BlockAttrs.GetRequired()}, nil
	case *pb.Spec_Default:
		// Nomad passes no implied name into a default.
		primary, err := specNode(b.Default.GetPrimary(), "", path)
		if err != nil {
			return nil, err
		}
		fallback, err := specNode(b.Default.GetDefault(), "", path+" (default)")
		if err != nil {
			return nil, err
		}
		return &hcldec.DefaultSpec{Primary: primary, Default: fallback}, nil
	case *pb.Spec_Literal:
		return literalNode(b.Literal, path)
	default:
		return blockNode(spec, implied, path)
	}
}

// blockNode converts the four kinds that hold a nested spec.
func blockNode(spec *pb.Spec, implied, path string) (hcldec.Spec, error) {
	type nested interface {
		GetName() string
		GetNested() *pb.Spec
	}
	var n nested
	switch b := spec.GetBlock().(type) {
	case *pb.Spec_BlockValue:
		n = b.BlockValue
	case *pb.Spec_BlockList:
		n = b.BlockList
	case *pb.Spec_BlockSet:
		n = b.BlockSet
	case *pb.Spec_BlockMap:
		n = b.BlockMap
	default:
		return nil, fmt.Errorf("%s: unknown spec %T", path, b)
	}
	name, err := specName(n.GetName(), implied, path)
	if err != nil {
		return nil, err
	}
	inner, err := specNode(n.GetNested(), "", path+"{}")
	if err != nil {
		return nil, err
	}
	switch b := spec.GetBlock().(type) {
	case *pb.Spec_BlockValue:
		return &hcldec.BlockSpec{TypeName: name, Nested: inner, Required: b.BlockValue.GetRequired()}, nil
	case *pb.Spec_BlockList:
		lo, hi, err := limits(b.BlockList.GetMinItems(), b.BlockList.GetMaxItems(), path)
		return &hcldec.BlockListSpec{TypeName: name, Nested: inner, MinItems: lo, MaxItems: hi}, err
	case *pb.Spec_BlockSet:
		lo, hi, err := limits(b.BlockSet.GetMinItems(), b.BlockSet.GetMaxItems(), path)
		return &hcldec.BlockSetSpec{TypeName: name, Nested: inner, MinItems: lo, MaxItems: hi}, err
	default:
		labels := spec.GetBlockMap().GetLabels()
		if len(labels) == 0 {
			return nil, fmt.Errorf("%s: a block_map without labels", path)
		}
		return &hcldec.BlockMapSpec{TypeName: name, LabelNames: labels, Nested: inner}, nil
	}
}

func limits(lo, hi uint64, path string) (int, int, error) {
	if lo > math.MaxInt32 || hi > math.MaxInt32 {
		return 0, 0, fmt.Errorf("%s: item limits %d, %d are out of range", path, lo, hi)
	}
	return int(lo), int(hi), nil
}

func attrNode(a *pb.Attr, implied, path string) (hcldec.Spec, error) {
	name, err := specName(a.GetName(), implied, path)
	if err != nil {
		return nil, err
	}
	ty, err := specType(a.GetType(), path)
	if err != nil {
		return nil, err
	}
	return &hcldec.AttrSpec{Name: name, Type: ty, Required: a.GetRequired()}, nil
}

func literalNode(l *pb.Literal, path string) (hcldec.Spec, error) {
	expr, diags := hclsyntax.ParseExpression([]byte(l.GetValue()), path, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, fmt.Errorf("%s: literal %q: %w", path, l.GetValue(), diags)
	}
	v, diags := expr.Value(&hcl.EvalContext{Functions: specFunctions})
	if diags.HasErrors() {
		return nil, fmt.Errorf("%s: literal %q: %w", path, l.GetValue(), diags)
	}
	return &hcldec.LiteralSpec{Value: v}, nil
}

func specName(name, implied, path string) (string, error) {
	if name == "" {
		name = implied
	}
	if name == "" {
		return "", fmt.Errorf("%s: a spec without a name", path)
	}
	return name, nil
}

func specType(src, path string) (cty.Type, error) {
	expr, diags := hclsyntax.ParseExpression([]byte(src), path, hcl.InitialPos)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("%s: type %q: %w", path, src, diags)
	}
	ty, diags := typeexpr.TypeConstraint(expr)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("%s: type %q: %w", path, src, diags)
	}
	return ty, nil
}

// Names lists the options of a schema's outermost object.
func Names(spec hcldec.Spec) []string {
	if obj, ok := spec.(hcldec.ObjectSpec); ok {
		return slices.Sorted(maps.Keys(obj))
	}
	return nil
}
