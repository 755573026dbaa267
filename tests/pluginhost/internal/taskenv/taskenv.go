// Package taskenv builds a task's environment and renders its templates, in the
// order and with the names that Nomad has.
package taskenv

import (
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"pluginhost/internal/hcleval"
	"pluginhost/internal/ids"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
)

// denylist has the variables of the agent that no task gets.
var denylist = []string{
	"CONSUL_TOKEN", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "NOMAD_TOKEN", "VAULT_TOKEN",
	"CONSUL_LICENSE", "NOMAD_LICENSE", "VAULT_LICENSE",
	"CONSUL_LICENSE_PATH", "NOMAD_LICENSE_PATH", "VAULT_LICENSE_PATH",
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_METADATA_URL",
	"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN",
}

// Env is a task's environment and the node's attributes, for interpolation.
type Env struct {
	Vars map[string]string
	node map[string]string
}

// reference is what Nomad replaces in plain strings.
var reference = regexp.MustCompile(`\$\{[a-zA-Z0-9_\-.]+\}`)

// Expand replaces each known ${name}; unknown ones stay.
func (e *Env) Expand(s string) string {
	return reference.ReplaceAllStringFunc(s, func(m string) string {
		name := m[2 : len(m)-1]
		if v, ok := e.Vars[name]; ok {
			return v
		}
		if v, ok := e.node[name]; ok {
			return v
		}
		return m
	})
}

// Names is the tree of names that a task's config block may use.
func (e *Env) Names() map[string]cty.Value {
	tree := map[string]any{}
	for k, v := range e.Vars {
		nest(tree, k, v)
	}
	for k, v := range e.node {
		nest(tree, k, v)
	}
	node, ok := tree["node"].(map[string]any)
	if !ok {
		node = map[string]any{}
		tree["node"] = node
	}
	for _, k := range []string{"attr", "meta"} {
		if sub, ok := tree[k]; ok {
			node[k] = sub
		}
	}
	out := map[string]cty.Value{}
	for k, v := range tree {
		out[k] = hcleval.Tree(v)
	}
	env := map[string]cty.Value{}
	for k, v := range e.Vars {
		env[k] = cty.StringVal(v)
	}
	if len(env) > 0 {
		out["env"] = cty.MapVal(env)
	}
	return out
}

// nest stores v at the dotted key k. A key that is also the parent of others
// yields to them; malformed keys are left out, as in Nomad.
func nest(tree map[string]any, k, v string) {
	parts := strings.Split(k, ".")
	for _, p := range parts {
		if p == "" {
			return
		}
	}
	for _, p := range parts[:len(parts)-1] {
		next, ok := tree[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			tree[p] = next
		}
		tree = next
	}
	last := parts[len(parts)-1]
	if _, deeper := tree[last].(map[string]any); !deeper {
		tree[last] = v
	}
}

// Input is everything that a task's environment is made of.
type Input struct {
	Alloc       *nomad.Allocation
	Index       int // of the alloc in its group
	Group       *nomad.TaskGroup
	Task        *nomad.Task
	Node        map[string]string // node.unique.id, attr.…, meta.…
	Cgroup      string            // the parent slice
	Cores       string            // reserved cores, a CPU list
	CPU         int64             // MHz
	AllocDir    string
	LocalDir    string
	SecretsDir  string
	Tokens      map[string]string // by identity
	TemplateEnv map[string]string
	HostEnv     []string
}

// Build puts a task's environment together in Nomad's order.
func Build(in Input) *Env {
	a, t := in.Alloc, in.Task
	e := &Env{node: in.Node, Vars: map[string]string{
		"NOMAD_ALLOC_DIR": in.AllocDir, "NOMAD_TASK_DIR": in.LocalDir, "NOMAD_SECRETS_DIR": in.SecretsDir,
		"NOMAD_ALLOC_ID": a.ID, "NOMAD_SHORT_ALLOC_ID": ids.Short(a.ID), "NOMAD_ALLOC_NAME": a.Name,
		"NOMAD_GROUP_NAME": a.TaskGroup, "NOMAD_ALLOC_INDEX": strconv.Itoa(in.Index), "NOMAD_TASK_NAME": t.Name,
		"NOMAD_JOB_ID": a.JobID, "NOMAD_JOB_NAME": *a.Job.Name, "NOMAD_DC": "dc1", "NOMAD_NAMESPACE": *a.Job.Namespace,
		"NOMAD_REGION": *a.Job.Region, "NOMAD_PARENT_CGROUP": in.Cgroup, "NOMAD_CPU_CORES": in.Cores,
		"NOMAD_CPU_LIMIT": strconv.FormatInt(in.CPU, 10), "NOMAD_MEMORY_LIMIT": strconv.Itoa(*t.Resources.MemoryMB),
	}}
	if limit := t.Resources.MemoryMaxMB; limit != nil && *limit != 0 {
		e.Vars["NOMAD_MEMORY_MAX_LIMIT"] = strconv.Itoa(*limit)
	}
	if a.AllocatedResources != nil {
		for _, p := range a.AllocatedResources.Shared.Ports {
			e.addPort(p, a.NetworkStatus)
		}
	}
	for name, token := range in.Tokens {
		key := "NOMAD_TOKEN"
		if name != "default" {
			key += "_" + name
		}
		e.Vars[key] = token
	}
	for _, meta := range []map[string]string{a.Job.Meta, in.Group.Meta, t.Meta} {
		for k, v := range meta {
			e.Vars[cleanName("NOMAD_META_"+k)] = e.Expand(v)
			e.Vars[cleanName("NOMAD_META_"+strings.ToUpper(k))] = e.Expand(v)
		}
	}
	e.addHost(in.HostEnv)
	own := map[string]string{}
	for k, v := range t.Env {
		own[k] = e.Expand(v)
	}
	maps.Copy(e.Vars, own)
	maps.Copy(e.Vars, in.TemplateEnv)
	return e
}

// addHost adds the agent's environment, except for what a task has already or
// must not have.
func (e *Env) addHost(environ []string) {
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if _, set := e.Vars[k]; !set && !slices.Contains(denylist, k) && k != "" {
			e.Vars[k] = e.Expand(v)
		}
	}
}

// addPort adds the variables that describe a port of the group.
func (e *Env) addPort(p nomad.PortMapping, network *nomad.AllocNetworkStatus) {
	name, env := cleanName(p.Label), e.Vars
	host := strconv.Itoa(p.Value)
	inside := host
	if p.To > 0 {
		inside = strconv.Itoa(p.To)
	}
	env["NOMAD_IP_"+name], env["NOMAD_HOST_IP_"+name] = p.HostIP, p.HostIP
	env["NOMAD_ADDR_"+name] = net.JoinHostPort(p.HostIP, host)
	env["NOMAD_HOST_ADDR_"+name] = net.JoinHostPort(p.HostIP, host)
	env["NOMAD_HOST_PORT_"+name] = host
	env["NOMAD_PORT_"+name], env["NOMAD_ALLOC_PORT_"+name] = inside, inside
	if network != nil && network.Address != "" {
		env["NOMAD_ALLOC_INTERFACE_"+name] = network.InterfaceName
		env["NOMAD_ALLOC_IP_"+name] = network.Address
		env["NOMAD_ALLOC_ADDR_"+name] = net.JoinHostPort(network.Address, inside)
	}
}

// cleanName replaces the characters that a variable's name cannot have in a shell.
func cleanName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '_'
	}, s)
}
