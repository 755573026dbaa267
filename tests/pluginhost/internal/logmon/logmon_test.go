package logmon

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestLogCollector(t *testing.T) {
	dir := t.TempDir()
	stdout, _ := Fifos(dir, "t")
	c := &collector{tasks: map[string]*pumps{}}
	if err := c.start("k", Task{Dir: dir, Name: "t", MaxFiles: 2, MaxFileSizeMB: 1}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(stdout)
	if err != nil || st.Mode() != os.ModeNamedPipe|0o600 {
		t.Fatalf("fifo: %v, %v", st, err)
	}
	w, err := os.OpenFile(stdout, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1023) + "\n"
	for range 3 * 1024 {
		if _, err := w.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	c.tasks["k"].close() // stderr never had a writer: must not hang
	if got := logIndexes(dir, "t.stdout"); !reflect.DeepEqual(got, []int{1, 2}) {
		t.Errorf("files %v: two of three are kept", got)
	}
	chunk, err := Read(dir, "t", "stdout", 0, 0, true)
	if err != nil || chunk.Index != 1 || len(chunk.Data) != 1<<20 {
		t.Errorf("chunk: index %d, %d bytes, %v", chunk.Index, len(chunk.Data), err)
	}
	chunk, err = Read(dir, "t", "stdout", 2, 1<<20, true)
	if err != nil || !chunk.Done {
		t.Errorf("the end: %+v, %v", chunk, err)
	}
}

func TestLogFilesAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(target, filepath.Join(dir, "t.stdout.0")); err != nil {
		t.Fatal(err)
	}
	if _, err := newRotator(Task{Dir: dir, Name: "t", MaxFiles: 1, MaxFileSizeMB: 1}, "stdout"); err == nil {
		t.Error("a link out of the log directory was opened")
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a file outside was created")
	}
	if err := os.WriteFile(target, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if chunk, err := Read(dir, "t", "stdout", 0, 0, true); err == nil {
		t.Errorf("a link out of the log directory was read: %q", chunk.Data)
	}
}
