package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"pluginhost/pb"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The test binary is a driver plugin when it is started as one. It notes every
// call in $FAKE_LOG and misbehaves as $FAKE_MODE says.

func TestMain(m *testing.M) {
	if os.Getenv(handshake.MagicCookieKey) == handshake.MagicCookieValue {
		serveFake()
		return
	}
	os.Exit(m.Run())
}

func fakeMode(name string) bool { return strings.Contains(os.Getenv("FAKE_MODE"), name) }

func note(format string, args ...any) {
	f, err := os.OpenFile(os.Getenv("FAKE_LOG"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d "+format+"\n", append([]any{os.Getpid()}, args...)...)
}

func serveFake() {
	note("launch ppid_env=%s sockdir=%q", os.Getenv("FAKE_MARK"), os.Getenv(goplugin.EnvUnixSocketDir))
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins:         goplugin.PluginSet{"base": fakeServer{}, "driver": fakeServer{}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(opts...)
			pb.RegisterBasePluginServer(s, fakeBase{})
			pb.RegisterDriverServer(s, &fakeDriver{})
			return s
		},
	})
}

// fakeServer has nothing to add to the server that serveFake makes.
type fakeServer struct{ bridge }

func (fakeServer) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }

type fakeBase struct {
	pb.UnimplementedBasePluginServer
}

func (fakeBase) PluginInfo(context.Context, *pb.PluginInfoRequest) (*pb.PluginInfoResponse, error) {
	note("PluginInfo")
	return &pb.PluginInfoResponse{Type: pb.PluginType_DRIVER, PluginApiVersions: []string{apiVersion}, PluginVersion: "1.2.3", Name: "fake"}, nil
}

func (fakeBase) ConfigSchema(context.Context, *pb.ConfigSchemaRequest) (*pb.ConfigSchemaResponse, error) {
	note("ConfigSchema")
	return &pb.ConfigSchemaResponse{Spec: object(map[string]*pb.Spec{"enabled": orElse(attr("enabled", "bool", false), "true")})}, nil
}

func (fakeBase) SetConfig(_ context.Context, r *pb.SetConfigRequest) (*pb.SetConfigResponse, error) {
	note("SetConfig nomad=%v cores=%v %x", r.NomadConfig != nil, len(r.GetNomadConfig().GetDriver().GetTopology().GetCores()) > 0, r.MsgpackConfig)
	if fakeMode("refuse") {
		return nil, status.Error(codes.InvalidArgument, "enabled must be true")
	}
	return &pb.SetConfigResponse{}, nil
}

type fakeDriver struct{ pb.UnimplementedDriverServer }

func (*fakeDriver) Capabilities(context.Context, *pb.CapabilitiesRequest) (*pb.CapabilitiesResponse, error) {
	note("Capabilities")
	return &pb.CapabilitiesResponse{Capabilities: &pb.DriverCapabilities{FsIsolation: pb.DriverCapabilities_UNVEIL}}, nil
}

func (*fakeDriver) TaskConfigSchema(context.Context, *pb.TaskConfigSchemaRequest) (*pb.TaskConfigSchemaResponse, error) {
	note("TaskConfigSchema")
	return &pb.TaskConfigSchemaResponse{Spec: taskSpec()}, nil
}

func (*fakeDriver) Fingerprint(_ *pb.FingerprintRequest, s grpc.ServerStreamingServer[pb.FingerprintResponse]) error {
	note("Fingerprint")
	err := s.Send(&pb.FingerprintResponse{Health: pb.FingerprintResponse_HEALTHY, Attributes: map[string]*pb.Attribute{
		"driver.fake.n": {Value: &pb.Attribute_IntVal{IntVal: 5}, Unit: "MiB"},
	}})
	if err != nil || fakeMode("endstream") {
		return err
	}
	if fakeMode("badlog") {
		// go-plugin has put a stream of its own in os.Stderr's place.
		for _, line := range []string{"no JSON here", `{"@message":5,"@level":"info","@timestamp":"x"}`} {
			if _, err := syscall.Write(2, []byte(line+"\n")); err != nil {
				return err
			}
		}
	}
	<-s.Context().Done()
	return nil
}

func (*fakeDriver) TaskEvents(_ *pb.TaskEventsRequest, s grpc.ServerStreamingServer[pb.DriverTaskEvent]) error {
	note("TaskEvents")
	if err := s.Send(&pb.DriverTaskEvent{AllocId: "a", TaskName: "t", Message: "hello", Timestamp: timestamppb.Now()}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func (*fakeDriver) StartTask(_ context.Context, r *pb.StartTaskRequest) (*pb.StartTaskResponse, error) {
	switch r.GetTask().GetId() {
	case "temporary", "permanent":
		st, err := status.New(codes.FailedPrecondition, "try later").WithDetails(&pb.RecoverableError{Recoverable: r.GetTask().GetId() == "temporary"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case "plain":
		return nil, status.Error(codes.Unknown, "never")
	case "nohandle":
		return &pb.StartTaskResponse{}, nil
	case "unavailable":
		return nil, status.Error(codes.Unavailable, "busy")
	}
	return &pb.StartTaskResponse{Handle: &pb.TaskHandle{Version: 1, Config: r.GetTask(), State: pb.TaskState_RUNNING}}, nil
}

func (*fakeDriver) RecoverTask(_ context.Context, r *pb.RecoverTaskRequest) (*pb.RecoverTaskResponse, error) {
	note("RecoverTask id=%q handle=%q", r.GetTaskId(), r.GetHandle().GetConfig().GetId())
	return &pb.RecoverTaskResponse{}, nil
}

func (*fakeDriver) Shutdown(context.Context, *pb.ShutdownRequest) (*pb.ShutdownResponse, error) {
	note("Shutdown")
	return &pb.ShutdownResponse{}, nil
}
