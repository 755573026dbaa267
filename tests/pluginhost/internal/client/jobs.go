package main

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
)

// register runs a job: new allocs for a new or changed job, none for one that
// is the same and was not stopped.
func (a *Agent) register(j *Job) (evalID string, ids []string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	evalID = newUUID()
	old := a.jobs[j.ID]
	if old != nil {
		if !old.Stop && sameJob(old, j) {
			return evalID, nil, nil
		}
		j.Version = old.Version + 1
	}
	for _, ar := range a.allocs {
		if s := ar.store.snapshot(); s.JobID == j.ID && !s.terminal() {
			ar.stop()
		}
	}
	j.SubmitTime = time.Now().UnixNano()
	if err := a.saveJob(j); err != nil {
		return "", nil, err
	}
	if err := a.placeable(j); err != nil {
		return evalID, nil, err
	}
	for _, g := range j.TaskGroups {
		for i := range g.Count {
			id, err := a.place(j, g, i, evalID, "")
			if err != nil {
				return evalID, ids, err
			}
			ids = append(ids, id)
		}
	}
	return evalID, ids, nil
}

// placeable says which driver is missing or not healthy.
func (a *Agent) placeable(j *Job) error {
	for _, g := range j.TaskGroups {
		for _, t := range g.Tasks {
			m := a.managers[t.Driver]
			if m == nil {
				return placementErrorf("group %q, task %q: missing drivers: no plugin here offers driver %q", g.Name, t.Name, t.Driver)
			}
			if fp := m.fingerprint(); !fp.Healthy {
				return placementErrorf("group %q, task %q: missing drivers: %q is not healthy: %s", g.Name, t.Name, t.Driver, fp.HealthDescription)
			}
		}
	}
	return nil
}

// sameJob compares what the file says.
func sameJob(x, y *Job) bool {
	a, b := *x, *y
	for _, j := range []*Job{&a, &b} {
		j.Version, j.SubmitTime, j.Status, j.Stop = 0, 0, "", false
	}
	// Through JSON, as the stored one has been there.
	var ga, gb any
	return remarshal(a, &ga) == nil && remarshal(b, &gb) == nil && reflect.DeepEqual(ga, gb)
}

// place creates one alloc and starts it. The agent's lock is held.
func (a *Agent) place(j *Job, g *TaskGroup, index int, evalID, previous string) (string, error) {
	a.serial++
	al := &Alloc{
		ID: newUUID(), Namespace: j.Namespace, EvalID: evalID, JobType: j.Type, Name: fmt.Sprintf("%s.%s[%d]", j.ID, g.Name, index),
		NodeID: a.nodeID, NodeName: a.cfg.Name, JobID: j.ID, Job: j, JobVersion: j.Version, TaskGroup: g.Name,
		DesiredStatus: "run", ClientStatus: "pending", TaskStates: map[string]*TaskState{}, PreviousAllocation: previous,
		CreateIndex: a.serial, ModifyIndex: a.serial, CreateTime: time.Now().UnixNano(), ModifyTime: time.Now().UnixNano(),
		Index: index, Cores: map[string][]int{}, NetMode: "host", Local: map[string]*taskLocal{},
	}
	if err := a.reserve(al, g); err != nil {
		return "", err
	}
	al.AllocatedResources.Shared.Ports = al.Ports
	al.AllocatedResources.Tasks = map[string]allocatedTask{}
	for _, t := range g.Tasks {
		al.TaskStates[t.Name] = &TaskState{State: statePending, Events: []*TaskEvent{newEvent(eventReceived, "Task received by client")}}
		al.Local[t.Name] = &taskLocal{}
		at := allocatedTask{}
		at.Cpu.CpuShares = a.cpuShares(t, al.Cores[t.Name])
		at.Memory.MemoryMB, at.Memory.MemoryMaxMB = int64(t.Resources.MemoryMB), int64(t.Resources.MemoryMaxMB)
		al.AllocatedResources.Tasks[t.Name] = at
	}
	ar, err := newAllocRunner(a, a.newStore(al))
	if err != nil {
		return "", err
	}
	ar.store.update(func(*Alloc) {})
	a.allocs[al.ID] = ar
	go ar.run()
	return al.ID, nil
}

