package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"pluginhost/internal/files"
	"pluginhost/internal/plugin"
	"pluginhost/pb"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// defaultKillTimeout is a job's kill_timeout, Nomad's default.
const defaultKillTimeout = 5 * time.Second

// open reads the task's file and connects to the plugin.
func (c *command) open() (*spec, *plugin.Process, error) {
	s, err := readSpec(c.file)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.attach()
	return s, p, err
}

func startVerb(c *command) func() error {
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		if err := c.prepare(s); err != nil {
			return err
		}
		if err := c.encode(p, s); err != nil {
			return err
		}
		resp, err := p.DriverClient.StartTask(c.ctx, &pb.StartTaskRequest{Task: s.task})
		if err != nil {
			return c.fail(err)
		}
		raw, err := proto.Marshal(resp.GetHandle())
		if err != nil {
			return err
		}
		if err := files.WriteJSON(c.opts.taskFile(s.task.Id), taskState{ID: s.task.Id, Handle: raw}); err != nil {
			return err
		}
		breaches := plugin.StartGaps(resp)
		if breaches == nil {
			breaches = plugin.StartFaults(s.task.Id, resp)
		}
		return c.answer(resp, breaches, nil)
	}
}

func recoverVerb(c *command) func() error {
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		var st taskState
		err = files.ReadJSON(c.opts.taskFile(s.task.Id), &st)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("there is no handle of task %q: start it first", s.task.Id)
		}
		if err != nil {
			return err
		}
		handle := &pb.TaskHandle{}
		if err := proto.Unmarshal(st.Handle, handle); err != nil {
			return err
		}
		// The client leaves task_id empty.
		resp, err := p.DriverClient.RecoverTask(c.ctx, &pb.RecoverTaskRequest{Handle: handle})
		return c.answer(resp, nil, err)
	}
}

func waitVerb(c *command) func() error {
	limit := c.timeoutFlag(0)
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		ctx, cancel := limit()
		defer cancel()
		resp, err := p.DriverClient.WaitTask(ctx, &pb.WaitTaskRequest{TaskId: s.task.Id})
		return c.answer(resp, nil, err)
	}
}

func stopVerb(c *command) func() error {
	timeout := c.flags.Duration("timeout", defaultKillTimeout, "from the signal to SIGKILL")
	signal := c.flags.String("s", "", "signal, like SIGTERM; empty: the driver's default")
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		resp, err := p.DriverClient.StopTask(c.ctx, &pb.StopTaskRequest{
			TaskId: s.task.Id, Timeout: durationpb.New(*timeout), Signal: *signal,
		})
		return c.answer(resp, nil, err)
	}
}

func signalVerb(c *command) func() error {
	signal := c.flags.String("s", "", "signal, like SIGHUP")
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		resp, err := p.DriverClient.SignalTask(c.ctx, &pb.SignalTaskRequest{TaskId: s.task.Id, Signal: *signal})
		return c.answer(resp, nil, err)
	}
}

func destroyVerb(c *command) func() error {
	force := c.flags.Bool("force", false, "also if it runs")
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		resp, err := p.DriverClient.DestroyTask(c.ctx, &pb.DestroyTaskRequest{TaskId: s.task.Id, Force: *force})
		return c.answer(resp, nil, err)
	}
}

func inspectVerb(c *command) func() error {
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		resp, err := p.DriverClient.InspectTask(c.ctx, &pb.InspectTaskRequest{TaskId: s.task.Id})
		return c.answer(resp, plugin.InspectGaps(resp), err)
	}
}

// statsVerb prints one object for each sample.
func statsVerb(c *command) func() error {
	interval := c.flags.Duration("interval", time.Second, "between two samples")
	count := c.flags.Int("count", 1, "samples")
	return func() error {
		s, p, err := c.open()
		if err != nil {
			return err
		}
		stream, err := p.DriverClient.TaskStats(c.ctx, &pb.TaskStatsRequest{TaskId: s.task.Id, CollectionInterval: durationpb.New(*interval)})
		if err != nil {
			return c.fail(err)
		}
		for range *count {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err := c.answer(resp, plugin.StatsGaps(resp), err); err != nil {
				return err
			}
		}
		return nil
	}
}

// rpcVerb makes any call. It prints one object for each answer of a stream.
func rpcVerb(c *command) func() error {
	count := c.flags.Int("count", 0, "how many answers of a stream; 0: the method is not a stream")
	limit := c.timeoutFlag(0)
	return func() error {
		p, err := c.attach()
		if err != nil {
			return err
		}
		body := []byte("{}")
		if len(c.rest) > 0 {
			body = []byte(c.rest[0])
		}
		ctx, cancel := limit()
		defer cancel()
		if *count == 0 {
			raw, err := p.Call(ctx, c.file, body)
			if err != nil {
				return c.fail(err)
			}
			return printJSON(c.out, raw)
		}
		list, err := p.Stream(ctx, c.file, body, *count)
		for _, raw := range list {
			if err := printJSON(c.out, raw); err != nil {
				return err
			}
		}
		if err != nil {
			return c.fail(err)
		}
		return nil
	}
}

// isZombie reports whether a process of this proc_pid_stat(5) waits to be reaped.
func isZombie(stat []byte) bool {
	i := bytes.LastIndex(stat, []byte(") "))
	return i >= 0 && bytes.HasPrefix(stat[i+2:], []byte("Z"))
}
