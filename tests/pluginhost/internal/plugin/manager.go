package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2/hcldec"
)

// DriverInfo is a driver's state, in the shape of Nomad's API.
type DriverInfo struct {
	Attributes        map[string]string
	Detected          bool
	Healthy           bool
	HealthDescription string
	UpdateTime        time.Time
}

// firstFingerprint is how long the Nomad client waits for a driver's state.
const firstFingerprint = 50 * time.Second

// The port range that Nomad offers to plugins.
const minPluginPort, maxPluginPort = 14000, 14512

// driverManager keeps one driver plugin alive and knows its state.
type driverManager struct {
	bin    string
	label  string
	config map[string]any // the agent's plugin block
	topo   *topology
	state  string // file for the reattach data; "": no reattach
	log    hclog.Logger
	report func(string)
	// onEvent gets each event that the plugin sends.
	onEvent func(*pb.DriverTaskEvent)

	ctx    context.Context // ends when the host stops
	info   *pb.PluginInfoResponse
	packed []byte

	mu      sync.Mutex // held while a plugin is being started
	current *driver
	starts  int
	// launched holds how long each start took, to the connection.
	launched []time.Duration

	schema hcldec.Spec
	caps   *pb.DriverCapabilities

	fpMu  sync.Mutex
	fp    DriverInfo
	first chan struct{}
	seen  bool
}

// start runs the three launches of a Nomad agent's start, and the streams.
func (m *driverManager) start(ctx context.Context) error {
	m.ctx, m.label, m.first = ctx, filepath.Base(m.bin), make(chan struct{})
	if err := m.describe(); err != nil {
		return err
	}
	if err := m.tryConfig(); err != nil {
		return err
	}
	if err := m.connect(); err != nil {
		return err
	}
	go m.fingerprints()
	go m.events()
	select {
	case <-m.first:
	case <-time.After(firstFingerprint):
		m.report(fmt.Sprintf("no fingerprint within %v", firstFingerprint))
	case <-ctx.Done():
	}
	return nil
}

// connect is the third launch. A plugin that was reattached may die of its
// first log line, because nobody reads its stderr any more: then a new one has
// to do.
func (m *driverManager) connect() error {
	for {
		d, err := m.dispense()
		if err != nil {
			return err
		}
		if err = m.readSchema(d); err == nil || !d.reattached {
			return err
		}
		select {
		case <-d.gone.Done():
		case <-time.After(3 * time.Second):
			return err
		}
	}
}

// describe is the first launch: who are you, what can be configured?
func (m *driverManager) describe() error {
	p, err := launchPlugin(m.bin, "base", m.log, m.report)
	if err != nil {
		return err
	}
	defer p.kill(m.report)
	m.launched = append(m.launched, p.ready)
	if m.info, err = p.base.PluginInfo(m.ctx, &pb.PluginInfoRequest{}); err != nil {
		return fmt.Errorf("PluginInfo: %w", err)
	}
	if err := checkInfo(m.info); err != nil {
		return err
	}
	resp, err := p.base.ConfigSchema(m.ctx, &pb.ConfigSchemaRequest{})
	if err != nil {
		return fmt.Errorf("ConfigSchema: %w", err)
	}
	spec, err := convertSpec(resp.GetSpec())
	if err != nil {
		return fmt.Errorf("ConfigSchema: %w", err)
	}
	if m.packed, err = packConfig(m.config, spec, nil); err != nil {
		return fmt.Errorf("plugin %q block: %w", m.label, err)
	}
	return nil
}

// tryConfig is the second launch: the configuration, twice, without what only
// the client knows.
func (m *driverManager) tryConfig() error {
	p, err := launchPlugin(m.bin, "base", m.log, m.report)
	if err != nil {
		return err
	}
	defer p.kill(m.report)
	m.launched = append(m.launched, p.ready)
	for range 2 {
		if _, err := p.base.SetConfig(m.ctx, &pb.SetConfigRequest{MsgpackConfig: m.packed, PluginApiVersion: apiVersion}); err != nil {
			return fmt.Errorf("plugin %q block: %w", m.label, err)
		}
	}
	return nil
}

