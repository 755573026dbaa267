package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// parseJob reads a job file. vars are the -var arguments.
func parseJob(filename string, src []byte, vars map[string]string) (*Job, error) {
	file, diags := hclsyntax.ParseConfig(src, filename, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diagError(diags)
	}
	body := file.Body.(*hclsyntax.Body)
	ev, err := readVariables(body, vars)
	if err != nil {
		return nil, err
	}
	var job *Job
	err = ev.readBody(body, fields{}, blocks{
		"variable": nil,
		"locals":   nil,
		"job": func(b *hclsyntax.Block) error {
			if job != nil {
				return fmt.Errorf("%s: only one job block is allowed", b.DefRange())
			}
			var err error
			job, err = ev.job(b)
			return err
		},
	})
	if err == nil && job == nil {
		err = fmt.Errorf("%s: no job block", filename)
	}
	if err != nil {
		return nil, err
	}
	return job, job.validate()
}

// readVariables evaluates the variable and locals blocks.
func readVariables(body *hclsyntax.Body, given map[string]string) (*evaluator, error) {
	ev := &evaluator{vars: map[string]cty.Value{}}
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
	ev.vars["var"] = cty.ObjectVal(vars)
	for _, b := range body.Blocks {
		if b.Type != "locals" {
			continue
		}
		for name, attr := range b.Body.Attributes {
			v, err := ev.value(attr.Expr)
			if err != nil {
				return nil, err
			}
			locals[name] = v
		}
	}
	ev.vars["local"] = cty.ObjectVal(locals)
	return ev, nil
}

// variable returns a variable's value: -var, then NOMAD_VAR_name, then its default.
func variable(b *hclsyntax.Block, name string, given map[string]string) (cty.Value, error) {
	ty := cty.DynamicPseudoType
	if attr, ok := b.Body.Attributes["type"]; ok {
		var diags hcl.Diagnostics
		if ty, diags = typeexpr.TypeConstraint(attr.Expr); diags.HasErrors() {
			return cty.NilVal, diagError(diags)
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
			return cty.NilVal, diagError(diags)
		}
		if v, diags = expr.Value(nil); diags.HasErrors() {
			return cty.NilVal, diagError(diags)
		}
	case attr != nil:
		var diags hcl.Diagnostics
		if v, diags = attr.Expr.Value(nil); diags.HasErrors() {
			return cty.NilVal, diagError(diags)
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

func (ev *evaluator) job(b *hclsyntax.Block) (*Job, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	j := &Job{ID: name, Namespace: "default", Region: "global", Type: "service", Priority: 50}
	err = ev.readBody(b.Body, fields{
		"id": &j.ID, "name": &j.Name, "type": &j.Type, "namespace": &j.Namespace, "region": &j.Region,
		"priority": &j.Priority, "datacenters": &j.Datacenters, "meta": &j.Meta, "node_pool": ignored{}, "all_at_once": ignored{},
	}, blocks{
		"group": func(b *hclsyntax.Block) error {
			g, err := ev.group(b, j.Type)
			j.TaskGroups = append(j.TaskGroups, g)
			return err
		},
		"task": func(b *hclsyntax.Block) error { // a group of its own
			t, err := ev.task(b, nil)
			if err == nil {
				j.TaskGroups = append(j.TaskGroups, &TaskGroup{Name: t.Name, Count: 1, Restart: t.Restart, Tasks: []*Task{t}})
			}
			return err
		},
		"meta":       func(b *hclsyntax.Block) error { return ev.stringMap(b, &j.Meta) },
		"constraint": nil, "affinity": nil, "spread": nil, "update": nil, "reschedule": nil, "migrate": nil, "ui": nil,
	})
	if j.Name == "" {
		j.Name = j.ID
	}
	return j, err
}

// stringMap reads a block of free-form string attributes.
func (ev *evaluator) stringMap(b *hclsyntax.Block, into *map[string]string) error {
	if *into == nil {
		*into = map[string]string{}
	}
	for name, attr := range b.Body.Attributes {
		v, err := ev.value(attr.Expr)
		if err != nil {
			return err
		}
		s, err := text(v)
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

// taskName forbids what cannot be a directory's name.
var taskName = regexp.MustCompile(`^[^/\x00]+$`)

// validate checks what Nomad's server would refuse, and applies defaults that
// depend on the job as a whole.
func (j *Job) validate() error {
	if j.Type != "service" && j.Type != "batch" {
		return fmt.Errorf("job %q: type %q is not supported here, only service and batch", j.ID, j.Type)
	}
	if strings.ContainsAny(j.ID, " \x00") || j.ID == "" {
		return fmt.Errorf("job id %q contains a space or is empty", j.ID)
	}
	if len(j.TaskGroups) == 0 {
		return fmt.Errorf("job %q has no group", j.ID)
	}
	groups := map[string]bool{}
	for _, g := range j.TaskGroups {
		if groups[g.Name] {
			return fmt.Errorf("job %q: group %q is there twice", j.ID, g.Name)
		}
		groups[g.Name] = true
		if err := g.validate(); err != nil {
			return fmt.Errorf("job %q, group %q: %w", j.ID, g.Name, err)
		}
	}
	return nil
}

func (g *TaskGroup) validate() error {
	if len(g.Tasks) == 0 {
		return fmt.Errorf("no task")
	}
	if g.Count < 0 {
		return fmt.Errorf("count %d is negative", g.Count)
	}
	tasks := map[string]bool{}
	for _, t := range g.Tasks {
		switch {
		case tasks[t.Name]:
			return fmt.Errorf("task %q is there twice", t.Name)
		case !taskName.MatchString(t.Name) || t.Name == "." || t.Name == "..":
			return fmt.Errorf("task name %q cannot name a directory", t.Name)
		case t.Driver == "":
			return fmt.Errorf("task %q: missing driver", t.Name)
		case t.Resources.CPU > 0 && t.Resources.Cores > 0:
			return fmt.Errorf("task %q can only ask for 'cpu' or 'cores' resource, not both", t.Name)
		case t.Resources.MemoryMaxMB != 0 && t.Resources.MemoryMaxMB != -1 && t.Resources.MemoryMaxMB < t.Resources.MemoryMB:
			return fmt.Errorf("task %q: memory_max %d is below memory %d", t.Name, t.Resources.MemoryMaxMB, t.Resources.MemoryMB)
		}
		tasks[t.Name] = true
	}
	return nil
}
