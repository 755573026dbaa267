package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"pluginhost/pb"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ErrShutdown means that the plugin's process is gone; the caller gets a new one
// and tries again.
var ErrShutdown = errors.New("plugin is shut down")

// exitPatience is how long Nomad waits for the exit of a plugin that seems gone.
const exitPatience = 3 * time.Second

// Driver makes the calls that the Nomad client makes, and checks the answers for
// what would make it panic.
type Driver struct {
	*Process
	report func(string)
}

// StartError is a start error of which the driver said whether it is recoverable.
type StartError struct {
	Err         error
	Recoverable bool
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// IsRecoverable reports whether a start may be tried again.
func IsRecoverable(err error) bool {
	var e *StartError
	return errors.As(err, &e) && e.Recoverable
}

// RecoverableDetail returns what a gRPC error says about that, or nil.
func RecoverableDetail(err error) *pb.RecoverableError {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*pb.RecoverableError); ok {
			return r
		}
	}
	return nil
}

// ExitResult is how a task ended.
type ExitResult struct {
	Code, Signal int
	OOMKilled    bool
	Err          error
}

// Successful reports whether the task ended without any fault.
func (r ExitResult) Successful() bool { return r.Code == 0 && r.Signal == 0 && r.Err == nil }

// rpcError classifies an error as Nomad does: UNAVAILABLE counts as the plugin's
// death if the process exits within exitPatience.
func (d *Driver) rpcError(method string, err error) error {
	if err == nil {
		return nil
	}
	if d.exited() {
		return ErrShutdown
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled:
		select {
		case <-d.gone.Done():
			return ErrShutdown
		case <-time.After(exitPatience):
			d.report(fmt.Sprintf("%s answered %v although the plugin lives: Nomad takes that for its death", method, err))
		}
	case codes.Unimplemented:
		if method != "Init" && method != "Shutdown" && method != "ExecTaskStreaming" {
			d.report(fmt.Sprintf("%s: %v", method, err))
		}
	}
	return err
}

func (d *Driver) need(ok bool, method, field string) error {
	if ok {
		return nil
	}
	d.report(fmt.Sprintf("%s: the answer lacks %s: the Nomad agent would panic", method, field))
	return fmt.Errorf("%s: the answer lacks %s", method, field)
}

// StartTask starts a task and checks its handle.
func (d *Driver) StartTask(cfg *pb.TaskConfig) (*pb.TaskHandle, error) {
	resp, err := d.DriverClient.StartTask(d.gone, &pb.StartTaskRequest{Task: cfg})
	if err != nil {
		if r := RecoverableDetail(err); r != nil {
			return nil, &StartError{Err: err, Recoverable: r.GetRecoverable()}
		}
		return nil, d.rpcError("StartTask", err)
	}
	h := resp.GetHandle()
	if err := d.need(h != nil && h.GetConfig() != nil, "StartTask", "handle.config"); err != nil {
		return nil, err
	}
	if h.GetConfig().GetId() != cfg.GetId() {
		d.report(fmt.Sprintf("StartTask: handle.config.id is %q instead of %q", h.GetConfig().GetId(), cfg.GetId()))
	}
	if h.GetState() != pb.TaskState_RUNNING {
		d.report(fmt.Sprintf("StartTask: handle.state is %v instead of RUNNING", h.GetState()))
	}
	return h, nil
}

// RecoverTask gives the plugin a task that an earlier process started.
func (d *Driver) RecoverTask(h *pb.TaskHandle) error {
	// The client leaves task_id empty.
	_, err := d.DriverClient.RecoverTask(d.gone, &pb.RecoverTaskRequest{Handle: h})
	return d.rpcError("RecoverTask", err)
}

// WaitTask blocks until the task has ended, ctx has, or the plugin has.
func (d *Driver) WaitTask(ctx context.Context, id string) ExitResult {
	joined, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.gone, cancel)()
	resp, err := d.DriverClient.WaitTask(joined, &pb.WaitTaskRequest{TaskId: id})
	if ctx.Err() != nil {
		return ExitResult{Err: ctx.Err()}
	}
	if err != nil {
		return ExitResult{Err: d.rpcError("WaitTask", err)}
	}
	r := ExitResult{
		Code: int(resp.GetResult().GetExitCode()), Signal: int(resp.GetResult().GetSignal()),
		OOMKilled: resp.GetResult().GetOomKilled(),
	}
	if resp.GetErr() != "" {
		r.Err = errors.New(resp.GetErr())
	}
	return r
}

// StopTask sends the signal, and kills the task after the timeout.
func (d *Driver) StopTask(id string, timeout time.Duration, signal string) error {
	_, err := d.DriverClient.StopTask(d.gone, &pb.StopTaskRequest{TaskId: id, Timeout: durationpb.New(timeout), Signal: signal})
	return d.rpcError("StopTask", err)
}

// DestroyTask makes the driver forget a task.
func (d *Driver) DestroyTask(id string, force bool) error {
	_, err := d.DriverClient.DestroyTask(d.gone, &pb.DestroyTaskRequest{TaskId: id, Force: force})
	return d.rpcError("DestroyTask", err)
}

// SignalTask sends a signal to a task.
func (d *Driver) SignalTask(id, signal string) error {
	_, err := d.DriverClient.SignalTask(d.gone, &pb.SignalTaskRequest{TaskId: id, Signal: signal})
	return d.rpcError("SignalTask", err)
}

// InspectTask returns a task's state and checks that it is complete.
func (d *Driver) InspectTask(id string) (*pb.InspectTaskResponse, error) {
	resp, err := d.DriverClient.InspectTask(d.gone, &pb.InspectTaskRequest{TaskId: id})
	if err != nil {
		return nil, d.rpcError("InspectTask", err)
	}
	t := resp.GetTask()
	if err := d.need(t != nil, "InspectTask", "task"); err != nil {
		return nil, err
	}
	return resp, errors.Join(
		d.need(t.GetStartedAt() != nil, "InspectTask", "task.started_at"),
		d.need(t.GetCompletedAt() != nil, "InspectTask", "task.completed_at"),
		d.need(t.GetResult() != nil, "InspectTask", "task.result"))
}

// TaskStats returns count samples, interval apart, or fewer if the stream ends.
func (d *Driver) TaskStats(ctx context.Context, id string, interval time.Duration, count int) ([]*pb.TaskStats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.gone, cancel)()
	stream, err := d.DriverClient.TaskStats(ctx, &pb.TaskStatsRequest{TaskId: id, CollectionInterval: durationpb.New(interval)})
	if err != nil {
		return nil, d.rpcError("TaskStats", err)
	}
	var out []*pb.TaskStats
	for len(out) < count {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, d.rpcError("TaskStats", err)
		}
		s := resp.GetStats()
		if err := d.need(s != nil && s.GetTimestamp() != nil && s.GetAggResourceUsage() != nil, "TaskStats", "stats.timestamp or stats.agg_resource_usage"); err != nil {
			return out, err
		}
		out = append(out, s)
	}
	return out, nil
}