// dispense returns the running plugin; a dead one is replaced.
func (m *driverManager) dispense() (*driver, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil && !m.current.exited() {
		return m.current, nil
	}
	if m.ctx.Err() != nil {
		return nil, errors.New("the host is stopping")
	}
	if m.current != nil {
		m.current.client.Kill() // frees what go-plugin holds for it
		m.current = nil
	}
	d, err := m.attachOrLaunch()
	if err != nil {
		return nil, err
	}
	if err := d.initPlugin(m.ctx); err != nil {
		d.kill(m.report)
		return nil, fmt.Errorf("init of plugin %s: %w", m.label, err)
	}
	m.current = d
	m.starts++
	if m.state != "" {
		if err := writeJSON(m.state, d.reattachInfo()); err != nil {
			m.log.Error("cannot store the plugin's address", "error", err)
		}
	}
	return d, nil
}

func (m *driverManager) attachOrLaunch() (*driver, error) {
	var info reattachInfo
	if m.state != "" && m.starts == 0 && readJSON(m.state, &info) == nil {
		p, err := reattachPlugin(m.bin, info, m.log)
		if err == nil {
			d := &driver{pluginProcess: p, report: m.report}
			var got *pb.PluginInfoResponse
			if got, err = p.base.PluginInfo(m.ctx, &pb.PluginInfoRequest{}); err == nil {
				err = checkInfo(got)
			}
			if err == nil {
				m.log.Info("reattached to the living plugin", "pid", info.Pid)
				return d, nil
			}
		}
		m.log.Warn("cannot reattach to the plugin, starting a new one", "error", err)
	}
	p, err := launchPlugin(m.bin, "driver", m.log, m.report)
	if err != nil {
		return nil, err
	}
	m.launched = append(m.launched, p.ready)
	d := &driver{pluginProcess: p, report: m.report}
	_, err = p.base.SetConfig(m.ctx, &pb.SetConfigRequest{
		MsgpackConfig: m.packed, PluginApiVersion: apiVersion,
		NomadConfig: &pb.NomadConfig{Driver: &pb.NomadDriverConfig{
			ClientMinPort: minPluginPort, ClientMaxPort: maxPluginPort, Topology: m.topo.proto(),
		}},
	})
	if err != nil {
		p.kill(m.report)
		return nil, fmt.Errorf("SetConfig: %w", err)
	}
	if err := p.probe(); err != nil {
		p.kill(m.report)
		return nil, fmt.Errorf("probe: %w", err)
	}
	m.log.Info("plugin started", "name", m.info.GetName(), "version", m.info.GetPluginVersion(), "pid", p.pid)
	return d, nil
}

// readSchema asks what tasks may say and what the driver can do.
func (m *driverManager) readSchema(d *driver) error {
	caps, err := d.driver.Capabilities(m.ctx, &pb.CapabilitiesRequest{})
	if err != nil {
		return fmt.Errorf("Capabilities: %w", err)
	}
	m.caps = caps.GetCapabilities()
	if m.caps.GetFsIsolation() != pb.DriverCapabilities_UNVEIL {
		return fmt.Errorf("driver %q wants file system isolation %v, and only UNVEIL is supported here", m.info.GetName(), m.caps.GetFsIsolation())
	}
	resp, err := d.driver.TaskConfigSchema(m.ctx, &pb.TaskConfigSchemaRequest{})
	if err != nil {
		return fmt.Errorf("TaskConfigSchema: %w", err)
	}
	if m.schema, err = convertSpec(resp.GetSpec()); err != nil {
		return fmt.Errorf("TaskConfigSchema: %w", err)
	}
	return nil
}

