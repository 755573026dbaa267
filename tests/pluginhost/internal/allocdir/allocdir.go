package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// secretMarker tells that a secrets folder already has its tmpfs.
const secretMarker = ".nomad-mount"

// taskDir holds the folders of one task in Nomad's unveil mode: the real ones
// below the data directory, and the bind mounts that the task is told about.
type taskDir struct {
	Alloc   string // <data_dir>/alloc/<id>
	Dir     string // <data_dir>/alloc/<id>/<task>
	Shared  string // <data_dir>/alloc/<id>/alloc
	Logs    string // <data_dir>/alloc/<id>/alloc/logs
	Local   string
	Secrets string
	Private string
	// Mount is <alloc_mounts_dir>/<id>-<task>.
	Mount string
}

func newTaskDir(allocsDir, mountsDir, allocID, task string) taskDir {
	alloc := filepath.Join(allocsDir, allocID)
	dir := filepath.Join(alloc, task)
	shared := filepath.Join(alloc, "alloc")
	return taskDir{
		Alloc: alloc, Dir: dir, Shared: shared, Logs: filepath.Join(shared, "logs"),
		Local: filepath.Join(dir, "local"), Secrets: filepath.Join(dir, "secrets"),
		Private: filepath.Join(dir, "private"), Mount: filepath.Join(mountsDir, allocID+"-"+task),
	}
}

func (t taskDir) mountAlloc() string   { return filepath.Join(t.Mount, "alloc") }
func (t taskDir) mountSecrets() string { return filepath.Join(t.Mount, "secrets") }
func (t taskDir) mountLocal() string   { return filepath.Join(t.Mount, "local") }

// buildShared makes the folders that all tasks of an alloc share.
func (t taskDir) buildShared() error {
	if err := os.MkdirAll(t.Alloc, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{t.Shared, t.Logs, filepath.Join(t.Shared, "tmp"), filepath.Join(t.Shared, "data")} {
		if err := openDir(dir, 0o777); err != nil {
			return err
		}
	}
	return nil
}

// build makes the task's own folders and mounts. It may run again.
func (t taskDir) build(username string, secretsMB int) error {
	for _, dir := range []string{t.Dir, t.Local} {
		if err := openDir(dir, 0o777); err != nil {
			return err
		}
	}
	if err := openDir(filepath.Join(t.Dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := secretsDir(t.Secrets, secretsMB); err != nil {
		return err
	}
	if err := secretsDir(t.Private, 1); err != nil {
		return err
	}
	uid, gid, err := lookupUser(username)
	if err != nil {
		return err
	}
	nobody, nogroup, err := lookupUser("nobody")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(t.Mount, 0o710); err != nil {
		return err
	}
	if err := os.Chown(t.Mount, uid, gid); err != nil {
		return err
	}
	if err := bindMount(t.Dir, t.Mount, uid, gid, 0o710); err != nil {
		return err
	}
	if err := bindMount(t.Shared, t.mountAlloc(), nobody, nogroup, 0o777); err != nil {
		return err
	}
	return bindMount(t.Secrets, t.mountSecrets(), uid, gid, 0o710)
}

// destroy undoes build and buildShared.
func (t taskDir) destroy() error {
	var errs []error
	for _, m := range []string{t.mountAlloc(), t.mountSecrets(), t.Mount} {
		errs = append(errs, unmount(m))
	}
	// Remove, not RemoveAll: a mount that is still there must not be emptied.
	if err := os.Remove(t.Mount); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, unmount(t.Secrets), unmount(t.Private))
	return errors.Join(errs...)
}

// openDir makes a folder that every user may enter and write, owned by nobody.
func openDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode|0o777); err != nil {
		return err
	}
	uid, gid, err := lookupUser("nobody")
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// secretsDir makes a folder on a tmpfs of its own, without swap where the
// kernel (6.4 and later) can do that.
func secretsDir(path string, sizeMB int) error {
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	marker := filepath.Join(path, secretMarker)
	if _, err := os.Stat(marker); errors.Is(err, os.ErrNotExist) {
		size := fmt.Sprintf("size=%dm", sizeMB)
		err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOEXEC, size+",noswap")
		if err != nil {
			err = unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOEXEC, size)
		}
		if err != nil {
			return &os.PathError{Op: "mount tmpfs", Path: path, Err: err}
		}
		if err := os.WriteFile(marker, nil, 0o666); err != nil {
			return err
		}
	}
	return openDir(path, 0o777)
}

// bindMount shows src at dst too, once, and sets owner and mode there.
func bindMount(src, dst string, uid, gid int, mode os.FileMode) error {
	if err := os.MkdirAll(dst, mode); err != nil {
		return err
	}
	if same, err := sameDir(src, dst); err != nil {
		return err
	} else if !same {
		if err := unix.Mount(src, dst, "", unix.MS_BIND|unix.MS_NOSUID|unix.MS_NOATIME, ""); err != nil {
			return &os.PathError{Op: "bind mount " + src + " on", Path: dst, Err: err}
		}
	}
	if err := os.Chmod(dst, mode); err != nil {
		return err
	}
	return os.Chown(dst, uid, gid)
}

// sameDir tells whether both names lead to one folder: the mount is there.
func sameDir(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	return err == nil && os.SameFile(sa, sb), err
}

// unmount takes away all that is mounted on path; nothing is fine too.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

// writeFileFor writes a token. As in Nomad, a user from the passwd file owns it
// alone, and for a dynamic user, whom no file knows, everyone may read it (the
// folder around it is closed to others).
func writeFileFor(path string, data []byte, username string) error {
	if _, dynamic := dynamicID(username); dynamic || username == "" {
		return os.WriteFile(path, data, 0o666)
	}
	uid, _, err := lookupUser(username)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return os.Chown(path, uid, -1)
}
