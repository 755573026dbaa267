package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// allocRunner takes the tasks of one alloc through their lives together.
type allocRunner struct {
	agent *Agent
	store *allocStore
	group *TaskGroup
	tasks map[string]*taskRunner
	// done ends when all tasks are dead and the network is gone.
	done chan struct{}
	fwds []*forwarder
	once sync.Once
}

func newAllocRunner(agent *Agent, store *allocStore) (*allocRunner, error) {
	a := store.snapshot()
	g := a.Job.group(a.TaskGroup)
	if g == nil {
		return nil, fmt.Errorf("alloc %s: job %q has no group %q", short(a.ID), a.JobID, a.TaskGroup)
	}
	ar := &allocRunner{agent: agent, store: store, group: g, tasks: map[string]*taskRunner{}, done: make(chan struct{})}
	for _, t := range g.Tasks {
		ar.tasks[t.Name] = newTaskRunner(ar, t)
	}
	return ar, nil
}

// run drives the alloc until its end or the host's.
func (ar *allocRunner) run() {
	a := ar.store.snapshot()
	if a.terminal() {
		close(ar.done)
		return
	}
	if err := ar.setup(a); err != nil {
		ar.fail(fmt.Errorf("failed to setup alloc: %w", err))
		close(ar.done)
		return
	}
	for _, tr := range ar.tasks {
		go tr.run()
	}
	ar.supervise()
	for _, f := range ar.fwds {
		f.stop()
	}
	if ar.agent.ctx.Err() != nil {
		return // the tasks keep running, and so does their network
	}
	if a.NetMode == "bridge" || a.NetMode == "none" {
		if err := removeNetns(a.ID); err != nil {
			ar.agent.log.Error("cannot remove the network namespace", "alloc", short(a.ID), "error", err)
		}
	}
	ar.agent.release(a)
	close(ar.done)
}

// setup makes what the tasks share. It may run again after a restart.
func (ar *allocRunner) setup(a *Alloc) error {
	anyTask := newTaskDir(ar.agent.allocsDir, ar.agent.cfg.MountsDir, a.ID, ar.group.Tasks[0].Name)
	if err := anyTask.buildShared(); err != nil {
		return err
	}
	if a.NetMode != "bridge" && a.NetMode != "none" {
		return nil
	}
	if _, err := os.Stat(netnsDir + "/" + a.ID); errors.Is(err, os.ErrNotExist) {
		address := ""
		if a.NetMode == "bridge" {
			address = a.NetworkStatus.Address
		}
		status, err := makeNetns(a.ID, address)
		if err != nil {
			return err
		}
		ar.store.update(func(a *Alloc) { a.NetworkStatus = status })
	}
	for _, p := range a.Ports {
		if a.NetMode != "bridge" {
			continue
		}
		inside := p.Value
		if p.To > 0 {
			inside = p.To
		}
		f, err := forward(net.JoinHostPort(p.HostIP, fmt.Sprint(p.Value)), net.JoinHostPort(a.NetworkStatus.Address, fmt.Sprint(inside)))
		if err != nil {
			return err
		}
		ar.fwds = append(ar.fwds, f)
	}
	return nil
}

// fail ends the alloc before any of its tasks began.
func (ar *allocRunner) fail(err error) {
	ar.agent.log.Error("alloc failed", "error", err)
	for _, tr := range ar.tasks {
		tr.setState(stateDead, newEvent(eventSetupFailure, err.Error()).with("setup_error", err.Error()).fails())
	}
}

// supervise watches the tasks' states: a failed task or a dead leader takes its
// siblings along, and sidecars end when nothing else is left.
func (ar *allocRunner) supervise() {
	for {
		var states map[string]TaskState
		changed := ar.store.view(func(a *Alloc) {
			states = map[string]TaskState{}
			for name, ts := range a.TaskStates {
				states[name] = *ts
			}
		})
		if ev := ar.verdict(states); ev != nil {
			for name, tr := range ar.tasks {
				if states[name].State != stateDead && tr.task.hook() != "poststop" {
					tr.emit(ev)
				}
			}
			ar.killAll(true)
		}
		next := ar.anyDone()
		if next == nil {
			return
		}
		select {
		case <-changed:
		case <-next:
		case <-ar.agent.ctx.Done():
			for _, tr := range ar.tasks {
				<-tr.done
			}
			return
		}
	}
}

