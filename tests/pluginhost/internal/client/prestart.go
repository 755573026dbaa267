package client

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/cgroup"
	"pluginhost/internal/cpu"
	"pluginhost/internal/ids"
	"pluginhost/internal/logmon"
	"pluginhost/internal/netns"
	"pluginhost/internal/schema"
	"pluginhost/internal/taskenv"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
)

// defaultSecretsMB is the size of a task's secrets directory, Nomad's default.
const defaultSecretsMB = 1

// prestart does what Nomad's prestart hooks do, in their order, and returns the
// task's configuration without the driver's own part.
func (tr *taskRunner) prestart() (*pb.TaskConfig, error) {
	tr.manager = tr.agent.managers[tr.task.Driver]
	if tr.manager == nil {
		return nil, fmt.Errorf("failed to find driver %q", tr.task.Driver)
	}
	a := tr.alloc.store.snapshot()
	local := a.Tasks[tr.task.Name]
	if tr.manager.Capabilities.GetDynamicWorkloadUsers() && tr.user == "" && local.DynamicUser == "" {
		name, err := tr.agent.users.Acquire()
		if err != nil {
			return nil, err
		}
		tr.user = name
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DynamicUser = name })
	}
	if !local.DirsBuilt {
		tr.emit(newEvent(nomad.TaskSetup, nomad.TaskBuildingTaskDir, details{"message": nomad.TaskBuildingTaskDir}))
		if err := tr.dir.Build(tr.user, valueOr(tr.task.Resources.SecretsMB, defaultSecretsMB)); err != nil {
			return nil, fmt.Errorf("failed to build task directory: %w", err)
		}
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DirsBuilt = true })
	}
	cores := a.Cores[tr.task.Name]
	scope := cgroup.TaskPath(a.ID, tr.task.Name, len(cores) > 0)
	if err := os.MkdirAll(scope, 0o755); err != nil {
		return nil, fmt.Errorf("failed to create the task's cgroup: %w", err)
	}
	tokens, err := tr.writeTokens(a)
	if err != nil {
		return nil, err
	}
	if err := tr.startLogs(); err != nil {
		return nil, fmt.Errorf("failed to start the log collector: %w", err)
	}
	in := taskenv.Input{
		Alloc: &a.Allocation, Index: a.Index, Group: tr.alloc.group, Task: tr.task, Node: tr.agent.nodeVars(),
		Cgroup: cgroup.Parent, Cores: cpu.List(cores), CPU: tr.agent.cpuShares(tr.task, cores),
		AllocDir: tr.dir.MountAlloc(), LocalDir: tr.dir.MountLocal(), SecretsDir: tr.dir.MountSecrets(),
		Tokens: tokens, HostEnv: os.Environ(),
	}
	if in.TemplateEnv, err = taskenv.RenderTemplates(tr.task, taskenv.Build(in), tr.dir); err != nil {
		return nil, err
	}
	tr.env = taskenv.Build(in)
	cfg := tr.taskConfig(a, scope, cores)
	cfg.Mounts, err = tr.mounts()
	return cfg, err
}

// mounts are what the task's volume_mount blocks ask for.
func (tr *taskRunner) mounts() ([]*pb.Mount, error) {
	if len(tr.task.VolumeMounts) > 0 && tr.manager.Capabilities.GetMountConfigs() == pb.DriverCapabilities_NO_MOUNTS {
		return nil, fmt.Errorf("task driver %q does not support host volumes", tr.task.Driver)
	}
	var mounts []*pb.Mount
	for _, m := range tr.task.VolumeMounts {
		request := tr.alloc.group.Volumes[*m.Volume]
		volume, ok := tr.agent.cfg.HostVolumes[request.Source]
		if !ok {
			return nil, fmt.Errorf("missing host volume: %s", request.Source)
		}
		mounts = append(mounts, &pb.Mount{
			TaskPath: tr.env.Expand(*m.Destination), HostPath: volume.Path,
			Readonly:        valueOr(m.ReadOnly, false) || request.ReadOnly || volume.ReadOnly,
			PropagationMode: valueOr(m.PropagationMode, "private"), SelinuxLabel: valueOr(m.SELinuxLabel, ""),
			RequestName: *m.Volume,
		})
	}
	return mounts, nil
}

