package plugintest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"pluginhost/internal/plugin"
	"pluginhost/internal/schema/schematest"
	"pluginhost/pb"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type base struct {
	pb.UnimplementedBasePluginServer
}

func (base) PluginInfo(context.Context, *pb.PluginInfoRequest) (*pb.PluginInfoResponse, error) {
	note("PluginInfo")
	return &pb.PluginInfoResponse{Type: pb.PluginType_DRIVER, PluginApiVersions: []string{plugin.APIVersion}, PluginVersion: "1.2.3", Name: "fake"}, nil
}

func (base) ConfigSchema(context.Context, *pb.ConfigSchemaRequest) (*pb.ConfigSchemaResponse, error) {
	note("ConfigSchema")
	return &pb.ConfigSchemaResponse{Spec: schematest.Object(map[string]*pb.Spec{"enabled": schematest.OrElse(schematest.Attr("enabled", "bool", false), "true")})}, nil
}

func (base) SetConfig(_ context.Context, r *pb.SetConfigRequest) (*pb.SetConfigResponse, error) {
	note("SetConfig nomad=%v cores=%v %x", r.NomadConfig != nil, len(r.GetNomadConfig().GetDriver().GetTopology().GetCores()) > 0, r.MsgpackConfig)
	if mode(RefuseConfig) {
		return nil, status.Error(codes.InvalidArgument, "enabled must be true")
	}
	return &pb.SetConfigResponse{}, nil
}

// driver has tasks that are nothing but entries in a table.
type driver struct {
	pb.UnimplementedDriverServer
	mu    sync.Mutex
	tasks map[string]*task
}

type task struct {
	cfg     *pb.TaskConfig
	started time.Time
	ended   time.Time
	result  *pb.ExitResult
	done    chan struct{}
}

func newDriver() *driver { return &driver{tasks: map[string]*task{}} }

func (d *driver) find(id string) (*task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tasks[id]; t != nil {
		return t, nil
	}
	return nil, status.Errorf(codes.NotFound, "task %q not found", id)
}

func (d *driver) add(cfg *pb.TaskConfig) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tasks[cfg.GetId()] = &task{cfg: cfg, started: time.Now(), done: make(chan struct{})}
}

// end ends a task once.
func (d *driver) end(t *task, result *pb.ExitResult) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.result == nil {
		t.ended, t.result = time.Now(), result
		close(t.done)
	}
}

func (*driver) Capabilities(context.Context, *pb.CapabilitiesRequest) (*pb.CapabilitiesResponse, error) {
	note("Capabilities")
	return &pb.CapabilitiesResponse{Capabilities: &pb.DriverCapabilities{FsIsolation: pb.DriverCapabilities_UNVEIL}}, nil
}

func (*driver) TaskConfigSchema(context.Context, *pb.TaskConfigSchemaRequest) (*pb.TaskConfigSchemaResponse, error) {
	note("TaskConfigSchema")
	return &pb.TaskConfigSchemaResponse{Spec: schematest.TaskSpec()}, nil
}

func (*driver) Fingerprint(_ *pb.FingerprintRequest, s grpc.ServerStreamingServer[pb.FingerprintResponse]) error {
	note("Fingerprint")
	err := s.Send(&pb.FingerprintResponse{Health: pb.FingerprintResponse_HEALTHY, Attributes: map[string]*pb.Attribute{
		"driver.fake.n": {Value: &pb.Attribute_IntVal{IntVal: 5}, Unit: "MiB"},
	}})
	if err != nil || mode(EndStream) {
		return err
	}
	if mode(BadLog) {
		// go-plugin replaced os.Stderr with a stream of its own.
		for _, line := range []string{"no JSON here", `{"@message":5,"@level":"info","@timestamp":"x"}`} {
			if _, err := syscall.Write(2, []byte(line+"\n")); err != nil {
				return err
			}
		}
	}
	<-s.Context().Done()
	return nil
}

