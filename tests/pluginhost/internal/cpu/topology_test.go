package cpu

import (
	"reflect"
	"testing"
)

func TestCPULists(t *testing.T) {
	if got, err := parseCPUList("0-2,5"); err != nil || !reflect.DeepEqual(got, []int{0, 1, 2, 5}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseCPUList("a"); err == nil {
		t.Error("a list of letters was accepted")
	}
	for want, list := range map[string][]int{" ": nil, "3": {3}, "0-2,5,7-8": {7, 0, 2, 1, 8, 5}} {
		if got := List(list); got != want {
			t.Errorf("%v: %q", list, got)
		}
	}
	if got := Joined([]int{0, 2, 3}); got != "0,2,3" {
		t.Errorf("joined: %q", got)
	}
}

func TestTheOverrideIsTheTotal(t *testing.T) {
	topo := &Topology{Cores: []Core{{ID: 0, Base: 2000, Max: 3000}, {ID: 1, Guess: 1000, Node: 1}}}
	if topo.Total() != 3000 || topo.PerCore() != 1500 {
		t.Errorf("total %d, per core %d", topo.Total(), topo.PerCore())
	}
	topo.Override = 800
	if topo.Total() != 800 {
		t.Errorf("total %d", topo.Total())
	}
	if p := topo.Proto(); p.GetDistances().GetDimension() != 2 || !reflect.DeepEqual(p.GetDistances().GetValues(), []uint32{10, 20, 20, 10}) {
		t.Errorf("distances %v", p.GetDistances())
	}
}
