package attack

import (
	"os"
	"regexp"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel are attacks on what the whole host shares. Controls ask for what changes nothing.
func kernel() []Attack {
	same := func(path string) func(*targets) error {
		return func(*targets) error {
			value, err := os.ReadFile(path)
			if err != nil {
				value = nil
			}
			return writesTo(path, value)
		}
	}
	bad := unix.ENOEXEC
	all := []Attack{
		{Name: "module-load", Tries: "load a kernel module", run: func(*targets) error {
			return reached(unix.InitModule([]byte("no module"), ""), bad, unix.EINVAL)
		}},
		{Name: "module-load-fd", Tries: "load a kernel module from a file", run: func(*targets) error {
			fd, err := unix.Open(self(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return reached(unix.FinitModule(fd, "", 0), bad, unix.EINVAL, unix.EBADMSG)
		}},
		{Name: "module-unload", Tries: "unload a kernel module", run: func(*targets) error {
			return reached(unix.DeleteModule("no_such_module", unix.O_NONBLOCK), unix.ENOENT)
		}},
		{Name: "kexec", Tries: "load another kernel", run: func(*targets) error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0) }},
		{Name: "kexec-file", Tries: "load another kernel from a file", run: func(*targets) error {
			return reached(call(unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0), 0, 0, 0), unix.EBADF)
		}},
		{Name: "reboot", Tries: "reboot the host", run: func(*targets) error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }},
		{Name: "clock", Tries: "set the clock", run: setsClock},
		{Name: "clock-adjust", Tries: "adjust the clock (adjtimex)", run: func(*targets) error {
			const tick = 0x4000
			now := new(unix.Timex)
			if _, err := unix.Adjtimex(now); err != nil {
				return err
			}
			now.Modes = tick
			_, err := unix.Adjtimex(now)
			return err
		}},
		{Name: "hostname", Tries: "set the host name", run: func(*targets) error {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			return unix.Sethostname([]byte(name))
		}},
		{Name: "domainname", Tries: "set the domain name", run: func(*targets) error { return unix.Setdomainname([]byte("(none)")) }},
		{Name: "sysctl", Tries: "change a sysctl by /proc/sys", run: same("/proc/sys/vm/swappiness")},
		{Name: "core-pattern", Tries: "have the kernel run a program for core dumps (core_pattern)", run: same("/proc/sys/kernel/core_pattern")},
		{Name: "modprobe-path", Tries: "have the kernel run a program for modules (modprobe)", run: same("/proc/sys/kernel/modprobe")},
		{Name: "binfmt", Tries: "register an interpreter of programs (binfmt_misc)", run: func(*targets) error {
			return open("/proc/sys/fs/binfmt_misc/register", unix.O_WRONLY)
		}, Needs: "binfmt_misc mounted"},
		{Name: "sysrq", Tries: "use the magic SysRq keys", run: func(*targets) error { return open("/proc/sysrq-trigger", unix.O_WRONLY) }},
		{Name: "acct", Tries: "switch process accounting off", run: func(*targets) error { return call(unix.SYS_ACCT, 0) }, Needs: "process accounting"},
		{Name: "swapon", Tries: "add a swap file", run: func(*targets) error {
			return reached(call(unix.SYS_SWAPON, text("/nonexistent"), 0), unix.ENOENT)
		}},
		{Name: "swapoff", Tries: "remove a swap file", run: func(*targets) error {
			return reached(call(unix.SYS_SWAPOFF, text("/nonexistent")), unix.ENOENT)
		}},
		{Name: "quota", Tries: "change disk quotas (quotactl)", Needs: "a file system with quotas", run: func(t *targets) error {
			if t.QuotaNode == "" {
				return absent("no file system with quotas")
			}
			return setsQuota(t.QuotaNode)
		}},
		{Name: "kernel-log", Tries: "read the kernel's messages", run: func(*targets) error {
			const readAll = 3
			return call(unix.SYS_SYSLOG, readAll, address(new([4096]byte)), 4096)
		}},
		{Name: "bpf", Tries: "make a BPF map", run: func(*targets) error {
			attr := new([32]uint32)
			attr[0], attr[1], attr[2], attr[3] = unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1
			return call(unix.SYS_BPF, unix.BPF_MAP_CREATE, address(attr), 128)
		}},
		{Name: "perf-process", Tries: "measure a process of the host", run: func(t *targets) error { return measures(t.Pid, -1) }},
		{Name: "perf-cpu", Tries: "measure all that runs on a CPU", run: func(*targets) error { return measures(-1, 0) }},
		{Name: "perf-own", Tries: "use performance counters at all", run: func(*targets) error { return measures(0, -1) }},
		{Name: "userfaultfd", Tries: "stop the kernel at page faults", run: func(*targets) error { return closing(callFd(unix.SYS_USERFAULTFD, 0)) }},
		{Name: "io-uring", Tries: "make system calls that the filter does not see", run: func(*targets) error {
			return closing(callFd(unix.SYS_IO_URING_SETUP, 1, address(new([120]byte))))
		}},
	}
	return append(all, machine()...)
}

