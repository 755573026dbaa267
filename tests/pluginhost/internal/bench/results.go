package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Figures describe the times of one cell, in µs.
type Figures struct {
	P10, P25, Median, P75 float64
}

func figures(times []time.Duration) Figures {
	slices.Sort(times)
	at := func(percent int) float64 {
		if len(times) == 0 {
			return 0
		}
		return float64(times[len(times)*percent/100]) / float64(time.Microsecond)
	}
	return Figures{P10: at(10), P25: at(25), Median: at(50), P75: at(75)}
}

// Start has the times from the call to the first byte and to the answer.
type Start struct {
	FirstByte, Answer Figures
}

// Row has the starts of each subject with a number of extra mounts.
type Row struct {
	Count  int
	Starts map[string]Start
}

// Memory is in KiB for each task; Plugin is that of the plugin's process.
type Memory struct {
	Kernel, Helpers, Plugin, PluginGrowth float64
}

// Load is what a number of running tasks of one subject costs.
type Load struct {
	Subject string
	Count   int
	Memory  Memory
	// KernelBy is Memory.Kernel by kind, and the stacks of threads.
	KernelBy map[string]float64
	// Filled is how many seconds the starts took since the number before.
	Filled float64
	// StatsCPU is the plugin's CPU time in ms for each second of statistics.
	StatsCPU float64
	// Mount is the time of mount and umount elsewhere.
	Mount  Figures
	Starts map[string]Start
}

// Sessions are commands in a running task of one plugin, beside other ways.
type Sessions struct {
	Subject string
	Starts  map[string]Start
}

// Results are all figures of a run.
type Results struct {
	Kernel          string
	CPUs, MemoryMiB int
	Runs            int
	ByMounts        []Row
	ByTasks         []Load
	Sessions        []Sessions
	Notes           []string // on what could not be measured
}

// The files of a run.
const (
	jsonFile  = "results.json"
	tableFile = "table.md"
)

func (r *Results) write(dir string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{jsonFile: string(raw) + "\n", tableFile: r.table()}
	for _, p := range r.plots() {
		files[p.file] = p.svg()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// names are the subjects of some starts, the floor first and the others by time.
func names(starts map[string]Start) []string {
	list := make([]string, 0, len(starts))
	for name := range starts {
		list = append(list, name)
	}
	slices.SortFunc(list, func(a, b string) int {
		return cmp.Or(cmp.Compare(starts[a].FirstByte.Median, starts[b].FirstByte.Median), cmp.Compare(a, b))
	})
	if i := slices.Index(list, floorLabel); i > 0 {
		list = slices.Insert(slices.Delete(list, i, i+1), 0, floorLabel)
	}
	return list
}

func (r *Results) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s, %d CPUs, %d MiB; %d starts for each row; times in µs.\n", r.Kernel, r.CPUs, r.MemoryMiB, r.Runs)
	b.WriteString("\nStarts by extra mounts on the host:\n\n" + startHead("extra mounts"))
	for _, row := range r.ByMounts {
		for _, name := range names(row.Starts) {
			b.WriteString(startRow(row.Count, name, row.Starts))
		}
	}
	b.WriteString("\nStarts by running tasks of the same kind:\n\n" + startHead("running tasks"))
	for _, load := range r.ByTasks {
		for _, name := range names(load.Starts) {
			b.WriteString(startRow(load.Count, name, load.Starts))
		}
	}
	b.WriteString("\nCommands in a running task; the answer of a session is its end:\n\n" + startHead("task of"))
	for _, s := range r.Sessions {
		for _, name := range names(s.Starts) {
			b.WriteString(startRow(s.Subject, name, s.Starts))
		}
	}
	b.WriteString("\nCost of running tasks; memory in KiB for each task:\n\n")
	b.WriteString("| | running tasks | kernel memory | processes beside the task | growth of the plugin | plugin, KiB | statistics, ms CPU/s | mount + umount elsewhere, µs | starts, s |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.ByTasks {
		m := l.Memory
		each := func(kib float64) string {
			if l.Count == 0 {
				return "" // there is no task to count it for
			}
			return fmt.Sprintf("%.1f", kib)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %.0f | %.1f | %.0f | %.1f |\n",
			l.Subject, l.Count, each(m.Kernel), each(m.Helpers), each(m.PluginGrowth), m.Plugin, l.StatsCPU, l.Mount.Median, l.Filled)
	}
	b.WriteString("\nKernel memory by kind, KiB for each task:\n\n| | running tasks | |\n|---|---|---|\n")
	for _, l := range r.ByTasks {
		if l.Count > 0 {
			fmt.Fprintf(&b, "| %s | %d | %s |\n", l.Subject, l.Count, l.kinds())
		}
	}
	for _, note := range r.Notes {
		b.WriteString("\n" + note + "\n")
	}
	return b.String()
}

// kinds lists KernelBy, the largest first.
func (l *Load) kinds() string {
	list := slices.SortedFunc(maps.Keys(l.KernelBy), func(a, b string) int {
		return cmp.Or(cmp.Compare(l.KernelBy[b], l.KernelBy[a]), cmp.Compare(a, b))
	})
	for i, name := range list {
		list[i] = fmt.Sprintf("%s %.1f", name, l.KernelBy[name])
	}
	return strings.Join(list, ", ")
}

func startHead(what string) string {
	return "| " + what + " | | first byte, median | p10 | IQR | x vfork + exec | answer, median |\n|---|---|---|---|---|---|---|\n"
}

func startRow(key any, name string, starts map[string]Start) string {
	s := starts[name]
	f := s.FirstByte
	return fmt.Sprintf("| %v | %s | %.0f | %.0f | %.0f | %.1f | %.0f |\n",
		key, name, f.Median, f.P10, f.P75-f.P25, ratio(f.Median, starts[floorLabel].FirstByte.Median), s.Answer.Median)
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return math.NaN()
	}
	return a / b
}

// plots are the figures of the documentation.
func (r *Results) plots() []plot {
	subjects := r.subjects()
	mounts := plot{subjects: subjects, file: "starts-by-mounts.svg", title: "Start to the first byte, median", x: "extra mounts on the host", y: "ms"}
	for _, row := range r.ByMounts {
		for _, name := range names(row.Starts) {
			mounts.add(name, float64(row.Count), row.Starts[name].FirstByte.Median/1000)
		}
	}
	tasks := plot{subjects: subjects, file: "starts-by-tasks.svg", title: "Start to the first byte, median", x: "running tasks of the same kind", y: "ms"}
	memory := plot{subjects: subjects, file: "memory-by-tasks.svg", title: "Memory for each task, without the task's own", x: "running tasks", y: "KiB"}
	for _, l := range r.ByTasks {
		if s, ok := l.Starts[l.Subject]; ok {
			tasks.add(l.Subject, float64(l.Count), s.FirstByte.Median/1000)
		}
		if l.Count > 0 {
			memory.add(l.Subject, float64(l.Count), l.Memory.Kernel+l.Memory.Helpers+l.Memory.PluginGrowth)
		}
	}
	return []plot{mounts, tasks, memory}
}

// subjects are all that were measured, in an order that no figure decides.
func (r *Results) subjects() []string {
	var list []string
	for _, row := range r.ByMounts {
		for name := range row.Starts {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
