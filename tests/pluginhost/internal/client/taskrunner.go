package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/ids"
	"pluginhost/internal/plugin"
	"pluginhost/internal/taskenv"
	"pluginhost/pb"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
	"google.golang.org/protobuf/proto"
)

const (
	// maxKillTimeout is the client's max_kill_timeout.
	maxKillTimeout = 30 * time.Second
	// How often and how soon Nomad repeats a StopTask that failed.
	stopTries   = 5
	stopBackoff = 5 * time.Second
)

// taskRunner takes one task through its life, as Nomad's task runner does:
// prestart, StartTask, WaitTask, restart policy, stop.
type taskRunner struct {
	alloc *allocRunner
	agent *Agent
	task  *nomad.Task
	dir   allocdir.TaskDir
	log   hclog.Logger

	user string // empty in a restored task that had a dynamic user

	killCtx context.Context
	kill    context.CancelFunc
	done    chan struct{}

	mu        sync.Mutex
	manager   *plugin.Manager
	driver    *plugin.Driver
	handle    *pb.TaskHandle
	restartBy bool // a restart was asked for
	policy    restartTracker
	env       *taskenv.Env
}

func newTaskRunner(ar *allocRunner, t *nomad.Task) *taskRunner {
	a := ar.store.snapshot()
	tr := &taskRunner{
		alloc: ar, agent: ar.agent, task: t, user: t.User, done: make(chan struct{}),
		dir:    allocdir.New(ar.agent.allocsDir, ar.agent.cfg.MountsDir, a.ID, t.Name),
		log:    ar.agent.log.Named("task").With("alloc", ids.Short(a.ID), "task", t.Name),
		policy: restartTracker{policy: *t.RestartPolicy},
	}
	switch {
	case t.Lifecycle != nil:
		tr.policy.onSuccess = t.Lifecycle.Sidecar
	default:
		tr.policy.onSuccess = *a.Job.Type != nomad.JobTypeBatch
	}
	tr.killCtx, tr.kill = context.WithCancel(context.Background())
	return tr
}

// killTimeout is the task's, as far as the client's max_kill_timeout allows.
func (tr *taskRunner) killTimeout() time.Duration { return min(*tr.task.KillTimeout, maxKillTimeout) }

// run ends when the task is dead for good or the host goes down.
func (tr *taskRunner) run() {
	defer close(tr.done)
	if tr.state() == stateDead {
		return
	}
	if tr.restore(); tr.agent.ctx.Err() != nil {
		return
	}
	for tr.killCtx.Err() == nil {
		if !tr.alloc.awaitTurn(tr) {
			break
		}
		verdict, delay := tr.once()
		if tr.agent.ctx.Err() != nil {
			return // the task keeps running
		}
		if verdict != verdictRestart {
			break
		}
		select {
		case <-time.After(delay):
		case <-tr.killCtx.Done():
		case <-tr.agent.ctx.Done():
			return
		}
	}
	if tr.agent.ctx.Err() != nil {
		return
	}
	tr.cleanup()
	tr.setState(stateDead, nil)
}

// once starts the task, or takes over a restored one, waits for its end, and
// returns what comes next.
func (tr *taskRunner) once() (verdict string, delay time.Duration) {
	var startErr error
	var exit *plugin.ExitResult
	if tr.currentHandle() == nil {
		startErr = tr.start()
	}
	if tr.currentHandle() != nil {
		exit = tr.wait()
		if tr.agent.ctx.Err() != nil {
			return "", 0
		}
		tr.clearHandle()
	}
	if tr.killCtx.Err() != nil {
		tr.emit(newEvent(nomad.TaskKilled, "Task successfully killed", nil))
		return nomad.TaskKilled, 0
	}
	tr.mu.Lock()
	asked := tr.restartBy
	tr.restartBy = false
	tr.mu.Unlock()
	if asked {
		tr.restarting("", 0)
		return verdictRestart, 0
	}
	verdict, reason, delay := tr.policy.next(startErr, exit, time.Now())
	switch verdict {
	case verdictGiveUp:
		tr.setState(stateDead, failing(newEvent(nomad.TaskNotRestarting, reason, details{"restart_reason": reason})))
	case verdictRestart:
		tr.restarting(reason, delay)
	}
	return verdict, delay
}

func (tr *taskRunner) restarting(reason string, delay time.Duration) {
	display := fmt.Sprintf("Task restarting in %v", delay)
	if reason != "" && reason != "Restart within policy" {
		display = reason + " - " + display
	}
	ev := newEvent(nomad.TaskRestarting, display, details{"restart_reason": reason, "start_delay": fmt.Sprint(int64(delay))})
	tr.alloc.updateTask(tr.task.Name, func(ts *nomad.TaskState) {
		ts.State = statePending
		ts.Restarts++
		ts.LastRestart = time.Now().UTC()
		appendEvent(ts, ev)
	})
	tr.logEvent(ev)
}

