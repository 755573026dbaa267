package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReservedCoresDecideTheSlice(t *testing.T) {
	if got, want := TaskPath("a", "t", false), "/sys/fs/cgroup/nomad.slice/share.slice/a.t.scope"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := TaskPath("a", "t", true), "/sys/fs/cgroup/nomad.slice/reserve.slice/a.t.scope"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestControllersAreEnabledOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cgroup.subtree_control")
	for have, want := range map[string]string{
		"cpuset cpu io memory pids\n": "cpuset cpu io memory pids\n",
		"cpu memory\n":                activation,
	} {
		if err := os.WriteFile(file, []byte(have), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := activate(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%q became %q, %v", have, got, err)
		}
	}
}

func TestNestedCgroupsAreRemoved(t *testing.T) {
	top := filepath.Join(t.TempDir(), "scope")
	if err := os.MkdirAll(filepath.Join(top, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(top); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if err := Remove(top); err != nil {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}
