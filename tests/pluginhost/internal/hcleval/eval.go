// Package hcleval evaluates HCL the way Nomad does: job files when they are
// submitted, agent configurations, and what a driver's schema decodes.
package hcleval

import (
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// Functions are the functions that a job may call; Nomad's functions that read
// files or the clock are left out.
var Functions = map[string]function.Function{
	"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc,
	"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc,
	"coalescelist": stdlib.CoalesceListFunc, "compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc,
	"contains": stdlib.ContainsFunc, "distinct": stdlib.DistinctFunc, "element": stdlib.ElementFunc,
	"flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
	"formatlist": stdlib.FormatListFunc, "indent": stdlib.IndentFunc, "index": stdlib.IndexFunc,
	"join": stdlib.JoinFunc, "jsondecode": stdlib.JSONDecodeFunc, "jsonencode": stdlib.JSONEncodeFunc,
	"keys": stdlib.KeysFunc, "length": stdlib.LengthFunc, "lookup": stdlib.LookupFunc,
	"lower": stdlib.LowerFunc, "max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc,
	"parseint": stdlib.ParseIntFunc, "range": stdlib.RangeFunc, "regex": stdlib.RegexFunc,
	"replace": stdlib.ReplaceFunc, "reverse": stdlib.ReverseListFunc, "slice": stdlib.SliceFunc,
	"sort": stdlib.SortFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc,
	"strrev": stdlib.ReverseFunc, "substr": stdlib.SubstrFunc, "title": stdlib.TitleFunc,
	"tonumber": stdlib.MakeToFunc(cty.Number), "tostring": stdlib.MakeToFunc(cty.String),
	"trim": stdlib.TrimFunc, "trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc,
	"trimsuffix": stdlib.TrimSuffixFunc, "upper": stdlib.UpperFunc, "values": stdlib.ValuesFunc,
	"zipmap": stdlib.ZipmapFunc,
}

// Evaluator evaluates expressions when a job is submitted. Names that only the
// client knows (NOMAD_*, attr, node, meta, env) stay as text, "${NOMAD_TASK_DIR}",
// for the client to fill in when the task starts.
type Evaluator struct {
	Vars map[string]cty.Value // var, local
}

// Value evaluates one expression.
func (ev *Evaluator) Value(expr hcl.Expression) (cty.Value, error) {
	late := map[string]any{}
	for _, trav := range expr.Variables() {
		if _, known := ev.Vars[trav.RootName()]; !known {
			if err := keepText(late, trav); err != nil {
				return cty.NilVal, err
			}
		}
	}
	ctx := &hcl.EvalContext{Functions: Functions, Variables: map[string]cty.Value{}}
	for name, v := range late {
		ctx.Variables[name] = Tree(v)
	}
	for name, v := range ev.Vars {
		ctx.Variables[name] = v
	}
	v, diags := expr.Value(ctx)
	if diags.HasErrors() {
		return cty.NilVal, DiagError(diags)
	}
	return v, nil
}

// keepText makes the traversal a.b.c evaluate to the text "${a.b.c}".
func keepText(into map[string]any, trav hcl.Traversal) error {
	path := []string{trav.RootName()}
	text := trav.RootName()
	for _, step := range trav[1:] {
		switch s := step.(type) {
		case hcl.TraverseAttr:
			path, text = append(path, s.Name), text+"."+s.Name
		case hcl.TraverseIndex:
			if s.Key.Type() != cty.String {
				return fmt.Errorf("%s: index of %s must be a string", trav.SourceRange(), text)
			}
			path, text = append(path, s.Key.AsString()), text+`["`+s.Key.AsString()+`"]`
		default:
			return fmt.Errorf("%s: unsupported reference to %s", trav.SourceRange(), text)
		}
	}
	for _, name := range path[:len(path)-1] {
		next, ok := into[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			into[name] = next
		}
		into = next
	}
	if _, deeper := into[path[len(path)-1]].(map[string]any); !deeper {
		into[path[len(path)-1]] = "${" + text + "}"
	}
	return nil
}

// Tree turns nested maps of strings into nested objects.
func Tree(v any) cty.Value {
	if s, ok := v.(string); ok {
		return cty.StringVal(s)
	}
	out := map[string]cty.Value{}
	for k, child := range v.(map[string]any) {
		out[k] = Tree(child)
	}
	return cty.ObjectVal(out)
}

// Plain turns a free-form body into plain data: attributes by value, each
// block type as a list of objects, labels as nested objects.
func (ev *Evaluator) Plain(body *hclsyntax.Body) (map[string]any, error) {
	out := map[string]any{}
	for name, attr := range body.Attributes {
		v, err := ev.Value(attr.Expr)
		if err != nil {
			return nil, err
		}
		p, err := plain(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", attr.SrcRange, name, err)
		}
		out[name] = p
	}
	for _, block := range body.Blocks {
		inner, err := ev.Plain(block.Body)
		if err != nil {
			return nil, err
		}
		var item any = inner
		for i := len(block.Labels) - 1; i >= 0; i-- {
			item = map[string]any{block.Labels[i]: item}
		}
		list, _ := out[block.Type].([]any)
		if list == nil && out[block.Type] != nil {
			return nil, fmt.Errorf("%s: %s is both an attribute and a block", block.DefRange(), block.Type)
		}
		out[block.Type] = append(list, item)
	}
	return out, nil
}

// plain converts a value to what encoding/json writes.
func plain(v cty.Value) (any, error) {
	if v.IsNull() {
		return nil, nil
	}
	if !v.IsWhollyKnown() {
		return nil, fmt.Errorf("value is not known")
	}
	ty := v.Type()
	switch {
	case ty == cty.String:
		return v.AsString(), nil
	case ty == cty.Bool:
		return v.True(), nil
	case ty == cty.Number:
		if i, acc := v.AsBigFloat().Int64(); acc == 0 {
			return i, nil
		}
		f, _ := v.AsBigFloat().Float64()
		return f, nil
	case ty.IsListType() || ty.IsTupleType() || ty.IsSetType():
		out := []any{}
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			p, err := plain(e)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		return out, nil
	case ty.IsMapType() || ty.IsObjectType():
		out := map[string]any{}
		for it := v.ElementIterator(); it.Next(); {
			k, e := it.Element()
			p, err := plain(e)
			if err != nil {
				return nil, err
			}
			out[k.AsString()] = p
		}
		return out, nil
	}
	return nil, fmt.Errorf("unsupported type %s", ty.FriendlyName())
}

// Text converts a value to a string, as Nomad does for env, meta and the like.
func Text(v cty.Value) (string, error) {
	s, err := convert.Convert(v, cty.String)
	if err != nil {
		return "", err
	}
	if s.IsNull() {
		return "", fmt.Errorf("null is not a string")
	}
	return s.AsString(), nil
}

// DiagError turns each error of diags into a line.
func DiagError(diags hcl.Diagnostics) error {
	var errs []error
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		where := ""
		// InMemory has no lines that a user could look up.
		if d.Subject != nil && d.Subject.Filename != InMemory {
			where = d.Subject.String() + ": "
		}
		errs = append(errs, fmt.Errorf("%s%s: %s", where, d.Summary, d.Detail))
	}
	return errors.Join(errs...)
}

// InMemory is the file name of a block that does not come from a file.
const InMemory = "config"