// verdict returns the event that ends the living tasks, or nil.
func (ar *allocRunner) verdict(states map[string]TaskState) *TaskEvent {
	living, onlySidecars := 0, true
	var ev *TaskEvent
	for name, tr := range ar.tasks {
		if tr.task.hook() == "poststop" {
			continue
		}
		ts := states[name]
		if ts.State != stateDead {
			if tr.killCtx.Err() == nil {
				living++
				onlySidecars = onlySidecars && tr.task.sidecar()
			}
			continue
		}
		if ts.Failed && ev == nil {
			ev = newEvent(eventSiblingFailed, fmt.Sprintf("Task's sibling %q failed", name)).with("failed_sibling", name)
		} else if tr.task.Leader {
			ev = newEvent(eventLeaderDead, "Leader Task in Group dead")
		}
	}
	if living == 0 {
		return nil
	}
	if ev == nil && onlySidecars {
		ev = newEvent(eventMainDead, "Main tasks in the group died")
	}
	return ev
}

// killAll stops all tasks but poststop ones, sidecars last. wait also waits
// for their ends.
func (ar *allocRunner) killAll(wait bool) {
	for _, sidecars := range []bool{false, true} {
		var wg sync.WaitGroup
		for _, tr := range ar.tasks {
			if tr.task.hook() == "poststop" || tr.task.sidecar() != sidecars {
				continue
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				if tr.state() != stateDead && tr.killCtx.Err() == nil {
					timeout := min(tr.task.KillTimeout, maxKillTimeout)
					tr.emit(newEvent(eventKilling, fmt.Sprintf("Sent interrupt. Waiting %v before force killing", timeout)).with("kill_timeout", timeout.String()))
				}
				tr.kill()
				select {
				case <-tr.done:
				case <-ar.agent.ctx.Done():
				}
			}()
		}
		if wait {
			wg.Wait()
		}
	}
}

// anyDone returns the channel of a task runner that has not ended yet, or nil if all have.
func (ar *allocRunner) anyDone() <-chan struct{} {
	for _, tr := range ar.tasks {
		select {
		case <-tr.done:
		default:
			return tr.done
		}
	}
	return nil
}

// awaitTurn waits until the task may start by its lifecycle. It is false if
// the task was killed or the host stops first.
func (ar *allocRunner) awaitTurn(tr *taskRunner) bool {
	for {
		var ok bool
		changed := ar.store.view(func(a *Alloc) { ok = ar.mayStart(tr, a.TaskStates) })
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-tr.killCtx.Done():
			return false
		case <-ar.agent.ctx.Done():
			return false
		}
	}
}

// mayStart orders prestart, main, poststart and poststop tasks.
func (ar *allocRunner) mayStart(tr *taskRunner, states map[string]*TaskState) bool {
	for name, other := range ar.tasks {
		ts := states[name]
		switch hook := other.task.hook(); tr.task.hook() {
		case "prestart":
		case "":
			if hook == "prestart" && other.task.sidecar() && ts.State != stateRunning {
				return false
			}
			if hook == "prestart" && !other.task.sidecar() && (ts.State != stateDead || ts.Failed) {
				return false
			}
		case "poststart":
			if hook == "" && ts.StartedAt.IsZero() {
				return false
			}
		case "poststop":
			if hook != "poststop" && ts.State != stateDead {
				return false
			}
		}
	}
	return true
}

// updateTask changes one task's state.
func (ar *allocRunner) updateTask(name string, f func(*TaskState)) {
	ar.store.update(func(a *Alloc) { f(a.TaskStates[name]) })
}

// updateLocal changes what the client keeps for one task.
func (ar *allocRunner) updateLocal(name string, f func(*taskLocal)) {
	ar.store.update(func(a *Alloc) {
		l := *a.Local[name]
		f(&l)
		a.Local[name] = &l // snapshots keep the old one
	})
}

// stop is the end that the user asked for.
func (ar *allocRunner) stop() {
	ar.once.Do(func() {
		if !ar.store.snapshot().terminal() {
			ar.store.update(func(a *Alloc) { a.DesiredStatus = "stop" })
			go ar.killAll(true)
		}
	})
}

// destroy removes the folders of an alloc that is over.
func (ar *allocRunner) destroy(ctx context.Context) error {
	select {
	case <-ar.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	a := ar.store.snapshot()
	var errs []error
	for _, tr := range ar.tasks {
		errs = append(errs, tr.dir.destroy())
	}
	if err := errors.Join(errs...); err != nil {
		return err // never delete through a mount
	}
	var again bool
	ar.store.update(func(a *Alloc) { again, a.Destroyed = a.Destroyed, true })
	if again {
		return nil
	}
	if err := os.RemoveAll(newTaskDir(ar.agent.allocsDir, "", a.ID, "x").Alloc); err != nil {
		return err
	}
	return os.Remove(ar.store.path)
}
