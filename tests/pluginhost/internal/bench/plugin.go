package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/cgroup"
	"pluginhost/internal/ids"
	"pluginhost/internal/plugin"
	"pluginhost/internal/schema"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2/hcldec"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	taskName = "web"
	// firstUser is the first of the dynamic users, of which each allocation gets one.
	firstUser = 80000
	// memoryMB bounds a task, and secretsMB its secrets: Nomad's default.
	memoryMB, secretsMB = 64, 1
	// quotaUS of periodUS is half a CPU.
	quotaUS, periodUS = 50_000, 100_000
	// statsInterval is Nomad's default.
	statsInterval = time.Second
)

// alloc is one allocation, laid out as Nomad does.
type alloc struct {
	config *pb.TaskConfig
	dir    allocdir.TaskDir
	out    *pipe
	errs   *pipe
}

// driver is a plugin's process, and its tasks.
type driver struct {
	label  string
	host   *host
	proc   *plugin.Process
	schema hcldec.Spec
	starts int
	brief  *alloc
	allocs []*alloc
	held   int
}

func newPlugin(h *host, label, path string) (*driver, error) {
	file := func(name string) string { return filepath.Join(h.base, label+"."+name) }
	info, err := plugin.Detach(path, file("stdout"), file("stderr"))
	if err != nil {
		return nil, err
	}
	p, err := plugin.Attach(info, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	d := &driver{label: label, host: h, proc: p}
	if err := d.configure(); err != nil {
		d.end()
		return nil, err
	}
	d.brief, err = d.newAlloc(0, brief)
	return d, err
}

func (d *driver) configure() error {
	ctx := context.Background()
	_, packed, err := d.proc.Describe(ctx, nil)
	if err != nil {
		return err
	}
	if err := d.proc.Configure(ctx, packed, d.host.topology.Proto()); err != nil {
		return err
	}
	if err := d.proc.Init(ctx); err != nil {
		return err
	}
	d.schema, err = d.proc.TaskSchema(ctx)
	return err
}

func (d *driver) name() string { return d.label }

func (d *driver) end() {
	d.release()
	if d.brief != nil {
		d.brief.remove()
	}
	d.proc.Kill(func(string) {})
}

// newAlloc makes what a client makes before it starts a task.
func (d *driver) newAlloc(number int, program []string) (*alloc, error) {
	id := ids.New()
	user := fmt.Sprintf("nomad-%d", firstUser+number)
	dir := allocdir.New(filepath.Join(d.host.base, "alloc"), filepath.Join(d.host.base, "alloc_mounts"), id, taskName)
	for _, parent := range []string{filepath.Dir(dir.Alloc), filepath.Dir(dir.Mount)} {
		if err := os.MkdirAll(parent, baseMode); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(dir.BuildShared(), dir.Build(user, secretsMB)); err != nil {
		return nil, err
	}
	a := &alloc{dir: dir}
	var err error
	if a.out, err = newPipe(filepath.Join(dir.Logs, "."+taskName+".stdout.fifo")); err != nil {
		return nil, err
	}
	if a.errs, err = newPipe(filepath.Join(dir.Logs, "."+taskName+".stderr.fifo")); err != nil {
		return nil, err
	}
	block, err := schema.Pack(map[string]any{"command": program[0], "args": []any{program[1]}}, d.schema, nil)
	if err != nil {
		return nil, err
	}
	// Half of a CPU, as for the floor.
	shares := int64(d.host.topology.PerCore()) * quotaUS / periodUS
	scope := cgroup.TaskPath(id, taskName, false)
	a.config = &pb.TaskConfig{
		AllocId: id, Name: taskName, JobName: "bench", JobId: "bench", TaskGroupName: "bench", Namespace: "default",
		User: user, AllocDir: dir.Alloc, StdoutPath: a.out.path, StderrPath: a.errs.path, MsgpackDriverConfig: block,
		Env: map[string]string{
			"PATH": "/usr/bin:/bin", "NOMAD_ALLOC_ID": id, "NOMAD_TASK_NAME": taskName,
			"NOMAD_ALLOC_DIR": dir.MountAlloc(), "NOMAD_TASK_DIR": dir.MountLocal(), "NOMAD_SECRETS_DIR": dir.MountSecrets(),
		},
		Resources: &pb.Resources{
			AllocatedResources: &pb.AllocatedTaskResources{
				Cpu: &pb.AllocatedCpuResources{CpuShares: shares}, Memory: &pb.AllocatedMemoryResources{MemoryMb: memoryMB},
			},
			LinuxResources: &pb.LinuxResources{
				CpuShares: shares, MemoryLimitBytes: memoryMB << 20, CpusetCgroup: scope,
				PercentTicks: float64(shares) / float64(max(d.host.topology.Total(), 1)),
			},
		},
	}
	return a, os.MkdirAll(scope, 0o755)
}

func (a *alloc) scope() string { return a.config.Resources.LinuxResources.CpusetCgroup }

func (a *alloc) remove() error {
	err := errors.Join(cgroup.Remove(a.scope()), a.dir.Unmount())
	if err == nil {
		// Never through a mount.
		err = os.RemoveAll(a.dir.Alloc)
	}
	return errors.Join(err, os.NewFile(uintptr(a.out.fd), a.out.path).Close(), os.NewFile(uintptr(a.errs.fd), a.errs.path).Close())
}

// startTask calls StartTask for a new task of the allocation.
func (d *driver) startTask(a *alloc) error {
	d.starts++
	a.config.Id = fmt.Sprintf("%s/%s/%08x", a.config.AllocId, taskName, d.starts)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := d.proc.DriverClient.StartTask(ctx, &pb.StartTaskRequest{Task: a.config})
	return err
}

func (d *driver) start() (first, answer time.Duration, err error) {
	a := d.brief
	if err := os.MkdirAll(a.scope(), 0o755); err != nil {
		return 0, 0, err
	}
	answered := make(chan error, 1)
	began := time.Now()
	go func() {
		err := d.startTask(a)
		answer = time.Since(began)
		answered <- err
	}()
	silent := a.out.firstByte(patience)
	first = time.Since(began)
	if err := errors.Join(<-answered, silent); err != nil {
		return 0, 0, err
	}
	return first, answer, d.finish(a)
}

// finish waits for a task and forgets it.
func (d *driver) finish(a *alloc) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := d.proc.DriverClient.WaitTask(ctx, &pb.WaitTaskRequest{TaskId: a.config.Id}); err != nil {
		return fmt.Errorf("WaitTask: %w", err)
	}
	if _, err := d.proc.DriverClient.DestroyTask(ctx, &pb.DestroyTaskRequest{TaskId: a.config.Id, Force: true}); err != nil {
		return fmt.Errorf("DestroyTask: %w", err)
	}
	return cgroup.Remove(a.scope())
}

func (d *driver) prepare(count int) error {
	for len(d.allocs) < count {
		a, err := d.newAlloc(1+len(d.allocs), forever)
		if err != nil {
			return err
		}
		d.allocs = append(d.allocs, a)
	}
	return nil
}

func (d *driver) hold(number int) error {
	err := d.startTask(d.allocs[number])
	if err == nil {
		d.held = number + 1
	}
	return err
}

func (d *driver) memory() (memory, error) { return readMemory(d.proc.Pid) }

// statistics reads the statistics of all running tasks, as Nomad does.
func (d *driver) statistics(period time.Duration) (float64, error) {
	if d.held == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var samples sync.WaitGroup
	for _, a := range d.allocs[:d.held] {
		stream, err := d.proc.DriverClient.TaskStats(ctx, &pb.TaskStatsRequest{
			TaskId: a.config.Id, CollectionInterval: durationpb.New(statsInterval),
		})
		if err != nil {
			return 0, fmt.Errorf("TaskStats: %w", err)
		}
		if _, err := stream.Recv(); err != nil {
			return 0, fmt.Errorf("TaskStats: %w", err)
		}
		samples.Add(1)
		go func() {
			defer samples.Done()
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
			}
		}()
	}
	before, err := cpuTime(d.proc.Pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	time.Sleep(period)
	after, err := cpuTime(d.proc.Pid)
	took := time.Since(began)
	cancel()
	samples.Wait()
	return float64(after-before) / float64(time.Millisecond) / took.Seconds(), err
}

func (d *driver) release() error {
	var errs []error
	for number, a := range d.allocs {
		if number < d.held {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			_, err := d.proc.DriverClient.StopTask(ctx, &pb.StopTaskRequest{TaskId: a.config.Id, Timeout: durationpb.New(patience), Signal: "SIGKILL"})
			cancel()
			errs = append(errs, err, d.finish(a))
		}
		errs = append(errs, a.remove())
	}
	d.allocs, d.held = nil, 0
	return errors.Join(errs...)
}
