package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
)

// prestart does what Nomad's prestart hooks do, in their order, and returns
// the task's configuration less the driver's own part.
func (tr *taskRunner) prestart() (*pb.TaskConfig, error) {
	tr.manager = tr.agent.managers[tr.task.Driver]
	if tr.manager == nil {
		return nil, fmt.Errorf("failed to find driver %q", tr.task.Driver)
	}
	a := tr.alloc.store.snapshot()
	local := a.Local[tr.task.Name]
	if tr.manager.caps.GetDynamicWorkloadUsers() && tr.user == "" && local.DynamicUser == "" {
		name, err := tr.agent.users.acquire()
		if err != nil {
			return nil, err
		}
		tr.user = name
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DynamicUser = name })
	}
	if !local.DirsBuilt {
		tr.emit(newEvent(eventTaskSetup, "Building Task Directory").with("message", "Building Task Directory"))
		if err := tr.dir.build(tr.user, tr.task.Resources.SecretsMB); err != nil {
			return nil, fmt.Errorf("failed to build task directory: %w", err)
		}
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DirsBuilt = true })
	}
	cores := a.Cores[tr.task.Name]
	cgroup := taskCgroup(a.ID, tr.task.Name, len(cores) > 0)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("failed to create the task's cgroup: %w", err)
	}
	tokens, err := tr.writeTokens(a)
	if err != nil {
		return nil, err
	}
	if err := tr.startLogs(); err != nil {
		return nil, fmt.Errorf("failed to start the log collector: %w", err)
	}
	in := envInput{
		alloc: a, group: tr.alloc.group, task: tr.task, node: tr.agent.nodeVars(),
		allocDir: tr.dir.mountAlloc(), localDir: tr.dir.mountLocal(), secretsDir: tr.dir.mountSecrets(),
		cpu: tr.agent.cpuShares(tr.task, cores), tokens: tokens, hostEnv: os.Environ(),
	}
	if in.templateEnv, err = renderTemplates(tr.task, buildEnv(in), tr.dir); err != nil {
		return nil, err
	}
	tr.env = buildEnv(in)
	return tr.taskConfig(a, cgroup, cores), nil
}

// cpuShares is a task's share in MHz.
func (a *Agent) cpuShares(t *Task, cores []int) int64 {
	if len(cores) > 0 {
		return int64(a.topo.perCore()) * int64(len(cores))
	}
	return int64(t.Resources.CPU)
}

// taskConfig is what the driver gets, less its own config block.
func (tr *taskRunner) taskConfig(a *Alloc, cgroup string, cores []int) *pb.TaskConfig {
	r := tr.task.Resources
	cpu := tr.agent.cpuShares(tr.task, cores)
	stdout, stderr := fifoPaths(tr.dir.Logs, tr.task.Name)
	if tr.task.Logs.Disabled {
		stdout, stderr = os.DevNull, os.DevNull // as Nomad does
	}
	cfg := &pb.TaskConfig{
		Id:   a.ID + "/" + tr.task.Name + "/" + short(newUUID()),
		Name: tr.task.Name, Env: tr.env.env, User: tr.user, AllocDir: tr.dir.Alloc,
		StdoutPath: stdout, StderrPath: stderr, TaskGroupName: a.TaskGroup, JobName: a.Job.Name, AllocId: a.ID,
		JobId: a.JobID, Namespace: a.Job.Namespace, NodeName: a.NodeName, NodeId: a.NodeID,
		Resources: &pb.Resources{
			AllocatedResources: &pb.AllocatedTaskResources{
				Cpu:    &pb.AllocatedCpuResources{CpuShares: cpu},
				Memory: &pb.AllocatedMemoryResources{MemoryMb: int64(r.MemoryMB), MemoryMaxMb: int64(r.MemoryMaxMB)},
			},
			LinuxResources: &pb.LinuxResources{
				CpuShares:        cpu,
				MemoryLimitBytes: int64(max(r.MemoryMB, r.MemoryMaxMB)) << 20,
				CpusetCpus:       joinInts(cores),
				CpusetCgroup:     cgroup,
				PercentTicks:     float64(cpu) / float64(max(tr.agent.topo.total(), 1)),
			},
		},
	}
	for _, p := range a.Ports {
		cfg.Resources.Ports = append(cfg.Resources.Ports, &pb.PortMapping{Label: p.Label, Value: int32(p.Value), To: int32(p.To), HostIp: p.HostIP})
	}
	if a.NetMode == "bridge" || a.NetMode == "none" {
		cfg.NetworkIsolationSpec = &pb.NetworkIsolationSpec{
			Mode: pb.NetworkIsolationSpec_GROUP, Path: netnsDir + "/" + a.ID, Labels: map[string]string{},
		}
	}
	if n := tr.alloc.group.Network; n != nil && n.DNS != nil {
		cfg.Dns = &pb.DNSConfig{Servers: n.DNS.Servers, Searches: n.DNS.Searches, Options: n.DNS.Options}
	}
	return cfg
}

