package main

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

// errPluginShutdown means that the plugin's process is gone; the caller gets a
// new one and tries again.
var errPluginShutdown = errors.New("plugin is shut down")

// driver makes the calls that the Nomad client makes, and checks the answers
// for what would make it panic.
type driver struct {
	*pluginProcess
	report func(string)
}

// rpcError sorts an error as Nomad does. UNAVAILABLE counts as the plugin's
// death if the process ends within three seconds.
func (d *driver) rpcError(method string, err error) error {
	if err == nil {
		return nil
	}
	if d.exited() {
		return errPluginShutdown
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled:
		select {
		case <-d.gone.Done():
			return errPluginShutdown
		case <-time.After(3 * time.Second):
			d.report(fmt.Sprintf("%s answered %v although the plugin lives: Nomad takes that for its death", method, err))
		}
	case codes.Unimplemented:
		if method != "Init" && method != "Shutdown" && method != "ExecTaskStreaming" {
			d.report(fmt.Sprintf("%s: %v", method, err))
		}
	}
	return err
}

func (d *driver) need(ok bool, method, field string) error {
	if ok {
		return nil
	}
	d.report(fmt.Sprintf("%s: the answer lacks %s: the Nomad agent would panic", method, field))
	return fmt.Errorf("%s: the answer lacks %s", method, field)
}

func (d *driver) startTask(cfg *pb.TaskConfig) (*pb.TaskHandle, error) {
	resp, err := d.driver.StartTask(d.gone, &pb.StartTaskRequest{Task: cfg})
	if err != nil {
		st := status.Convert(err)
		for _, detail := range st.Details() {
			if r, ok := detail.(*pb.RecoverableError); ok {
				return nil, &recoverableError{error: err, recoverable: r.GetRecoverable()}
			}
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

func (d *driver) recoverTask(h *pb.TaskHandle) error {
	// The client leaves task_id empty.
	_, err := d.driver.RecoverTask(d.gone, &pb.RecoverTaskRequest{Handle: h})
	return d.rpcError("RecoverTask", err)
}

// waitTask blocks until the task has ended, ctx has, or the plugin has.
func (d *driver) waitTask(ctx context.Context, id string) exitResult {
	joined, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.gone, cancel)()
	resp, err := d.driver.WaitTask(joined, &pb.WaitTaskRequest{TaskId: id})
	if ctx.Err() != nil {
		return exitResult{Err: ctx.Err()}
	}
	if err != nil {
		return exitResult{Err: d.rpcError("WaitTask", err)}
	}
	r := exitResult{
		Code: int(resp.GetResult().GetExitCode()), Signal: int(resp.GetResult().GetSignal()),
		OOMKilled: resp.GetResult().GetOomKilled(),
	}
	if resp.GetErr() != "" {
		r.Err = errors.New(resp.GetErr())
	}
	return r
}

func (d *driver) stopTask(id string, timeout time.Duration, signal string) error {
	_, err := d.driver.StopTask(d.gone, &pb.StopTaskRequest{TaskId: id, Timeout: durationpb.New(timeout), Signal: signal})
	return d.rpcError("StopTask", err)
}

func (d *driver) destroyTask(id string, force bool) error {
	_, err := d.driver.DestroyTask(d.gone, &pb.DestroyTaskRequest{TaskId: id, Force: force})
	return d.rpcError("DestroyTask", err)
}

func (d *driver) signalTask(id, signal string) error {
	_, err := d.driver.SignalTask(d.gone, &pb.SignalTaskRequest{TaskId: id, Signal: signal})
	return d.rpcError("SignalTask", err)
}

func (d *driver) inspectTask(id string) (*pb.InspectTaskResponse, error) {
	resp, err := d.driver.InspectTask(d.gone, &pb.InspectTaskRequest{TaskId: id})
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

// taskStats returns count samples, interval apart, or fewer if the stream ends.
func (d *driver) taskStats(ctx context.Context, id string, interval time.Duration, count int) ([]*pb.TaskStats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.gone, cancel)()
	stream, err := d.driver.TaskStats(ctx, &pb.TaskStatsRequest{TaskId: id, CollectionInterval: durationpb.New(interval)})
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

// initPlugin is Nomad 2.0's Init; older plugins do not know it.
func (d *driver) initPlugin(ctx context.Context) error {
	_, err := d.driver.Init(ctx, &pb.InitRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return d.rpcError("Init", err)
}

// shutdown is Nomad 2.0's Driver.Shutdown; older plugins do not know it.
func (d *driver) shutdown(ctx context.Context) error {
	_, err := d.driver.Shutdown(ctx, &pb.ShutdownRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}
