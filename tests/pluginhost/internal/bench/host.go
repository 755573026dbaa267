package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pluginhost/internal/cgroup"
	"pluginhost/internal/cpu"

	"golang.org/x/sys/unix"
)

// host is the machine that is measured.
type host struct {
	base      string
	topology  *cpu.Topology
	kernel    string
	cpus      int
	memoryMiB int
	mounted   int // of the extra mounts
}

// baseMode lets tasks walk to their directories.
const baseMode = 0o711

func newHost(base string) (*host, error) {
	topology, err := cpu.Read(0)
	if err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("failed to read the kernel's version: %w", err)
	}
	total, err := meminfo("MemTotal")
	if err != nil {
		return nil, err
	}
	if err := cgroup.Init(cpu.List(topology.IDs())); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(base, baseMode); err != nil {
		return nil, err
	}
	// To make files on a disk would take longer than a start.
	if err := unix.Mount("bench", base, "tmpfs", 0, "mode=0711"); err != nil {
		return nil, &os.PathError{Op: "mount tmpfs", Path: base, Err: err}
	}
	return &host{
		base: base, topology: topology, kernel: unix.ByteSliceToString(name.Release[:]),
		cpus: len(topology.Cores), memoryMiB: int(total >> 10),
	}, nil
}

// remove detaches what is mounted below the base, and removes it.
func (h *host) remove() error {
	return errors.Join(unix.Unmount(h.base, unix.MNT_DETACH), os.Remove(h.base))
}

func (h *host) others() string { return filepath.Join(h.base, "others") }

// mountUpTo makes mounts like those of other allocations.
func (h *host) mountUpTo(count int) error {
	for ; h.mounted < count; h.mounted++ {
		if err := mountAt(filepath.Join(h.others(), fmt.Sprint(h.mounted))); err != nil {
			return err
		}
	}
	return nil
}

func mountAt(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("other", path, "tmpfs", 0, "size=4k"); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: path, Err: err}
	}
	return nil
}

func (h *host) unmountOthers() error {
	for ; h.mounted > 0; h.mounted-- {
		path := filepath.Join(h.others(), fmt.Sprint(h.mounted-1))
		if err := unix.Unmount(path, 0); err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
	return nil
}

// mountElsewhere is the time of mount and umount of a tmpfs that no task sees.
func (h *host) mountElsewhere(runs int) (Figures, error) {
	path := filepath.Join(h.base, "elsewhere")
	var times []time.Duration
	for range runs {
		began := time.Now()
		if err := mountAt(path); err != nil {
			return Figures{}, err
		}
		if err := unix.Unmount(path, 0); err != nil {
			return Figures{}, &os.PathError{Op: "unmount", Path: path, Err: err}
		}
		times = append(times, time.Since(began))
	}
	return figures(times), nil
}

// meminfo is the sum of fields of proc_meminfo(5), in KiB.
func meminfo(names ...string) (int64, error) {
	return kib("/proc/meminfo", names...)
}

// kib sums lines like "Slab: 12 kB".
func kib(path string, names ...string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range names {
		var n int64
		at := strings.Index("\n"+string(raw), "\n"+name+":")
		if at < 0 {
			return 0, fmt.Errorf("%s has no %s", path, name)
		}
		if _, err := fmt.Sscan(string(raw)[at+len(name)+1:], &n); err != nil {
			return 0, fmt.Errorf("failed to read %s in %s: %w", name, path, err)
		}
		sum += n
	}
	return sum, nil
}
