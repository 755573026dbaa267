package attack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// files are attacks on files outside the task by their path.
func files() []Attack {
	return []Attack{
		{Name: "read", Tries: "read a file of the task's user outside the task", run: func(t *targets) error { return reads(t.path("secret")) }},
		{Name: "read-dotdot", Tries: "the same, by .. from the task's directory", run: readDotdot},
		{Name: "read-symlink", Tries: "the same, by a symbolic link in the task's directory", run: readSymlink},
		{Name: "read-bind", Tries: "the same, by a bind mount on a directory of the task", run: readBind, alone: true},
		{Name: "read-shadow", Tries: "read /etc/shadow", run: func(*targets) error { return open("/etc/shadow", unix.O_RDONLY) }},
		{Name: "list", Tries: "list a directory outside", run: func(t *targets) error { return lists(t.path("open")) }},
		{Name: "list-root-home", Tries: "list /root", run: func(*targets) error { return lists("/root") }},
		{Name: "list-allocations", Tries: "list the directories of other allocations", run: listsOthers},
		{Name: "list-run", Tries: "list the driver's run directory", run: func(*targets) error { return lists("/run/nomad-driver-exec2") }},
		{Name: "write", Tries: "write a file of the task's user outside the task", run: func(t *targets) error { return open(t.path("writable"), unix.O_WRONLY) }},
		{Name: "truncate", Tries: "truncate it by its path", run: func(t *targets) error { return unix.Truncate(t.path("writable"), 0) }},
		{Name: "create", Tries: "create a file outside", run: func(t *targets) error { return creates(t.path("open")) }},
		{Name: "mkdir", Tries: "create a directory outside", run: func(t *targets) error { return makesDirectory(t.path("open")) }},
		{Name: "remove", Tries: "remove a file outside", run: removes},
		{Name: "rename", Tries: "rename a file outside", run: renames},
		{Name: "rename-out", Tries: "move a file from outside into the task's directory", run: renamesOut},
		{Name: "hardlink", Tries: "link a file from outside into the task's directory", run: func(t *targets) error { return unix.Link(t.path("secret"), t.own("link")) }},
		{Name: "hardlink-fd", Tries: "the same, by a descriptor without a path (AT_EMPTY_PATH)", run: linksFd},
		{Name: "bind-socket", Tries: "create a socket outside", run: bindsOutside},
		{Name: "stat", Tries: "find out whether a file exists outside", run: func(t *targets) error { return unix.Stat(t.path("secret"), new(unix.Stat_t)) }},
		{Name: "chdir", Tries: "make a directory outside the working directory", run: func(t *targets) error { return unix.Chdir(t.path("open")) }},
		{Name: "chmod", Tries: "change the mode of a file of the task's user outside", run: func(t *targets) error { return unix.Chmod(t.path("writable"), 0o666) }},
		{Name: "chown", Tries: "change its group", run: func(t *targets) error { return unix.Chown(t.path("writable"), -1, t.UID) }},
		{Name: "utime", Tries: "change its times", run: func(t *targets) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, t.path("writable"), nil, 0)
		}},
		{Name: "watch", Tries: "watch a directory outside (inotify)", run: watches},
		{Name: "execute", Tries: "execute a program outside", run: func(t *targets) error { return executes(t.path("program"), "true") }},
		{Name: "execute-loader", Tries: "the same, by the dynamic loader", run: executesByLoader},
		{Name: "execute-memfd", Tries: "execute a program that is in memory only", run: executesMemory,
			ByDesign: "A task may run programs of its own: its directories are executable too."},
		{Name: "write-programs", Tries: "put a program into /usr/local/bin", run: func(*targets) error { return creates("/usr/local/bin") }},
		{Name: "write-etc", Tries: "create a file in /etc", run: func(*targets) error { return creates("/etc") }},
		{Name: "write-root", Tries: "create a file in the root directory", run: func(*targets) error { return creates("/") }},
	}
}

func readDotdot(t *targets) error {
	if err := os.Chdir(filepath.Dir(t.own("x"))); err != nil {
		return err
	}
	return reads(strings.Repeat("../", 20) + strings.TrimPrefix(t.path("secret"), "/"))
}

func readSymlink(t *targets) error {
	link := t.own("to-secret")
	if err := os.Symlink(t.path("secret"), link); err != nil {
		return err
	}
	return reads(link)
}

