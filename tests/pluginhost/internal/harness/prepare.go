package harness

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/cgroup"
	"pluginhost/internal/cpu"
	"pluginhost/internal/logmon"
	"pluginhost/internal/plugin"
	"pluginhost/internal/schema"
	"pluginhost/internal/taskenv"
	"pluginhost/pb"

	nomad "github.com/hashicorp/nomad/api"
)

const (
	// secretsMB is the size of a task's secrets directory, Nomad's default.
	secretsMB = 1
	// The limits of a task's log, Nomad's defaults.
	logFiles, logFileMB = 10, 10
)

// taskDir returns the task's directories in the state directory.
func (o *options) taskDir(t *pb.TaskConfig) allocdir.TaskDir {
	return allocdir.New(o.path("alloc"), o.path("alloc_mounts"), t.AllocId, t.Name)
}

// prepare creates what a Nomad client creates before it starts a task, and fills in
// the fields that the file omits. Fields of the file are used unchanged.
func (c *command) prepare(s *spec) error {
	if c.opts.asIs {
		return nil
	}
	unlock, err := c.opts.lock()
	if err != nil {
		return err
	}
	defer unlock()
	topo, err := cpu.Read(0)
	if err != nil {
		return err
	}
	s.fillResources(topo.Total())
	env := c.environment(s)
	if err := c.prepareDirs(s.task, &env); err != nil {
		return err
	}
	if err := c.prepareLogs(s.task); err != nil {
		return err
	}
	if err := c.prepareCgroup(s.task, topo); err != nil {
		return err
	}
	built := taskenv.Build(env)
	s.task.Env = built.Vars
	for _, m := range s.task.Mounts {
		m.TaskPath = built.Expand(m.TaskPath)
	}
	return nil
}

func (c *command) prepareDirs(t *pb.TaskConfig, env *taskenv.Input) error {
	if t.AllocDir != "" {
		dir := allocdir.New(filepath.Dir(t.AllocDir), "", filepath.Base(t.AllocDir), t.Name)
		env.AllocDir, env.LocalDir, env.SecretsDir = dir.Shared, dir.Local, dir.Secrets
		return nil
	}
	dir := c.opts.taskDir(t)
	t.AllocDir = dir.Alloc
	for _, parent := range []string{filepath.Dir(dir.Alloc), filepath.Dir(dir.Mount)} {
		if err := os.MkdirAll(parent, 0o711); err != nil {
			return err
		}
	}
	if c.opts.plain {
		env.AllocDir, env.LocalDir, env.SecretsDir = dir.Shared, dir.Local, dir.Secrets
		return dir.BuildPlain()
	}
	env.AllocDir, env.LocalDir, env.SecretsDir = dir.MountAlloc(), dir.MountLocal(), dir.MountSecrets()
	if err := dir.BuildShared(); err != nil {
		return err
	}
	return dir.Build(t.User, secretsMB)
}

// prepareLogs makes the fifos and starts their reader.
func (c *command) prepareLogs(t *pb.TaskConfig) error {
	if t.StdoutPath != "" || t.StderrPath != "" {
		return nil
	}
	dir := logDir(t)
	t.StdoutPath, t.StderrPath = logmon.Fifos(dir, t.Name)
	logs := c.opts.logs()
	if err := logs.Ensure(); err != nil {
		return err
	}
	return logs.Start(logKey(t), logmon.Task{Dir: dir, Name: t.Name, MaxFiles: logFiles, MaxFileSizeMB: logFileMB})
}

func logDir(t *pb.TaskConfig) string { return filepath.Join(t.AllocDir, "alloc", "logs") }

func logKey(t *pb.TaskConfig) string { return t.AllocId + "/" + t.Name }

func (c *command) prepareCgroup(t *pb.TaskConfig, topo *cpu.Topology) error {
	linux := t.Resources.LinuxResources
	if linux.CpusetCgroup != "" || c.opts.plain || cgroup.Available() != nil {
		return nil
	}
	if err := cgroup.Init(cpu.List(topo.IDs())); err != nil {
		return err
	}
	linux.CpusetCgroup = scope(t)
	return os.MkdirAll(linux.CpusetCgroup, 0o755)
}

// scope is the path of the cgroup that prepareCgroup makes.
func scope(t *pb.TaskConfig) string {
	return cgroup.TaskPath(t.AllocId, t.Name, t.GetResources().GetLinuxResources().GetCpusetCpus() != "")
}

