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

// Driver makes the same calls as the Nomad client, and checks the answers for
// anything that would make it panic.
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

// refuse reports what an answer lacks, and returns it as an error.
func (d *Driver) refuse(breaches []string) error {
	var errs []error
	for _, text := range breaches {
		d.report(text)
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
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
	if err := d.refuse(StartGaps(resp)); err != nil {
		return nil, err
	}
	for _, text := range StartFaults(cfg.GetId(), resp) {
		d.report(text)
	}
	return resp.GetHandle(), nil
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
	return resp, d.refuse(InspectGaps(resp))
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
		if err := d.refuse(StatsGaps(resp)); err != nil {
			return out, err
		}
		out = append(out, resp.GetStats())
	}
	return out, nil
}
