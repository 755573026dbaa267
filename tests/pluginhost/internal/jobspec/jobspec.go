// Package jobspec reads job files into the job of Nomad's API. It supports the
// part of the language that the host can run; anything else is an error.
package jobspec

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"pluginhost/internal/hcleval"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// parser reads one job file.
type parser struct{ hcleval.Evaluator }

// Parse reads a job file and applies Nomad's defaults. vars are the -var arguments.
func Parse(filename string, src []byte, vars map[string]string) (*nomad.Job, error) {
	file, diags := hclsyntax.ParseConfig(src, filename, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, hcleval.DiagError(diags)
	}
	body := file.Body.(*hclsyntax.Body)
	p, err := readVariables(body, vars)
	if err != nil {
		return nil, err
	}
	var job *nomad.Job
	err = p.readBody(body, fields{}, blocks{
		"variable": nil,
		"locals":   nil,
		"job": func(b *hclsyntax.Block) error {
			if job != nil {
				return fmt.Errorf("%s: only one job block is allowed", b.DefRange())
			}
			var err error
			job, err = p.job(b)
			return err
		},
	})
	if err == nil && job == nil {
		err = fmt.Errorf("%s: no job block", filename)
	}
	if err != nil {
		return nil, err
	}
	job.Canonicalize()
	return job, validate(job)
}

// readVariables evaluates the variable and locals blocks.
func readVariables(body *hclsyntax.Body, given map[string]string) (*parser, error) {
	p := &parser{hcleval.Evaluator{Vars: map[string]cty.Value{}}}
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	for _, b := range body.Blocks {
		if b.Type != "variable" {
			continue
		}
		name, err := label(b)
		if err != nil {
			return nil, err
		}
		if vars[name], err = variable(b, name, given); err != nil {
			return nil, err
		}
	}
	for name := range given {
		if _, ok := vars[name]; !ok {
			return nil, fmt.Errorf("variable %q was given with -var, but the job does not declare it", name)
		}
	}
	p.Vars["var"] = cty.ObjectVal(vars)
	for _, b := range body.Blocks {
		if b.Type != "locals" {
			continue
		}
		for name, attr := range b.Body.Attributes {
			v, err := p.Value(attr.Expr)
			if err != nil {
				return nil, err
			}
			locals[name] = v
		}
	}
	p.Vars["local"] = cty.ObjectVal(locals)
	return p, nil
}

// variable returns a variable's value: -var, then NOMAD_VAR_name, then its default.
func variable(b *hclsyntax.Block, name string, given map[string]string) (cty.Value, error) {
	ty := cty.DynamicPseudoType
	if attr, ok := b.Body.Attributes["type"]; ok {
		var diags hcl.Diagnostics
		if ty, diags = typeexpr.TypeConstraint(attr.Expr); diags.HasErrors() {
			return cty.NilVal, hcleval.DiagError(diags)
		}
	}
	src, ok := given[name]
	if !ok {
		src, ok = os.LookupEnv("NOMAD_VAR_" + name)
	}
	var v cty.Value
	switch attr := b.Body.Attributes["default"]; {
	case ok && (ty == cty.String || ty == cty.DynamicPseudoType):
		v = cty.StringVal(src)
	case ok:
		expr, diags := hclsyntax.ParseExpression([]byte(src), "-var "+name, hcl.InitialPos)
		if diags.HasErrors() {
			return cty.NilVal, hcleval.DiagError(diags)
		}
		if v, diags = expr.Value(nil); diags.HasErrors() {
			return cty.NilVal, hcleval.DiagError(diags)
		}
	case attr != nil:
		var diags hcl.Diagnostics
		if v, diags = attr.Expr.Value(nil); diags.HasErrors() {
			return cty.NilVal, hcleval.DiagError(diags)
		}
	default:
		return cty.NilVal, fmt.Errorf("%s: variable %q has no value and no default", b.DefRange(), name)
	}
	v, err := convert.Convert(v, ty)
	if err != nil {
		return cty.NilVal, fmt.Errorf("variable %q: %w", name, err)
	}
	return v, nil
}

