package attack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processes are attacks on a process of the host that has the task's user, by its number there
// and by a pidfd that an accomplice passes.
func processes() []Attack {
	byPidfd := func(attempt func(t *targets, fd int) error) func(*targets) error { return withPassed("pidfd", attempt) }
	return []Attack{
		{Name: "see", Tries: "find a process of the host in /proc", run: seesProcess},
		{Name: "signal", Tries: "send it a signal", run: func(t *targets) error { return unix.Kill(t.Pid, 0) }},
		{Name: "signal-pidfd", Tries: "send it a signal by a passed pidfd", run: byPidfd(func(_ *targets, fd int) error {
			return unix.PidfdSendSignal(fd, 0, nil, 0)
		})},
		{Name: "pidfd-open", Tries: "open a pidfd of it", run: func(t *targets) error { _, err := unix.PidfdOpen(t.Pid, 0); return err }},
		{Name: "ptrace", alone: true, Tries: "trace it", run: func(t *targets) error { return ptrace(t.Pid) }},
		{Name: "process-vm", Tries: "read its memory (process_vm_readv)", run: func(t *targets) error { return readsVM(t, t.Pid) }},
		{Name: "pidfd-getfd", Tries: "take a descriptor of it, by a passed pidfd", run: byPidfd(func(t *targets, fd int) error {
			got, err := unix.PidfdGetfd(fd, t.Fd, 0)
			if err != nil {
				return err
			}
			return readsFd(got)
		})},
		{Name: "process-madvise", Tries: "page its memory out, by a passed pidfd", run: byPidfd(func(t *targets, fd int) error {
			vector := unix.Iovec{Base: (*byte)(unsafe.Pointer(nil)), Len: uint64(os.Getpagesize())}
			*(*uintptr)(unsafe.Pointer(&vector.Base)) = t.Address
			return call(unix.SYS_PROCESS_MADVISE, uintptr(fd), address(&vector), 1, unix.MADV_COLD, 0)
		})},
		{Name: "kcmp", Tries: "compare a descriptor with one of it", run: func(t *targets) error {
			return call(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(t.Pid), 0, 0, uintptr(t.Fd))
		}},
		{Name: "prlimit", Tries: "change its limits", run: func(t *targets) error { return limits(t.Pid) }},
		{Name: "setpriority", Tries: "change its priority", run: func(t *targets) error { return unix.Setpriority(unix.PRIO_PROCESS, t.Pid, 1) }},
		{Name: "ioprio", Tries: "change its I/O priority", run: func(t *targets) error { return ioprio(t.Pid, 2<<13|7) }},
		{Name: "affinity", Tries: "pin it to a CPU", run: func(t *targets) error { return pins(t.Pid) }},
		{Name: "scheduler", Tries: "change its scheduling policy", run: func(t *targets) error { return schedules(t.Pid, unix.SCHED_BATCH, 0) }},
		{Name: "oom-score", Tries: "make it the first that the OOM killer takes", run: func(t *targets) error {
			return open(procDir(t.Pid)+"/oom_score_adj", unix.O_WRONLY)
		}},
		{Name: "move-pages", Tries: "move its memory between nodes", run: func(t *targets) error {
			return call(unix.SYS_MOVE_PAGES, uintptr(t.Pid), 0, 0, 0, 0, 0)
		}},
		{Name: "own-nice", alone: true, Tries: "raise the task's own priority above others", run: func(*targets) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }},
		{Name: "own-realtime", alone: true, Tries: "use a real-time scheduling policy", run: func(*targets) error { return schedules(0, unix.SCHED_FIFO, 1) }},
		{Name: "own-io-realtime", alone: true, Tries: "use the real-time I/O class", run: func(*targets) error { return ioprio(0, 1<<13|4) }},
		{Name: "own-oom-score", alone: true, Tries: "exempt itself from the OOM killer", run: func(*targets) error {
			return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
		}},
		{Name: "own-limits", alone: true, Tries: "raise a hard limit of its own", run: raisesLimit},
	}
}

func seesProcess(*targets) error {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return firstOf(found, func(path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), "victim") {
			return unix.ESRCH
		}
		return nil
	})
}

func ptrace(pid int) error {
	const seize = 0x4206
	return call(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0)
}

func readsVM(t *targets, pid int) error {
	buffer := make([]byte, 64)
	local := []unix.Iovec{{Base: &buffer[0], Len: uint64(len(buffer))}}
	_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: t.Address, Len: len(buffer)}}, 0)
	if err != nil {
		return err
	}
	return contains(buffer)
}

// limits sets a limit to what it is.
func limits(pid int) error {
	var now unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &now); err != nil {
		return err
	}
	return unix.Prlimit(pid, unix.RLIMIT_CORE, &now, nil)
}