// cpuShares is a task's share in MHz.
func (a *Agent) cpuShares(t *nomad.Task, cores []int) int64 {
	if len(cores) > 0 {
		return int64(a.topo.PerCore()) * int64(len(cores))
	}
	return int64(*t.Resources.CPU)
}

// taskConfig is the driver's configuration of a task, without its own config block.
func (tr *taskRunner) taskConfig(a *record, scope string, cores []int) *pb.TaskConfig {
	stdout, stderr := logmon.Fifos(tr.dir.Logs, tr.task.Name)
	if *tr.task.LogConfig.Disabled {
		stdout, stderr = os.DevNull, os.DevNull // as Nomad does
	}
	cfg := &pb.TaskConfig{
		Id:   a.ID + "/" + tr.task.Name + "/" + ids.Short(ids.New()),
		Name: tr.task.Name, Env: tr.env.Vars, User: tr.user, AllocDir: tr.dir.Alloc,
		StdoutPath: stdout, StderrPath: stderr, TaskGroupName: a.TaskGroup, JobName: *a.Job.Name, AllocId: a.ID,
		JobId: a.JobID, Namespace: *a.Job.Namespace, NodeName: a.NodeName, NodeId: a.NodeID,
		Resources: tr.resources(a, scope, cores),
	}
	if a.isolated() {
		mode := pb.NetworkIsolationSpec_GROUP
		if a.NetMode == "none" {
			mode = pb.NetworkIsolationSpec_NONE
		}
		cfg.NetworkIsolationSpec = &pb.NetworkIsolationSpec{Mode: mode, Path: netns.Path(a.ID), Labels: map[string]string{}}
	}
	if n := tr.alloc.group.Networks; len(n) > 0 && n[0].DNS != nil {
		cfg.Dns = &pb.DNSConfig{Servers: n[0].DNS.Servers, Searches: n[0].DNS.Searches, Options: n[0].DNS.Options}
	}
	return cfg
}

func (tr *taskRunner) resources(a *record, scope string, cores []int) *pb.Resources {
	memory, memoryMax := *tr.task.Resources.MemoryMB, valueOr(tr.task.Resources.MemoryMaxMB, 0)
	shares := tr.agent.cpuShares(tr.task, cores)
	r := &pb.Resources{
		AllocatedResources: &pb.AllocatedTaskResources{
			Cpu:    &pb.AllocatedCpuResources{CpuShares: shares},
			Memory: &pb.AllocatedMemoryResources{MemoryMb: int64(memory), MemoryMaxMb: int64(memoryMax)},
		},
		LinuxResources: &pb.LinuxResources{
			CpuShares:        shares,
			MemoryLimitBytes: int64(max(memory, memoryMax)) << 20,
			CpusetCpus:       cpu.Joined(cores),
			CpusetCgroup:     scope,
			PercentTicks:     float64(shares) / float64(max(tr.agent.topo.Total(), 1)),
		},
	}
	for _, p := range a.ports() {
		r.Ports = append(r.Ports, &pb.PortMapping{Label: p.Label, Value: int32(p.Value), To: int32(p.To), HostIp: p.HostIP})
	}
	return r
}

// encodeConfig encodes the task's config block by the driver's schema.
func (tr *taskRunner) encodeConfig(cfg *pb.TaskConfig) error {
	raw, err := schema.Pack(tr.task.Config, tr.manager.Schema, tr.env.Names())
	cfg.MsgpackDriverConfig = raw
	return err
}

