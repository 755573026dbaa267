package logmon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// rotator writes name.0, name.1, … below dir, as Nomad's log collector does.
type rotator struct {
	mu    sync.Mutex
	dir   string
	name  string
	limit int64 // bytes a file
	keep  int   // files
	index int
	file  *os.File
	size  int64
}

// newRotator continues with the newest file. kind is stdout or stderr.
func newRotator(task Task, kind string) (*rotator, error) {
	r := &rotator{dir: task.Dir, name: task.Name + "." + kind, limit: int64(task.MaxFileSizeMB) << 20, keep: task.MaxFiles}
	if indexes := logIndexes(r.dir, r.name); len(indexes) > 0 {
		r.index = indexes[len(indexes)-1]
	}
	return r, r.open()
}

func (r *rotator) path(index int) string {
	return filepath.Join(r.dir, fmt.Sprintf("%s.%d", r.name, index))
}

func (r *rotator) open() error {
	// The directory belongs to the task: never follow a link that it left there.
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(fmt.Sprintf("%s.%d", r.name, r.index), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, st.Size()
	return nil
}

func (r *rotator) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	written := 0
	for len(b) > 0 {
		if r.size >= r.limit {
			r.file.Close()
			r.index++
			if err := r.open(); err != nil {
				return written, err
			}
			os.Remove(r.path(r.index - r.keep)) // the oldest; it may not exist
		}
		n := min(int64(len(b)), r.limit-r.size)
		m, err := r.file.Write(b[:n])
		written, r.size = written+m, r.size+int64(m)
		if err != nil {
			return written, err
		}
		b = b[m:]
	}
	return written, nil
}

func (r *rotator) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Close()
}

// logIndexes lists the numbers of a log's files, smallest first.
func logIndexes(dir, name string) []int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), name+"."); ok {
			if n, err := strconv.Atoi(rest); err == nil && n >= 0 {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out
}
