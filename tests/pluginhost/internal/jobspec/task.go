package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// The defaults of a Nomad server for what a job leaves out.
const (
	defaultCPU         = 100 // MHz
	defaultMemoryMB    = 300
	defaultKillTimeout = 5 * time.Second
	// maxKillTimeout is the client's max_kill_timeout.
	maxKillTimeout   = 30 * time.Second
	defaultSecretsMB = 1
)

// defaultRestart is the policy of a group without a restart block.
func defaultRestart(jobType string) Restart {
	if jobType == "batch" {
		return Restart{Attempts: 3, Delay: 15 * time.Second, Interval: 24 * time.Hour, Mode: "fail"}
	}
	return Restart{Attempts: 2, Delay: 15 * time.Second, Interval: 30 * time.Minute, Mode: "fail"}
}

func (ev *evaluator) group(b *hclsyntax.Block, jobType string) (*TaskGroup, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	g := &TaskGroup{Name: name, Count: 1, Restart: defaultRestart(jobType)}
	var taskBlocks []*hclsyntax.Block
	err = ev.readBody(b.Body, fields{
		"count": &g.Count, "shutdown_delay": ignored{}, "meta": &g.Meta,
	}, blocks{
		"network": func(b *hclsyntax.Block) (err error) { g.Network, err = ev.network(b); return err },
		"restart": func(b *hclsyntax.Block) error { return ev.restart(b, &g.Restart) },
		"service": func(b *hclsyntax.Block) error { return ev.service(b, &g.Services) },
		"meta":    func(b *hclsyntax.Block) error { return ev.stringMap(b, &g.Meta) },
		// Tasks inherit the group's restart policy, wherever it stands.
		"task":       func(b *hclsyntax.Block) error { taskBlocks = append(taskBlocks, b); return nil },
		"constraint": nil, "affinity": nil, "spread": nil, "reschedule": nil, "update": nil, "migrate": nil,
		"ephemeral_disk": nil, "disconnect": nil,
	})
	if err != nil {
		return nil, err
	}
	for _, tb := range taskBlocks {
		t, err := ev.task(tb, &g.Restart)
		if err != nil {
			return nil, err
		}
		g.Tasks = append(g.Tasks, t)
	}
	return g, nil
}

func (ev *evaluator) restart(b *hclsyntax.Block, r *Restart) error {
	err := ev.readBody(b.Body, fields{
		"attempts": &r.Attempts, "delay": &r.Delay, "interval": &r.Interval, "mode": &r.Mode, "render_templates": ignored{},
	}, nil)
	if err == nil && r.Mode != "fail" && r.Mode != "delay" {
		err = fmt.Errorf("%s: restart mode %q is neither fail nor delay", b.DefRange(), r.Mode)
	}
	return err
}

func (ev *evaluator) network(b *hclsyntax.Block) (*Network, error) {
	n := &Network{Mode: "host"}
	err := ev.readBody(b.Body, fields{"mode": &n.Mode, "hostname": &n.Hostname}, blocks{
		"port": func(b *hclsyntax.Block) error {
			name, err := label(b)
			if err != nil {
				return err
			}
			p := PortSpec{Label: name}
			err = ev.readBody(b.Body, fields{"static": &p.Static, "to": &p.To, "host_network": ignored{}}, nil)
			n.Ports = append(n.Ports, p)
			return err
		},
		"dns": func(b *hclsyntax.Block) error {
			n.DNS = &DNS{}
			return ev.readBody(b.Body, fields{"servers": &n.DNS.Servers, "searches": &n.DNS.Searches, "options": &n.DNS.Options}, nil)
		},
	})
	if err == nil && n.Mode != "host" && n.Mode != "bridge" && n.Mode != "none" {
		err = fmt.Errorf("%s: network mode %q is not supported here: host, bridge or none", b.DefRange(), n.Mode)
	}
	return n, err
}

func (ev *evaluator) service(b *hclsyntax.Block, into *[]Service) error {
	var s Service
	err := ev.readBody(b.Body, fields{
		"name": &s.Name, "provider": &s.Provider, "port": &s.Port, "tags": ignored{}, "address_mode": ignored{},
		"address": ignored{}, "task": ignored{}, "canary_tags": ignored{}, "on_update": ignored{},
	}, blocks{"check": nil, "meta": nil, "check_restart": nil})
	*into = append(*into, s)
	return err
}

