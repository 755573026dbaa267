// Package allocdir makes the directories of a task as a Nomad client lays them out
// for drivers with unveil isolation.
package allocdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"pluginhost/internal/users"

	"golang.org/x/sys/unix"
)

// secretMarker marks a secrets directory that already has its tmpfs.
const secretMarker = ".nomad-mount"

// privateMB is the size of the tmpfs that Nomad keeps beside the secrets.
const privateMB = 1

// TaskDir holds the directories of one task: the real ones below the data
// directory, and the bind mounts that the task's environment names.
type TaskDir struct {
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

// New returns the paths of a task's directories; Build makes them.
func New(allocsDir, mountsDir, allocID, task string) TaskDir {
	alloc := filepath.Join(allocsDir, allocID)
	dir := filepath.Join(alloc, task)
	shared := filepath.Join(alloc, "alloc")
	return TaskDir{
		Alloc: alloc, Dir: dir, Shared: shared, Logs: filepath.Join(shared, "logs"),
		Local: filepath.Join(dir, "local"), Secrets: filepath.Join(dir, "secrets"),
		Private: filepath.Join(dir, "private"), Mount: filepath.Join(mountsDir, allocID+"-"+task),
	}
}

// MountAlloc is the task's NOMAD_ALLOC_DIR.
func (t TaskDir) MountAlloc() string { return filepath.Join(t.Mount, "alloc") }

// MountSecrets is the task's NOMAD_SECRETS_DIR.
func (t TaskDir) MountSecrets() string { return filepath.Join(t.Mount, "secrets") }

// MountLocal is the task's NOMAD_TASK_DIR.
func (t TaskDir) MountLocal() string { return filepath.Join(t.Mount, "local") }

// BuildShared makes the directories that all tasks of an alloc share.
func (t TaskDir) BuildShared() error {
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

// Build makes the task's own directories and mounts. It may run again.
func (t TaskDir) Build(username string, secretsMB int) error {
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
	if err := secretsDir(t.Private, privateMB); err != nil {
		return err
	}
	uid, gid, err := users.Lookup(username)
	if err != nil {
		return err
	}
	nobody, nogroup, err := users.Lookup("nobody")
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
	if err := bindMount(t.Shared, t.MountAlloc(), nobody, nogroup, 0o777); err != nil {
		return err
	}
	return bindMount(t.Secrets, t.MountSecrets(), uid, gid, 0o710)
}

// BuildPlain makes only the real directories, without owners and mounts, for a host
// that is not root.
func (t TaskDir) BuildPlain() error {
	for _, dir := range []string{
		t.Logs, filepath.Join(t.Shared, "tmp"), filepath.Join(t.Shared, "data"),
		t.Local, filepath.Join(t.Dir, "tmp"), t.Secrets, t.Private,
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Unmount undoes the mounts of Build; the directories stay.
func (t TaskDir) Unmount() error {
	var errs []error
	for _, m := range []string{t.MountAlloc(), t.MountSecrets(), t.Mount} {
		errs = append(errs, unmount(m))
	}
	// Remove, not RemoveAll: a mount that is still there must not be emptied.
	if err := os.Remove(t.Mount); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, unmount(t.Secrets), unmount(t.Private))
	return errors.Join(errs...)
}

// openDir makes a directory that every user may enter and write, owned by nobody.
func openDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode|0o777); err != nil {
		return err
	}
	uid, gid, err := users.Lookup("nobody")
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// secretsDir makes a directory on a tmpfs of its own, without swap where the
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

// bindMount mounts src on dst unless it is mounted there, and sets owner and mode.
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

// sameDir reports whether both names lead to one directory, so the mount is there.
func sameDir(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	return err == nil && os.SameFile(sa, sb), err
}

// unmount removes everything that is mounted on path, which may be nothing.
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

// WriteFileFor writes a token. As in Nomad, only its owner may read it if that is
// a user of the passwd file, and everyone may if it is a dynamic user or root (the
// directory around it is closed to others).
func WriteFileFor(path string, data []byte, username string) error {
	if _, dynamic := users.DynamicID(username); dynamic || username == "" {
		return os.WriteFile(path, data, 0o666)
	}
	uid, _, err := users.Lookup(username)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return os.Chown(path, uid, -1)
}
