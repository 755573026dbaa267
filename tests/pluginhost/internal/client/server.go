package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
)

// placementError is a job that no node can run: it is registered, and `job run`
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
	get("GET /v1/violations", func(*http.Request) (any, error) { return a.violations.all(), nil })
	get("GET /v1/events", func(*http.Request) (any, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return append([]driverEvent{}, a.events...), nil
	})
	get("GET /v1/jobs", func(*http.Request) (any, error) { return a.jobList(), nil })
	get("POST /v1/jobs", a.registerRequest)
	get("DELETE /v1/job", func(r *http.Request) (any, error) {
		id, err := a.jobByPrefix(r.FormValue("id"))
		if err != nil {
			return nil, err
		}
		eval, err := a.deregister(id, r.FormValue("purge") == "true")
		return map[string]any{"EvalID": eval, "JobID": id}, err
	})
	get("GET /v1/job", func(r *http.Request) (any, error) { return a.jobView(r.FormValue("id")) })
	get("GET /v1/allocations", func(r *http.Request) (any, error) { return a.allocViews(r.FormValue("job")) })
	get("GET /v1/allocation", func(r *http.Request) (any, error) {
		ar, err := a.allocByPrefix(r.FormValue("id"))
		if err != nil {
			return nil, err
		}
		return apiView(ar), nil
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

// Node is a node, in the shape of Nomad's API as far as it goes.
type Node struct {
	ID, Name, Datacenter, NodePool, NodeClass, Status, SchedulingEligibility string
	Attributes                                                               map[string]string
	Meta                                                                     map[string]string
	Drivers                                                                  map[string]DriverInfo
	CgroupParent                                                             string
}

func (a *Agent) node() Node {
	n := Node{
		ID: a.nodeID, Name: a.cfg.Name, Datacenter: "dc1", NodePool: "default", Status: "ready",
		SchedulingEligibility: "eligible", Attributes: a.attributes(), Meta: a.cfg.Meta,
		Drivers: map[string]DriverInfo{}, CgroupParent: cgroupParent,
	}
	for name, m := range a.managers {
		n.Drivers[name] = m.fingerprint()
	}
	return n
}

// jobStub is one line of `job status`.
type jobStub struct {
	ID, Name, Type, Status, Namespace string
	Priority                          int
	Stop                              bool
	SubmitTime                        int64
}

func (a *Agent) jobStub(j *Job) jobStub {
	return jobStub{
		ID: j.ID, Name: j.Name, Type: j.Type, Status: a.jobStatus(j.ID), Namespace: j.Namespace,
		Priority: j.Priority, Stop: j.Stop, SubmitTime: j.SubmitTime,
	}
}

func (a *Agent) jobList() []jobStub {
	a.mu.Lock()
	var jobs []*Job
	for _, j := range a.jobs {
		jobs = append(jobs, j)
	}
	a.mu.Unlock()
	out := []jobStub{}
	for _, j := range jobs {
		out = append(out, a.jobStub(j))
	}
	sort.Slice(out, func(i, k int) bool { return out[i].ID < out[k].ID })
	return out
}

// jobByPrefix finds the one job whose id is or begins with prefix.
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

type jobDetail struct {
	Job         jobStub
	Allocations []*Alloc
}

func (a *Agent) jobView(prefix string) (any, error) {
	id, err := a.jobByPrefix(prefix)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	j := a.jobs[id]
	a.mu.Unlock()
	allocs, err := a.allocViews(id)
	return jobDetail{a.jobStub(j), allocs}, err
}

// allocViews lists a job's allocs, or all of them.
func (a *Agent) allocViews(prefix string) ([]*Alloc, error) {
	out := []*Alloc{}
	if prefix == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, ar := range a.allocs {
			out = append(out, apiView(ar))
		}
		return out, nil
	}
	id, err := a.jobByPrefix(prefix)
	if err != nil {
		return nil, err
	}
	for _, ar := range a.jobAllocs(id) {
		out = append(out, apiView(ar))
	}
	return out, nil
}

// apiView is an alloc without the client's own state.
func apiView(ar *allocRunner) *Alloc {
	s := ar.store.snapshot()
	s.Index, s.Ports, s.Cores, s.NetMode, s.Local = 0, nil, nil, "", nil
	return s
}

// allocByPrefix finds the one alloc whose id begins with prefix.
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

// registered answers a job's registration. Unplaced says why it cannot run here.
type registered struct {
	EvalID, JobID, Unplaced string
	AllocIDs                []string
}

func (a *Agent) registerRequest(r *http.Request) (any, error) {
	j := &Job{}
	if err := json.NewDecoder(r.Body).Decode(j); err != nil {
		return nil, err
	}
	eval, ids, err := a.register(j)
	answer := registered{EvalID: eval, JobID: j.ID, AllocIDs: ids}
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
			return nil, fmt.Errorf("Allocation %q is running more than one task: please name one", short(ar.store.snapshot().ID))
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

// logChunk is a piece of a task's log and where the next one begins.
type logChunk struct {
	Data   []byte
	Index  int // number of the log file
	Offset int64
	// Done means that the task is over and the log has been read to its end.
	Done bool
}

// maxLogChunk bounds one answer, in bytes.
const maxLogChunk = 1 << 20

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
	// Looked at before the read: a dead task writes no more after it.
	over := tr.state() == stateDead
	return readLog(tr.dir.Logs, tr.task.Name+"."+kind, index, offset, over)
}

// readLog reads on from a place in a log of several files.
func readLog(dir, name string, index int, offset int64, over bool) (logChunk, error) {
	indexes := logIndexes(dir, name)
	for _, i := range indexes {
		if i < index {
			continue
		}
		if i > index {
			index, offset = i, 0
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return logChunk{}, err
		}
		f, err := root.Open(fmt.Sprintf("%s.%d", name, i))
		root.Close()
		if err != nil {
			return logChunk{}, err
		}
		data, err := io.ReadAll(io.NewSectionReader(f, offset, maxLogChunk))
		f.Close()
		if err != nil {
			return logChunk{}, err
		}
		if len(data) > 0 {
			return logChunk{Data: data, Index: i, Offset: offset + int64(len(data))}, nil
		}
	}
	return logChunk{Index: index, Offset: offset, Done: over}, nil
}

// allocRequest serves what acts on one alloc.
func (a *Agent) allocRequest(r *http.Request) (any, error) {
	ar, err := a.allocByPrefix(r.FormValue("id"))
	if err != nil {
		return nil, err
	}
	if r.PathValue("op") == "stop" {
		eval, err := a.stopAlloc(ar)
		return map[string]string{"EvalID": eval}, err
	}
	var picked []*taskRunner
	if r.FormValue("task") == "" && (r.PathValue("op") == "signal" || r.PathValue("op") == "restart") {
		for _, tr := range ar.tasks { // all that run
			if tr.currentHandle() != nil {
				picked = append(picked, tr)
			}
		}
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
	var out any = map[string]string{}
	for _, tr := range picked {
		if out, err = a.taskRequest(r, tr); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *Agent) taskRequest(r *http.Request, tr *taskRunner) (any, error) {
	d, id, err := tr.running()
	if err != nil {
		return nil, err
	}
	switch r.PathValue("op") {
	case "signal":
		sig := r.FormValue("signal")
		tr.emit(newEvent(eventSignaling, "Task being sent a signal"))
		return map[string]string{}, d.signalTask(id, sig)
	case "restart":
		tr.emit(newEvent(eventRestartSignal, "User requested running tasks to restart"))
		tr.mu.Lock()
		tr.restartBy = true
		tr.mu.Unlock()
		return map[string]string{}, d.stopTask(id, min(tr.task.KillTimeout, maxKillTimeout), tr.task.KillSignal)
	case "inspect":
		resp, err := d.inspectTask(id)
		if err != nil {
			return nil, err
		}
		return protoJSON(resp)
	case "stats":
		interval, err := time.ParseDuration(r.FormValue("interval"))
		if err != nil {
			return nil, err
		}
		count, err := strconv.Atoi(r.FormValue("count"))
		if err != nil {
			return nil, err
		}
		stats, err := d.taskStats(r.Context(), id, interval, count)
		if err != nil {
			return nil, err
		}
		out := []json.RawMessage{}
		for _, s := range stats {
			raw, err := protoJSON(s)
			if err != nil {
				return nil, err
			}
			out = append(out, raw)
		}
		return out, nil
	case "destroy":
		return map[string]string{}, d.destroyTask(id, r.FormValue("force") == "true")
	case "taskid":
		return map[string]string{"TaskID": id, "Cgroup": filepath.Clean(tr.currentHandle().GetConfig().GetResources().GetLinuxResources().GetCpusetCgroup())}, nil
	}
	return nil, fmt.Errorf("unknown operation %q", r.PathValue("op"))
}

// protoOptions shows fields by their names in the .proto files, zero or not.
var protoOptions = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}