// setsQuota succeeds where only the quota itself is missing: file systems without quotas answer before
// the kernel asks for a permission.
func setsQuota(node string) error {
	const setQuota = 0x800008 << 8 // of a user
	return reached(call(unix.SYS_QUOTACTL, setQuota, text(node), 0, address(new([72]byte))), unix.ESRCH)
}

func writesTo(path string, value []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, value)
	return err
}

func setsClock(*targets) error {
	now := time.Now()
	at := unix.NsecToTimespec(now.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
}

func measures(pid, cpu int) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	return closing(unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC))
}

// information are attacks that learn about the host or other tasks.
func information() []Attack {
	file := func(path string, wanted string) func(*targets) error {
		pattern := regexp.MustCompile(wanted)
		return func(*targets) error {
			found, err := head(path)
			if err != nil {
				return err
			}
			if !pattern.Match(found) {
				return hidden
			}
			return nil
		}
	}
	const figures = "Figures of the whole host, which /proc has for every user: runtimes read some of them."
	return []Attack{
		{Name: "kcore", Tries: "read the kernel's memory by /proc/kcore", run: file("/proc/kcore", "ELF")},
		{Name: "kpagecount", Tries: "read how memory pages are used", run: file("/proc/kpagecount", `(?s).`), Needs: "CONFIG_PROC_PAGE_MONITOR"},
		{Name: "kallsyms", Tries: "read the kernel's addresses", run: file("/proc/kallsyms", `(?m)^[0-9a-f]*[1-9a-f][0-9a-f]* `)},
		{Name: "iomem", Tries: "read physical addresses in /proc/iomem", run: file("/proc/iomem", `(?m)^0*[1-9a-f]`)},
		{Name: "slabinfo", Tries: "read the kernel's allocations in /proc/slabinfo", run: file("/proc/slabinfo", "slab")},
		{Name: "vmallocinfo", Tries: "read addresses in /proc/vmallocinfo", run: file("/proc/vmallocinfo", "0x")},
		{Name: "timer-list", Tries: "read the kernel's timers in /proc/timer_list", run: file("/proc/timer_list", "timer")},
		{Name: "proc-keys", ByDesign: "The kernel shows only keys that the task's uid may see, and no contents. A dynamic uid belongs to one allocation at a time.", Tries: "read the descriptions of keys in /proc/keys", run: file("/proc/keys", "exec2-attack")},
		{Name: "proc-cmdline", Tries: "read the kernel's command line in /proc/cmdline", run: file("/proc/cmdline", "."), ByDesign: figures},
		{Name: "proc-meminfo", Tries: "read how much memory the host has", run: file("/proc/meminfo", "MemTotal"), ByDesign: figures},
		{Name: "proc-net", Tries: "list the host's sockets in /proc/net", run: file("/proc/net/unix", "exec2-attack"),
			ByDesign: "The task has the host's network namespace; in bridge mode it sees its own."},
		{Name: "mountinfo", Tries: "list mounts of the host", run: func(t *targets) error {
			found, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				return errnoOf(err)
			}
			if !strings.Contains(string(found), " "+t.Dir+" ") {
				return hidden
			}
			return nil
		}},
		{Name: "debugfs", Tries: "list /sys/kernel/debug", run: func(*targets) error { return lists("/sys/kernel/debug") }, Needs: "debugfs"},
		{Name: "tracefs", Tries: "list /sys/kernel/tracing", run: func(*targets) error { return lists("/sys/kernel/tracing") }, Needs: "tracefs"},
		{Name: "firmware", Tries: "list /sys/firmware", run: func(*targets) error { return lists("/sys/firmware") }},
		{Name: "sys-devices", Tries: "list the host's devices in /sys", run: func(*targets) error { return lists("/sys/class/net") }},
		{Name: "etc-passwd", Tries: "list the host's users", run: file("/etc/passwd", "(?m)^alice:")},
	}
}

// head reads the beginning of a file of /proc; some of them take seconds to read.
func head(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all []byte
	for buffer := make([]byte, 1<<15); len(all) < 1<<18; {
		n, err := unix.Read(fd, buffer)
		if err != nil || n == 0 {
			return all, err
		}
		all = append(all, buffer[:n]...)
	}
	return all, nil
}

// errnoOf takes the number out of an error of the os package.
func errnoOf(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}
