// Package bench measures any driver plugin as the Nomad client uses it, beside a
// plain child process and other sandboxes of the same host in the same run.
package bench

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// options are the flags.
type options struct {
	plugins  []string
	mounts   []int
	tasks    []int
	runs     int
	warmUp   int
	pause    time.Duration
	stats    time.Duration
	limit    time.Duration
	out      string
	base     string
	progress io.Writer
}

// subjectFlag collects -plugin LABEL=PATH.
type subjectFlag struct{ list *[]string }

func (f subjectFlag) String() string { return "" }
func (f subjectFlag) Set(text string) error {
	label, path, ok := strings.Cut(text, "=")
	if !ok || label == "" || path == "" {
		return fmt.Errorf("%q is not LABEL=PATH", text)
	}
	*f.list = append(*f.list, text)
	return nil
}

// numbersFlag is a list like 0,500,2000, in ascending order.
type numbersFlag struct{ list *[]int }

func (f numbersFlag) String() string { return "" }
func (f numbersFlag) Set(text string) error {
	*f.list = nil
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 0 || len(*f.list) > 0 && n <= (*f.list)[len(*f.list)-1] {
			return fmt.Errorf("%q is not an ascending list of numbers", text)
		}
		*f.list = append(*f.list, n)
	}
	return nil
}

func parse(args []string, errs io.Writer) (*options, error) {
	o := &options{mounts: []int{0, 500, 2000, 5000}, tasks: []int{0, 100, 500}, progress: errs}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errs)
	f.Var(subjectFlag{&o.plugins}, "plugin", "a plugin's binary as LABEL=PATH; repeatable")
	f.Var(numbersFlag{&o.mounts}, "mounts", "extra mounts on the host (default 0,500,2000,5000)")
	f.Var(numbersFlag{&o.tasks}, "tasks", "running tasks (default 0,100,500)")
	f.IntVar(&o.runs, "runs", 30, "measured starts for each cell")
	f.IntVar(&o.warmUp, "warm-up", 3, "starts before them")
	f.DurationVar(&o.pause, "pause", 50*time.Millisecond, "between two starts, while the kernel removes the namespaces of the last one")
	f.DurationVar(&o.stats, "stats", 10*time.Second, "how long statistics are read")
	f.DurationVar(&o.limit, "limit", 10*time.Minute, "for the starts up to the next number of running tasks")
	f.StringVar(&o.out, "out", ".", "directory for results.json, table.md and the plots")
	f.StringVar(&o.base, "base", "/var/lib/exec2-bench", "directory for the allocations; a tmpfs is mounted on it")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root starts tasks: run bench as root")
	}
	return o, nil
}

// Main runs the benchmark and returns the exit code.
func Main(args []string, out, errs io.Writer) int {
	o, err := parse(args, errs)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = o.run(out)
	}
	if err != nil {
		fmt.Fprintf(errs, "bench: %v\n", err)
		return 1
	}
	return 0
}

func (o *options) run(out io.Writer) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	host, err := newHost(o.base)
	if err != nil {
		return err
	}
	defer host.remove()
	subjects, err := o.subjects(host)
	defer func() {
		for _, s := range subjects {
			s.end()
		}
	}()
	if err != nil {
		return err
	}
	results := &Results{Kernel: host.kernel, CPUs: host.cpus, MemoryMiB: host.memoryMiB, Runs: o.runs}
	err = o.byMounts(host, subjects, results)
	if err == nil {
		err = o.byTasks(host, subjects, results)
	}
	if err == nil {
		err = o.bySessions(host, subjects, results)
	}
	// What was measured before an error is still of use.
	_, printed := io.WriteString(out, results.table())
	return errors.Join(err, results.write(o.out), printed)
}

// subjects are the floor, the peers that this host has, and the plugins.
func (o *options) subjects(host *host) ([]subject, error) {
	list, err := peers(host, o.say)
	if err != nil {
		return list, err
	}
	for _, text := range o.plugins {
		label, path, _ := strings.Cut(text, "=")
		path, err := filepath.Abs(path)
		if err != nil {
			return list, err
		}
		p, err := newPlugin(host, label, path)
		if err != nil {
			return list, fmt.Errorf("%s: %w", label, err)
		}
		list = append(list, p)
	}
	return list, nil
}

