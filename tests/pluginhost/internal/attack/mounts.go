package attack

import (
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mounts are attacks on what the task's root is made of, and on other namespaces. A control
// works in a mount namespace of its own.
func mounts() []Attack {
	isolated := func(attempt func(t *targets) error) func(*targets) error {
		return func(t *targets) error {
			if !sandboxed() {
				if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
					return err
				}
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
					return err
				}
			}
			return attempt(t)
		}
	}
	return []Attack{
		{Name: "mount-tmpfs", Tries: "mount a file system on the task's directory", run: isolated(func(t *targets) error { return mountsOn(t, "tmpfs") })},
		{Name: "mount-proc", Tries: "mount another proc", run: isolated(func(t *targets) error { return mountsOn(t, "proc") })},
		{Name: "mount-sysfs", Tries: "mount sysfs", run: isolated(func(t *targets) error { return mountsOn(t, "sysfs") })},
		{Name: "mount-cgroup", Tries: "mount the cgroup file system", run: isolated(func(t *targets) error { return mountsOn(t, "cgroup2") })},
		{Name: "remount", Tries: "make a read-only mount writable", run: isolated(func(*targets) error {
			return reached(unix.Mount("", "/usr", "", unix.MS_REMOUNT|unix.MS_BIND, ""), unix.EINVAL)
		})},
		{Name: "unmount", Tries: "unmount what hides something", run: isolated(func(*targets) error { return unix.Unmount("/proc", unix.MNT_DETACH) })},
		{Name: "pivot-root", Tries: "change the root directory of all processes", run: isolated(func(t *targets) error {
			return reached(unix.PivotRoot(dirOf(t.own("x")), dirOf(t.own("x"))), unix.EINVAL, unix.EBUSY)
		})},
		{Name: "chroot", ByDesignCapable: "With `sys_chroot`. What is mounted, and what Landlock allows, stays the same.", Tries: "change its own root directory", run: func(t *targets) error { return unix.Chroot(dirOf(t.own("x"))) }},
		{Name: "chroot-escape", Tries: "leave the root directory by two chroots, and read /etc/shadow", run: leavesRoot},
		{Name: "fsopen", Tries: "make a file system (fsopen)", run: func(*targets) error { return closing(unix.Fsopen("tmpfs", 0)) }},
		{Name: "fspick", Tries: "reconfigure a mounted file system (fspick)", run: isolated(func(*targets) error {
			return closing(callFd(unix.SYS_FSPICK, cwd, text("/"), 0))
		})},
		{Name: "open-tree", Tries: "clone a mount (open_tree)", run: isolated(func(t *targets) error {
			return closing(unix.OpenTree(unix.AT_FDCWD, dirOf(t.own("x")), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))
		})},
		{Name: "mount-setattr", Tries: "change the flags of a mount (mount_setattr)", run: isolated(func(*targets) error {
			return reached(unix.MountSetattr(unix.AT_FDCWD, "/usr", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}), unix.EINVAL)
		})},
		{Name: "move-mount", Tries: "move a mount away (move_mount)", run: isolated(func(t *targets) error {
			return unix.MoveMount(unix.AT_FDCWD, "/proc", unix.AT_FDCWD, dirOf(t.own("x")), 0)
		})},
		{Name: "unshare-mounts", Tries: "make a mount namespace", run: func(*targets) error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{Name: "unshare-pid", Tries: "make a PID namespace", run: func(*targets) error { return inNamespace(unix.CLONE_NEWPID) }},
		{Name: "unshare-net", Tries: "make a network namespace", run: func(*targets) error { return unix.Unshare(unix.CLONE_NEWNET) }},
		{Name: "setns-mounts", Tries: "enter the host's mount namespace by a passed pidfd", run: withPassed("pidfd", func(t *targets, fd int) error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			return unix.Setns(fd, unix.CLONE_NEWNS)
		})},
		{Name: "setns-pid", Tries: "enter the host's PID namespace by a passed pidfd", run: withPassed("pidfd", func(_ *targets, fd int) error {
			return unix.Setns(fd, unix.CLONE_NEWPID)
		})},
		{Name: "setns-uts", Tries: "enter the host's UTS namespace by a passed descriptor of it", run: withPassed("uts", func(_ *targets, fd int) error {
			return unix.Setns(fd, unix.CLONE_NEWUTS)
		})},
		{Name: "setns-shim", Tries: "enter the shim's mount namespace", run: func(t *targets) error {
			fd, err := unix.Open(procDir(t.shimPid())+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Unshare(unix.CLONE_FS)
			return unix.Setns(fd, unix.CLONE_NEWNS)
		}},
		{Name: "next-namespace", Tries: "open the next mount namespace (NS_MNT_GET_NEXT)", Needs: "Linux 6.12", run: nextNamespace},
		{Name: "fanotify", Tries: "watch a whole file system (fanotify)", run: func(*targets) error {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC, unix.O_RDONLY)
			if err != nil {
				return err
			}
			return unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, unix.AT_FDCWD, "/")
		}},
	}
}

func closing(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func mountsOn(t *targets, kind string) error {
	dir := t.own("mount-" + kind)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("none", dir, kind, 0, ""); err != nil {
		return err
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	return nil
}

// leavesRoot enters a new root while its working directory stays outside, and climbs.
func leavesRoot(t *targets) error {
	if !sandboxed() {
		if err := unix.Chroot(t.Dir); err != nil {
			return err
		}
	}
	up, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	inner := filepath.Join("/", fresh(""))
	if sandboxed() {
		inner = t.own("inner")
	}
	if err := os.Mkdir(inner, 0o700); err != nil {
		return err
	}
	if err := unix.Chroot(inner); err != nil {
		return err
	}
	if err := unix.Fchdir(up); err != nil {
		return err
	}
	for range 30 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	return openAt(unix.AT_FDCWD, "etc/shadow", unix.O_RDONLY)
}

func nextNamespace(*targets) error {
	fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	const next, previous = 0x8010b70b, 0x8010b70c // struct mnt_ns_info is 16 bytes
	info := new([4]uint32)
	info[0] = 16
	err = call(unix.SYS_IOCTL, uintptr(fd), next, uintptr(unsafe.Pointer(info)))
	if err == unix.ENOENT {
		err = call(unix.SYS_IOCTL, uintptr(fd), previous, uintptr(unsafe.Pointer(info)))
	}
	if err == unix.ENOTTY {
		return absent("the kernel has no such ioctl")
	}
	return err
}
