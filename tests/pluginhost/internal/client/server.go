package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"pluginhost/internal/api"
	"pluginhost/internal/cgroup"
	"pluginhost/internal/ids"
	"pluginhost/internal/logmon"
	"pluginhost/internal/plugin"

	nomad "github.com/hashicorp/nomad/api"
)

// placementError is a job that the node cannot run: it is registered, and `job run`
// exits with 2.
type placementError struct{ error }

func placementErrorf(format string, args ...any) error {
	return placementError{fmt.Errorf(format, args...)}
}

// handler is the agent's small HTTP interface, for its own command line.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	get := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	get("GET /v1/node", func(*http.Request) (any, error) { return a.node(), nil })
	get("GET /v1/violations", func(*http.Request) (any, error) { return a.violations.All(), nil })
	get("GET /v1/events", func(*http.Request) (any, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return append([]api.DriverEvent{}, a.events...), nil
	})
	get("GET /v1/jobs", func(*http.Request) (any, error) { return a.jobList(), nil })
	get("POST /v1/jobs", a.registerRequest)
	get("DELETE /v1/job", func(r *http.Request) (any, error) {
		id, err := a.jobByPrefix(r.FormValue("id"))
		if err != nil {
			return nil, err
		}
		eval, err := a.deregister(id, r.FormValue("purge") == "true")
		return api.Evaluation{EvalID: eval, JobID: id}, err
	})
	get("GET /v1/job", func(r *http.Request) (any, error) { return a.jobView(r.FormValue("id")) })
	get("GET /v1/allocations", func(r *http.Request) (any, error) { return a.allocList(r.FormValue("job")) })
	get("GET /v1/allocation", func(r *http.Request) (any, error) {
		ar, err := a.allocByPrefix(r.FormValue("id"))
		if err != nil {
			return nil, err
		}
		return ar.store.snapshot().Allocation, nil
	})
	get("GET /v1/logs", a.logsRequest)
	get("POST /v1/alloc/{op}", a.allocRequest)
	get("POST /v1/plugin/{op}", a.pluginRequest)
	get("POST /v1/gc", func(*http.Request) (any, error) { return map[string]any{}, a.collectGarbage() })
	return mux
}

