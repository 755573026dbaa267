package main

import (
	"maps"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"
)

// envDenylist are the agent's variables that no task gets.
var envDenylist = []string{
	"CONSUL_TOKEN", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "NOMAD_TOKEN", "VAULT_TOKEN",
	"CONSUL_LICENSE", "NOMAD_LICENSE", "VAULT_LICENSE",
	"CONSUL_LICENSE_PATH", "NOMAD_LICENSE_PATH", "VAULT_LICENSE_PATH",
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_METADATA_URL",
	"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN",
}

// taskEnv is a task's environment and the node's attributes, for interpolation.
type taskEnv struct {
	env  map[string]string
	node map[string]string
}

// reference is what Nomad replaces in free text.
var reference = regexp.MustCompile(`\$\{[a-zA-Z0-9_\-.]+\}`)

// expand replaces each known ${name}; unknown ones stay.
func (e *taskEnv) expand(s string) string {
	return reference.ReplaceAllStringFunc(s, func(m string) string {
		name := m[2 : len(m)-1]
		if v, ok := e.env[name]; ok {
			return v
		}
		if v, ok := e.node[name]; ok {
			return v
		}
		return m
	})
}

// vars is the tree of names that a task's config block may use.
func (e *taskEnv) vars() map[string]cty.Value {
	tree := map[string]any{}
	for k, v := range e.env {
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
		out[k] = textTree(v)
	}
	env := map[string]cty.Value{}
	for k, v := range e.env {
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

// envInput is all that a task's environment is made of.
type envInput struct {
	alloc       *Alloc
	group       *TaskGroup
	task        *Task
	node        map[string]string // node.unique.id, attr.…, meta.…
	allocDir    string
	localDir    string
	secretsDir  string
	cpu         int64 // MHz
	tokens      map[string]string
	templateEnv map[string]string
	hostEnv     []string
}

// buildEnv puts a task's environment together in Nomad's order.
func buildEnv(in envInput) *taskEnv {
	a, t := in.alloc, in.task
	env := map[string]string{
		"NOMAD_ALLOC_DIR": in.allocDir, "NOMAD_TASK_DIR": in.localDir, "NOMAD_SECRETS_DIR": in.secretsDir,
		"NOMAD_ALLOC_ID": a.ID, "NOMAD_SHORT_ALLOC_ID": short(a.ID), "NOMAD_ALLOC_NAME": a.Name,
		"NOMAD_GROUP_NAME": a.TaskGroup, "NOMAD_ALLOC_INDEX": strconv.Itoa(a.Index), "NOMAD_TASK_NAME": t.Name,
		"NOMAD_JOB_ID": a.JobID, "NOMAD_JOB_NAME": a.Job.Name, "NOMAD_DC": "dc1", "NOMAD_NAMESPACE": a.Job.Namespace,
		"NOMAD_REGION": a.Job.Region, "NOMAD_PARENT_CGROUP": cgroupParent, "NOMAD_CPU_CORES": cpuList(a.Cores[t.Name]),
		"NOMAD_CPU_LIMIT": strconv.FormatInt(in.cpu, 10), "NOMAD_MEMORY_LIMIT": strconv.Itoa(t.Resources.MemoryMB),
	}
	if t.Resources.MemoryMaxMB != 0 {
		env["NOMAD_MEMORY_MAX_LIMIT"] = strconv.Itoa(t.Resources.MemoryMaxMB)
	}
	portEnv(env, a)
	for name, token := range in.tokens {
		key := "NOMAD_TOKEN"
		if name != "default" {
			key += "_" + name
		}
		env[key] = token
	}
	e := &taskEnv{env: env, node: in.node}
	for _, meta := range []map[string]string{a.Job.Meta, in.group.Meta, t.Meta} {
		for k, v := range meta {
			env[cleanName("NOMAD_META_"+k)] = e.expand(v)
			env[cleanName("NOMAD_META_"+strings.ToUpper(k))] = e.expand(v)
		}
	}
	deny := map[string]bool{}
	for _, k := range envDenylist {
		deny[k] = true
	}
	for _, kv := range in.hostEnv {
		k, v, _ := strings.Cut(kv, "=")
		if _, set := env[k]; !set && !deny[k] && k != "" {
			env[k] = e.expand(v)
		}
	}
	own := map[string]string{}
	for k, v := range t.Env {
		own[k] = e.expand(v)
	}
	maps.Copy(env, own)
	maps.Copy(env, in.templateEnv)
	return e
}

// portEnv adds the variables that describe the group's ports.
func portEnv(env map[string]string, a *Alloc) {
	for _, p := range a.Ports {
		name := cleanName(p.Label)
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
		if n := a.NetworkStatus; n != nil && n.Address != "" {
			env["NOMAD_ALLOC_INTERFACE_"+name] = n.InterfaceName
			env["NOMAD_ALLOC_IP_"+name] = n.Address
			env["NOMAD_ALLOC_ADDR_"+name] = net.JoinHostPort(n.Address, inside)
		}
	}
}

// cleanName replaces what a shell cannot have in a variable's name.
func cleanName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '_'
	}, s)
}
