package jobspec

import (
	"fmt"
	"time"

	"pluginhost/internal/hcleval"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/gocty"
)

// ignored marks an attribute that is evaluated but not used.
type ignored struct{}

// fields maps the attributes that a block may have to where they go.
type fields map[string]any

// blocks maps the block types that a body may have to their readers. A nil
// reader accepts the block unread.
type blocks map[string]func(*hclsyntax.Block) error

// readBody fills in attributes and passes blocks to their readers. Unknown ones
// are errors with their place in the file, as in Nomad.
func (p *parser) readBody(body *hclsyntax.Body, f fields, b blocks) error {
	for name, attr := range body.Attributes {
		dst, ok := f[name]
		if !ok {
			return fmt.Errorf("%s: argument %q is not expected here", attr.SrcRange, name)
		}
		v, err := p.Value(attr.Expr)
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

// assign stores v in the variable that dst points to, with HCL's conversions. A
// null leaves it as it is.
func assign(dst any, v cty.Value) error {
	if v.IsNull() {
		return nil
	}
	switch d := dst.(type) {
	case ignored:
		return nil
	case *time.Duration:
		return assignDuration(d, v)
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
	case **time.Duration:
		return assignNew(d, v)
	case **string:
		return assignNew(d, v)
	case **int:
		return assignNew(d, v)
	case **bool:
		return assignNew(d, v)
	}
	return fmt.Errorf("no conversion to %T", dst)
}

// assignNew makes dst point to a new variable that holds v.
func assignNew[T any](dst **T, v cty.Value) error {
	*dst = new(T)
	return assign(*dst, v)
}

// assignDuration takes "5s" or a number of nanoseconds.
func assignDuration(dst *time.Duration, v cty.Value) error {
	if v.Type() == cty.Number {
		return gocty.FromCtyValue(v, (*int64)(dst))
	}
	s, err := hcleval.Text(v)
	if err != nil {
		return err
	}
	*dst, err = time.ParseDuration(s)
	return err
}

func assignAs(dst any, v cty.Value, ty cty.Type) error {
	c, err := convert.Convert(v, ty)
	if err != nil {
		return err
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
