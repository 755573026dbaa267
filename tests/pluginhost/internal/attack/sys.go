package attack

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call. Pointers are converted in the argument list.
func call(number uintptr, args ...uintptr) error {
	_, err := callFd(number, args...)
	return err
}

// callFd is for those that return a descriptor or a number.
func callFd(number uintptr, args ...uintptr) (int, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// text is a C string that stays where it is: the process ends after the attack.
func text(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// address is that of a value which must stay alive.
func address[T any](value *T) uintptr {
	kept = append(kept, value)
	return uintptr(unsafe.Pointer(value))
}

var kept []any

func open(path string, flags int) error {
	return openAt(unix.AT_FDCWD, path, flags)
}

func openAt(dir int, path string, flags int) error {
	fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// reads opens a file and reads the secret from it.
func reads(path string) error { return readsAt(unix.AT_FDCWD, path) }

func readsAt(dir int, path string) error {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return readsFd(fd)
}

func readsFd(fd int) error {
	buffer := make([]byte, 4096)
	n, err := unix.Pread(fd, buffer, 0)
	if err != nil {
		return err
	}
	return contains(buffer[:n])
}

// contains takes anything but the secret for a refusal.
func contains(found []byte) error {
	if !strings.Contains(string(found), word) {
		return unix.ENOENT
	}
	return nil
}

// starts runs a program that has to end with status 0, and returns what it prints.
func starts(attr *syscall.SysProcAttr, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	return string(out), err
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// forks makes a clone3 call whose child ends at once, and returns once it has.
func forks(args *cloneArgs) error {
	runtime.LockOSThread()
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	_, err := unix.Wait4(int(pid), nil, 0, nil)
	return err
}

// cloneArgs is struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// firstOf returns nil once an attempt succeeded, else the first refusal.
func firstOf(paths []string, attempt func(string) error) error {
	var first error = absent("nothing of the kind exists")
	for i, path := range paths {
		err := attempt(path)
		if err == nil {
			return nil
		}
		if i == 0 {
			first = err
		}
	}
	return first
}

// others are the directories in /proc of all processes in sight but this one and its parents.
func others(t *targets) []string {
	mine := map[int]bool{os.Getpid(): true, os.Getppid(): true}
	dirs := []string{procDir(t.Pid)}
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && !mine[pid] && pid != t.Pid && sandboxed() {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func procDir(pid int) string { return "/proc/" + strconv.Itoa(pid) }
