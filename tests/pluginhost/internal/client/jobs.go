package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"

	"pluginhost/internal/cgroup"
	"pluginhost/internal/cpu"
	"pluginhost/internal/files"
	"pluginhost/internal/ids"
	"pluginhost/internal/netns"

	nomad "github.com/hashicorp/nomad/api"
)

// register runs a job: new allocs for a new or changed job, none for one that is
// the same and was not stopped.
func (a *Agent) register(j *nomad.Job) (evalID string, allocs []string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	evalID = ids.New()
	old := a.jobs[*j.ID]
	if old != nil {
		if !*old.Stop && sameJob(old, j) {
			return evalID, nil, nil
		}
		j.Version = ptr(*old.Version + 1)
	}
	for _, ar := range a.allocs {
		if s := ar.store.snapshot(); s.JobID == *j.ID && !s.terminal() {
			ar.stop()
		}
	}
	j.SubmitTime = ptr(time.Now().UnixNano())
	if err := a.saveJob(j); err != nil {
		return "", nil, err
	}
	if err := a.placeable(j); err != nil {
		return evalID, nil, err
	}
	for _, g := range j.TaskGroups {
		for i := range *g.Count {
			id, err := a.place(j, g, i, evalID, "")
			if err != nil {
				return evalID, allocs, err
			}
			allocs = append(allocs, id)
		}
	}
	return evalID, allocs, nil
}

// placeable returns an error that names a driver which is missing or not healthy.
func (a *Agent) placeable(j *nomad.Job) error {
	for _, g := range j.TaskGroups {
		for _, t := range g.Tasks {
			m := a.managers[t.Driver]
			if m == nil {
				return placementErrorf("group %q, task %q: missing drivers: no plugin here offers driver %q", *g.Name, t.Name, t.Driver)
			}
			if fp := m.Fingerprint(); !fp.Healthy {
				return placementErrorf("group %q, task %q: missing drivers: %q is not healthy: %s", *g.Name, t.Name, t.Driver, fp.HealthDescription)
			}
		}
	}
	return nil
}

// sameJob compares what the files say.
func sameJob(x, y *nomad.Job) bool {
	a, b := *x, *y
	for _, j := range []*nomad.Job{&a, &b} {
		j.Version, j.SubmitTime, j.Status, j.Stop = nil, nil, nil, nil
	}
	// Through JSON, like the stored one.
	var ga, gb any
	return remarshal(a, &ga) == nil && remarshal(b, &gb) == nil && reflect.DeepEqual(ga, gb)
}

// place creates one alloc and starts it. The agent's lock is held.
func (a *Agent) place(j *nomad.Job, g *nomad.TaskGroup, index int, evalID, previous string) (string, error) {
	a.serial++
	now := time.Now().UnixNano()
	al := &record{
		Allocation: nomad.Allocation{
			ID: ids.New(), Namespace: *j.Namespace, EvalID: evalID, Name: fmt.Sprintf("%s.%s[%d]", *j.ID, *g.Name, index),
			NodeID: a.nodeID, NodeName: a.cfg.Name, JobID: *j.ID, Job: j, TaskGroup: *g.Name,
			DesiredStatus: nomad.AllocDesiredStatusRun, ClientStatus: nomad.AllocClientStatusPending,
			TaskStates: map[string]*nomad.TaskState{}, PreviousAllocation: previous,
			AllocatedResources: &nomad.AllocatedResources{Tasks: map[string]*nomad.AllocatedTaskResources{}},
			CreateIndex:        a.serial, ModifyIndex: a.serial, CreateTime: now, ModifyTime: now,
		},
		Index: index, Cores: map[string][]int{}, NetMode: "host", Tasks: map[string]*taskLocal{},
	}
	if err := a.reserve(al, g); err != nil {
		return "", err
	}
	for _, t := range g.Tasks {
		received := newEvent(nomad.TaskReceived, "Task received by client", nil)
		al.TaskStates[t.Name] = &nomad.TaskState{State: statePending, Events: []*nomad.TaskEvent{received}}
		al.Tasks[t.Name] = &taskLocal{}
		al.AllocatedResources.Tasks[t.Name] = &nomad.AllocatedTaskResources{
			Cpu: nomad.AllocatedCpuResources{CpuShares: a.cpuShares(t, al.Cores[t.Name])},
			Memory: nomad.AllocatedMemoryResources{
				MemoryMB: int64(*t.Resources.MemoryMB), MemoryMaxMB: int64(valueOr(t.Resources.MemoryMaxMB, 0)),
			},
		}
	}
	ar, err := newAllocRunner(a, a.newStore(al))
	if err != nil {
		return "", err
	}
	ar.store.update(func(*record) {})
	a.allocs[al.ID] = ar
	go ar.run()
	return al.ID, nil
}

func (a *Agent) newStore(al *record) *allocStore {
	return newAllocStore(al, filepath.Join(a.stateDir, "allocs", al.ID+".json"), func(err error) {
		a.log.Error("failed to save an alloc", "alloc", ids.Short(al.ID), "error", err)
	})
}

