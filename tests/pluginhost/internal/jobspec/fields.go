package main

import (
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/gocty"
)

// ignored marks an attribute that is evaluated and then not used.
type ignored struct{}

// fields maps the attributes that a block may have to where they go.
type fields map[string]any

// blocks maps the block types that a body may have to their readers. A nil
// reader accepts the block unread.
type blocks map[string]func(*hclsyntax.Block) error

// readBody fills in attributes and hands blocks on. What neither knows is an
// error with its place in the file, as in Nomad.
func (ev *evaluator) readBody(body *hclsyntax.Body, f fields, b blocks) error {
	for name, attr := range body.Attributes {
		dst, ok := f[name]
		if !ok {
			// Nomad takes a few blocks (env, meta, config) as attributes too.
			return fmt.Errorf("%s: argument %q is not expected here", attr.SrcRange, name)
		}
		v, err := ev.value(attr.Expr)
		if err != nil {
			return err
		}
		if err := assign(dst, v); err != nil {
			return fmt.Errorf("%s: %s: %w", attr.SrcRange, name, err)
		}
	}
	for _, block := range body.Blocks {
		read, ok := b[block.Type]
		if !ok {
			return fmt.Errorf("%s: blocks of type %q are not expected here", block.DefRange(), block.Type)
		}
		if read == nil {
			continue
		}
		if err := read(block); err != nil {
			return err
		}
	}
	return nil
}

// assign stores v in what dst points to, with HCL's conversions.
func assign(dst any, v cty.Value) error {
	switch d := dst.(type) {
	case ignored:
		return nil
	case *time.Duration:
		if v.Type() == cty.Number {
			var ns int64
			if err := gocty.FromCtyValue(v, &ns); err != nil {
				return err
			}
			*d = time.Duration(ns)
			return nil
		}
		s, err := text(v)
		if err != nil {
			return err
		}
		*d, err = time.ParseDuration(s)
		return err
	case *map[string]string:
		return assignAs(d, v, cty.Map(cty.String))
	case *[]string:
		return assignAs(d, v, cty.List(cty.String))
	case *string:
		return assignAs(d, v, cty.String)
	case *int:
		return assignAs(d, v, cty.Number)
	case *bool:
		return assignAs(d, v, cty.Bool)
	}
	return fmt.Errorf("no conversion to %T", dst)
}

func assignAs(dst any, v cty.Value, ty cty.Type) error {
	c, err := convert.Convert(v, ty)
	if err != nil {
		return err
	}
	if c.IsNull() {
		return nil // as if it were not there
	}
	return gocty.FromCtyValue(c, dst)
}

// label returns a block's only label.
func label(b *hclsyntax.Block) (string, error) {
	if len(b.Labels) != 1 {
		return "", fmt.Errorf("%s: %s needs one label, its name", b.DefRange(), b.Type)
	}
	return b.Labels[0], nil
}
