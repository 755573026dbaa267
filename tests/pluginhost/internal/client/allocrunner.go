package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"pluginhost/internal/allocdir"
	"pluginhost/internal/ids"
	"pluginhost/internal/netns"

	nomad "github.com/hashicorp/nomad/api"
)

// allocRunner takes the tasks of one alloc through their lives together.
type allocRunner struct {
	agent *Agent
	store *allocStore
	group *nomad.TaskGroup
	tasks map[string]*taskRunner
	// done ends when all tasks are dead and the network is gone.
	done chan struct{}
	fwds []*netns.Forwarder
	once sync.Once
}

func newAllocRunner(agent *Agent, store *allocStore) (*allocRunner, error) {
	a := store.snapshot()
	g := group(a.Job, a.TaskGroup)
	if g == nil {
		return nil, fmt.Errorf("alloc %s: job %q has no group %q", ids.Short(a.ID), a.JobID, a.TaskGroup)
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
		f.Stop()
	}
	if ar.agent.ctx.Err() != nil {
		return // the tasks keep running, and so does their network
	}
	if a.isolated() {
		if err := netns.Remove(a.ID); err != nil {
			ar.agent.log.Error("failed to remove the network namespace", "alloc", ids.Short(a.ID), "error", err)
		}
	}
	ar.agent.release(a)
	close(ar.done)
}

// setup creates what the tasks share. It may run again after a restart.
func (ar *allocRunner) setup(a *record) error {
	anyTask := allocdir.New(ar.agent.allocsDir, ar.agent.cfg.MountsDir, a.ID, ar.group.Tasks[0].Name)
	if err := anyTask.BuildShared(); err != nil || !a.isolated() {
		return err
	}
	address := ""
	if a.NetMode == "bridge" {
		address = a.NetworkStatus.Address
	}
	if _, err := os.Stat(netns.Path(a.ID)); errors.Is(err, os.ErrNotExist) {
		if err := netns.Make(a.ID, address); err != nil {
			return err
		}
	}
	if a.NetMode == "none" {
		return nil
	}
	for _, p := range a.ports() {
		inside := p.Value
		if p.To > 0 {
			inside = p.To
		}
		f, err := netns.Forward(net.JoinHostPort(p.HostIP, fmt.Sprint(p.Value)), net.JoinHostPort(address, fmt.Sprint(inside)))
		if err != nil {
			return err
		}
		ar.fwds = append(ar.fwds, f)
	}
	return nil
}

// fail ends the alloc before any of its tasks started.
func (ar *allocRunner) fail(err error) {
	ar.agent.log.Error("alloc failed", "error", err)
	for _, tr := range ar.tasks {
		tr.setState(stateDead, failing(setupFailure(err)))
	}
}

