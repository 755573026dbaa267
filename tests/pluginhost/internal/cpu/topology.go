// Package cpu describes this host's CPUs as Nomad describes them to drivers.
package cpu

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pluginhost/pb"
)

// Topology describes the CPUs of this host.
type Topology struct {
	Cores    []Core
	Override uint64 // MHz, the agent's cpu_total_compute; 0: none
}

// Core is one logical CPU; speeds are in MHz, 0 if unknown.
type Core struct {
	ID               int
	Socket, Node     int
	Base, Max, Guess uint64
}

// Read reads /sys and /proc. override is the total in MHz, 0 for none.
func Read(override uint64) (*Topology, error) {
	online, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	ids, err := parseCPUList(strings.TrimSpace(string(online)))
	if err != nil {
		return nil, fmt.Errorf("failed to parse /sys/devices/system/cpu/online: %w", err)
	}
	guess := cpuinfoMHz()
	t := &Topology{Override: override}
	for _, id := range ids {
		dir := fmt.Sprintf("/sys/devices/system/cpu/cpu%d", id)
		c := Core{ID: id, Guess: guess}
		c.Base = readUint(filepath.Join(dir, "cpufreq/base_frequency")) / 1000 // kHz
		c.Max = readUint(filepath.Join(dir, "cpufreq/cpuinfo_max_freq")) / 1000
		c.Socket = int(readUint(filepath.Join(dir, "topology/physical_package_id")))
		nodes, err := filepath.Glob(filepath.Join(dir, "node[0-9]*"))
		if err == nil && len(nodes) == 1 {
			c.Node, _ = strconv.Atoi(strings.TrimPrefix(filepath.Base(nodes[0]), "node"))
		}
		t.Cores = append(t.Cores, c)
	}
	return t, nil
}

// speed is the MHz that Nomad counts for a core.
func (c Core) speed() uint64 {
	switch {
	case c.Base > 0:
		return c.Base
	case c.Max > 0:
		return c.Max
	}
	return c.Guess
}

// Total is the MHz of all cores, or the override.
func (t *Topology) Total() uint64 {
	if t.Override > 0 {
		return t.Override
	}
	var sum uint64
	for _, c := range t.Cores {
		sum += c.speed()
	}
	return sum
}

// PerCore is what a task with reserved cores gets for each, in MHz.
func (t *Topology) PerCore() uint64 { return t.Total() / uint64(max(len(t.Cores), 1)) }

// IDs lists all cores.
func (t *Topology) IDs() []int {
	ids := make([]int, len(t.Cores))
	for i, c := range t.Cores {
		ids[i] = c.ID
	}
	return ids
}

// List writes the kernel's list format, "0-3,8". An empty list is a space, as in
// Nomad: the kernel ignores an empty write.
func List(ids []int) string {
	ids = slices.Sorted(slices.Values(ids))
	var parts []string
	for i := 0; i < len(ids); {
		k := i
		for k+1 < len(ids) && ids[k+1] == ids[k]+1 {
			k++
		}
		part := strconv.Itoa(ids[i])
		if k > i {
			part += "-" + strconv.Itoa(ids[k])
		}
		parts = append(parts, part)
		i = k + 1
	}
	if len(parts) == 0 {
		return " "
	}
	return strings.Join(parts, ",")
}

// Proto is the topology as SetConfig carries it.
func (t *Topology) Proto() *pb.ClientTopology {
	out := &pb.ClientTopology{OverrideTotalCompute: t.Override}
	nodes := map[uint32]bool{}
	for _, c := range t.Cores {
		n := uint32(c.Node)
		if !nodes[n] {
			nodes[n] = true
			out.NodeIds = append(out.NodeIds, n)
		}
		out.Cores = append(out.Cores, &pb.ClientTopologyCore{
			SocketId: uint32(c.Socket), NodeId: n, CoreId: uint32(c.ID),
			BaseSpeed: c.Base, MaxSpeed: c.Max, GuessSpeed: c.Guess,
		})
	}
	dim := len(out.NodeIds)
	slit := &pb.ClientTopologySLIT{Dimension: uint32(dim)}
	for i := range dim {
		for j := range dim {
			distance := uint32(20) // ACPI's value for another node
			if i == j {
				distance = 10
			}
			slit.Values = append(slit.Values, distance)
		}
	}
	out.Distances = slit
	return out
}

// Joined writes every core of the list, "0,2,3".
func Joined(ids []int) string {
	parts := make([]string, len(ids))
	for i, n := range ids {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}

// parseCPUList parses the kernel's list format, "0-3,8".
func parseCPUList(s string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(lo)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(hi); err != nil {
				return nil, err
			}
		}
		for ; a <= b; a++ {
			out = append(out, a)
		}
	}
	return out, nil
}

func readUint(path string) uint64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// fallbackMHz is what Nomad assumes where /proc/cpuinfo has no clock.
const fallbackMHz = 1000

// cpuinfoMHz is the current clock of the first CPU.
func cpuinfoMHz() uint64 {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return fallbackMHz
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		if strings.TrimSpace(key) == "cpu MHz" {
			if mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return uint64(mhz)
			}
		}
	}
	return fallbackMHz
}
