package client

import (
	"maps"
	"slices"
	"sync"
	"time"

	"pluginhost/internal/files"

	nomad "github.com/hashicorp/nomad/api"
)

// record is an allocation as it is kept on disk: in the form of Nomad's API, with
// the client's own state beside it.
type record struct {
	nomad.Allocation
	Index     int              // in its group
	Cores     map[string][]int // reserved, by task
	NetMode   string           // host, bridge or none
	Tasks     map[string]*taskLocal
	Destroyed bool
}

// taskLocal is what the client needs to recover a task.
type taskLocal struct {
	Handle []byte // a marshalled TaskHandle
	// DynamicUser is the user from the pool, kept in order to release it. Like
	// Nomad, the host does not put it back into a restored task.
	DynamicUser string
	DirsBuilt   bool
}

// allocStore owns an alloc's state: each change goes through update, is saved, and
// wakes the waiters of view.
type allocStore struct {
	mu      sync.Mutex
	alloc   *record
	path    string
	changed chan struct{} // closed and replaced at every change
	onError func(error)
}

func newAllocStore(a *record, path string, onError func(error)) *allocStore {
	return &allocStore{alloc: a, path: path, changed: make(chan struct{}), onError: onError}
}

// update changes the alloc under its lock and saves it.
func (s *allocStore) update(f func(*record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.alloc)
	s.alloc.ModifyTime = time.Now().UnixNano()
	s.alloc.ModifyIndex++
	s.alloc.ClientStatus, s.alloc.ClientDescription = clientStatus(s.alloc.TaskStates)
	if s.path != "" && !s.alloc.Destroyed {
		if err := files.WriteJSON(s.path, s.alloc); err != nil {
			s.onError(err)
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// view reads the alloc under its lock and returns the channel that the next
// change closes.
func (s *allocStore) view(f func(*record)) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.alloc)
	return s.changed
}

// snapshot is a copy that others may read without the lock.
func (s *allocStore) snapshot() *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.alloc
	c.TaskStates = map[string]*nomad.TaskState{}
	for name, ts := range s.alloc.TaskStates {
		t := *ts
		t.Events = slices.Clone(ts.Events)
		c.TaskStates[name] = &t
	}
	c.Tasks = maps.Clone(s.alloc.Tasks)
	return &c
}

// clientStatus is the alloc's status that follows from its tasks' states.
func clientStatus(states map[string]*nomad.TaskState) (status, description string) {
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
		return nomad.AllocClientStatusFailed, "Failed tasks"
	case running:
		return nomad.AllocClientStatusRunning, "Tasks are running"
	case pending:
		return nomad.AllocClientStatusPending, "No tasks have started"
	}
	return nomad.AllocClientStatusComplete, "All tasks have completed"
}

// terminal reports whether no task of the alloc will run again.
func (a *record) terminal() bool {
	for _, ts := range a.TaskStates {
		if ts.State != stateDead {
			return false
		}
	}
	return true
}

// ports are those that the alloc got.
func (a *record) ports() []nomad.PortMapping { return a.AllocatedResources.Shared.Ports }

// isolated reports whether the alloc has a network namespace of its own.
func (a *record) isolated() bool { return a.NetMode == "bridge" || a.NetMode == "none" }

// group returns the job's named group, or nil.
func group(j *nomad.Job, name string) *nomad.TaskGroup {
	for _, g := range j.TaskGroups {
		if *g.Name == name {
			return g
		}
	}
	return nil
}

// hook returns a task's lifecycle hook, "" for a main task.
func hook(t *nomad.Task) string {
	if t.Lifecycle == nil {
		return ""
	}
	return t.Lifecycle.Hook
}

// sidecar reports whether a task runs beside the main tasks.
func sidecar(t *nomad.Task) bool { return t.Lifecycle != nil && t.Lifecycle.Sidecar }

// valueOr returns what p points to, or a default for nil.
func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func ptr[T any](v T) *T { return &v }
