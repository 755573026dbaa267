package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cgroupRoot is where the unified hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupParent is the slice below which Nomad keeps its tasks.
const cgroupParent = "nomad.slice"

// activation enables the controllers that Nomad needs, cgroups(7).
const activation = "+cpuset +cpu +io +memory +pids"

// initCgroups prepares nomad.slice and its two partitions. cores is the cpuset
// that tasks may use, like "0-3".
func initCgroups(cores string) error {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err != nil {
		return fmt.Errorf("no cgroup v2 at %s: %w", cgroupRoot, err)
	}
	parent := filepath.Join(cgroupRoot, cgroupParent)
	if err := activate(cgroupRoot); err != nil {
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
	for _, part := range []string{"share.slice", "reserve.slice"} {
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

// activate enables the controllers for the children of dir. Those that are on
// already are not written again: a delegated root may be read-only.
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

// partition divides the cores between the tasks that reserved some and all
// others. Nomad leaves the task's own cpuset to the driver.
func partition(share, reserved []int) error {
	for slice, cores := range map[string][]int{"share.slice": share, "reserve.slice": reserved} {
		file := filepath.Join(cgroupRoot, cgroupParent, slice, "cpuset.cpus")
		if err := os.WriteFile(file, []byte(cpuList(cores)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// taskCgroup is the path of a task's cgroup.
func taskCgroup(allocID, task string, reserved bool) string {
	part := "share.slice"
	if reserved {
		part = "reserve.slice"
	}
	return filepath.Join(cgroupRoot, cgroupParent, part, allocID+"."+task+".scope")
}

// removeCgroup kills what is left in a cgroup and removes it, with the cgroups
// that a task may have made inside.
func removeCgroup(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// rmdir answers EBUSY until the last process is reaped.
	var err error
	for range 100 {
		if err = removeTree(path); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
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