// fingerprints follows the driver's health for the host's whole life.
func (m *driverManager) fingerprints() {
	m.follow("Fingerprint", func(d *driver) error {
		stream, err := d.driver.Fingerprint(m.ctx, &pb.FingerprintRequest{})
		for err == nil {
			var resp *pb.FingerprintResponse
			if resp, err = stream.Recv(); err == nil {
				m.setFingerprint(resp)
			}
		}
		return err
	})
}

// events follows the driver's task events.
func (m *driverManager) events() {
	m.follow("TaskEvents", func(d *driver) error {
		stream, err := d.driver.TaskEvents(m.ctx, &pb.TaskEventsRequest{})
		for err == nil {
			var ev *pb.DriverTaskEvent
			if ev, err = stream.Recv(); err == nil {
				m.onEvent(ev)
			}
		}
		return err
	})
}

// follow runs a stream again and again. One that ends although the plugin
// lives is a violation: Nomad would reconnect in a busy loop.
func (m *driverManager) follow(what string, stream func(*driver) error) {
	for m.ctx.Err() == nil {
		d, err := m.dispense()
		if err != nil {
			if m.ctx.Err() == nil {
				m.log.Error("cannot start the plugin", "error", err)
				m.setUnhealthy("failed to start plugin: " + err.Error())
			}
		} else {
			err = stream(d)
			if m.ctx.Err() != nil {
				return
			}
			select {
			case <-d.gone.Done():
				m.log.Warn("the plugin is gone", "pid", d.pid)
				continue
			case <-m.ctx.Done():
				return
			case <-time.After(3 * time.Second):
				m.report(fmt.Sprintf("the %s stream ended although the plugin lives (%v): Nomad would reconnect in a busy loop", what, err))
			}
		}
		select {
		case <-m.ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (m *driverManager) setFingerprint(resp *pb.FingerprintResponse) {
	info := DriverInfo{
		Attributes:        map[string]string{},
		Detected:          resp.GetHealth() != pb.FingerprintResponse_UNDETECTED,
		Healthy:           resp.GetHealth() == pb.FingerprintResponse_HEALTHY,
		HealthDescription: resp.GetHealthDescription(),
		UpdateTime:        time.Now().UTC(),
	}
	if resp.GetErr() != "" {
		info.Healthy, info.HealthDescription = false, resp.GetErr()
	}
	for k, a := range resp.GetAttributes() {
		info.Attributes[k] = attributeText(a)
	}
	m.log.Info("fingerprint", "health", resp.GetHealth().String(), "description", info.HealthDescription)
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	m.fp = info
	if !m.seen {
		m.seen = true
		close(m.first)
	}
}

func (m *driverManager) setUnhealthy(why string) {
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	m.fp.Healthy, m.fp.HealthDescription, m.fp.UpdateTime = false, why, time.Now().UTC()
}

// fingerprint returns the driver's newest state.
func (m *driverManager) fingerprint() DriverInfo {
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	return m.fp
}

// stop ends the plugin as an agent does that goes down; tasks keep running.
func (m *driverManager) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || m.current.exited() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := m.current.shutdown(ctx); err != nil {
		m.report(fmt.Sprintf("Driver.Shutdown: %v", err))
	}
	m.current.kill(m.report)
	if m.state != "" {
		if err := os.Remove(m.state); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.log.Error("cannot remove the plugin's address", "error", err)
		}
	}
}

// attributeText is an attribute as Nomad prints it.
func attributeText(a *pb.Attribute) string {
	var s string
	switch v := a.GetValue().(type) {
	case *pb.Attribute_StringVal:
		s = v.StringVal
	case *pb.Attribute_BoolVal:
		s = fmt.Sprint(v.BoolVal)
	case *pb.Attribute_IntVal:
		s = fmt.Sprint(v.IntVal)
	case *pb.Attribute_FloatVal:
		s = fmt.Sprint(v.FloatVal)
	}
	return s + a.GetUnit()
}

// timings lists how long each start of the plugin took. The lock is held.
func (m *driverManager) timings() []string {
	out := []string{}
	for _, d := range m.launched {
		out = append(out, d.Round(10*time.Microsecond).String())
	}
	return out
}
