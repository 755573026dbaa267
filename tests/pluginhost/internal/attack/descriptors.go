package attack

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const givenAway = "Who sends a descriptor gives away what it stands for; an accomplice outside could as well do the work itself."

// descriptors are attacks by descriptors of the host that an accomplice outside passes to
// the task, by a socket in the alloc directory.
func descriptors() []Attack {
	withDirectory := func(attempt func(t *targets, dir int) error) func(*targets) error {
		return withPassed("directory", attempt)
	}
	return []Attack{
		{Name: "inherited", Tries: "find a descriptor besides 0 to 2 that the task was started with", run: inherited, alone: true},
		{Name: "stdin-mode", Tries: "change the mode of the host's /dev/null by standard input", run: changesNull},
		{Name: "passed-file", Tries: "read a file that another process opened and passed", ByDesign: givenAway,
			run: withPassed("file", func(_ *targets, fd int) error { return readsFd(fd) })},
		{Name: "passed-reopen", Tries: "open a passed O_PATH descriptor again for reading", run: withPassed("path", func(_ *targets, fd int) error {
			return reads(fdPath(fd))
		})},
		{Name: "passed-upgrade", Tries: "open a file that was passed for reading again for writing", run: withPassed("writable", func(_ *targets, fd int) error {
			return open(fdPath(fd), unix.O_WRONLY)
		})},
		{Name: "passed-directory", Tries: "read a file below a passed directory", run: withDirectory(func(_ *targets, dir int) error { return readsAt(dir, "secret") })},
		{Name: "passed-dotdot", Tries: "read /etc/shadow by .. from a passed directory", run: withDirectory(func(_ *targets, dir int) error {
			return openAt(dir, strings.Repeat("../", 20)+"etc/shadow", unix.O_RDONLY)
		})},
		{Name: "passed-chdir", Tries: "enter a passed directory and read in it", run: withDirectory(func(_ *targets, dir int) error {
			if err := unix.Fchdir(dir); err != nil {
				return err
			}
			return reads("secret")
		})},
		{Name: "passed-create", Tries: "create a file in a passed directory", run: withDirectory(func(_ *targets, dir int) error {
			return createsAt(dir, "open/"+filepath.Base(fresh("")))
		})},
		{Name: "passed-remove", Tries: "remove a file in a passed directory", run: withDirectory(func(t *targets, dir int) error {
			if err := unix.Unlinkat(dir, "open/unlinked", 0); err != nil {
				return err
			}
			return openAt(dir, "open/unlinked", unix.O_CREAT|unix.O_WRONLY)
		})},
		{Name: "passed-stat", Tries: "look for a file in a passed directory", ByDesign: givenAway, run: withDirectory(func(_ *targets, dir int) error {
			return unix.Fstatat(dir, "secret", new(unix.Stat_t), 0)
		})},
		{Name: "passed-chmod", Tries: "change the mode of a file of the task's user in a passed directory", ByDesign: givenAway,
			run: withDirectory(func(_ *targets, dir int) error { return unix.Fchmodat(dir, "writable", 0o666, 0) })},
		{Name: "passed-execute", Tries: "execute a program of a passed directory", run: withDirectory(func(_ *targets, dir int) error {
			// execve follows; close-on-exec would hide an interpreter only.
			return executes(fdPath(dir)+"/program", "true")
		})},
		{Name: "passed-connect", Tries: "connect to a socket of a passed directory", run: withDirectory(func(_ *targets, dir int) error {
			return connects(unix.SOCK_STREAM, fdPath(dir)+"/stream")
		}), ByDesign: givenAway + " Refused from Linux 7.1 on."},
		{Name: "passed-handle", Tries: "open a file by its handle, on the file system of a passed directory", run: withDirectory(opensHandle)},
		{Name: "passed-tree", Tries: "read a file of a detached mount that was passed", run: withPassed("tree", func(_ *targets, fd int) error { return readsAt(fd, "secret") })},
		{Name: "passed-mount", Tries: "mount it in the task's directory", run: withPassed("tree", mountsPassed), alone: true},
		{Name: "passed-cgroup", Tries: "start a process in a cgroup whose directory was passed (clone3)", run: withPassed("cgroup", func(_ *targets, fd int) error {
			return forks(&cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(fd)})
		})},
	}
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// inherited ignores what the Go runtime opens for itself.
func inherited(*targets) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		fd, _ := strconv.Atoi(entry.Name())
		link, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if fd > 2 && err == nil && strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/proc/") {
			return nil
		}
	}
	return unix.EBADF
}

// changesNull sets the mode that the device has.
func changesNull(*targets) error {
	var found unix.Stat_t
	if err := unix.Fstat(0, &found); err != nil {
		return err
	}
	if found.Mode&unix.S_IFMT != unix.S_IFCHR || found.Rdev != unix.Mkdev(1, 3) {
		return absent("another standard input")
	}
	return unix.Fchmod(0, found.Mode&0o7777)
}

// withPassed asks the accomplice for a descriptor.
func withPassed(what string, attempt func(*targets, int) error) func(*targets) error {
	return func(t *targets) error {
		fd, err := receive(t, what)
		if err != nil {
			return fmt.Errorf("failed to receive the descriptor: %s", err)
		}
		return attempt(t, fd)
	}
}

// receive connects to the socket in the alloc directory; without one, to the host's.
func receive(t *targets, what string) (int, error) {
	address := t.path("passing")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); dir != "" {
		// Longer than the name of a socket can be.
		if err := os.Chdir(dir); err != nil {
			return -1, err
		}
		address = "passing"
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(what)); err != nil {
		return -1, err
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%d messages: %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// opensHandle builds struct file_handle, whose bytes follow its head.
func opensHandle(t *targets, dir int) error {
	handle := make([]byte, 8+len(t.Handle))
	*(*uint32)(unsafe.Pointer(&handle[0])) = uint32(len(t.Handle))
	*(*int32)(unsafe.Pointer(&handle[4])) = t.HandleType
	copy(handle[8:], t.Handle)
	fd, err := callFd(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(dir), address(&handle[0]), unix.O_RDONLY)
	if err != nil {
		return err
	}
	return readsFd(fd)
}

func mountsPassed(t *targets, fd int) error {
	unix.Unshare(unix.CLONE_NEWNS)
	dir := t.own("tree")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	return nil
}
