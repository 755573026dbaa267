package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEachKindOfDifferenceIsNamed(t *testing.T) {
	fresh := writeFiles(t, map[string]string{"a.pb.go": "1", "b.pb.go": "2"})
	if err := compare(writeFiles(t, map[string]string{"a.pb.go": "1", "b.pb.go": "2"}), fresh); err != nil {
		t.Errorf("equal directories: %v", err)
	}
	err := compare(writeFiles(t, map[string]string{"a.pb.go": "old", "c.pb.go": "3"}), fresh)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"a.pb.go is out of date", "b.pb.go is missing", "c.pb.go is not generated", "go run ."} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

func TestAChangedContractIsFound(t *testing.T) {
	proto := writeFiles(t, map[string]string{"x.proto": "syntax = \"proto3\";\npackage x;\nmessage M { string a = 1; }\n"})
	pb := t.TempDir()
	if err := write(proto, pb); err != nil {
		t.Fatal(err)
	}
	if err := verify(proto, pb); err != nil {
		t.Errorf("just generated: %v", err)
	}
	if err := os.WriteFile(filepath.Join(proto, "x.proto"), []byte("syntax = \"proto3\";\npackage x;\nmessage M { string a = 2; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := verify(proto, pb); err == nil || !strings.Contains(err.Error(), "x.pb.go is out of date") {
		t.Errorf("error %v", err)
	}
}
