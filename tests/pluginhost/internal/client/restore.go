package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"
)

// restoreAll takes over the jobs and allocs that an earlier host left.
func (a *Agent) restoreAll() error {
	err := eachJSON(filepath.Join(a.stateDir, "jobs"), func(path string) error {
		j := &Job{}
		if err := readJSON(path, j); err != nil {
			return err
		}
		a.jobs[j.ID] = j
		return nil
	})
	if err != nil {
		return err
	}
	err = eachJSON(filepath.Join(a.stateDir, "allocs"), func(path string) error {
		al := &Alloc{}
		if err := readJSON(path, al); err != nil {
			return err
		}
		a.serial = max(a.serial, al.CreateIndex)
		ar, err := newAllocRunner(a, a.newStore(al))
		if err != nil {
			return err
		}
		for _, l := range al.Local {
			a.users.mark(l.DynamicUser)
		}
		if !al.terminal() {
			for _, p := range al.Ports {
				a.ports[p.Value] = true
			}
			for _, cores := range al.Cores {
				for _, c := range cores {
					a.cores[c] = true
				}
			}
		}
		a.mu.Lock()
		a.allocs[al.ID] = ar
		a.mu.Unlock()
		go ar.run()
		if al.DesiredStatus == "stop" {
			ar.stop()
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partition()
}

// collectGarbage destroys the allocs of jobs that are over.
func (a *Agent) collectGarbage() error {
	a.mu.Lock()
	var old []*allocRunner
	for _, ar := range a.allocs {
		s := ar.store.snapshot()
		j := a.jobs[s.JobID]
		if s.terminal() && (j == nil || j.Stop || j.Type == "batch" || j.Version != s.JobVersion || s.DesiredStatus == "stop") {
			old = append(old, ar)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, ar := range old {
		ctx, cancel := context.WithTimeout(a.ctx, 30*time.Second)
		errs = append(errs, a.destroy(ctx, ar))
		cancel()
	}
	return errors.Join(errs...)
}

// destroy removes an alloc and its folders once its tasks are gone.
func (a *Agent) destroy(ctx context.Context, ar *allocRunner) error {
	if err := ar.destroy(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.allocs, ar.store.snapshot().ID)
	return nil
}

// forget is destroy for a purged job, which nobody waits for.
func (a *Agent) forget(ar *allocRunner) {
	if err := a.destroy(a.ctx, ar); err != nil && a.ctx.Err() == nil {
		a.log.Error("cannot remove an allocation", "error", err)
	}
}

// eachJSON calls f for each .json file of a folder that may not exist.
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

// listenUnix takes over a socket path, unless somebody still answers there.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, errors.New("another pluginhost agent serves " + path + " (set " + socketEnv + " for a second one)")
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