func (a *Agent) newStore(al *Alloc) *allocStore {
	return newAllocStore(al, filepath.Join(a.stateDir, "allocs", al.ID+".json"), func(err error) {
		a.log.Error("cannot save an alloc", "alloc", short(al.ID), "error", err)
	})
}

// reserve takes ports, cores and an address for an alloc.
func (a *Agent) reserve(al *Alloc, g *TaskGroup) error {
	for _, t := range g.Tasks {
		for range t.Resources.Cores {
			i := slices.IndexFunc(a.topo.Cores, func(c core) bool { return !a.cores[c.ID] })
			if i < 0 {
				return placementErrorf("group %q: no free core for task %q: the node has %d", g.Name, t.Name, len(a.topo.Cores))
			}
			a.cores[a.topo.Cores[i].ID] = true
			al.Cores[t.Name] = append(al.Cores[t.Name], a.topo.Cores[i].ID)
		}
	}
	if len(al.Cores) > 0 {
		if err := a.partition(); err != nil {
			return err
		}
	}
	if g.Network == nil {
		return nil
	}
	al.NetMode = g.Network.Mode
	if al.NetMode == "bridge" {
		used := map[string]bool{}
		for _, ar := range a.allocs {
			if s := ar.store.snapshot(); s.NetworkStatus != nil && !s.terminal() {
				used[s.NetworkStatus.Address] = true
			}
		}
		address, err := bridgeAddress(used)
		if err != nil {
			return err
		}
		al.NetworkStatus = &NetworkStatus{InterfaceName: "eth0", Address: address}
	}
	for _, p := range g.Network.Ports {
		port := p.Static
		if port == 0 {
			var err error
			if port, err = freePort(a.hostIP, a.ports); err != nil {
				return err
			}
		} else if a.ports[port] {
			return placementErrorf("group %q: reserved port collision %s=%d", g.Name, p.Label, port)
		}
		a.ports[port] = true
		to := p.To
		if to == -1 {
			to = port
		}
		al.Ports = append(al.Ports, allocPort{Label: p.Label, Value: port, To: to, HostIP: a.hostIP})
	}
	return nil
}

// release gives back what reserve took.
func (a *Agent) release(al *Alloc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range al.Ports {
		delete(a.ports, p.Value)
	}
	for _, cores := range al.Cores {
		for _, c := range cores {
			delete(a.cores, c)
		}
	}
	if len(al.Cores) > 0 {
		if err := a.partition(); err != nil {
			a.log.Error("cannot give cores back", "error", err)
		}
	}
}

// partition tells the kernel which cores are reserved.
func (a *Agent) partition() error {
	var share, reserved []int
	for _, c := range a.topo.ids() {
		if a.cores[c] {
			reserved = append(reserved, c)
		} else {
			share = append(share, c)
		}
	}
	return partition(share, reserved)
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
	stopped.Stop = true
	for _, ar := range a.allocs {
		if ar.store.snapshot().JobID == id {
			ar.stop()
			if purge {
				go a.forget(ar)
			}
		}
	}
	if !purge {
		return newUUID(), a.saveJob(&stopped)
	}
	delete(a.jobs, id)
	if err := os.Remove(a.jobPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return newUUID(), nil
}

func (a *Agent) jobPath(id string) string {
	return filepath.Join(a.stateDir, "jobs", strings.ReplaceAll(id, "/", "%2F")+".json")
}

func (a *Agent) saveJob(j *Job) error {
	a.jobs[j.ID] = j
	return writeJSON(a.jobPath(j.ID), j)
}

// stopAlloc stops one alloc and places another in its stead.
func (a *Agent) stopAlloc(ar *allocRunner) (string, error) {
	evalID := newUUID()
	if ar.store.snapshot().terminal() {
		return evalID, nil
	}
	ar.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := ar.store.snapshot()
	if j := a.jobs[s.JobID]; j != nil && !j.Stop && j.Version == s.JobVersion && s.NextAllocation == "" {
		id, err := a.place(j, ar.group, s.Index, evalID, s.ID)
		if err != nil {
			return "", err
		}
		ar.store.update(func(al *Alloc) { al.NextAllocation = id })
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
