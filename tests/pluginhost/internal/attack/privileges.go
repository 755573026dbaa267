package attack

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const requested = "A job may request the capability for it by default: with it, the task is no more than another user that the job may have."

// privileges are attacks that would make the task another user, or give it capabilities.
func privileges() []Attack {
	return []Attack{
		{Name: "setuid", ByDesignCapable: requested, alone: true, Tries: "become another user", run: func(t *targets) error {
			return call(unix.SYS_SETRESUID, uintptr(t.Other), uintptr(t.Other), uintptr(t.Other))
		}},
		{Name: "setgid", ByDesignCapable: requested, alone: true, Tries: "become another group", run: func(t *targets) error {
			return call(unix.SYS_SETRESGID, uintptr(t.Other), uintptr(t.Other), uintptr(t.Other))
		}},
		{Name: "setgroups", ByDesignCapable: requested, alone: true, Tries: "join a supplementary group", run: func(t *targets) error {
			group := uint32(t.Other)
			return call(unix.SYS_SETGROUPS, 1, address(&group))
		}},
		{Name: "capset", alone: true, Tries: "gain all capabilities (capset)", run: func(*targets) error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
			return call(unix.SYS_CAPSET, address(&header), address(&data[0]))
		}},
		{Name: "set-uid-program", Tries: "run a program with the set-uid bit as its owner", run: func(t *targets) error {
			// The effective user is the second of four.
			words, err := statusOf(t.SetID, "Uid:")
			if err != nil || words[1] != strconv.Itoa(t.UID) {
				return err
			}
			return unix.EPERM
		}},
		{Name: "file-capabilities", Tries: "gain a capability from a program's file", run: func(t *targets) error { return gains(t.Capable) }},
		{Name: "userns-clone", Tries: "make a user namespace (clone)", run: func(*targets) error { return inNamespace(unix.CLONE_NEWUSER) }},
		{Name: "userns-unshare", Tries: "make a user namespace (unshare)", run: func(*targets) error {
			_, err := starts(&syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWUSER}, self(), "true")
			return err
		}},
		{Name: "userns-clone3", Tries: "make a user namespace (clone3)", run: func(*targets) error {
			return forks(&cloneArgs{flags: unix.CLONE_NEWUSER, exitSignal: uint64(unix.SIGCHLD)})
		}},
		{Name: "userns-mapped", Tries: "be root of a user namespace", run: func(*targets) error {
			mine := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			_, err := starts(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: mine}, self(), "true")
			return err
		}},
		{Name: "personality", alone: true, Tries: "make its memory executable for all it reads (personality)", run: func(*targets) error {
			const readImpliesExec = 0x0400000
			return call(unix.SYS_PERSONALITY, readImpliesExec)
		}},
	}
}

// statusOf returns the words of a field of /proc/self/status that the program prints.
func statusOf(program, field string) ([]string, error) {
	status, err := starts(nil, program, "status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, field); ok {
			return strings.Fields(value), nil
		}
	}
	return nil, absent("no " + field)
}

// gains tells whether a process of the program has a capability that this one lacks.
func gains(program string) error {
	var sets [2]uint64
	for i, each := range []string{self(), program} {
		words, err := statusOf(each, "CapEff:")
		if err != nil {
			return err
		}
		if sets[i], err = strconv.ParseUint(words[0], 16, 64); err != nil {
			return err
		}
	}
	if sets[1]&^sets[0] == 0 {
		return unix.EPERM
	}
	return nil
}

func inNamespace(flags uintptr) error {
	_, err := starts(&syscall.SysProcAttr{Cloneflags: flags}, self(), "true")
	return err
}

// setID are attacks that leave a program behind with which a user of the host becomes the task's user.
func setID() []Attack {
	onFile := func(attempt func(path string) error) func(*targets) error {
		return func(t *targets) error {
			path := t.own("set-id")
			if err := os.WriteFile(path, nil, 0o755); err != nil {
				return err
			}
			defer os.Remove(path)
			return attempt(path)
		}
	}
	create := func(attempt func(path string) error) func(*targets) error {
		return func(t *targets) error {
			path := t.own("set-id-new")
			defer os.Remove(path)
			return attempt(path)
		}
	}
	const mode = 0o4755
	return []Attack{
		{Name: "set-id-chmod", Tries: "set the set-uid bit (fchmodat)", run: onFile(func(path string) error {
			return call(unix.SYS_FCHMODAT, cwd, text(path), mode)
		})},
		{Name: "set-id-fchmod", Tries: "the same, by fchmod", run: onFile(func(path string) error {
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return call(unix.SYS_FCHMOD, uintptr(fd), mode)
		})},
		{Name: "set-id-fchmodat2", Tries: "the same, by fchmodat2", Needs: "Linux 6.6", run: onFile(func(path string) error {
			return call(unix.SYS_FCHMODAT2, cwd, text(path), mode, 0)
		})},
		{Name: "set-id-gid", Tries: "set the set-gid bit", run: onFile(func(path string) error {
			return call(unix.SYS_FCHMODAT, cwd, text(path), 0o2755)
		})},
		{Name: "set-id-open", Tries: "create a set-uid file (openat)", run: create(func(path string) error {
			return call(unix.SYS_OPENAT, cwd, text(path), unix.O_CREAT|unix.O_WRONLY, mode)
		})},
		{Name: "set-id-openat2", Tries: "the same, by openat2", run: create(func(path string) error {
			how := unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: mode}
			return call(unix.SYS_OPENAT2, cwd, text(path), address(&how), unix.SizeofOpenHow)
		})},
		{Name: "set-id-tmpfile", Tries: "the same, by a file without a name (O_TMPFILE)", run: func(t *targets) error {
			return call(unix.SYS_OPENAT, cwd, text(dirOf(t.own("x"))), unix.O_TMPFILE|unix.O_WRONLY, mode)
		}},
		{Name: "set-id-mkdir", Tries: "create a directory with the set-gid bit", run: create(func(path string) error {
			return call(unix.SYS_MKDIRAT, cwd, text(path), 0o2755)
		})},
		{Name: "set-id-mknod", Tries: "create a set-uid file (mknod)", run: create(func(path string) error {
			return call(unix.SYS_MKNODAT, cwd, text(path), unix.S_IFREG|mode, 0)
		})},
		{Name: "set-capabilities", Tries: "give a file capabilities", run: onFile(func(path string) error {
			return unix.Setxattr(path, "security.capability", fileCapability(unix.CAP_SYS_ADMIN), 0)
		})},
		{Name: "own-chown", ByDesignCapable: requested, Tries: "give a file of the task to another user", run: onFile(func(path string) error { return unix.Chown(path, 65534, -1) })},
	}
}

const cwd = ^uintptr(99) // AT_FDCWD

func dirOf(path string) string { return path[:strings.LastIndex(path, "/")] }

// fileCapability is struct vfs_cap_data, effective at execve.
func fileCapability(capability int) []byte {
	value := make([]byte, 20)
	binary.LittleEndian.PutUint32(value, 0x02000001)
	binary.LittleEndian.PutUint32(value[4:], 1<<capability)
	return value
}