// reserve takes cores, an address and ports for an alloc.
func (a *Agent) reserve(al *record, g *nomad.TaskGroup) error {
	if err := a.reserveCores(al, g); err != nil || len(g.Networks) == 0 {
		return err
	}
	network := g.Networks[0]
	al.NetMode = network.Mode
	if al.NetMode == "bridge" {
		if err := a.reserveAddress(al); err != nil {
			return err
		}
	}
	for _, p := range slices.Concat(network.ReservedPorts, network.DynamicPorts) {
		if err := a.reservePort(al, g, p); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) reserveCores(al *record, g *nomad.TaskGroup) error {
	for _, t := range g.Tasks {
		for range *t.Resources.Cores {
			i := slices.IndexFunc(a.topo.Cores, func(c cpu.Core) bool { return !a.cores[c.ID] })
			if i < 0 {
				return placementErrorf("group %q: no free core for task %q: the node has %d", *g.Name, t.Name, len(a.topo.Cores))
			}
			id := a.topo.Cores[i].ID
			a.cores[id] = true
			al.Cores[t.Name] = append(al.Cores[t.Name], id)
		}
	}
	if len(al.Cores) == 0 {
		return nil
	}
	return a.partition()
}

func (a *Agent) reserveAddress(al *record) error {
	used := map[string]bool{}
	for _, ar := range a.allocs {
		if s := ar.store.snapshot(); s.NetworkStatus != nil && !s.terminal() {
			used[s.NetworkStatus.Address] = true
		}
	}
	address, err := netns.BridgeAddress(used)
	al.NetworkStatus = &nomad.AllocNetworkStatus{InterfaceName: netns.Interface, Address: address}
	return err
}

func (a *Agent) reservePort(al *record, g *nomad.TaskGroup, p nomad.Port) error {
	port := p.Value
	if port == 0 {
		var err error
		if port, err = netns.FreePort(a.hostIP, a.used); err != nil {
			return err
		}
	} else if a.used[port] {
		return placementErrorf("group %q: reserved port collision %s=%d", *g.Name, p.Label, port)
	}
	a.used[port] = true
	to := p.To
	if to == -1 { // the same as outside
		to = port
	}
	shared := &al.AllocatedResources.Shared
	shared.Ports = append(shared.Ports, nomad.PortMapping{Label: p.Label, Value: port, To: to, HostIP: a.hostIP})
	return nil
}

// occupy takes what a restored alloc has reserved.
func (a *Agent) occupy(al *record) {
	for _, p := range al.ports() {
		a.used[p.Value] = true
	}
	for _, cores := range al.Cores {
		for _, c := range cores {
			a.cores[c] = true
		}
	}
}

// release gives back what reserve took.
func (a *Agent) release(al *record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range al.ports() {
		delete(a.used, p.Value)
	}
	for _, cores := range al.Cores {
		for _, c := range cores {
			delete(a.cores, c)
		}
	}
	if len(al.Cores) > 0 {
		if err := a.partition(); err != nil {
			a.log.Error("failed to release cores", "error", err)
		}
	}
}

// partition makes the kernel keep tasks with reserved cores apart.
func (a *Agent) partition() error {
	var share, reserved []int
	for _, c := range a.topo.IDs() {
		if a.cores[c] {
			reserved = append(reserved, c)
		} else {
			share = append(share, c)
		}
	}
	return cgroup.Partition(cpu.List(share), cpu.List(reserved))
}

// deregister stops a job; purge forgets it.
func (a *Agent) deregister(id string, purge bool) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := a.jobs[id]
	if j == nil {
		return "", fmt.Errorf("job %q not found", id)
	}
	stopped := *j // the allocs keep the old one
	stopped.Stop = ptr(true)
	for _, ar := range a.allocs {
		if ar.store.snapshot().JobID == id {
			ar.stop()
			if purge {
				go a.forget(ar)
			}
		}
	}
	if !purge {
		return ids.New(), a.saveJob(&stopped)
	}
	delete(a.jobs, id)
	if err := os.Remove(a.jobPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return ids.New(), nil
}

func (a *Agent) jobPath(id string) string {
	return filepath.Join(a.stateDir, "jobs", strings.ReplaceAll(id, "/", "%2F")+".json")
}

func (a *Agent) saveJob(j *nomad.Job) error {
	a.jobs[*j.ID] = j
	return files.WriteJSON(a.jobPath(*j.ID), j)
}

// stopAlloc stops an alloc and places another one instead.
func (a *Agent) stopAlloc(ar *allocRunner) (string, error) {
	evalID := ids.New()
	if ar.store.snapshot().terminal() {
		return evalID, nil
	}
	ar.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := ar.store.snapshot()
	if j := a.jobs[s.JobID]; j != nil && !*j.Stop && *j.Version == *s.Job.Version && s.NextAllocation == "" {
		id, err := a.place(j, ar.group, s.Index, evalID, s.ID)
		if err != nil {
			return "", err
		}
		ar.store.update(func(al *record) { al.NextAllocation = id })
	}
	return evalID, nil
}

// jobStatus is pending, running or dead.
func (a *Agent) jobStatus(id string) string {
	status := "pending"
	for _, ar := range a.jobAllocs(id) {
		if !ar.store.snapshot().terminal() {
			return "running"
		}
		status = "dead"
	}
	return status
}

// jobAllocs returns a job's allocs, newest first.
func (a *Agent) jobAllocs(id string) []*allocRunner {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*allocRunner
	for _, ar := range a.allocs {
		if ar.store.snapshot().JobID == id {
			out = append(out, ar)
		}
	}
	sort.Slice(out, func(i, k int) bool {
		return out[i].store.snapshot().CreateTime > out[k].store.snapshot().CreateTime
	})
	return out
}
