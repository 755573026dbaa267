package jobspec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	nomad "github.com/hashicorp/nomad/api"
)

// The default of the identity block's name, and that of the network's mode.
const (
	defaultIdentity = "default"
	defaultNetwork  = "host"
	hostVolume      = "host"
)

func (p *parser) group(b *hclsyntax.Block) (*nomad.TaskGroup, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	g := &nomad.TaskGroup{Name: &name}
	return g, p.readBody(b.Body, fields{
		"count": &g.Count, "shutdown_delay": ignored{}, "meta": &g.Meta,
	}, blocks{
		"network": func(b *hclsyntax.Block) error {
			n, err := p.network(b)
			g.Networks = append(g.Networks, n)
			if err == nil && len(g.Networks) > 1 {
				err = fmt.Errorf("%s: only one network block is allowed", b.DefRange())
			}
			return err
		},
		"restart": func(b *hclsyntax.Block) error { return p.restart(b, &g.RestartPolicy) },
		"service": func(b *hclsyntax.Block) error { return p.service(b, &g.Services) },
		"volume":  func(b *hclsyntax.Block) error { return p.volume(b, g) },
		"meta":    func(b *hclsyntax.Block) error { return p.stringMap(b, &g.Meta) },
		"task": func(b *hclsyntax.Block) error {
			t, err := p.task(b)
			g.Tasks = append(g.Tasks, t)
			return err
		},
		"constraint": nil, "affinity": nil, "spread": nil, "reschedule": nil, "update": nil, "migrate": nil,
		"ephemeral_disk": nil, "disconnect": nil,
	})
}

func (p *parser) restart(b *hclsyntax.Block, into **nomad.RestartPolicy) error {
	r := &nomad.RestartPolicy{}
	*into = r
	err := p.readBody(b.Body, fields{
		"attempts": &r.Attempts, "delay": &r.Delay, "interval": &r.Interval, "mode": &r.Mode, "render_templates": ignored{},
	}, nil)
	if err == nil && r.Mode != nil && *r.Mode != nomad.RestartPolicyModeFail && *r.Mode != nomad.RestartPolicyModeDelay {
		err = fmt.Errorf("%s: restart mode %q is neither fail nor delay", b.DefRange(), *r.Mode)
	}
	return err
}

func (p *parser) network(b *hclsyntax.Block) (*nomad.NetworkResource, error) {
	n := &nomad.NetworkResource{Mode: defaultNetwork}
	err := p.readBody(b.Body, fields{"mode": &n.Mode, "hostname": &n.Hostname}, blocks{
		"port": func(b *hclsyntax.Block) error {
			name, err := label(b)
			if err != nil {
				return err
			}
			port := nomad.Port{Label: name}
			err = p.readBody(b.Body, fields{"static": &port.Value, "to": &port.To, "host_network": ignored{}}, nil)
			if port.Value > 0 {
				n.ReservedPorts = append(n.ReservedPorts, port)
			} else {
				n.DynamicPorts = append(n.DynamicPorts, port)
			}
			return err
		},
		"dns": func(b *hclsyntax.Block) error {
			n.DNS = &nomad.DNSConfig{}
			return p.readBody(b.Body, fields{"servers": &n.DNS.Servers, "searches": &n.DNS.Searches, "options": &n.DNS.Options}, nil)
		},
	})
	if err == nil && !slices.Contains([]string{"host", "bridge", "none"}, n.Mode) {
		err = fmt.Errorf("%s: network mode %q is not supported here: host, bridge or none", b.DefRange(), n.Mode)
	}
	return n, err
}

func (p *parser) service(b *hclsyntax.Block, into *[]*nomad.Service) error {
	s := &nomad.Service{}
	*into = append(*into, s)
	return p.readBody(b.Body, fields{
		"name": &s.Name, "provider": &s.Provider, "port": &s.PortLabel, "tags": &s.Tags, "address_mode": &s.AddressMode,
		"address": &s.Address, "task": &s.TaskName, "canary_tags": &s.CanaryTags, "on_update": &s.OnUpdate,
	}, blocks{"check": nil, "meta": nil, "check_restart": nil})
}

