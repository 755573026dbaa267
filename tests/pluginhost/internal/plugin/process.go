package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
)

// handshake is the one that Nomad uses for all its plugins.
var handshake = goplugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

// apiVersion is the only plugin API version that Nomad knows.
const apiVersion = "v0.1.0"

// pluginProcess is one running plugin and the connection to it.
type pluginProcess struct {
	bin    string
	label  string // file name: the label of the plugin's block in the agent's config
	pid    int
	client *goplugin.Client
	base   pb.BasePluginClient
	driver pb.DriverClient
	conn   *grpc.ClientConn
	// gone ends when the process has exited.
	gone       context.Context
	reattached bool
	// ready is how long the start took, to the connection.
	ready time.Duration
}

// reattachInfo is what a later host needs to find the plugin again.
type reattachInfo struct {
	Pid    int
	Socket string
}

// connection is what go-plugin hands to its users after the dial.
type connection struct {
	gone context.Context
	conn *grpc.ClientConn
}

// bridge makes go-plugin hand out the bare gRPC connection.
type bridge struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (bridge) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this side only connects to plugins")
}

func (bridge) GRPCClient(ctx context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return &connection{gone: ctx, conn: conn}, nil
}

func clientConfig(log hclog.Logger) *goplugin.ClientConfig {
	return &goplugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          goplugin.PluginSet{"base": bridge{}, "driver": bridge{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           log,
	}
}

// launchPlugin starts bin and connects to it. kind is "base" or "driver", as
// Nomad asks for at its different starts.
func launchPlugin(bin, kind string, log hclog.Logger, report func(string)) (*pluginProcess, error) {
	cfg := clientConfig(log)
	var run *processRunner
	cfg.RunnerFunc = func(_ hclog.Logger, spec *exec.Cmd, unused string) (r runner.Runner, err error) {
		os.Remove(unused) // a socket folder that Nomad does not make either
		run, err = newProcessRunner(bin, spec, report)
		return run, err
	}
	p := &pluginProcess{bin: bin, label: filepath.Base(bin), client: goplugin.NewClient(cfg)}
	began := time.Now()
	if err := p.connect(kind); err != nil {
		p.client.Kill()
		return nil, fmt.Errorf("launch %s: %w", bin, err)
	}
	p.pid, p.ready = run.pid(), time.Since(began)
	return p, nil
}

// reattachPlugin connects to a plugin that an earlier host started. go-plugin
// probes the socket with a bare connect and close before it connects.
func reattachPlugin(bin string, info reattachInfo, log hclog.Logger) (*pluginProcess, error) {
	cfg := clientConfig(log)
	cfg.Reattach = &goplugin.ReattachConfig{
		Protocol: goplugin.ProtocolGRPC,
		Addr:     &net.UnixAddr{Net: "unix", Name: info.Socket},
		Pid:      info.Pid,
	}
	p := &pluginProcess{bin: bin, label: filepath.Base(bin), pid: info.Pid, client: goplugin.NewClient(cfg), reattached: true}
	if err := p.connect("driver"); err != nil {
		return nil, fmt.Errorf("reattach to pid %d at %s: %w", info.Pid, info.Socket, err)
	}
	return p, nil
}

func (p *pluginProcess) connect(kind string) error {
	proto, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := proto.Dispense(kind)
	if err != nil {
		return err
	}
	c := raw.(*connection)
	p.base, p.driver = pb.NewBasePluginClient(c.conn), pb.NewDriverClient(c.conn)
	p.conn, p.gone = c.conn, c.gone
	return nil
}

// probe is Nomad's question whether a plugin lives: connect, close.
func (p *pluginProcess) probe() error {
	addr := p.client.ReattachConfig().Addr
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

func (p *pluginProcess) reattachInfo() reattachInfo {
	return reattachInfo{Pid: p.pid, Socket: p.client.ReattachConfig().Addr.String()}
}

// exited tells whether the process is gone.
func (p *pluginProcess) exited() bool { return p.gone.Err() != nil || p.client.Exited() }

// kill is GRPCController.Shutdown, two seconds of patience, SIGKILL. It reports
// a plugin that needed the last.
func (p *pluginProcess) kill(report func(string)) {
	before := time.Now()
	p.client.Kill()
	// go-plugin does not tell how it ended; its own patience is 2 s.
	if took := time.Since(before); took >= 2*time.Second && report != nil {
		report(fmt.Sprintf("pid %d did not exit within 2 s of Shutdown and was killed", p.pid))
	}
}

// checkInfo validates a PluginInfo answer as Nomad's loader does.
func checkInfo(info *pb.PluginInfoResponse) error {
	if info.GetType() != pb.PluginType_DRIVER {
		return fmt.Errorf("PluginInfo: type %v, not a driver", info.GetType())
	}
	if !slices.Contains(info.GetPluginApiVersions(), apiVersion) {
		return fmt.Errorf("PluginInfo: api versions %v lack %s", info.GetPluginApiVersions(), apiVersion)
	}
	if !validVersion(info.GetPluginVersion()) {
		return fmt.Errorf("PluginInfo: version %q is not MAJOR.MINOR.PATCH", info.GetPluginVersion())
	}
	if info.GetName() == "" {
		return errors.New("PluginInfo: no name")
	}
	return nil
}

// validVersion accepts [v]MAJOR.MINOR.PATCH[-pre][+meta].
func validVersion(v string) bool {
	if len(v) > 0 && v[0] == 'v' {
		v = v[1:]
	}
	core := v
	for i, r := range v {
		if r == '-' || r == '+' {
			core = v[:i]
			break
		}
	}
	parts := 1
	start := 0
	for i := 0; i <= len(core); i++ {
		if i < len(core) && core[i] != '.' {
			continue
		}
		if _, err := strconv.ParseUint(core[start:i], 10, 32); err != nil {
			return false
		}
		if i < len(core) {
			parts++
		}
		start = i + 1
	}
	return parts == 3
}