// whoProcess is IOPRIO_WHO_PROCESS; the others follow.
const whoProcess, whoGroup, whoUser = 1, 2, 3

func ioprio(pid int, value uintptr) error {
	return call(unix.SYS_IOPRIO_SET, whoProcess, uintptr(pid), value)
}

func pins(pid int) error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		return err
	}
	return unix.SchedSetaffinity(pid, &set)
}

func schedules(pid int, policy, priority int32) error {
	return call(unix.SYS_SCHED_SETSCHEDULER, uintptr(pid), uintptr(policy), address(&priority))
}

func raisesLimit(*targets) error {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); err != nil {
		return err
	}
	now.Max += 4096
	return unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &now, nil)
}

// shim are attacks on the process that waits for the task and reports its end.
func shim() []Attack {
	return []Attack{
		{Name: "shim-signal", ByDesignCapable: "With `kill`, signals reach the task's PID namespace, whose first process the shim is. It ignores them; the kernel lets none from inside kill it.", Tries: "send the shim a signal", run: func(t *targets) error { return unix.Kill(t.shimPid(), 0) }},
		{Name: "shim-ptrace", alone: true, Tries: "trace it", run: func(t *targets) error { return ptrace(t.shimPid()) }},
		{Name: "shim-memory", Tries: "read its memory", run: func(t *targets) error { return open(procDir(t.shimPid())+"/mem", unix.O_RDONLY) }},
		{Name: "shim-environ", Tries: "read its environment", run: func(t *targets) error { return open(procDir(t.shimPid())+"/environ", unix.O_RDONLY) }},
		{Name: "shim-descriptors", Tries: "forge the exit status by a descriptor of it", run: opensDescriptors},
		{Name: "shim-root", Tries: "use its root directory", run: func(t *targets) error { return open(procDir(t.shimPid())+"/root", unix.O_PATH) }},
		{Name: "shim-namespaces", Tries: "use its namespaces", run: func(t *targets) error { return open(procDir(t.shimPid())+"/ns/mnt", unix.O_RDONLY) }},
		{Name: "shim-prlimit", Tries: "change its limits, so that it cannot write the exit status", run: func(t *targets) error { return limits(t.shimPid()) }},
		{Name: "shim-priority", Tries: "change its priority", run: func(t *targets) error { return unix.Setpriority(unix.PRIO_PROCESS, t.shimPid(), 1) }},
		{Name: "shim-affinity", Tries: "pin it to a CPU", run: func(t *targets) error { return pins(t.shimPid()) }},
		{Name: "exit-status", Tries: "write to a file in the driver's run directory", run: func(*targets) error {
			found, _ := filepath.Glob("/run/nomad-driver-exec2/*/exit")
			if len(found) == 0 {
				return lists("/run/nomad-driver-exec2")
			}
			return open(found[0], unix.O_WRONLY)
		}},
	}
}

// opensDescriptors tries each of the first numbers, whether or not the directory can be listed.
func opensDescriptors(t *targets) error {
	var paths []string
	for fd := range 16 {
		paths = append(paths, procDir(t.shimPid())+"/fd/"+strconv.Itoa(fd))
	}
	return firstOf(paths, func(path string) error { return open(path, unix.O_WRONLY) })
}

// cgroups are attacks on the limits.
func cgroups() []Attack {
	in := func(name string, flags int) func(*targets) error {
		return func(*targets) error {
			return firstOf(groups(), func(dir string) error { return open(dir+"/"+name, flags) })
		}
	}
	return []Attack{
		{Name: "cgroup-move", Tries: "move to another cgroup", run: in("cgroup.procs", unix.O_WRONLY)},
		{Name: "cgroup-limit", Tries: "raise the memory limit of a cgroup", run: in("memory.max", unix.O_WRONLY)},
		{Name: "cgroup-kill", Tries: "kill a cgroup", run: in("cgroup.kill", unix.O_WRONLY)},
		{Name: "cgroup-create", Tries: "create a cgroup", run: func(*targets) error { return firstOf(groups(), makesDirectory) }},
		{Name: "cgroup-clone", Tries: "start a process in a cgroup in sight (clone3)", run: clonesIntoCgroup},
	}
}

// groups are the directories of cgroups in sight, the task's own first.
func groups() []string {
	const root = "/sys/fs/cgroup"
	text, _ := os.ReadFile("/proc/self/cgroup")
	own := filepath.Join(root, strings.TrimPrefix(strings.TrimSpace(string(text)), "0::"))
	all := []string{own}
	for dir := own; dir != root && strings.HasPrefix(dir, root); {
		dir = filepath.Dir(dir)
		all = append(all, dir)
	}
	return all
}

// clonesIntoCgroup leaves out the task's own cgroup.
func clonesIntoCgroup(*targets) error {
	return firstOf(groups()[1:], func(dir string) error {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return forks(&cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(fd)})
	})
}
