package main

import "time"

// Job is what pluginhost keeps of a job file. Field names are those of Nomad's
// API where scripts may read them.
type Job struct {
	ID, Name, Namespace, Region, Type string
	Priority                          int
	Datacenters                       []string
	Meta                              map[string]string
	TaskGroups                        []*TaskGroup
	Stop                              bool
	Version                           uint64
	Status                            string
	SubmitTime                        int64
}

// TaskGroup is a group block.
type TaskGroup struct {
	Name     string
	Count    int
	Meta     map[string]string
	Network  *Network
	Restart  Restart
	Services []Service
	Tasks    []*Task
}

// Network is a group's network block.
type Network struct {
	Mode     string // host, bridge, none
	Hostname string
	Ports    []PortSpec
	DNS      *DNS
}

// DNS is a network's dns block.
type DNS struct{ Servers, Searches, Options []string }

// PortSpec asks for a port; a Static of 0 means a dynamic one.
type PortSpec struct {
	Label      string
	Static, To int
}

// Service is accepted and shown, nothing more.
type Service struct{ Name, Provider, Port string }

// Restart is a restart block with its defaults applied.
type Restart struct {
	Attempts        int
	Delay, Interval time.Duration
	Mode            string
}

// Task is a task block.
type Task struct {
	Name, Driver, User string
	Config             map[string]any
	Env, Meta          map[string]string
	Resources          Resources
	Templates          []Template
	Lifecycle          *Lifecycle
	Leader             bool
	KillTimeout        time.Duration
	KillSignal         string
	ShutdownDelay      time.Duration
	Identities         []Identity
	Restart            Restart
	Logs               Logs
}

// Resources is a resources block: MHz, cores, MiB.
type Resources struct {
	CPU, Cores, MemoryMB, MemoryMaxMB int
	SecretsMB                         int
}

// Template is a template block with inline data.
type Template struct {
	Data, Destination, Perms string
	Env                      bool
	UID, GID                 int // -1: unset
}

// Lifecycle is a lifecycle block.
type Lifecycle struct {
	Hook    string
	Sidecar bool
}

// Identity is an identity block.
type Identity struct {
	Name      string
	Env, File bool
}

// Logs is a logs block.
type Logs struct {
	MaxFiles, MaxFileSizeMB int
	Disabled                bool
}

// hook returns the task's lifecycle hook, "" for a main task.
func (t *Task) hook() string {
	if t.Lifecycle == nil {
		return ""
	}
	return t.Lifecycle.Hook
}

// sidecar tells whether the task runs beside the main tasks.
func (t *Task) sidecar() bool { return t.Lifecycle != nil && t.Lifecycle.Sidecar }

// group returns the named group, or nil.
func (j *Job) group(name string) *TaskGroup {
	for _, g := range j.TaskGroups {
		if g.Name == name {
			return g
		}
	}
	return nil
}
