package users

import "testing"

func TestDynamicUsersAreLentOnce(t *testing.T) {
	p := &Pool{next: dynamicMax, used: map[int]bool{dynamicMin: true}}
	for _, want := range []string{"nomad-89999", "nomad-80001"} {
		if got, err := p.Acquire(); err != nil || got != want {
			t.Errorf("got %s, want %s; %v", got, want, err)
		}
	}
	p.Release("nomad-80001")
	p.Mark("nomad-80002")
	p.next = dynamicMin
	for _, want := range []string{"nomad-80001", "nomad-80003"} {
		if got, err := p.Acquire(); err != nil || got != want {
			t.Errorf("got %s, want %s; %v", got, want, err)
		}
	}
}

func TestLookup(t *testing.T) {
	for name, want := range map[string]int{"": 0, "root": 0, "nomad-80123": 80123} {
		if uid, _, err := Lookup(name); err != nil || uid != want {
			t.Errorf("%q: uid %d, %v", name, uid, err)
		}
	}
	if _, _, err := Lookup("no-such-user"); err == nil {
		t.Error("an unknown user was found")
	}
}
