package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"pluginhost/pb"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// jsonOptions show all fields by their names in the .proto files.
var jsonOptions = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}

// JSON is a message as the host prints it.
func JSON(m proto.Message) (json.RawMessage, error) { return jsonOptions.Marshal(m) }

// Call makes one unary call, with JSON as request and answer.
func (p *Process) Call(ctx context.Context, name string, body []byte) (json.RawMessage, error) {
	method, path, err := findMethod(name)
	if err != nil {
		return nil, err
	}
	if method.IsStreamingClient() || method.IsStreamingServer() {
		return nil, fmt.Errorf("%s is a stream", name)
	}
	in, out := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := protojson.Unmarshal(body, in); err != nil {
		return nil, err
	}
	if err := p.conn.Invoke(ctx, path, in, out); err != nil {
		return nil, err
	}
	return JSON(out)
}

// Stream makes a call that the plugin answers with a stream, and returns count
// messages, or fewer if the stream ends. On an error it returns those before it.
func (p *Process) Stream(ctx context.Context, name string, body []byte, count int) ([]json.RawMessage, error) {
	method, path, err := findMethod(name)
	if err != nil {
		return nil, err
	}
	if method.IsStreamingClient() || !method.IsStreamingServer() {
		return nil, fmt.Errorf("%s is not a stream of answers to one request", name)
	}
	in := dynamicpb.NewMessage(method.Input())
	if err := protojson.Unmarshal(body, in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(in); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	list := []json.RawMessage{}
	for len(list) < count {
		out := dynamicpb.NewMessage(method.Output())
		err := stream.RecvMsg(out)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return list, err
		}
		raw, err := JSON(out)
		if err != nil {
			return list, err
		}
		list = append(list, raw)
	}
	return list, nil
}

// findMethod looks a method up in the services of drivers and of all plugins.
func findMethod(name string) (method protoreflect.MethodDescriptor, path string, err error) {
	for _, file := range []protoreflect.FileDescriptor{pb.File_plugins_drivers_proto_driver_proto, pb.File_plugins_base_proto_base_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			if method = service.Methods().ByName(protoreflect.Name(name)); method != nil {
				return method, fmt.Sprintf("/%s/%s", service.FullName(), name), nil
			}
		}
	}
	return nil, "", fmt.Errorf("no method %s", name)
}
