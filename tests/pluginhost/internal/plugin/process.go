// Package plugin launches driver plugins and calls them as the Nomad client does.
// It reports violations of the plugin's contract with Nomad.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
)

// Handshake is the one that Nomad uses for all its plugins.
var Handshake = goplugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

// killPatience is go-plugin's own, between Shutdown and SIGKILL.
const killPatience = 2 * time.Second

// Process is one running plugin and the connection to it.
type Process struct {
	Pid          int
	BaseClient   pb.BasePluginClient
	DriverClient pb.DriverClient
	// Reattached means that an earlier host started the process.
	Reattached bool

	client *goplugin.Client
	conn   *grpc.ClientConn
	// gone ends when the process has exited.
	gone context.Context
	// ready is how long the start took, up to the connection.
	ready time.Duration
}

// Reattach has what a later host needs to connect to the plugin.
type Reattach struct {
	Pid    int
	Socket string
}

// connection is what go-plugin returns to its users after the dial.
type connection struct {
	gone context.Context
	conn *grpc.ClientConn
}

// Bridge makes go-plugin return the bare gRPC connection.
type Bridge struct {
	goplugin.NetRPCUnsupportedPlugin
}

// GRPCServer is not used on this side.
func (Bridge) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this side only connects to plugins")
}

// GRPCClient returns the connection.
func (Bridge) GRPCClient(ctx context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return &connection{gone: ctx, conn: conn}, nil
}

func clientConfig(log hclog.Logger) *goplugin.ClientConfig {
	return &goplugin.ClientConfig{
		HandshakeConfig:  Handshake,
		Plugins:          goplugin.PluginSet{"base": Bridge{}, "driver": Bridge{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           log,
	}
}

// launch starts bin and connects to it. kind is "base" or "driver", which Nomad
// asks for at its different starts.
func launch(bin, kind string, log hclog.Logger, report func(string)) (*Process, error) {
	cfg := clientConfig(log)
	var run *processRunner
	cfg.RunnerFunc = func(_ hclog.Logger, spec *exec.Cmd, unused string) (r runner.Runner, err error) {
		os.Remove(unused) // a socket directory that Nomad does not make either
		run, err = newProcessRunner(bin, spec, report)
		return run, err
	}
	p := &Process{client: goplugin.NewClient(cfg)}
	began := time.Now()
	if err := p.connect(kind); err != nil {
		p.client.Kill()
		return nil, fmt.Errorf("failed to launch %s: %w", bin, err)
	}
	p.Pid, p.ready = run.pid(), time.Since(began)
	return p, nil
}

// Attach connects to a plugin that is running already. go-plugin probes the socket
// with a bare connect and close before it connects.
func Attach(info Reattach, log hclog.Logger) (*Process, error) {
	cfg := clientConfig(log)
	cfg.Reattach = &goplugin.ReattachConfig{
		Protocol: goplugin.ProtocolGRPC,
		Addr:     &net.UnixAddr{Net: "unix", Name: info.Socket},
		Pid:      info.Pid,
	}
	p := &Process{Pid: info.Pid, client: goplugin.NewClient(cfg), Reattached: true}
	if err := p.connect("driver"); err != nil {
		return nil, fmt.Errorf("failed to reattach to pid %d at %s: %w", info.Pid, info.Socket, err)
	}
	return p, nil
}

func (p *Process) connect(kind string) error {
	proto, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := proto.Dispense(kind)
	if err != nil {
		return err
	}
	c := raw.(*connection)
	p.BaseClient, p.DriverClient = pb.NewBasePluginClient(c.conn), pb.NewDriverClient(c.conn)
	p.conn, p.gone = c.conn, c.gone
	return nil
}

// probe is how Nomad checks whether a plugin is alive: connect, close.
func (p *Process) probe() error {
	addr := p.client.ReattachConfig().Addr
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// ReattachInfo is what Attach needs.
func (p *Process) ReattachInfo() Reattach {
	return Reattach{Pid: p.Pid, Socket: p.client.ReattachConfig().Addr.String()}
}

// exited reports whether the process is gone.
func (p *Process) exited() bool { return p.gone.Err() != nil || p.client.Exited() }

// Kill is GRPCController.Shutdown, a wait of killPatience, and SIGKILL. It reports
// a plugin that needed the SIGKILL.
func (p *Process) Kill(report func(string)) {
	before := time.Now()
	p.client.Kill()
	// go-plugin does not return how the process ended.
	if time.Since(before) >= killPatience {
		report(fmt.Sprintf("pid %d did not exit within %v of Shutdown and was killed", p.Pid, killPatience))
	}
}