func (p *parser) task(b *hclsyntax.Block) (*nomad.Task, error) {
	name, err := label(b)
	if err != nil {
		return nil, err
	}
	t := &nomad.Task{Name: name}
	return t, p.readBody(b.Body, fields{
		"driver": &t.Driver, "user": &t.User, "kill_timeout": &t.KillTimeout, "kill_signal": &t.KillSignal,
		"shutdown_delay": &t.ShutdownDelay, "leader": &t.Leader, "env": &t.Env, "meta": &t.Meta,
	}, blocks{
		"config": func(b *hclsyntax.Block) (err error) {
			if t.Config != nil {
				return fmt.Errorf("%s: only one config block is allowed", b.DefRange())
			}
			t.Config, err = p.Plain(b.Body)
			return err
		},
		"env":       func(b *hclsyntax.Block) error { return p.stringMap(b, &t.Env) },
		"meta":      func(b *hclsyntax.Block) error { return p.stringMap(b, &t.Meta) },
		"resources": func(b *hclsyntax.Block) error { return p.resources(b, t) },
		"template":  func(b *hclsyntax.Block) error { return p.template(b, t) },
		"lifecycle": func(b *hclsyntax.Block) error { return p.lifecycle(b, t) },
		"identity":  func(b *hclsyntax.Block) error { return p.identity(b, t) },
		"restart":   func(b *hclsyntax.Block) error { return p.restart(b, &t.RestartPolicy) },
		"logs": func(b *hclsyntax.Block) error {
			l := &nomad.LogConfig{}
			t.LogConfig = l
			return p.readBody(b.Body, fields{"max_files": &l.MaxFiles, "max_file_size": &l.MaxFileSizeMB, "disabled": &l.Disabled}, nil)
		},
		"service":      func(b *hclsyntax.Block) error { return p.service(b, &t.Services) },
		"volume_mount": func(b *hclsyntax.Block) error { return p.volumeMount(b, t) },
		"constraint":   nil, "affinity": nil,
		"artifact": func(b *hclsyntax.Block) error {
			return fmt.Errorf("%s: artifact is not supported here: put the file on the host and unveil it", b.DefRange())
		},
	})
}

func (p *parser) volume(b *hclsyntax.Block, g *nomad.TaskGroup) error {
	name, err := label(b)
	if err != nil {
		return err
	}
	v := &nomad.VolumeRequest{Name: name}
	if g.Volumes == nil {
		g.Volumes = map[string]*nomad.VolumeRequest{}
	}
	g.Volumes[name] = v
	err = p.readBody(b.Body, fields{
		"type": &v.Type, "source": &v.Source, "read_only": &v.ReadOnly, "access_mode": ignored{}, "attachment_mode": ignored{},
	}, nil)
	if err == nil && v.Type != hostVolume {
		err = fmt.Errorf("%s: volume type %q is not supported here, only %s", b.DefRange(), v.Type, hostVolume)
	}
	return err
}

func (p *parser) volumeMount(b *hclsyntax.Block, t *nomad.Task) error {
	m := &nomad.VolumeMount{}
	t.VolumeMounts = append(t.VolumeMounts, m)
	return p.readBody(b.Body, fields{
		"volume": &m.Volume, "destination": &m.Destination, "read_only": &m.ReadOnly, "propagation_mode": &m.PropagationMode,
		"selinux_label": &m.SELinuxLabel,
	}, nil)
}

func (p *parser) resources(b *hclsyntax.Block, t *nomad.Task) error {
	r := &nomad.Resources{}
	t.Resources = r
	return p.readBody(b.Body, fields{
		"cpu": &r.CPU, "cores": &r.Cores, "memory": &r.MemoryMB, "memory_max": &r.MemoryMaxMB, "secrets": &r.SecretsMB,
	}, nil)
}

func (p *parser) lifecycle(b *hclsyntax.Block, t *nomad.Task) error {
	l := &nomad.TaskLifecycle{}
	t.Lifecycle = l
	if err := p.readBody(b.Body, fields{"hook": &l.Hook, "sidecar": &l.Sidecar}, nil); err != nil {
		return err
	}
	switch l.Hook {
	case nomad.TaskLifecycleHookPrestart, nomad.TaskLifecycleHookPoststart, nomad.TaskLifecycleHookPoststop:
		return nil
	}
	return fmt.Errorf("%s: lifecycle hook %q is none of prestart, poststart, poststop", b.DefRange(), l.Hook)
}

func (p *parser) identity(b *hclsyntax.Block, t *nomad.Task) error {
	id := &nomad.WorkloadIdentity{Name: defaultIdentity}
	t.Identities = append(t.Identities, id)
	return p.readBody(b.Body, fields{
		"name": &id.Name, "env": &id.Env, "file": &id.File, "aud": &id.Audience,
		"ttl": &id.TTL, "change_mode": &id.ChangeMode, "change_signal": &id.ChangeSignal,
	}, nil)
}

func (p *parser) template(b *hclsyntax.Block, t *nomad.Task) error {
	tm := &nomad.Template{}
	t.Templates = append(t.Templates, tm)
	err := p.readBody(b.Body, fields{
		"data": &tm.EmbeddedTmpl, "destination": &tm.DestPath, "perms": &tm.Perms, "env": &tm.Envvars, "uid": &tm.Uid, "gid": &tm.Gid,
		"change_mode": &tm.ChangeMode, "change_signal": &tm.ChangeSignal, "splay": &tm.Splay, "once": &tm.Once, "error_on_missing_key": &tm.ErrMissingKey,
	}, blocks{"wait": nil})
	if err != nil {
		return err
	}
	if tm.DestPath == nil || strings.TrimSpace(*tm.DestPath) == "" {
		return fmt.Errorf("%s: template without a destination", b.DefRange())
	}
	return nil
}