// answer writes a result or an error as JSON.
func answer(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	v, err := f(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// What a node's place in a cluster is called here.
const (
	datacenter = "dc1"
	nodePool   = "default"
)

func (a *Agent) node() *nomad.Node {
	n := &nomad.Node{
		ID: a.nodeID, Name: a.cfg.Name, Datacenter: datacenter, NodePool: nodePool, Status: "ready",
		SchedulingEligibility: "eligible", Attributes: a.attributes(), Meta: a.cfg.Meta,
		Drivers: map[string]*nomad.DriverInfo{}, CgroupParent: cgroup.Parent,
	}
	for name, m := range a.managers {
		fp := m.Fingerprint()
		n.Drivers[name] = &fp
	}
	return n
}

func (a *Agent) jobStub(j *nomad.Job) *nomad.JobListStub {
	return &nomad.JobListStub{
		ID: *j.ID, Name: *j.Name, Type: *j.Type, Status: a.jobStatus(*j.ID), Namespace: *j.Namespace, Datacenters: j.Datacenters,
		Priority: *j.Priority, Stop: *j.Stop, SubmitTime: *j.SubmitTime,
	}
}

func (a *Agent) jobList() []*nomad.JobListStub {
	a.mu.Lock()
	jobs := slices.Collect(maps.Values(a.jobs))
	a.mu.Unlock()
	out := []*nomad.JobListStub{}
	for _, j := range jobs {
		out = append(out, a.jobStub(j))
	}
	sort.Slice(out, func(i, k int) bool { return out[i].ID < out[k].ID })
	return out
}

// jobByPrefix finds the only job whose id is prefix or begins with it.
func (a *Agent) jobByPrefix(prefix string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.jobs[prefix] != nil {
		return prefix, nil
	}
	found := ""
	for id := range a.jobs {
		if strings.HasPrefix(id, prefix) {
			if found != "" {
				return "", fmt.Errorf("Prefix %q matched multiple jobs", prefix)
			}
			found = id
		}
	}
	if found == "" {
		return "", fmt.Errorf("No job(s) with prefix or ID %q found", prefix)
	}
	return found, nil
}

func (a *Agent) jobView(prefix string) (any, error) {
	id, err := a.jobByPrefix(prefix)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	j := a.jobs[id]
	a.mu.Unlock()
	allocs, err := a.allocList(id)
	return api.JobView{Job: a.jobStub(j), Allocations: allocs}, err
}

// allocList lists a job's allocs, or all of them.
func (a *Agent) allocList(prefix string) ([]*nomad.AllocationListStub, error) {
	var runners []*allocRunner
	if prefix == "" {
		a.mu.Lock()
		runners = slices.Collect(maps.Values(a.allocs))
		a.mu.Unlock()
	} else {
		id, err := a.jobByPrefix(prefix)
		if err != nil {
			return nil, err
		}
		runners = a.jobAllocs(id)
	}
	out := []*nomad.AllocationListStub{}
	for _, ar := range runners {
		out = append(out, ar.store.snapshot().Stub())
	}
	return out, nil
}

// allocByPrefix finds the only alloc whose id begins with prefix.
func (a *Agent) allocByPrefix(prefix string) (*allocRunner, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(prefix) < 2 {
		return nil, errors.New("Identifier must contain at least two characters.")
	}
	var found *allocRunner
	for id, ar := range a.allocs {
		if strings.HasPrefix(id, prefix) {
			if found != nil {
				return nil, fmt.Errorf("Prefix %q matched multiple allocations", prefix)
			}
			found = ar
		}
	}
	if found == nil {
		return nil, fmt.Errorf("No allocation(s) with prefix or id %q found", prefix)
	}
	return found, nil
}

func (a *Agent) registerRequest(r *http.Request) (any, error) {
	j := &nomad.Job{}
	if err := json.NewDecoder(r.Body).Decode(j); err != nil {
		return nil, err
	}
	eval, allocs, err := a.register(j)
	answer := api.Registered{EvalID: eval, JobID: *j.ID, AllocIDs: allocs}
	var unplaced placementError
	if errors.As(err, &unplaced) {
		answer.Unplaced, err = unplaced.Error(), nil
	}
	return answer, err
}

// pick returns the named task, or the only one.
func (ar *allocRunner) pick(name string) (*taskRunner, error) {
	if name == "" {
		if len(ar.tasks) != 1 {
			return nil, fmt.Errorf("Allocation %q is running more than one task: please name one", ids.Short(ar.store.snapshot().ID))
		}
		for _, tr := range ar.tasks {
			return tr, nil
		}
	}
	tr := ar.tasks[name]
	if tr == nil {
		return nil, fmt.Errorf("Could not find task named: %s", name)
	}
	return tr, nil
}

func (a *Agent) logsRequest(r *http.Request) (any, error) {
	ar, err := a.allocByPrefix(r.FormValue("id"))
	if err != nil {
		return nil, err
	}
	tr, err := ar.pick(r.FormValue("task"))
	if err != nil {
		return nil, err
	}
	index, _ := strconv.Atoi(r.FormValue("index"))
	offset, _ := strconv.ParseInt(r.FormValue("offset"), 10, 64)
	kind := "stdout"
	if r.FormValue("type") == "stderr" {
		kind = "stderr"
	}
	// Asked before the read: a dead task writes nothing after it.
	over := tr.state() == stateDead
	return logmon.Read(tr.dir.Logs, tr.task.Name, kind, index, offset, over)
}

// allocRequest serves the requests about one alloc.
func (a *Agent) allocRequest(r *http.Request) (any, error) {
	ar, err := a.allocByPrefix(r.FormValue("id"))
	if err != nil {
		return nil, err
	}
	op := r.PathValue("op")
	if op == "stop" {
		eval, err := a.stopAlloc(ar)
		return api.Evaluation{EvalID: eval, JobID: ar.store.snapshot().JobID}, err
	}
	var picked []*taskRunner
	if r.FormValue("task") == "" && (op == "signal" || op == "restart") {
		picked = ar.runningTasks()
		if len(picked) == 0 {
			return nil, errors.New("Task not running")
		}
	} else {
		tr, err := ar.pick(r.FormValue("task"))
		if err != nil {
			return nil, err
		}
		picked = append(picked, tr)
	}
	var out any
	for _, tr := range picked {
		if out, err = a.taskRequest(r, op, tr); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (ar *allocRunner) runningTasks() []*taskRunner {
	var out []*taskRunner
	for _, tr := range ar.tasks {
		if tr.currentHandle() != nil {
			out = append(out, tr)
		}
	}
	return out
}

func (a *Agent) taskRequest(r *http.Request, op string, tr *taskRunner) (any, error) {
	d, id, err := tr.running()
	if err != nil {
		return nil, err
	}
	done := map[string]string{}
	switch op {
	case "signal":
		tr.emit(newEvent(nomad.TaskSignaling, "Task being sent a signal", nil))
		return done, d.SignalTask(id, r.FormValue("signal"))
	case "restart":
		tr.emit(newEvent(nomad.TaskRestartSignal, "User requested running tasks to restart", nil))
		tr.mu.Lock()
		tr.restartBy = true
		tr.mu.Unlock()
		return done, d.StopTask(id, tr.killTimeout(), tr.task.KillSignal)
	case "inspect":
		resp, err := d.InspectTask(id)
		if err != nil {
			return nil, err
		}
		return plugin.JSON(resp)
	case "stats":
		return taskStats(r, d, id)
	case "destroy":
		return done, d.DestroyTask(id, r.FormValue("force") == "true")
	case "taskid":
		return api.Task{TaskID: id, Cgroup: filepath.Clean(tr.currentHandle().GetConfig().GetResources().GetLinuxResources().GetCpusetCgroup())}, nil
	}
	return nil, fmt.Errorf("unknown operation %q", op)
}

func taskStats(r *http.Request, d *plugin.Driver, id string) (any, error) {
	interval, err := time.ParseDuration(r.FormValue("interval"))
	if err != nil {
		return nil, err
	}
	count, err := strconv.Atoi(r.FormValue("count"))
	if err != nil {
		return nil, err
	}
	stats, err := d.TaskStats(r.Context(), id, interval, count)
	if err != nil {
		return nil, err
	}
	out := []json.RawMessage{}
	for _, s := range stats {
		raw, err := plugin.JSON(s)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}
