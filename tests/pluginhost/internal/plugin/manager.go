package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"pluginhost/internal/files"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2/hcldec"
	nomad "github.com/hashicorp/nomad/api"
)

// firstFingerprint is how long the Nomad client waits for a driver's first state.
const firstFingerprint = 50 * time.Second

const (
	// retryPause separates attempts to start a plugin or follow its streams.
	retryPause = time.Second
	// shutdownTimeout bounds Driver.Shutdown, as in Nomad.
	shutdownTimeout = 2 * time.Second
)

// Options are what a Manager needs to know of its plugin.
type Options struct {
	Bin   string
	Label string // of the plugin's block in the agent's configuration
	// Config is that block.
	Config   map[string]any
	Topology *pb.ClientTopology
	// State is the file of the reattach data.
	State string
	Log   hclog.Logger
	// Report is called for each violation of the protocol.
	Report func(string)
	// OnEvent is called for each event that the plugin sends.
	OnEvent func(*pb.DriverTaskEvent)
}

// Manager keeps one driver plugin running and knows its state.
type Manager struct {
	Options
	// Info, Schema and Capabilities are the plugin's answers.
	Info         *pb.PluginInfoResponse
	Schema       hcldec.Spec
	Capabilities *pb.DriverCapabilities

	ctx    context.Context // ends when the host stops
	packed []byte

	mu      sync.Mutex // held while a plugin is being started
	current *Driver
	starts  int
	// launched holds how long each start took, up to the connection.
	launched []time.Duration

	fpMu  sync.Mutex
	fp    nomad.DriverInfo
	first chan struct{}
	seen  bool
}

// Start runs the three launches of a Nomad agent's start, and the streams. The
// manager works until ctx ends; then Stop ends the plugin.
func Start(ctx context.Context, opts Options) (*Manager, error) {
	m := &Manager{Options: opts, ctx: ctx, first: make(chan struct{})}
	if err := m.describe(); err != nil {
		return nil, err
	}
	if err := m.tryConfig(); err != nil {
		return nil, err
	}
	if err := m.connect(); err != nil {
		return nil, err
	}
	go m.fingerprints()
	go m.events()
	select {
	case <-m.first:
	case <-time.After(firstFingerprint):
		m.Report(fmt.Sprintf("no fingerprint within %v", firstFingerprint))
	case <-ctx.Done():
	}
	return m, nil
}

// connect is the third launch. A plugin that was reattached may die when it first
// logs, because its stderr has no reader any more: a new one replaces it.
func (m *Manager) connect() error {
	for {
		d, err := m.Dispense()
		if err != nil {
			return err
		}
		if err = m.readSchema(d); err == nil || !d.Reattached {
			return err
		}
		select {
		case <-d.gone.Done():
		case <-time.After(exitPatience):
			return err
		}
	}
}

// launch starts the plugin and records how long that took.
func (m *Manager) launch(kind string) (*Process, error) {
	p, err := launch(m.Bin, kind, m.Log, m.Report)
	if err == nil {
		m.launched = append(m.launched, p.ready)
	}
	return p, err
}

// describe is the first launch: it asks for the plugin's name and schema.
func (m *Manager) describe() error {
	p, err := m.launch("base")
	if err != nil {
		return err
	}
	defer p.Kill(m.Report)
	m.Info, m.packed, err = p.Describe(m.ctx, m.Config)
	return err
}

// tryConfig is the second launch: the configuration, twice, without what only
// the client knows.
func (m *Manager) tryConfig() error {
	p, err := m.launch("base")
	if err != nil {
		return err
	}
	defer p.Kill(m.Report)
	for range 2 {
		if _, err := p.BaseClient.SetConfig(m.ctx, &pb.SetConfigRequest{MsgpackConfig: m.packed, PluginApiVersion: APIVersion}); err != nil {
			return fmt.Errorf("plugin %q block: %w", m.Label, err)
		}
	}
	return nil
}

// Dispense returns the running plugin; a dead one is replaced.
func (m *Manager) Dispense() (*Driver, error) {
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
	if err := d.rpcError("Init", d.Init(m.ctx)); err != nil {
		d.Kill(m.Report)
		return nil, fmt.Errorf("failed to initialize plugin %s: %w", m.Label, err)
	}
	m.current = d
	m.starts++
	if err := files.WriteJSON(m.State, d.ReattachInfo()); err != nil {
		m.Log.Error("failed to store the plugin's address", "error", err)
	}
	return d, nil
}