func (p *parser) job(b *hclsyntax.Block) (*nomad.Job, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	j := &nomad.Job{ID: &name}
	return j, p.readBody(b.Body, fields{
		"id": &j.ID, "name": &j.Name, "type": &j.Type, "namespace": &j.Namespace, "region": &j.Region,
		"priority": &j.Priority, "datacenters": &j.Datacenters, "meta": &j.Meta, "node_pool": &j.NodePool, "all_at_once": &j.AllAtOnce,
	}, blocks{
		"group": func(b *hclsyntax.Block) error {
			g, err := p.group(b)
			j.TaskGroups = append(j.TaskGroups, g)
			return err
		},
		"task": func(b *hclsyntax.Block) error { // a group of its own
			t, err := p.task(b)
			if err == nil {
				j.TaskGroups = append(j.TaskGroups, &nomad.TaskGroup{Name: &t.Name, Tasks: []*nomad.Task{t}})
			}
			return err
		},
		"meta":       func(b *hclsyntax.Block) error { return p.stringMap(b, &j.Meta) },
		"constraint": nil, "affinity": nil, "spread": nil, "update": nil, "reschedule": nil, "migrate": nil, "ui": nil,
	})
}

// stringMap reads a block of free-form string attributes.
func (p *parser) stringMap(b *hclsyntax.Block, into *map[string]string) error {
	if *into == nil {
		*into = map[string]string{}
	}
	for name, attr := range b.Body.Attributes {
		v, err := p.Value(attr.Expr)
		if err != nil {
			return err
		}
		s, err := hcleval.Text(v)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", attr.SrcRange, name, err)
		}
		(*into)[name] = s
	}
	if len(b.Body.Blocks) > 0 {
		return fmt.Errorf("%s: %s holds only attributes", b.Body.Blocks[0].DefRange(), b.Type)
	}
	return nil
}

// taskName excludes names that no directory can have.
var taskName = regexp.MustCompile(`^[^/\x00]+$`)

// validate checks what Nomad's server would refuse.
func validate(j *nomad.Job) error {
	if *j.Type != nomad.JobTypeService && *j.Type != nomad.JobTypeBatch {
		return fmt.Errorf("job %q: type %q is not supported here, only service and batch", *j.ID, *j.Type)
	}
	if strings.ContainsAny(*j.ID, " \x00") || *j.ID == "" {
		return fmt.Errorf("job id %q contains a space or is empty", *j.ID)
	}
	if len(j.TaskGroups) == 0 {
		return fmt.Errorf("job %q has no group", *j.ID)
	}
	groups := map[string]bool{}
	for _, g := range j.TaskGroups {
		if groups[*g.Name] {
			return fmt.Errorf("job %q: group %q is defined twice", *j.ID, *g.Name)
		}
		groups[*g.Name] = true
		if err := validateGroup(g); err != nil {
			return fmt.Errorf("job %q, group %q: %w", *j.ID, *g.Name, err)
		}
	}
	return nil
}

func validateGroup(g *nomad.TaskGroup) error {
	if len(g.Tasks) == 0 {
		return errors.New("no task")
	}
	if *g.Count < 0 {
		return fmt.Errorf("count %d is negative", *g.Count)
	}
	tasks := map[string]bool{}
	for _, t := range g.Tasks {
		if tasks[t.Name] {
			return fmt.Errorf("task %q is defined twice", t.Name)
		}
		tasks[t.Name] = true
		if err := validateTask(t); err != nil {
			return err
		}
		for _, m := range t.VolumeMounts {
			if m.Volume == nil || m.Destination == nil || g.Volumes[*m.Volume] == nil {
				return fmt.Errorf("task %q: a volume_mount needs a destination and a volume of the group", t.Name)
			}
		}
	}
	return nil
}

func validateTask(t *nomad.Task) error {
	r := t.Resources
	switch {
	case !taskName.MatchString(t.Name) || t.Name == "." || t.Name == "..":
		return fmt.Errorf("task name %q cannot name a directory", t.Name)
	case t.Driver == "":
		return fmt.Errorf("task %q: missing driver", t.Name)
	case *r.CPU > 0 && *r.Cores > 0:
		return fmt.Errorf("task %q can only ask for 'cpu' or 'cores' resource, not both", t.Name)
	case r.MemoryMaxMB != nil && *r.MemoryMaxMB != 0 && *r.MemoryMaxMB != -1 && *r.MemoryMaxMB < *r.MemoryMB:
		return fmt.Errorf("task %q: memory_max %d is below memory %d", t.Name, *r.MemoryMaxMB, *r.MemoryMB)
	case *t.LogConfig.MaxFiles < 1 || *t.LogConfig.MaxFileSizeMB < 1:
		return fmt.Errorf("task %q: logs need at least one file of 1 MB", t.Name)
	}
	return nil
}