// readBind mounts in a namespace of its own if it may make one.
func readBind(t *targets) error {
	unix.Unshare(unix.CLONE_NEWNS)
	unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	dir := t.own("bound")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(t.Dir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	return reads(dir + "/secret")
}

func lists(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Getdents(fd, make([]byte, 4096))
	return err
}

// listsOthers looks for a directory that is not the task's own.
func listsOthers(t *targets) error {
	entries, err := os.ReadDir(t.Data)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == otherAllocation {
			return nil
		}
	}
	return hidden
}

// fresh is a name that no other process uses.
func fresh(dir string) string { return filepath.Join(dir, "attack-"+strconv.Itoa(os.Getpid())) }

func creates(dir string) error { return createsAt(unix.AT_FDCWD, fresh(dir)) }

func createsAt(dir int, path string) error {
	if err := openAt(dir, path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY); err != nil {
		return err
	}
	return unix.Unlinkat(dir, path, 0)
}

func makesDirectory(dir string) error {
	path := fresh(dir)
	if err := unix.Mkdir(path, 0o700); err != nil {
		return err
	}
	return unix.Rmdir(path)
}

// removes puts the file back for the next attack.
func removes(t *targets) error {
	path := t.path("open/removed")
	if err := unix.Unlink(path); err != nil {
		return err
	}
	return open(path, unix.O_CREAT|unix.O_WRONLY)
}

func renames(t *targets) error {
	from, to := t.path("open/old"), fresh(t.path("open"))
	if err := unix.Rename(from, to); err != nil {
		return err
	}
	return unix.Rename(to, from)
}

func renamesOut(t *targets) error {
	from, to := t.path("open/out"), t.own("moved")
	if err := unix.Rename(from, to); err != nil {
		return err
	}
	return unix.Rename(to, from)
}

func linksFd(t *targets) error {
	fd, err := unix.Open(t.path("writable"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), unix.AT_FDCWD, t.own("linked"), unix.AT_SYMLINK_FOLLOW)
}

func bindsOutside(t *targets) error {
	path := fresh(t.path("open"))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return unix.Unlink(path)
}

func watches(t *targets) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(fd, t.path("open"), unix.IN_ALL_EVENTS)
	return err
}

func executes(program string, args ...string) error {
	_, err := starts(nil, program, args...)
	return err
}

func executesByLoader(t *targets) error {
	loaders, _ := filepath.Glob("/lib64/ld-linux*.so*")
	if len(loaders) == 0 {
		return absent("no loader of glibc")
	}
	if err := open(t.path("dynamic"), unix.O_RDONLY); err != nil {
		return err
	}
	return executes(loaders[0], t.path("dynamic"))
}

func executesMemory(*targets) error {
	fd, err := unix.MemfdCreate("program", 0)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self())
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, program); err != nil {
		return err
	}
	return executes("/proc/self/fd/"+strconv.Itoa(fd), "true")
}

// procFiles are attacks on files by the links and files that /proc has of processes.
func procFiles() []Attack {
	link := func(suffix func(*targets) string) func(*targets) error {
		return func(t *targets) error {
			return firstOf(others(t), func(dir string) error { return reads(dir + suffix(t)) })
		}
	}
	return []Attack{
		{Name: "proc-root", Tries: "read the secret by /proc/N/root of any process in sight", run: link(func(t *targets) string { return "/root" + t.path("secret") })},
		{Name: "proc-cwd", Tries: "the same by /proc/N/cwd", run: link(func(*targets) string { return "/cwd/secret" })},
		{Name: "proc-fd", Tries: "the same by /proc/N/fd", run: link(func(t *targets) string { return "/fd/" + strconv.Itoa(t.Fd) })},
		{Name: "proc-map-files", Tries: "the same by /proc/N/map_files", run: func(t *targets) error {
			return firstOf(others(t), func(dir string) error {
				page := uintptr(os.Getpagesize())
				return reads(dir + "/map_files/" + strconv.FormatUint(uint64(t.Address), 16) + "-" + strconv.FormatUint(uint64(t.Address+page), 16))
			})
		}},
		{Name: "proc-mem", Tries: "read the secret in another process's memory by /proc/N/mem", run: func(t *targets) error {
			return firstOf(others(t), func(dir string) error { return readsMemory(dir, t.Address) })
		}},
		{Name: "proc-environ", Tries: "read the environment of another process", run: link(func(*targets) string { return "/environ" })},
	}
}

func readsMemory(dir string, at uintptr) error {
	fd, err := unix.Open(dir+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 64)
	n, err := unix.Pread(fd, buffer, int64(at))
	if err != nil {
		return err
	}
	return contains(buffer[:n])
}