func (o *options) say(format string, args ...any) {
	fmt.Fprintf(o.progress, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// byMounts measures starts with more and more mounts on the host.
func (o *options) byMounts(host *host, subjects []subject, results *Results) error {
	for _, count := range o.mounts {
		if err := host.mountUpTo(count); err != nil {
			return err
		}
		o.say("%d extra mounts", count)
		starts, notes, err := o.measure(subjects)
		if err != nil {
			return err
		}
		for _, note := range notes {
			results.Notes = append(results.Notes, fmt.Sprintf("%d extra mounts: %s", count, note))
		}
		results.ByMounts = append(results.ByMounts, Row{Count: count, Starts: starts})
	}
	return host.unmountOthers()
}

// byTasks measures starts and costs with more and more running tasks of one kind.
func (o *options) byTasks(host *host, subjects []subject, results *Results) error {
	for _, s := range subjects {
		lasting, ok := s.(lasting)
		if !ok {
			continue
		}
		if err := o.withTasks(host, subjects[0], lasting, results); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return nil
}

func (o *options) withTasks(host *host, floor subject, s lasting, results *Results) error {
	defer s.release()
	var total memory
	running := 0
	for _, count := range o.tasks {
		o.say("%s: %d running tasks", s.name(), count)
		load, used, err := o.fill(s, running, count)
		if errors.Is(err, errFull) {
			results.Notes = append(results.Notes, fmt.Sprintf("%s, %d tasks: %v", s.name(), count, err))
			return nil
		}
		if err != nil {
			return err
		}
		running = count
		total = total.plus(used)
		load.Memory, load.KernelBy = total.per(count), total.kinds.per(count)
		if load.StatsCPU, err = s.statistics(o.stats); err != nil {
			return err
		}
		if load.Mount, err = host.mountElsewhere(o.runs); err != nil {
			return err
		}
		group := []subject{floor}
		if s.name() != floor.name() {
			group = append(group, s)
		}
		starts, notes, err := o.measure(group)
		if err != nil {
			return err
		}
		for _, note := range notes {
			results.Notes = append(results.Notes, fmt.Sprintf("%d running tasks: %s", count, note))
		}
		load.Starts = starts
		results.ByTasks = append(results.ByTasks, load)
	}
	return nil
}

// fill raises the number of running tasks, and returns what the new ones use. Their
// directories, mounts and cgroups are the client's and do not count.
func (o *options) fill(s lasting, from, to int) (Load, memory, error) {
	load := Load{Subject: s.name(), Count: to}
	if err := s.prepare(to); err != nil {
		return load, memory{}, err
	}
	before, err := s.memory()
	if err != nil {
		return load, memory{}, err
	}
	began := time.Now()
	for number := from; number < to; number++ {
		if err := roomForMore(); err != nil {
			return load, memory{}, fmt.Errorf("%w after %d", err, number)
		}
		if time.Since(began) > o.limit {
			return load, memory{}, fmt.Errorf("%w: %d after %v", errFull, number, o.limit)
		}
		if err := s.hold(number); err != nil {
			return load, memory{}, fmt.Errorf("task %d: %w", number, err)
		}
	}
	load.Filled = time.Since(began).Seconds()
	after, err := s.memory()
	return load, after.minus(before), err
}

// errFull means that no more tasks run here.
var errFull = errors.New("not measured")

// roomForMore returns errFull before the kernel would kill processes.
func roomForMore() error {
	total, err := meminfo("MemTotal")
	if err != nil {
		return err
	}
	left, err := meminfo("MemAvailable")
	if err == nil && left < total/16 {
		err = fmt.Errorf("%w: %d of %d MiB of memory were left", errFull, left>>10, total>>10)
	}
	return err
}

// measure starts each subject in turn, so that the machine's other load affects all
// of them equally. Each round begins with another one: what a subject leaves to
// the kernel would otherwise always slow down the same successor. A subject that
// fails is left out, with a note, unless it is the floor, which is the first one.
func (o *options) measure(subjects []subject) (map[string]Start, []string, error) {
	type samples struct{ first, answer []time.Duration }
	taken := make([]samples, len(subjects))
	failed := make([]error, len(subjects))
	for run := range o.warmUp + o.runs {
		for i := range subjects {
			which := (run + i) % len(subjects)
			if failed[which] != nil {
				continue
			}
			time.Sleep(o.pause)
			first, answer, err := subjects[which].start()
			failed[which] = err
			if err == nil && run >= o.warmUp {
				s := &taken[which]
				s.first, s.answer = append(s.first, first), append(s.answer, answer)
			}
		}
	}
	out := map[string]Start{}
	var notes []string
	for i, s := range subjects {
		if failed[i] != nil {
			notes = append(notes, fmt.Sprintf("%s failed: %v", s.name(), failed[i]))
			continue
		}
		out[s.name()] = Start{FirstByte: figures(taken[i].first), Answer: figures(taken[i].answer)}
	}
	return out, notes, failed[0]
}
