package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"pluginhost/internal/schema"
	"pluginhost/pb"

	"github.com/hashicorp/hcl/v2/hcldec"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// APIVersion is the only plugin API version that Nomad has.
const APIVersion = "v0.1.0"

// The port range that Nomad offers to plugins.
const minPluginPort, maxPluginPort = 14000, 14512

// Describe asks for the plugin's name and version and encodes the agent's plugin block by the
// schema that the plugin has for it.
func (p *Process) Describe(ctx context.Context, config map[string]any) (info *pb.PluginInfoResponse, packed []byte, err error) {
	if info, err = p.info(ctx); err != nil {
		return nil, nil, err
	}
	resp, err := p.BaseClient.ConfigSchema(ctx, &pb.ConfigSchemaRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("failed to get ConfigSchema: %w", err)
	}
	spec, err := schema.Convert(resp.GetSpec())
	if err != nil {
		return nil, nil, fmt.Errorf("invalid ConfigSchema: %w", err)
	}
	if packed, err = schema.Pack(config, spec, nil); err != nil {
		return nil, nil, fmt.Errorf("plugin block: %w", err)
	}
	return info, packed, nil
}

// info is PluginInfo, checked.
func (p *Process) info(ctx context.Context) (*pb.PluginInfoResponse, error) {
	info, err := p.BaseClient.PluginInfo(ctx, &pb.PluginInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("failed to get PluginInfo: %w", err)
	}
	return info, checkInfo(info)
}

// Configure sets the packed plugin block together with what only the client knows.
func (p *Process) Configure(ctx context.Context, packed []byte, topo *pb.ClientTopology) error {
	_, err := p.BaseClient.SetConfig(ctx, &pb.SetConfigRequest{
		MsgpackConfig: packed, PluginApiVersion: APIVersion,
		NomadConfig: &pb.NomadConfig{Driver: &pb.NomadDriverConfig{
			ClientMinPort: minPluginPort, ClientMaxPort: maxPluginPort, Topology: topo,
		}},
	})
	if err != nil {
		return fmt.Errorf("failed to set the plugin's configuration: %w", err)
	}
	return nil
}

// Init is Nomad 2.0's; older plugins do not implement it.
func (p *Process) Init(ctx context.Context) error {
	_, err := p.DriverClient.Init(ctx, &pb.InitRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// TaskSchema is the schema of a task's config block.
func (p *Process) TaskSchema(ctx context.Context) (hcldec.Spec, error) {
	resp, err := p.DriverClient.TaskConfigSchema(ctx, &pb.TaskConfigSchemaRequest{})
	if err != nil {
		return nil, fmt.Errorf("failed to get TaskConfigSchema: %w", err)
	}
	spec, err := schema.Convert(resp.GetSpec())
	if err != nil {
		return nil, fmt.Errorf("invalid TaskConfigSchema: %w", err)
	}
	return spec, nil
}

// Shutdown is Nomad 2.0's Driver.Shutdown; older plugins do not implement it.
func (p *Process) Shutdown(ctx context.Context) error {
	_, err := p.DriverClient.Shutdown(ctx, &pb.ShutdownRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// checkInfo validates a PluginInfo answer as Nomad's loader does.
func checkInfo(info *pb.PluginInfoResponse) error {
	if info.GetType() != pb.PluginType_DRIVER {
		return fmt.Errorf("PluginInfo: type %v, not a driver", info.GetType())
	}
	if !slices.Contains(info.GetPluginApiVersions(), APIVersion) {
		return fmt.Errorf("PluginInfo: api versions %v lack %s", info.GetPluginApiVersions(), APIVersion)
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