// supervise watches the tasks' states: a failed task or a dead leader ends its
// siblings, and sidecars end when nothing else is left.
func (ar *allocRunner) supervise() {
	for {
		var states map[string]nomad.TaskState
		changed := ar.store.view(func(a *record) {
			states = map[string]nomad.TaskState{}
			for name, ts := range a.TaskStates {
				states[name] = *ts
			}
		})
		if ev := ar.verdict(states); ev != nil {
			for name, tr := range ar.tasks {
				if states[name].State != stateDead && hook(tr.task) != nomad.TaskLifecycleHookPoststop {
					tr.emit(ev)
				}
			}
			ar.killAll()
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
func (ar *allocRunner) verdict(states map[string]nomad.TaskState) *nomad.TaskEvent {
	living, onlySidecars := 0, true
	var ev *nomad.TaskEvent
	for name, tr := range ar.tasks {
		if hook(tr.task) == nomad.TaskLifecycleHookPoststop {
			continue
		}
		ts := states[name]
		if ts.State != stateDead {
			if tr.killCtx.Err() == nil {
				living++
				onlySidecars = onlySidecars && sidecar(tr.task)
			}
			continue
		}
		if ts.Failed && ev == nil {
			ev = newEvent(nomad.TaskSiblingFailed, fmt.Sprintf("Task's sibling %q failed", name), details{"failed_sibling": name})
		} else if tr.task.Leader {
			ev = newEvent(nomad.TaskLeaderDead, "Leader Task in Group dead", nil)
		}
	}
	if living == 0 {
		return nil
	}
	if ev == nil && onlySidecars {
		ev = newEvent(eventMainDead, "Main tasks in the group died", nil)
	}
	return ev
}

// killAll stops all tasks but poststop ones, sidecars last, and waits for their ends.
func (ar *allocRunner) killAll() {
	for _, sidecars := range []bool{false, true} {
		var wg sync.WaitGroup
		for _, tr := range ar.tasks {
			if hook(tr.task) == nomad.TaskLifecycleHookPoststop || sidecar(tr.task) != sidecars {
				continue
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				if tr.state() != stateDead && tr.killCtx.Err() == nil {
					timeout := tr.killTimeout()
					text := fmt.Sprintf("Sent interrupt. Waiting %v before force killing", timeout)
					tr.emit(newEvent(nomad.TaskKilling, text, details{"kill_timeout": timeout.String()}))
				}
				tr.kill()
				select {
				case <-tr.done:
				case <-ar.agent.ctx.Done():
				}
			}()
		}
		wg.Wait()
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
		changed := ar.store.view(func(a *record) { ok = ar.mayStart(tr, a.TaskStates) })
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
func (ar *allocRunner) mayStart(tr *taskRunner, states map[string]*nomad.TaskState) bool {
	for name, other := range ar.tasks {
		ts := states[name]
		switch otherHook := hook(other.task); hook(tr.task) {
		case nomad.TaskLifecycleHookPrestart:
		case "":
			if otherHook == nomad.TaskLifecycleHookPrestart && sidecar(other.task) && ts.State != stateRunning {
				return false
			}
			if otherHook == nomad.TaskLifecycleHookPrestart && !sidecar(other.task) && (ts.State != stateDead || ts.Failed) {
				return false
			}
		case nomad.TaskLifecycleHookPoststart:
			if otherHook == "" && ts.StartedAt.IsZero() {
				return false
			}
		case nomad.TaskLifecycleHookPoststop:
			if otherHook != nomad.TaskLifecycleHookPoststop && ts.State != stateDead {
				return false
			}
		}
	}
	return true
}

// updateTask changes one task's state.
func (ar *allocRunner) updateTask(name string, f func(*nomad.TaskState)) {
	ar.store.update(func(a *record) { f(a.TaskStates[name]) })
}

// updateLocal changes what the client keeps for one task.
func (ar *allocRunner) updateLocal(name string, f func(*taskLocal)) {
	ar.store.update(func(a *record) {
		l := *a.Tasks[name]
		f(&l)
		a.Tasks[name] = &l // snapshots keep the old one
	})
}

// stop ends the alloc at the user's request.
func (ar *allocRunner) stop() {
	ar.once.Do(func() {
		if !ar.store.snapshot().terminal() {
			ar.store.update(func(a *record) { a.DesiredStatus = nomad.AllocDesiredStatusStop })
			go ar.killAll()
		}
	})
}

// destroy removes the directories of an alloc that is over.
func (ar *allocRunner) destroy(ctx context.Context) error {
	select {
	case <-ar.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	a := ar.store.snapshot()
	var errs []error
	for _, tr := range ar.tasks {
		errs = append(errs, tr.dir.Unmount())
	}
	if err := errors.Join(errs...); err != nil {
		return err // never delete through a mount
	}
	var again bool
	ar.store.update(func(a *record) { again, a.Destroyed = a.Destroyed, true })
	if again {
		return nil
	}
	if err := os.RemoveAll(allocdir.New(ar.agent.allocsDir, "", a.ID, "x").Alloc); err != nil {
		return err
	}
	return os.Remove(ar.store.path)
}
