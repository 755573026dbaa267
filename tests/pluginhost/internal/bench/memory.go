package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settle is how long the kernel takes to free what ended processes had.
const settle = 2 * time.Second

// memory is what is in use, in KiB.
type memory struct {
	kernel  int64 // slab, page tables and per-CPU memory of the whole host
	plugin  int64 // proportional set of the plugin's process
	private int64 // private memory of its other processes but the tasks
	growth  int64 // of the plugin's process, in a difference
	kinds   kinds // what kernel consists of
}

// kinds is the kernel's memory in KiB: page tables, per-CPU memory, and each slab cache. The
// stacks of threads are listed as well, which the sum of a memory does not have.
type kinds map[string]int64

func readKinds() (kinds, error) {
	found := kinds{}
	for _, name := range []string{"PageTables", "Percpu", "KernelStack"} {
		var err error
		if found[name], err = meminfo(name); err != nil {
			return nil, err
		}
	}
	raw, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	return found, found.addSlabs(string(raw))
}

// addSlabs adds the caches of slabinfo(5), whose first two lines are a head. The kernel shares a
// cache among objects of similar size, and lists it by the name of one of them.
func (k kinds) addSlabs(slabinfo string) error {
	for _, line := range strings.Split(slabinfo, "\n")[2:] {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 16 {
			return fmt.Errorf("%q is no line of /proc/slabinfo", line)
		}
		pages, err := strconv.ParseInt(words[5], 10, 64)
		if err != nil {
			return fmt.Errorf("failed to parse /proc/slabinfo: %w", err)
		}
		slabs, err := strconv.ParseInt(words[14], 10, 64)
		if err != nil {
			return fmt.Errorf("failed to parse /proc/slabinfo: %w", err)
		}
		k[words[0]] += pages * slabs * int64(os.Getpagesize()) >> 10
	}
	return nil
}

// with adds the other's figures, as often as the factor says.
func (k kinds) with(other kinds, factor int64) kinds {
	sum := maps.Clone(k)
	if sum == nil {
		sum = kinds{}
	}
	for name, kib := range other {
		sum[name] += factor * kib
	}
	return sum
}

// per is the use of each of count tasks, without what is too little to tell.
func (k kinds) per(count int) map[string]float64 {
	each := map[string]float64{}
	for name, kib := range k {
		if use := float64(kib) / float64(max(count, 1)); math.Abs(use) >= 0.5 {
			each[name] = use
		}
	}
	return each
}

// readMemory reads it for the processes below one.
func readMemory(pid int) (memory, error) {
	var m memory
	for range 2 {
		// What is cached only would be counted for the tasks that came first.
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644); err != nil {
			return m, err
		}
		time.Sleep(settle)
	}
	var err error
	if m.kernel, err = meminfo("Slab", "PageTables", "Percpu"); err != nil {
		return m, err
	}
	if m.kinds, err = readKinds(); err != nil {
		return m, err
	}
	if m.plugin, err = kib(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss"); err != nil {
		return m, err
	}
	processes, err := descendants(pid)
	for _, child := range processes {
		private, read := kib(fmt.Sprintf("/proc/%d/smaps_rollup", child), "Private_Clean", "Private_Dirty")
		// It has ended; a zombie has no memory and gives ESRCH.
		if read != nil && !errors.Is(read, fs.ErrNotExist) && !errors.Is(read, syscall.ESRCH) {
			return m, read
		}
		m.private += private
	}
	return m, err
}

// plus and minus leave the plugin's memory to the newer reading, the receiver of
// minus and the argument of plus, and its growth to growth.
func (m memory) minus(before memory) memory {
	return memory{kernel: m.kernel - before.kernel, private: m.private - before.private, plugin: m.plugin, growth: m.plugin - before.plugin, kinds: m.kinds.with(before.kinds, -1)}
}

func (m memory) plus(more memory) memory {
	return memory{kernel: m.kernel + more.kernel, private: m.private + more.private, plugin: more.plugin, growth: m.growth + more.growth, kinds: m.kinds.with(more.kinds, 1)}
}

// per is the use of each of count tasks.
func (m memory) per(count int) Memory {
	n := float64(max(count, 1))
	return Memory{
		Kernel: float64(m.kernel) / n, Helpers: float64(m.private) / n, Plugin: float64(m.plugin), PluginGrowth: float64(m.growth) / n,
	}
}

// descendants are the processes below pid except those that run the tasks' program.
func descendants(pid int) ([]int, error) {
	children := map[int][]int{}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		name, words := splitStat(raw)
		if len(words) < 2 || name == filepath.Base(forever[0]) {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		parent, err := strconv.Atoi(words[1])
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], child)
	}
	list := children[pid]
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i]]...)
	}
	return list, nil
}

// splitStat returns the name of proc_pid_stat(5) and what follows it: the state,
// the parent and so on. The name may have parentheses and spaces.
func splitStat(stat []byte) (name string, words []string) {
	before, fields := stat, []byte{}
	if i := bytes.LastIndex(stat, []byte(") ")); i >= 0 {
		before, fields = stat[:i], stat[i+1:]
	}
	_, after, _ := bytes.Cut(before, []byte("("))
	return string(after), strings.Fields(string(fields))
}

// tick is the unit of times in proc_pid_stat(5) on every architecture that Linux has.
const tick = 10 * time.Millisecond

// cpuTime is what all threads of a process have used, those that ended included.
func cpuTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPUTime(raw)
}

// parseCPUTime adds utime and stime, the 12th and 13th field after the name.
func parseCPUTime(stat []byte) (time.Duration, error) {
	_, words := splitStat(stat)
	if len(words) < 13 {
		return 0, fmt.Errorf("%q is no line of /proc/PID/stat", stat)
	}
	var sum int64
	for _, word := range words[11:13] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("failed to parse /proc/PID/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}
