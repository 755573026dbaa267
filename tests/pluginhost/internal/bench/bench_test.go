package bench

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFiguresOfTimes(t *testing.T) {
	var times []time.Duration
	for n := range 100 {
		times = append(times, time.Duration(99-n)*time.Microsecond)
	}
	if got, want := figures(times), (Figures{P10: 10, P25: 25, Median: 50, P75: 75}); got != want {
		t.Errorf("%+v instead of %+v", got, want)
	}
	if got := figures(nil); got != (Figures{}) {
		t.Errorf("%+v of no times", got)
	}
}

func TestSumOfProcFields(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meminfo")
	if err := os.WriteFile(file, []byte("MemTotal:  8 kB\nSReclaimable: 1 kB\nSlab: 12 kB\nPercpu:\t30 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := kib(file, "Slab", "Percpu"); got != 42 || err != nil {
		t.Errorf("%d, %v instead of 42", got, err)
	}
	if _, err := kib(file, "Total"); err == nil {
		t.Error("the end of a name was taken for the name")
	}
}

func TestCPUTimeOfAnyName(t *testing.T) {
	got, err := parseCPUTime([]byte("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0\n"))
	if got != 3*time.Second || err != nil {
		t.Errorf("%v, %v instead of 3 s", got, err)
	}
	if name, words := splitStat([]byte("7 (a) b) S 12")); name != "a) b" || words[1] != "12" {
		t.Errorf("%q, %q", name, words)
	}
	if _, err := parseCPUTime([]byte("7 (a) S 1")); err == nil {
		t.Error("a short line was accepted")
	}
}

func TestMemoryOfEachTask(t *testing.T) {
	first := memory{kernel: 300, private: 90, plugin: 50}.minus(memory{kernel: 100, plugin: 40})
	both := first.plus(memory{kernel: 500, private: 100, plugin: 60}.minus(memory{kernel: 400, private: 90, plugin: 55}))
	if got, want := both.per(10), (Memory{Kernel: 30, Helpers: 10, Plugin: 60, PluginGrowth: 1.5}); got != want {
		t.Errorf("%+v instead of %+v", got, want)
	}
}

func TestKernelMemoryByKind(t *testing.T) {
	const head = "slabinfo - version: 2.1\n# name <active_objs> ...\n"
	// In each slab: 32 KiB.
	const line = "mnt_cache %d 25 320 25 8 : tunables 0 0 0 : slabdata 1 %d 0\n"
	before, after := kinds{"Percpu": 10}, kinds{"Percpu": 30}
	for slabs, k := range map[int]kinds{1: before, 6: after} {
		if err := k.addSlabs(head + fmt.Sprintf(line, 25*slabs, slabs)); err != nil {
			t.Fatal(err)
		}
	}
	got := (memory{kinds: after}.minus(memory{kinds: before})).kinds.per(10)
	if want := (map[string]float64{"Percpu": 2, "mnt_cache": 16}); !maps.Equal(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
	if err := before.addSlabs(head + "mnt_cache 1 2\n"); err == nil {
		t.Error("a short line was accepted")
	}
	load := Load{KernelBy: got}
	if list := load.kinds(); list != "mnt_cache 16.0, Percpu 2.0" {
		t.Error(list)
	}
}

func TestFlags(t *testing.T) {
	for _, bad := range [][]string{{"-mounts", "5,0"}, {"-tasks", "x"}, {"-plugin", "/bin/true"}} {
		if _, err := parse(bad, io.Discard); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func results() *Results {
	starts := func(ours float64) map[string]Start {
		return map[string]Start{
			floorLabel: {FirstByte: Figures{P10: 90, P25: 95, Median: 100, P75: 105}},
			"a<b":      {FirstByte: Figures{P10: 180, P25: 190, Median: ours, P75: 260}, Answer: Figures{Median: 180}},
		}
	}
	return &Results{
		Kernel: "6.12", CPUs: 2, MemoryMiB: 64, Runs: 3,
		ByMounts: []Row{{Count: 0, Starts: starts(250)}, {Count: 500, Starts: starts(300)}},
		ByTasks:  []Load{{Subject: "a<b", Starts: starts(250)}, {Subject: "a<b", Count: 10, Memory: Memory{Kernel: 80, Helpers: 20}, KernelBy: map[string]float64{"Percpu": 20, "slab": 60}, Starts: starts(260)}},
		Sessions: []Sessions{{Subject: "a<b", Starts: starts(150)}},
		Notes:    []string{"a<b, 500 tasks: not measured: 12 after 10m0s"},
	}
}

func TestTable(t *testing.T) {
	table := results().table()
	for _, want := range []string{
		"| 0 | vfork + exec | 100 | 90 | 10 | 1.0 | 0 |\n| 0 | a<b | 250 | 180 | 70 | 2.5 | 180 |\n",
		"| a<b | vfork + exec | 100 | 90 | 10 | 1.0 | 0 |\n| a<b | a<b | 150 | 180 | 70 | 1.5 | 180 |\n",
		"| a<b | 0 |  |  |  | 0 | 0.0 | 0 | 0.0 |\n| a<b | 10 | 80.0 | 20.0 | 0.0 | 0 | 0.0 | 0 | 0.0 |\n",
		"| a<b | 10 | slab 60.0, Percpu 20.0 |\n\na<b, 500 tasks: not measured: 12 after 10m0s\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("%s\nlacks\n%s", table, want)
		}
	}
}

func TestPlotsAreXML(t *testing.T) {
	dir := t.TempDir()
	if err := results().write(dir); err != nil {
		t.Fatal(err)
	}
	for _, p := range results().plots() {
		raw, err := os.ReadFile(filepath.Join(dir, p.file))
		if err != nil {
			t.Fatal(err)
		}
		decoder := xml.NewDecoder(strings.NewReader(string(raw)))
		for err == nil {
			_, err = decoder.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", p.file, err)
		}
		if !strings.Contains(string(raw), "a&lt;b") {
			t.Errorf("%s does not name its line", p.file)
		}
	}
}

func TestPlotKeepsPointsInside(t *testing.T) {
	p := plot{subjects: []string{"x"}}
	p.add("x", 0, 0) // has no logarithm
	p.add("x", 5000, 123)
	if maxX, low, high := p.bounds(); maxX != 5000 || low != 2 || high != 3 {
		t.Errorf("%v, %v, %v", maxX, low, high)
	}
	if text := p.svg(); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error(text)
	}
}

// fake is a subject whose programs take some time to start.
type fake struct {
	lasting
	held  int
	delay time.Duration
}

func (f *fake) name() string            { return "fake" }
func (f *fake) prepare(int) error       { return nil }
func (f *fake) memory() (memory, error) { return memory{kernel: int64(100 * f.held)}, nil }
func (f *fake) hold(number int) error {
	if number != f.held {
		return errors.New("not the next number")
	}
	f.held++
	time.Sleep(f.delay)
	return nil
}

func (f *fake) start() (first, answer time.Duration, err error) {
	if f.delay > 0 {
		return 0, 0, errors.New("too slow")
	}
	return 2 * time.Microsecond, time.Microsecond, nil
}

func TestASubjectThatFailsIsLeftOut(t *testing.T) {
	o := &options{runs: 3}
	starts, notes, err := o.measure([]subject{&fake{}, &fake{delay: 1}})
	if err != nil || len(notes) != 1 || notes[0] != "fake failed: too slow" || starts["fake"].FirstByte.Median != 2 {
		t.Errorf("%+v, %q, %v", starts, notes, err)
	}
	if _, _, err := o.measure([]subject{&fake{delay: 1}}); err == nil {
		t.Error("there is no measurement without the floor")
	}
}

func TestFillStartsWhatIsMissing(t *testing.T) {
	f := &fake{held: 5}
	o := &options{limit: time.Minute}
	load, used, err := o.fill(f, 5, 8)
	if err != nil || f.held != 8 || used.kernel != 300 || load.Count != 8 {
		t.Errorf("%+v, %+v, %v with %d tasks", load, used, err, f.held)
	}
}

func TestFillGivesUpOnSlowStarts(t *testing.T) {
	f := &fake{delay: 2 * time.Millisecond}
	o := &options{limit: time.Millisecond}
	if _, _, err := o.fill(f, 0, 100); !errors.Is(err, errFull) || f.held != 1 {
		t.Errorf("%v with %d tasks", err, f.held)
	}
}
