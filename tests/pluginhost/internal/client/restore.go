package client

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"pluginhost/internal/api"
	"pluginhost/internal/files"

	nomad "github.com/hashicorp/nomad/api"
)

const (
	// destroyTimeout bounds the wait of the garbage collection for an alloc's tasks.
	destroyTimeout = 30 * time.Second
	// probeTimeout bounds the check whether another agent uses the socket.
	probeTimeout = time.Second
)

// restoreAll takes over the jobs and allocs of an earlier host.
func (a *Agent) restoreAll() error {
	err := eachJSON(filepath.Join(a.stateDir, "jobs"), func(path string) error {
		j := &nomad.Job{}
		if err := files.ReadJSON(path, j); err != nil {
			return err
		}
		a.jobs[*j.ID] = j
		return nil
	})
	if err != nil {
		return err
	}
	err = eachJSON(filepath.Join(a.stateDir, "allocs"), a.restoreAlloc)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partition()
}

func (a *Agent) restoreAlloc(path string) error {
	al := &record{}
	if err := files.ReadJSON(path, al); err != nil {
		return err
	}
	a.serial = max(a.serial, al.CreateIndex)
	ar, err := newAllocRunner(a, a.newStore(al))
	if err != nil {
		return err
	}
	for _, l := range al.Tasks {
		a.users.Mark(l.DynamicUser)
	}
	if !al.terminal() {
		a.occupy(al)
	}
	a.mu.Lock()
	a.allocs[al.ID] = ar
	a.mu.Unlock()
	go ar.run()
	if al.DesiredStatus == nomad.AllocDesiredStatusStop {
		ar.stop()
	}
	return nil
}

// collectGarbage destroys the allocs of jobs that are over.
func (a *Agent) collectGarbage() error {
	a.mu.Lock()
	var old []*allocRunner
	for _, ar := range a.allocs {
		s := ar.store.snapshot()
		j := a.jobs[s.JobID]
		stopped := j == nil || *j.Stop || *j.Version != *s.Job.Version || s.DesiredStatus == nomad.AllocDesiredStatusStop
		if s.terminal() && (stopped || *j.Type == nomad.JobTypeBatch) {
			old = append(old, ar)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, ar := range old {
		ctx, cancel := context.WithTimeout(a.ctx, destroyTimeout)
		errs = append(errs, a.destroy(ctx, ar))
		cancel()
	}
	return errors.Join(errs...)
}

// destroy removes an alloc and its directories once its tasks are gone.
func (a *Agent) destroy(ctx context.Context, ar *allocRunner) error {
	if err := ar.destroy(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.allocs, ar.store.snapshot().ID)
	return nil
}

// forget is destroy for a purged job, in the background.
func (a *Agent) forget(ar *allocRunner) {
	if err := a.destroy(a.ctx, ar); err != nil && a.ctx.Err() == nil {
		a.log.Error("failed to remove an allocation", "error", err)
	}
}

// eachJSON calls f for each .json file of a directory, which may be missing.
func eachJSON(dir string, f func(path string) error) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return err
	}
	for _, p := range paths {
		if err := f(p); err != nil {
			return err
		}
	}
	return nil
}

// remarshal copies through JSON.
func remarshal(from, to any) error {
	raw, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, to)
}

// listenUnix takes over a socket path unless another agent answers there.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, probeTimeout); err == nil {
		conn.Close()
		return nil, errors.New("another pluginhost agent serves " + path + " (set " + api.SocketEnv + " for a second one)")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}
