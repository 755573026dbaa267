package allocdir

import (
	"path/filepath"
	"testing"
)

func TestPlainDirectoriesLookLikeMounts(t *testing.T) {
	base := t.TempDir()
	dir := New(filepath.Join(base, "alloc"), filepath.Join(base, "mounts"), "id", "task")
	for range 2 { // it may run again
		if err := dir.BuildPlain(); err != nil {
			t.Fatal(err)
		}
	}
	for mounted, real := range map[string]string{
		dir.MountLocal(): dir.Local, dir.MountSecrets(): dir.Secrets, dir.MountAlloc(): dir.Shared,
		filepath.Join(dir.Mount, "tmp"): filepath.Join(dir.Dir, "tmp"), filepath.Join(dir.MountAlloc(), "logs"): dir.Logs,
	} {
		if same, err := sameDir(mounted, real); err != nil || !same {
			t.Errorf("%s is not %s: %v", mounted, real, err)
		}
	}
}
