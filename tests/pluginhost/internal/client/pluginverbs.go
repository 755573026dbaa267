package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"

	"pluginhost/pb"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

func protoJSON(m proto.Message) (json.RawMessage, error) {
	raw, err := protoOptions.Marshal(m)
	return raw, err
}

// manager returns the plugin that the request names, or the only one.
func (a *Agent) manager(name string) (*driverManager, error) {
	if name == "" && len(a.managers) == 1 {
		for _, m := range a.managers {
			return m, nil
		}
	}
	if m := a.managers[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no driver %q here", name)
}

// pluginRequest serves what acts on the plugin itself.
func (a *Agent) pluginRequest(r *http.Request) (any, error) {
	m, err := a.manager(r.FormValue("driver"))
	if err != nil {
		return nil, err
	}
	d, err := m.dispense()
	if err != nil {
		return nil, err
	}
	switch r.PathValue("op") {
	case "pid":
		m.mu.Lock()
		defer m.mu.Unlock()
		return map[string]any{
			"Pid": d.pid, "Starts": m.starts, "Reattached": d.reattached, "Name": m.info.GetName(),
			"Version": m.info.GetPluginVersion(), "Socket": d.reattachInfo().Socket, "Launches": m.timings(),
		}, nil
	case "kill":
		return map[string]any{"Pid": d.pid}, syscall.Kill(d.pid, syscall.SIGKILL)
	case "rpc":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		return d.rawCall(r, r.FormValue("method"), body)
	}
	return nil, fmt.Errorf("unknown operation %q", r.PathValue("op"))
}

// rawCall makes one unary call, given and answered as JSON.
func (d *driver) rawCall(r *http.Request, name string, body []byte) (any, error) {
	for _, file := range []protoreflect.FileDescriptor{pb.File_plugins_drivers_proto_driver_proto, pb.File_plugins_base_proto_base_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			method := service.Methods().ByName(protoreflect.Name(name))
			if method == nil {
				continue
			}
			if method.IsStreamingClient() || method.IsStreamingServer() {
				return nil, fmt.Errorf("%s is a stream", name)
			}
			in, out := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
			if err := protojson.Unmarshal(body, in); err != nil {
				return nil, err
			}
			if err := d.conn.Invoke(r.Context(), fmt.Sprintf("/%s/%s", service.FullName(), name), in, out); err != nil {
				return nil, err
			}
			return protoJSON(out)
		}
	}
	return nil, errors.New("no method " + name)
}