// writeTokens makes the identity tokens. They have the form of a JWT but no valid
// signature.
func (tr *taskRunner) writeTokens(a *record) (map[string]string, error) {
	tokens := map[string]string{}
	for _, id := range tr.task.Identities {
		token := fakeToken(a, tr.task.Name, id.Name)
		if id.Env {
			tokens[id.Name] = token
		}
		if !id.File {
			continue
		}
		file := "nomad_token"
		if id.Name != "default" {
			file = "nomad_" + id.Name + ".jwt"
		}
		if err := allocdir.WriteFileFor(filepath.Join(tr.dir.Secrets, file), []byte(token), tr.user); err != nil {
			return nil, fmt.Errorf("failed to write nomad token: %w", err)
		}
	}
	return tokens, nil
}

func fakeToken(a *record, task, name string) string {
	enc := func(v any) string {
		raw, _ := json.Marshal(v) // maps of strings and numbers always encode
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return enc(map[string]string{"alg": "none", "typ": "JWT"}) + "." + enc(map[string]any{
		"nomad_namespace": *a.Job.Namespace, "nomad_job_id": a.JobID, "nomad_allocation_id": a.ID,
		"nomad_task": task, "sub": name, "iat": time.Now().Unix(), "jti": ids.New(),
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("pluginhost: not signed"))
}

// startLogs makes the fifos and starts their reader.
func (tr *taskRunner) startLogs() error {
	logs := tr.task.LogConfig
	if *logs.Disabled || tr.manager.Capabilities.GetDisableLogCollection() {
		return nil
	}
	if err := tr.agent.logs.Ensure(); err != nil {
		return err
	}
	return tr.agent.logs.Start(tr.logKey(), logmon.Task{
		Dir: tr.dir.Logs, Name: tr.task.Name, MaxFiles: *logs.MaxFiles, MaxFileSizeMB: *logs.MaxFileSizeMB,
	})
}

func (tr *taskRunner) logKey() string { return filepath.Base(tr.dir.Alloc) + "/" + tr.task.Name }

// cleanup does what Nomad's stop hooks do when a task is dead for good.
func (tr *taskRunner) cleanup() {
	a := tr.alloc.store.snapshot()
	if err := tr.agent.logs.Stop(tr.logKey()); err != nil {
		tr.log.Debug("log collector", "error", err)
	}
	if err := cgroup.Remove(cgroup.TaskPath(a.ID, tr.task.Name, len(a.Cores[tr.task.Name]) > 0)); err != nil {
		tr.log.Error("failed to remove the task's cgroup", "error", err)
	}
	if l := a.Tasks[tr.task.Name]; l.DynamicUser != "" {
		tr.agent.users.Release(l.DynamicUser)
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DynamicUser = "" })
	}
}

func (tr *taskRunner) state() string {
	var s string
	tr.alloc.store.view(func(a *record) { s = a.TaskStates[tr.task.Name].State })
	return s
}

// emit adds an event; the state stays.
func (tr *taskRunner) emit(ev *nomad.TaskEvent) {
	tr.alloc.updateTask(tr.task.Name, func(ts *nomad.TaskState) { appendEvent(ts, ev) })
	tr.logEvent(ev)
}

// setState changes the state and adds an event, which may be nil.
func (tr *taskRunner) setState(state string, ev *nomad.TaskEvent) {
	tr.alloc.updateTask(tr.task.Name, func(ts *nomad.TaskState) {
		now := time.Now().UTC()
		if state == stateRunning && ts.State != stateRunning {
			ts.StartedAt = now
		}
		if state == stateDead && ts.FinishedAt.IsZero() {
			ts.FinishedAt = now
		}
		ts.State = state
		appendEvent(ts, ev)
	})
	tr.logEvent(ev)
}

func appendEvent(ts *nomad.TaskState, ev *nomad.TaskEvent) {
	if ev == nil {
		return
	}
	ts.Failed = ts.Failed || ev.FailsTask
	ts.Events = append(ts.Events, ev)
	if len(ts.Events) > maxEvents {
		ts.Events = ts.Events[len(ts.Events)-maxEvents:]
	}
}

func (tr *taskRunner) logEvent(ev *nomad.TaskEvent) {
	if ev == nil {
		return
	}
	tr.log.Log(hclog.Info, "task event", "type", ev.Type, "msg", ev.DisplayMessage, "failed", ev.FailsTask)
	tr.agent.trace(tr, ev)
}