func (ev *evaluator) task(b *hclsyntax.Block, groupRestart *Restart) (*Task, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	t := &Task{Name: name, KillTimeout: defaultKillTimeout, Logs: Logs{MaxFiles: 10, MaxFileSizeMB: 10}}
	if groupRestart != nil {
		t.Restart = *groupRestart
	} else {
		t.Restart = defaultRestart("service")
	}
	r := &t.Resources
	r.MemoryMB, r.SecretsMB = defaultMemoryMB, defaultSecretsMB
	var services []Service
	err = ev.readBody(b.Body, fields{
		"driver": &t.Driver, "user": &t.User, "kill_timeout": &t.KillTimeout, "kill_signal": &t.KillSignal,
		"shutdown_delay": &t.ShutdownDelay, "leader": &t.Leader, "env": &t.Env, "meta": &t.Meta,
	}, blocks{
		"config": func(b *hclsyntax.Block) (err error) {
			if t.Config != nil {
				return fmt.Errorf("%s: only one config block is allowed", b.DefRange())
			}
			t.Config, err = ev.plainBody(b.Body)
			return err
		},
		"env":  func(b *hclsyntax.Block) error { return ev.stringMap(b, &t.Env) },
		"meta": func(b *hclsyntax.Block) error { return ev.stringMap(b, &t.Meta) },
		"resources": func(b *hclsyntax.Block) error {
			return ev.readBody(b.Body, fields{"cpu": &r.CPU, "cores": &r.Cores, "memory": &r.MemoryMB,
				"memory_max": &r.MemoryMaxMB, "secrets": &r.SecretsMB}, nil)
		},
		"template": func(b *hclsyntax.Block) error { return ev.template(b, t) },
		"lifecycle": func(b *hclsyntax.Block) error {
			t.Lifecycle = &Lifecycle{}
			err := ev.readBody(b.Body, fields{"hook": &t.Lifecycle.Hook, "sidecar": &t.Lifecycle.Sidecar}, nil)
			if h := t.Lifecycle.Hook; err == nil && h != "prestart" && h != "poststart" && h != "poststop" {
				err = fmt.Errorf("%s: lifecycle hook %q is none of prestart, poststart, poststop", b.DefRange(), h)
			}
			return err
		},
		"identity": func(b *hclsyntax.Block) error {
			id := Identity{Name: "default"}
			err := ev.readBody(b.Body, fields{"name": &id.Name, "env": &id.Env, "file": &id.File, "aud": ignored{},
				"ttl": ignored{}, "change_mode": ignored{}, "change_signal": ignored{}}, nil)
			t.Identities = append(t.Identities, id)
			return err
		},
		"restart": func(b *hclsyntax.Block) error { return ev.restart(b, &t.Restart) },
		"logs": func(b *hclsyntax.Block) error {
			return ev.readBody(b.Body, fields{"max_files": &t.Logs.MaxFiles, "max_file_size": &t.Logs.MaxFileSizeMB, "disabled": &t.Logs.Disabled}, nil)
		},
		"service":    func(b *hclsyntax.Block) error { return ev.service(b, &services) },
		"constraint": nil, "affinity": nil,
		"artifact": func(b *hclsyntax.Block) error {
			return fmt.Errorf("%s: artifact is not supported here: put the file on the host and unveil it", b.DefRange())
		},
	})
	if err != nil {
		return nil, err
	}
	if r.CPU == 0 && r.Cores == 0 {
		r.CPU = defaultCPU
	}
	if t.Logs.MaxFiles < 1 || t.Logs.MaxFileSizeMB < 1 {
		return nil, fmt.Errorf("task %q: logs need at least one file of 1 MB", t.Name)
	}
	return t, nil
}

func (ev *evaluator) template(b *hclsyntax.Block, t *Task) error {
	tm := Template{Perms: "0644", UID: -1, GID: -1}
	err := ev.readBody(b.Body, fields{
		"data": &tm.Data, "destination": &tm.Destination, "perms": &tm.Perms, "env": &tm.Env, "uid": &tm.UID, "gid": &tm.GID,
		"change_mode": ignored{}, "change_signal": ignored{}, "splay": ignored{}, "once": ignored{}, "error_on_missing_key": ignored{},
	}, blocks{"wait": nil})
	if err == nil && strings.TrimSpace(tm.Destination) == "" {
		err = fmt.Errorf("%s: template without a destination", b.DefRange())
	}
	t.Templates = append(t.Templates, tm)
	return err
}
