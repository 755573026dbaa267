package testdevice

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"pluginhost/pb"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// clients has the two clients of the plugin on an agent's side.
type clients struct {
	goplugin.NetRPCUnsupportedPlugin
	*server
}

func (clients) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

func TestAgentSeesAndReservesDevices(t *testing.T) {
	root := t.TempDir()
	for _, id := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(root, "nodes", id), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	client, _ := goplugin.TestPluginGRPCConn(t, false, goplugin.PluginSet{"device": clients{server: &server{root: root, share: "/opt/share"}}})
	defer client.Close()
	conn, err := client.Dispense("device")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	info, err := pb.NewBasePluginClient(conn.(*grpc.ClientConn)).PluginInfo(ctx, &pb.PluginInfoRequest{})
	if err != nil || info.GetType() != pb.PluginType_DEVICE {
		t.Fatal(info, err)
	}
	device := pb.NewDevicePluginClient(conn.(*grpc.ClientConn))
	stream, err := device.Fingerprint(ctx, &pb.DeviceFingerprintRequest{})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := stream.Recv()
	if err != nil || len(groups.GetGroups()) != 1 || len(groups.GetGroups()[0].GetDevices()) != 2 {
		t.Fatal(groups, err)
	}
	reserved, err := device.Reserve(ctx, &pb.ReserveRequest{Ids: []string{"b"}})
	if err != nil {
		t.Fatal(err)
	}
	found := reserved.GetReservation()
	if found.GetEnv()[env] != "b" || len(found.GetDevices()) != 1 || found.GetDevices()[0].GetHostPath() != filepath.Join(root, "nodes/b") {
		t.Error(found)
	}
	if m := found.GetMounts(); len(m) != 1 || m[0].GetTaskPath() != "/opt/share" || !m[0].GetReadOnly() {
		t.Error(m)
	}
	if _, err := device.Reserve(ctx, &pb.ReserveRequest{Ids: []string{".."}}); err == nil {
		t.Error("reserved what is not there")
	}
}