// encodeConfig decodes the task's config block through the driver's schema.
func (tr *taskRunner) encodeConfig(cfg *pb.TaskConfig) error {
	raw, err := packConfig(tr.task.Config, tr.manager.schema, tr.env.vars())
	cfg.MsgpackDriverConfig = raw
	return err
}

// writeTokens makes the identity tokens. They have a JWT's form and no
// signature that anyone could check.
func (tr *taskRunner) writeTokens(a *Alloc) (map[string]string, error) {
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
		if err := writeFileFor(filepath.Join(tr.dir.Secrets, file), []byte(token), tr.user); err != nil {
			return nil, fmt.Errorf("failed to write nomad token: %w", err)
		}
	}
	return tokens, nil
}

func fakeToken(a *Alloc, task, name string) string {
	enc := func(v any) string {
		raw, _ := json.Marshal(v) // maps of strings and numbers always encode
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return enc(map[string]string{"alg": "none", "typ": "JWT"}) + "." + enc(map[string]any{
		"nomad_namespace": a.Job.Namespace, "nomad_job_id": a.JobID, "nomad_allocation_id": a.ID,
		"nomad_task": task, "sub": name, "iat": time.Now().Unix(), "jti": newUUID(),
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("pluginhost: not signed"))
}

// startLogs makes the fifos and their reader.
func (tr *taskRunner) startLogs() error {
	if tr.task.Logs.Disabled {
		return nil
	}
	stdout, stderr := fifoPaths(tr.dir.Logs, tr.task.Name)
	if err := ensureLogmon(tr.agent.logSocket); err != nil {
		return err
	}
	return logmonCall(tr.agent.logSocket, logRequest{
		Op: "start", Key: tr.logKey(), Dir: tr.dir.Logs, Task: tr.task.Name, Max: tr.task.Logs, Stdout: stdout, Stderr: stderr,
	})
}

func (tr *taskRunner) logKey() string { return filepath.Base(tr.dir.Alloc) + "/" + tr.task.Name }

// cleanup is what Nomad's stop hooks do when a task is dead for good.
func (tr *taskRunner) cleanup() {
	a := tr.alloc.store.snapshot()
	if err := logmonCall(tr.agent.logSocket, logRequest{Op: "stop", Key: tr.logKey()}); err != nil {
		tr.log.Debug("log collector", "error", err)
	}
	if err := removeCgroup(taskCgroup(a.ID, tr.task.Name, len(a.Cores[tr.task.Name]) > 0)); err != nil {
		tr.log.Error("cannot remove the task's cgroup", "error", err)
	}
	if l := a.Local[tr.task.Name]; l.DynamicUser != "" {
		tr.agent.users.release(l.DynamicUser)
		tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.DynamicUser = "" })
	}
}

func (tr *taskRunner) state() string {
	var s string
	tr.alloc.store.view(func(a *Alloc) { s = a.TaskStates[tr.task.Name].State })
	return s
}

// emit adds an event; the state stays.
func (tr *taskRunner) emit(ev *TaskEvent) {
	tr.alloc.updateTask(tr.task.Name, func(ts *TaskState) { appendEvent(ts, ev) })
	tr.logEvent(ev)
}

// setState changes the state and adds an event, which may be nil.
func (tr *taskRunner) setState(state string, ev *TaskEvent) {
	tr.alloc.updateTask(tr.task.Name, func(ts *TaskState) {
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

func appendEvent(ts *TaskState, ev *TaskEvent) {
	if ev == nil {
		return
	}
	ts.Failed = ts.Failed || ev.FailsTask
	ts.Events = append(ts.Events, ev)
	if len(ts.Events) > maxEvents {
		ts.Events = ts.Events[len(ts.Events)-maxEvents:]
	}
}

func (tr *taskRunner) logEvent(ev *TaskEvent) {
	if ev == nil {
		return
	}
	tr.log.Log(hclog.Info, "task event", "type", ev.Type, "msg", ev.DisplayMessage, "failed", ev.FailsTask)
	tr.agent.trace(tr, ev)
}
