// Package testdevice is a device plugin for tests under real Nomad. It offers the
// nodes below a directory of the host, and a read-only mount.
package testdevice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pluginhost/internal/plugin"
	"pluginhost/pb"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What a job asks for: device "exec2/test/zero".
const vendor, kind, name = "exec2", "test", "zero"

// env lists the devices of a task, separated by commas.
const env = "EXEC2_TEST_DEVICES"

// Serve answers the agent that started this process, with the nodes in the
// directory "nodes" below root. A task finds the directory "share" at the path share.
func Serve(root, share string) error {
	server := &server{root: root, share: share}
	if _, err := server.ids(); err != nil {
		return err
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: plugin.Handshake,
		Plugins:         goplugin.PluginSet{"base": server, "device": server},
		GRPCServer:      goplugin.DefaultGRPCServer,
	})
	return nil
}

type server struct {
	goplugin.NetRPCUnsupportedPlugin
	pb.UnimplementedBasePluginServer
	pb.UnimplementedDevicePluginServer
	root, share string
	registered  bool
}

// GRPCServer is called once for each name of the plugin set.
func (s *server) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	if !s.registered {
		s.registered = true
		pb.RegisterBasePluginServer(g, s)
		pb.RegisterDevicePluginServer(g, s)
	}
	return nil
}

// GRPCClient is of the agent's side.
func (s *server) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, status.Error(codes.Unimplemented, "this is a device plugin")
}

func (s *server) PluginInfo(context.Context, *pb.PluginInfoRequest) (*pb.PluginInfoResponse, error) {
	return &pb.PluginInfoResponse{
		Type: pb.PluginType_DEVICE, PluginApiVersions: []string{plugin.APIVersion}, PluginVersion: "0.0.1", Name: "exec2-test",
	}, nil
}

func (s *server) ConfigSchema(context.Context, *pb.ConfigSchemaRequest) (*pb.ConfigSchemaResponse, error) {
	return &pb.ConfigSchemaResponse{Spec: &pb.Spec{Block: &pb.Spec_Object{Object: &pb.Object{}}}}, nil
}

func (s *server) SetConfig(context.Context, *pb.SetConfigRequest) (*pb.SetConfigResponse, error) {
	return &pb.SetConfigResponse{}, nil
}

// ids are the names of the nodes.
func (s *server) ids() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "nodes"))
	if err != nil {
		return nil, fmt.Errorf("failed to list the devices: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// Fingerprint reports the devices once: they do not change.
func (s *server) Fingerprint(_ *pb.DeviceFingerprintRequest, stream grpc.ServerStreamingServer[pb.DeviceFingerprintResponse]) error {
	ids, err := s.ids()
	if err != nil {
		return err
	}
	group := &pb.DeviceGroup{Vendor: vendor, Type: kind, Name: name}
	for _, id := range ids {
		group.Devices = append(group.Devices, &pb.DetectedDevice{Id: id, Healthy: true})
	}
	if err := stream.Send(&pb.DeviceFingerprintResponse{Groups: []*pb.DeviceGroup{group}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (s *server) Reserve(_ context.Context, req *pb.ReserveRequest) (*pb.ReserveResponse, error) {
	known, err := s.ids()
	if err != nil {
		return nil, err
	}
	found := &pb.Reservation{
		Env:    map[string]string{env: strings.Join(req.GetIds(), ",")},
		Mounts: []*pb.ReservedMount{{TaskPath: s.share, HostPath: filepath.Join(s.root, "share"), ReadOnly: true}},
	}
	for _, id := range req.GetIds() {
		if !slices.Contains(known, id) {
			return nil, status.Errorf(codes.InvalidArgument, "there is no device %q", id)
		}
		found.Devices = append(found.Devices, &pb.ReservedDevice{
			TaskPath: filepath.Join("/dev/exec2", id), HostPath: filepath.Join(s.root, "nodes", id), Permissions: "rw",
		})
	}
	return &pb.ReserveResponse{Reservation: found}, nil
}

// Stats has nothing to report.
func (s *server) Stats(_ *pb.DeviceStatsRequest, stream grpc.ServerStreamingServer[pb.DeviceStatsResponse]) error {
	<-stream.Context().Done()
	return nil
}