// environment is the input for a task's environment.
func (c *command) environment(s *spec) taskenv.Input {
	t := s.task
	resources := t.Resources.AllocatedResources
	job := &nomad.Job{ID: &t.JobId, Name: &t.JobName, Namespace: &t.Namespace}
	job.Canonicalize()
	memory, memoryMax := int(resources.GetMemory().GetMemoryMb()), int(resources.GetMemory().GetMemoryMaxMb())
	in := taskenv.Input{
		Alloc: &nomad.Allocation{
			ID: t.AllocId, Name: t.JobName + "." + t.TaskGroupName + "[0]", JobID: t.JobId, Job: job, TaskGroup: t.TaskGroupName,
			AllocatedResources: &nomad.AllocatedResources{},
		},
		Group:  &nomad.TaskGroup{},
		Task:   &nomad.Task{Name: t.Name, Env: t.Env, Resources: &nomad.Resources{MemoryMB: &memory, MemoryMaxMB: &memoryMax}},
		Cgroup: cgroup.Parent, Cores: t.Resources.LinuxResources.GetCpusetCpus(), CPU: resources.GetCpu().GetCpuShares(),
		HostEnv: slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PLUGINHOST_") }),
	}
	ports := &in.Alloc.AllocatedResources.Shared.Ports
	for _, p := range t.Resources.Ports {
		*ports = append(*ports, nomad.PortMapping{Label: p.Label, Value: int(p.Value), To: int(p.To), HostIP: p.HostIp})
	}
	return in
}

// encode encodes the config block by the plugin's schema.
func (c *command) encode(p *plugin.Process, s *spec) error {
	if s.task.MsgpackDriverConfig != nil {
		return nil
	}
	spec, err := p.TaskSchema(c.ctx)
	if err != nil {
		return err
	}
	env := &taskenv.Env{Vars: s.task.Env}
	s.task.MsgpackDriverConfig, err = schema.Pack(s.Config, spec, env.Names())
	return err
}

// prepareVerb prints a file for "start -as-is".
func prepareVerb(c *command) func() error {
	return func() error {
		s, err := readSpec(c.file)
		if err != nil {
			return err
		}
		if err := c.prepare(s); err != nil {
			return err
		}
		raw, err := plugin.JSON(s.task)
		if err != nil {
			return err
		}
		fields := map[string]any{}
		if err := json.Unmarshal(raw, &fields); err != nil {
			return err
		}
		if s.task.MsgpackDriverConfig == nil {
			delete(fields, "msgpack_driver_config")
			fields["config"] = s.Config
		}
		return printJSON(c.out, fields)
	}
}

// cleanupVerb removes what prepare has created.
func cleanupVerb(c *command) func() error {
	return func() error {
		s, err := readSpec(c.file)
		if err != nil {
			return err
		}
		t := s.task
		// Without a collector there is no log to close.
		_ = c.opts.logs().Stop(logKey(t))
		if err := removeFile(c.opts.taskFile(t.Id)); err != nil {
			return err
		}
		if !c.opts.plain && t.GetResources().GetLinuxResources().GetCpusetCgroup() == "" {
			if err := cgroup.Remove(scope(t)); err != nil {
				return err
			}
		}
		if t.AllocDir != "" {
			return nil
		}
		dir := c.opts.taskDir(t)
		if !c.opts.plain {
			if err := dir.Unmount(); err != nil {
				return err // never delete through a mount
			}
		}
		return os.RemoveAll(dir.Alloc)
	}
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// logsVerb prints what the task wrote so far.
func logsVerb(c *command) func() error {
	stderr := c.flags.Bool("stderr", false, "what it wrote to stderr")
	return func() error {
		s, err := readSpec(c.file)
		if err != nil {
			return err
		}
		t := s.task
		if t.AllocDir == "" {
			t.AllocDir = c.opts.taskDir(t).Alloc
		}
		kind := "stdout"
		if *stderr {
			kind = "stderr"
		}
		var place logmon.Chunk
		for {
			place, err = logmon.Read(logDir(t), t.Name, kind, place.Index, place.Offset, true)
			if err != nil || place.Done {
				return err
			}
			if _, err := c.out.Write(place.Data); err != nil {
				return err
			}
		}
	}
}
