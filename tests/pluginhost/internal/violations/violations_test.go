package violations

import (
	"path/filepath"
	"testing"
)

func TestViolationsOutliveTheHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "violations")
	var echoed []string
	for _, text := range []string{"first", "second"} {
		l, err := Open(path, func(v Violation) { echoed = append(echoed, v.Text) })
		if err != nil {
			t.Fatal(err)
		}
		l.Add("p", text)
	}
	l, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if all := l.All(); len(all) != 2 || all[0].Text != "first" || all[1].Plugin != "p" {
		t.Errorf("%+v", all)
	}
	if len(echoed) != 2 {
		t.Errorf("echoed %q", echoed)
	}
}