func (*driver) TaskEvents(_ *pb.TaskEventsRequest, s grpc.ServerStreamingServer[pb.DriverTaskEvent]) error {
	note("TaskEvents")
	if err := s.Send(&pb.DriverTaskEvent{AllocId: "a", TaskName: "t", Message: "hello", Timestamp: timestamppb.Now()}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// StartTask starts a task; some ids stand for an error.
func (d *driver) StartTask(_ context.Context, r *pb.StartTaskRequest) (*pb.StartTaskResponse, error) {
	cfg := r.GetTask()
	note("StartTask %s config=%x", cfg.GetId(), cfg.GetMsgpackDriverConfig())
	switch id := cfg.GetId(); id {
	case "temporary", "permanent":
		st, err := status.New(codes.FailedPrecondition, "try later").WithDetails(&pb.RecoverableError{Recoverable: id == "temporary"})
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
	d.add(cfg)
	return &pb.StartTaskResponse{Handle: &pb.TaskHandle{Version: 1, Config: cfg, State: pb.TaskState_RUNNING, DriverState: []byte("state of " + cfg.GetId())}}, nil
}

func (d *driver) RecoverTask(_ context.Context, r *pb.RecoverTaskRequest) (*pb.RecoverTaskResponse, error) {
	note("RecoverTask id=%q handle=%q state=%q", r.GetTaskId(), r.GetHandle().GetConfig().GetId(), r.GetHandle().GetDriverState())
	d.add(r.GetHandle().GetConfig())
	return &pb.RecoverTaskResponse{}, nil
}

func (d *driver) WaitTask(ctx context.Context, r *pb.WaitTaskRequest) (*pb.WaitTaskResponse, error) {
	t, err := d.find(r.GetTaskId())
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
		return &pb.WaitTaskResponse{Result: t.result}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *driver) StopTask(_ context.Context, r *pb.StopTaskRequest) (*pb.StopTaskResponse, error) {
	note("StopTask %s %s %v", r.GetTaskId(), r.GetSignal(), r.GetTimeout().AsDuration())
	t, err := d.find(r.GetTaskId())
	if err != nil {
		return nil, err
	}
	d.end(t, &pb.ExitResult{Signal: int32(syscall.SIGTERM)})
	return &pb.StopTaskResponse{}, nil
}

func (d *driver) SignalTask(_ context.Context, r *pb.SignalTaskRequest) (*pb.SignalTaskResponse, error) {
	note("SignalTask %s %s", r.GetTaskId(), r.GetSignal())
	_, err := d.find(r.GetTaskId())
	return &pb.SignalTaskResponse{}, err
}

func (d *driver) DestroyTask(_ context.Context, r *pb.DestroyTaskRequest) (*pb.DestroyTaskResponse, error) {
	note("DestroyTask %s force=%v", r.GetTaskId(), r.GetForce())
	t, err := d.find(r.GetTaskId())
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
	default:
		if !r.GetForce() {
			return nil, status.Error(codes.FailedPrecondition, "cannot destroy a running task without force")
		}
		d.end(t, &pb.ExitResult{Signal: int32(syscall.SIGKILL)})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.tasks, r.GetTaskId())
	return &pb.DestroyTaskResponse{}, nil
}

func (d *driver) InspectTask(_ context.Context, r *pb.InspectTaskRequest) (*pb.InspectTaskResponse, error) {
	t, err := d.find(r.GetTaskId())
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &pb.TaskStatus{
		Id: t.cfg.GetId(), Name: t.cfg.GetName(), State: pb.TaskState_RUNNING, Result: &pb.ExitResult{},
		StartedAt: timestamppb.New(t.started), CompletedAt: timestamppb.New(t.ended),
	}
	if t.result != nil {
		s.State, s.Result = pb.TaskState_EXITED, t.result
	}
	return &pb.InspectTaskResponse{Task: s, Driver: &pb.TaskDriverStatus{Attributes: map[string]string{"fake": "yes"}}}, nil
}

func (d *driver) TaskStats(r *pb.TaskStatsRequest, s grpc.ServerStreamingServer[pb.TaskStatsResponse]) error {
	t, err := d.find(r.GetTaskId())
	if err != nil {
		return err
	}
	for n := uint64(1); ; n++ {
		err := s.Send(&pb.TaskStatsResponse{Stats: &pb.TaskStats{
			Id: t.cfg.GetId(), Timestamp: timestamppb.Now(),
			AggResourceUsage: &pb.TaskResourceUsage{Cpu: &pb.CPUUsage{}, Memory: &pb.MemoryUsage{Rss: n}},
		}})
		if err != nil {
			return err
		}
		select {
		case <-s.Context().Done():
			return nil
		case <-t.done:
			return nil
		case <-time.After(r.GetCollectionInterval().AsDuration()):
		}
	}
}

// ExecTask has two commands: echo, and exit with a code.
func (d *driver) ExecTask(ctx context.Context, r *pb.ExecTaskRequest) (*pb.ExecTaskResponse, error) {
	if mode(NoExec) {
		return d.UnimplementedDriverServer.ExecTask(ctx, r)
	}
	note("ExecTask %s %q %v", r.GetTaskId(), r.GetCommand(), r.GetTimeout().AsDuration())
	if _, err := d.find(r.GetTaskId()); err != nil {
		return nil, err
	}
	switch args := r.GetCommand()[1:]; r.GetCommand()[0] {
	case "echo":
		return &pb.ExecTaskResponse{Stdout: []byte(strings.Join(args, " ") + "\n"), Result: &pb.ExitResult{}}, nil
	case "exit":
		code, err := strconv.Atoi(args[0])
		return &pb.ExecTaskResponse{Stderr: []byte("failed\n"), Result: &pb.ExitResult{ExitCode: int32(code)}}, err
	}
	return nil, status.Errorf(codes.InvalidArgument, "unknown command %q", r.GetCommand())
}

// ExecTaskStreaming copies stdin to stdout, notes on stderr what else it receives,
// and exits with the command's argument as code when stdin is closed.
func (d *driver) ExecTaskStreaming(s grpc.BidiStreamingServer[pb.ExecTaskStreamingRequest, pb.ExecTaskStreamingResponse]) error {
	if mode(NoExec) {
		return d.UnimplementedDriverServer.ExecTaskStreaming(s)
	}
	first, err := s.Recv()
	if err != nil {
		return err
	}
	setup := first.GetSetup()
	if setup == nil {
		return status.Error(codes.InvalidArgument, "the first message has no setup")
	}
	if _, err := d.find(setup.GetTaskId()); err != nil {
		return err
	}
	code, err := strconv.Atoi(setup.GetCommand()[0])
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "exit code: %v", err)
	}
	if err := sendOutput(s, nil, fmt.Sprintf("tty=%v\n", setup.GetTty())); err != nil {
		return err
	}
	for closed := false; !closed; {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.InvalidArgument, "the stream ended before stdin")
		}
		if err != nil {
			return err
		}
		if err := sendOutput(s, req.GetStdin().GetData(), remark(req)); err != nil {
			return err
		}
		closed = req.GetStdin().GetClose()
	}
	end := &pb.ExecTaskStreamingIOOperation{Close: true}
	if err := s.Send(&pb.ExecTaskStreamingResponse{Stdout: end, Stderr: end}); err != nil {
		return err
	}
	return s.Send(&pb.ExecTaskStreamingResponse{Exited: true, Result: &pb.ExitResult{ExitCode: int32(code)}})
}

// remark is the line about a message that is not data.
func remark(req *pb.ExecTaskStreamingRequest) string {
	if size := req.GetTtySize(); size != nil {
		return fmt.Sprintf("size=%dx%d\n", size.GetHeight(), size.GetWidth())
	}
	if req.Stdin == nil {
		return "heartbeat\n"
	}
	return ""
}

// sendOutput sends what is not empty.
func sendOutput(s grpc.BidiStreamingServer[pb.ExecTaskStreamingRequest, pb.ExecTaskStreamingResponse], stdout []byte, stderr string) error {
	resp := &pb.ExecTaskStreamingResponse{}
	if len(stdout) > 0 {
		resp.Stdout = &pb.ExecTaskStreamingIOOperation{Data: stdout}
	}
	if stderr != "" {
		resp.Stderr = &pb.ExecTaskStreamingIOOperation{Data: []byte(stderr)}
	}
	if resp.Stdout == nil && resp.Stderr == nil {
		return nil
	}
	return s.Send(resp)
}

func (*driver) Shutdown(context.Context, *pb.ShutdownRequest) (*pb.ShutdownResponse, error) {
	note("Shutdown")
	return &pb.ShutdownResponse{}, nil
}
