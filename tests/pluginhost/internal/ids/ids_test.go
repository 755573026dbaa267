package ids

import "testing"

func TestIdsAreVersion4UUIDs(t *testing.T) {
	id := New()
	if len(id) != 36 || id[14] != '4' {
		t.Errorf("id %q", id)
	}
	if id == New() {
		t.Errorf("%q twice", id)
	}
	if s := Short(id); s != id[:8] || Short("abc") != "abc" {
		t.Errorf("short form %q", s)
	}
}