func (m *Manager) attachOrLaunch() (*Driver, error) {
	var info Reattach
	if m.starts == 0 && files.ReadJSON(m.State, &info) == nil {
		p, err := Attach(info, m.Log)
		if err == nil {
			if _, err = p.info(m.ctx); err == nil {
				m.Log.Info("reattached to the running plugin", "pid", info.Pid)
				return &Driver{Process: p, report: m.Report}, nil
			}
		}
		m.Log.Warn("failed to reattach to the plugin, starting a new one", "error", err)
	}
	p, err := m.launch("driver")
	if err != nil {
		return nil, err
	}
	if err := p.Configure(m.ctx, m.packed, m.Topology); err != nil {
		p.Kill(m.Report)
		return nil, err
	}
	if err := p.probe(); err != nil {
		p.Kill(m.Report)
		return nil, fmt.Errorf("failed to probe the plugin's socket: %w", err)
	}
	m.Log.Info("plugin started", "name", m.Info.GetName(), "version", m.Info.GetPluginVersion(), "pid", p.Pid)
	return &Driver{Process: p, report: m.Report}, nil
}

// readSchema reads the schema of a task's config block and the driver's capabilities.
func (m *Manager) readSchema(d *Driver) error {
	caps, err := d.DriverClient.Capabilities(m.ctx, &pb.CapabilitiesRequest{})
	if err != nil {
		return fmt.Errorf("failed to get Capabilities: %w", err)
	}
	m.Capabilities = caps.GetCapabilities()
	if iso := m.Capabilities.GetFsIsolation(); iso != pb.DriverCapabilities_UNVEIL {
		return fmt.Errorf("driver %q needs file system isolation %v, and only UNVEIL is supported here", m.Info.GetName(), iso)
	}
	m.Schema, err = d.TaskSchema(m.ctx)
	return err
}

// fingerprints follows the driver's health for the host's whole life.
func (m *Manager) fingerprints() {
	m.follow("Fingerprint", func(d *Driver) error {
		return receive(m.setFingerprint)(d.DriverClient.Fingerprint(m.ctx, &pb.FingerprintRequest{}))
	})
}

// events follows the driver's task events.
func (m *Manager) events() {
	m.follow("TaskEvents", func(d *Driver) error {
		return receive(m.OnEvent)(d.DriverClient.TaskEvents(m.ctx, &pb.TaskEventsRequest{}))
	})
}

// receive returns a function that passes the messages of a stream to take until
// the stream ends, and returns why.
func receive[T any](take func(T)) func(interface{ Recv() (T, error) }, error) error {
	return func(stream interface{ Recv() (T, error) }, err error) error {
		for err == nil {
			var message T
			if message, err = stream.Recv(); err == nil {
				take(message)
			}
		}
		return err
	}
}

// follow runs a stream repeatedly. A stream that ends although the plugin lives is
// a violation: Nomad would reconnect in a busy loop.
func (m *Manager) follow(what string, stream func(*Driver) error) {
	for m.ctx.Err() == nil {
		d, err := m.Dispense()
		if err != nil {
			if m.ctx.Err() == nil {
				m.Log.Error("failed to start the plugin", "error", err)
				m.setUnhealthy("failed to start plugin: " + err.Error())
			}
		} else {
			err = stream(d)
			if m.ctx.Err() != nil {
				return
			}
			select {
			case <-d.gone.Done():
				m.Log.Warn("the plugin is gone", "pid", d.Pid)
				continue
			case <-m.ctx.Done():
				return
			case <-time.After(exitPatience):
				m.Report(fmt.Sprintf("the %s stream ended although the plugin lives (%v): Nomad would reconnect in a busy loop", what, err))
			}
		}
		select {
		case <-m.ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

func (m *Manager) setFingerprint(resp *pb.FingerprintResponse) {
	info := nomad.DriverInfo{
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
	m.Log.Info("fingerprint", "health", resp.GetHealth().String(), "description", info.HealthDescription)
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	m.fp = info
	if !m.seen {
		m.seen = true
		close(m.first)
	}
}

func (m *Manager) setUnhealthy(why string) {
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	m.fp.Healthy, m.fp.HealthDescription, m.fp.UpdateTime = false, why, time.Now().UTC()
}

// Fingerprint returns the driver's newest state.
func (m *Manager) Fingerprint() nomad.DriverInfo {
	m.fpMu.Lock()
	defer m.fpMu.Unlock()
	return m.fp
}

// Stop ends the plugin like a stopping agent; tasks keep running.
func (m *Manager) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || m.current.exited() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := m.current.Shutdown(ctx); err != nil {
		m.Report(fmt.Sprintf("Driver.Shutdown: %v", err))
	}
	m.current.Kill(m.Report)
	if err := os.Remove(m.State); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.Log.Error("failed to remove the plugin's address", "error", err)
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

// History counts the starts of the plugin and has the duration of each launch.
type History struct {
	Starts   int
	Launches []string
}

// History returns the starts so far.
func (m *Manager) History() History {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := History{Starts: m.starts, Launches: []string{}}
	for _, d := range m.launched {
		h.Launches = append(h.Launches, d.Round(10*time.Microsecond).String())
	}
	return h
}
