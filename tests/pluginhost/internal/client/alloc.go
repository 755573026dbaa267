package main

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Alloc is one allocation, in the shape of Nomad's API as far as it goes. It
// is also what is kept on disk.
type Alloc struct {
	ID            string
	Namespace     string
	EvalID        string
	JobType       string
	Name          string
	NodeID        string
	NodeName      string
	JobID         string
	Job           *Job
	JobVersion    uint64
	TaskGroup     string
	DesiredStatus string // run, stop
	ClientStatus  string // pending, running, complete, failed
	// ClientDescription is Nomad's sentence for ClientStatus.
	ClientDescription  string
	TaskStates         map[string]*TaskState
	NetworkStatus      *NetworkStatus
	AllocatedResources allocatedResources
	PreviousAllocation string
	NextAllocation     string
	CreateIndex        uint64
	ModifyIndex        uint64
	CreateTime         int64
	ModifyTime         int64

	// What follows is the client's own state.
	Index     int                   `json:"x_index,omitempty"`
	Ports     []allocPort           `json:"x_ports,omitempty"`
	Cores     map[string][]int      `json:"x_cores,omitempty"`
	NetMode   string                `json:"x_net_mode,omitempty"`
	Local     map[string]*taskLocal `json:"x_local,omitempty"`
	Destroyed bool                  `json:"x_destroyed,omitempty"`
}

// allocPort is a port that an alloc got.
type allocPort struct {
	Label     string
	Value, To int
	HostIP    string
}

type allocatedResources struct {
	Tasks  map[string]allocatedTask
	Shared struct{ Ports []allocPort }
}

type allocatedTask struct {
	Cpu    struct{ CpuShares int64 }
	Memory struct{ MemoryMB, MemoryMaxMB int64 }
}

// taskLocal is what the client needs to recover a task.
type taskLocal struct {
	Handle []byte // a marshalled TaskHandle
	// DynamicUser is the user from the pool, kept to give it back. Nomad does
	// not put it back into a restored task, and neither do we.
	DynamicUser string
	DirsBuilt   bool
}

// allocStore owns one alloc's changes: each goes through update, is saved, and
// wakes those who wait.
type allocStore struct {
	mu      sync.Mutex
	alloc   *Alloc
	path    string
	changed chan struct{} // closed and replaced at every change
	onError func(error)
}

func newAllocStore(a *Alloc, path string, onError func(error)) *allocStore {
	return &allocStore{alloc: a, path: path, changed: make(chan struct{}), onError: onError}
}

// update changes the alloc under its lock and saves it.
func (s *allocStore) update(f func(*Alloc)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.alloc)
	s.alloc.ModifyTime = time.Now().UnixNano()
	s.alloc.ModifyIndex++
	s.alloc.ClientStatus, s.alloc.ClientDescription = clientStatus(s.alloc.TaskStates)
	if s.path != "" && !s.alloc.Destroyed {
		if err := writeJSON(s.path, s.alloc); err != nil {
			s.onError(err)
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// view reads the alloc under its lock and returns the channel that the next
// change closes.
func (s *allocStore) view(f func(*Alloc)) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.alloc)
	return s.changed
}

// snapshot is a copy that others may read without the lock.
func (s *allocStore) snapshot() *Alloc {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.alloc
	c.TaskStates = map[string]*TaskState{}
	for name, ts := range s.alloc.TaskStates {
		t := *ts
		t.Events = slices.Clone(ts.Events)
		c.TaskStates[name] = &t
	}
	c.Local = maps.Clone(s.alloc.Local)
	return &c
}

// clientStatus sums up the states of the tasks.
func clientStatus(states map[string]*TaskState) (status, description string) {
	var pending, running, failed bool
	for _, ts := range states {
		switch {
		case ts.State == stateRunning:
			running = true
		case ts.State == statePending:
			pending = true
		case ts.Failed:
			failed = true
		}
	}
	switch {
	case failed:
		return "failed", "Failed tasks"
	case running:
		return "running", "Tasks are running"
	case pending:
		return "pending", "No tasks have started"
	}
	return "complete", "All tasks have completed"
}

// terminal tells whether nothing of the alloc will run again.
func (a *Alloc) terminal() bool {
	for _, ts := range a.TaskStates {
		if ts.State != stateDead {
			return false
		}
	}
	return true
}
