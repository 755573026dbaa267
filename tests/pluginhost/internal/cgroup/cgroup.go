// Package cgroup makes the part of the cgroup hierarchy that belongs to a Nomad
// client: nomad.slice, its two partitions, and a scope for each task.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// root is where the unified hierarchy is mounted, cgroups(7).
const root = "/sys/fs/cgroup"

// Parent is the slice below which Nomad keeps its tasks.
const Parent = "nomad.slice"

// The partitions of Parent: for tasks that share cores, and for those that
// reserved some.
const (
	shareSlice   = "share.slice"
	reserveSlice = "reserve.slice"
)

// activation enables the controllers that Nomad needs, cgroups(7).
const activation = "+cpuset +cpu +io +memory +pids"

// Available returns an error unless cgroup v2 is mounted.
func Available() error {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		return fmt.Errorf("no cgroup v2 at %s: %w", root, err)
	}
	return nil
}

// Init prepares nomad.slice and its two partitions. cores is the cpuset that
// tasks may use, like "0-3".
func Init(cores string) error {
	if err := Available(); err != nil {
		return err
	}
	parent := filepath.Join(root, Parent)
	if err := activate(root); err != nil {
		return err
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	if err := activate(parent); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(parent, "cpuset.cpus"), []byte(cores), 0o644); err != nil {
		return err
	}
	for _, part := range []string{shareSlice, reserveSlice} {
		dir := filepath.Join(parent, part)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := activate(dir); err != nil {
			return err
		}
	}
	return nil
}

// activate enables the controllers for the children of dir. It writes nothing
// if all are enabled: a delegated root may be read-only.
func activate(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	have, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	on := map[string]bool{}
	for _, c := range strings.Fields(string(have)) {
		on["+"+c] = true
	}
	for _, c := range strings.Fields(activation) {
		if !on[c] {
			return os.WriteFile(file, []byte(activation), 0o644)
		}
	}
	return nil
}

// Partition divides the cores between the tasks that share them and those that
// reserved some; both are CPU lists. Nomad leaves a task's own cpuset to the driver.
func Partition(share, reserved string) error {
	for slice, cores := range map[string]string{shareSlice: share, reserveSlice: reserved} {
		file := filepath.Join(root, Parent, slice, "cpuset.cpus")
		if err := os.WriteFile(file, []byte(cores), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// TaskPath is the path of a task's cgroup.
func TaskPath(allocID, task string, reserved bool) string {
	part := shareSlice
	if reserved {
		part = reserveSlice
	}
	return filepath.Join(root, Parent, part, allocID+"."+task+".scope")
}

// The patience of Remove: rmdir answers EBUSY until the last process is reaped.
const (
	removeTries = 100
	removePause = 20 * time.Millisecond
)

// Remove kills what is left in a cgroup and removes it, with the cgroups that a
// task may have made inside.
func Remove(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	for range removeTries {
		if err = removeTree(path); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(removePause)
	}
	return err
}

// removeTree removes a cgroup and its children, deepest first.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}
