package files

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJSONIsReplacedAtomically(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "state.json")
	for _, want := range []int{1, 2} {
		if err := WriteJSON(path, want); err != nil {
			t.Fatal(err)
		}
		var got int
		if err := ReadJSON(path, &got); err != nil || got != want {
			t.Errorf("%d, %v", got, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("files left: %v, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v any
	if err := ReadJSON(path, &v); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}

func TestEmptyLinesAreDropped(t *testing.T) {
	got := Lines([]byte("a\n\n \nb"))
	if len(got) != 2 || string(got[0]) != "a" || string(got[1]) != "b" {
		t.Errorf("%q", got)
	}
}