// start runs the prestart steps and StartTask.
func (tr *taskRunner) start() error {
	cfg, err := tr.prestart()
	if err != nil {
		if tr.killCtx.Err() == nil {
			tr.emit(setupFailure(err))
		}
		return err
	}
	if err := tr.encodeConfig(cfg); err != nil {
		tr.emit(newEvent(nomad.TaskFailedValidation, err.Error(), details{"validation_error": err.Error()}))
		return err
	}
	d, err := tr.manager.Dispense()
	if err != nil {
		tr.emit(driverFailureEvent(err))
		return err
	}
	handle, err := d.StartTask(cfg)
	if errors.Is(err, plugin.ErrShutdown) && tr.agent.ctx.Err() == nil {
		tr.log.Warn("the plugin died during StartTask, trying once more")
		if d, err = tr.manager.Dispense(); err == nil {
			handle, err = d.StartTask(cfg)
		}
		if err != nil {
			err = fmt.Errorf("failed to start task after driver exited unexpectedly: %w", err)
		}
	}
	if err != nil {
		tr.emit(driverFailureEvent(err))
		return err
	}
	raw, err := proto.Marshal(handle)
	if err != nil {
		return err
	}
	tr.setHandle(d, handle)
	tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.Handle = raw })
	tr.setState(stateRunning, newEvent(nomad.TaskStarted, "Task started by client", nil))
	return nil
}

// wait returns how the task ended, or nil if that is unknown.
func (tr *taskRunner) wait() *plugin.ExitResult {
	for {
		d, id := tr.driverAndID()
		results := make(chan plugin.ExitResult, 1)
		go func() { results <- d.WaitTask(tr.agent.ctx, id) }()
		var r plugin.ExitResult
		select {
		case r = <-results:
		case <-tr.killCtx.Done():
			r = tr.stop(d, id, results)
		}
		if tr.agent.ctx.Err() != nil {
			return nil
		}
		if !errors.Is(r.Err, plugin.ErrShutdown) {
			tr.emit(terminatedEvent(r))
			return &r
		}
		tr.log.Warn("the plugin has shut down, recovering the task")
		nd, err := tr.manager.Dispense()
		if err != nil || !tr.recover(nd, tr.currentHandle()) {
			tr.log.Error("the task is lost", "error", err)
			return &r
		}
	}
}

// stop asks the driver to stop the task, repeatedly if it fails, and returns how it ended.
func (tr *taskRunner) stop(d *plugin.Driver, id string, results <-chan plugin.ExitResult) plugin.ExitResult {
	if delay := tr.task.ShutdownDelay; delay > 0 {
		select {
		case r := <-results:
			return r
		case <-time.After(delay):
		}
	}
	select {
	case r := <-results:
		return r
	default:
	}
	for range stopTries {
		err := d.StopTask(id, tr.killTimeout(), tr.task.KillSignal)
		if err == nil || errors.Is(err, plugin.ErrShutdown) {
			break
		}
		tr.log.Error("StopTask failed", "error", err)
		select {
		case r := <-results:
			return r
		case <-tr.agent.ctx.Done():
			return plugin.ExitResult{Err: tr.agent.ctx.Err()}
		case <-time.After(stopBackoff):
		}
	}
	return <-results
}

// restore takes over the task of an earlier host.
func (tr *taskRunner) restore() {
	var raw []byte
	tr.alloc.store.view(func(a *record) {
		if l := a.Tasks[tr.task.Name]; l != nil {
			raw = l.Handle
		}
	})
	if raw == nil {
		return
	}
	handle := &pb.TaskHandle{}
	if err := proto.Unmarshal(raw, handle); err != nil {
		tr.log.Error("the stored task handle is damaged", "error", err)
		return
	}
	tr.manager = tr.agent.managers[tr.task.Driver]
	if tr.manager == nil {
		return
	}
	d, err := tr.manager.Dispense()
	if err != nil {
		tr.log.Error("failed to restore the task", "error", err)
		return
	}
	if tr.recover(d, handle) {
		// Nomad's logmon lives on as well; make sure that ours does.
		if err := tr.startLogs(); err != nil {
			tr.log.Error("log collector", "error", err)
		}
		tr.log.Info("task recovered", "id", handle.GetConfig().GetId())
		return
	}
	tr.setState(statePending, newEvent(eventRestoreFailed, "failed to restore task; will not run until server is contacted", nil))
}

// recover passes the task to a plugin that does not know it. If that fails, the
// task is destroyed.
func (tr *taskRunner) recover(d *plugin.Driver, handle *pb.TaskHandle) bool {
	id := handle.GetConfig().GetId()
	if err := d.RecoverTask(handle); err != nil {
		if tr.state() != stateRunning {
			return false
		}
		tr.log.Error("error recovering task; cleaning up", "error", err, "task_id", id)
		if err := d.DestroyTask(id, true); err != nil {
			tr.log.Warn("error destroying unrecoverable task", "error", err)
		}
		return false
	}
	tr.setHandle(d, handle)
	return true
}

// clearHandle forgets the ended task, here and in the driver.
func (tr *taskRunner) clearHandle() {
	d, id := tr.driverAndID()
	tr.setHandle(d, nil)
	tr.alloc.updateLocal(tr.task.Name, func(l *taskLocal) { l.Handle = nil })
	if err := d.DestroyTask(id, false); err != nil && !errors.Is(err, plugin.ErrShutdown) {
		tr.log.Error("DestroyTask failed", "error", err)
	}
}

func (tr *taskRunner) setHandle(d *plugin.Driver, h *pb.TaskHandle) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.driver, tr.handle = d, h
}

func (tr *taskRunner) currentHandle() *pb.TaskHandle {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.handle
}

func (tr *taskRunner) driverAndID() (*plugin.Driver, string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.driver, tr.handle.GetConfig().GetId()
}

// running returns the driver and id of the running task, or an error.
func (tr *taskRunner) running() (*plugin.Driver, string, error) {
	if tr.currentHandle() == nil {
		return nil, "", errors.New("Task not running")
	}
	d, id := tr.driverAndID()
	return d, id, nil
}
