package harness

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"pluginhost/internal/ids"
	"pluginhost/pb"

	"google.golang.org/protobuf/encoding/protojson"
)

// Nomad's defaults for the resources of a task.
const (
	defaultCPU      = 100 // MHz
	defaultMemoryMB = 300
)

// The range of dynamic users, Nomad's default.
const (
	firstDynamicUser = 80000
	dynamicUsers     = 10000
)

// spec is a task's file: the fields of TaskConfig as JSON by their names in
// driver.proto, and these in place of fields that are tedious to write.
type spec struct {
	Config    map[string]any `json:"config"`     // the job's config block
	CPU       int64          `json:"cpu"`        // MHz
	Memory    int64          `json:"memory"`     // MiB
	MemoryMax int64          `json:"memory_max"` // MiB

	task *pb.TaskConfig
}

// ownFields are those of spec, which TaskConfig does not have.
var ownFields = []string{"config", "cpu", "memory", "memory_max"}

// readSpec reads a task's file and fills in its names. The file's path decides
// about an id that it does not give, so that all verbs find the same task.
func readSpec(path string) (*spec, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &spec{task: &pb.TaskConfig{}}
	if err := s.parse(raw); err != nil {
		return nil, fmt.Errorf("failed to parse %s: %w", path, err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s.identify(abs)
	return s, nil
}

func (s *spec) parse(raw []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, s); err != nil {
		return err
	}
	for _, name := range ownFields {
		delete(fields, name)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(rest, s.task); err != nil {
		return err
	}
	if s.Config != nil && s.task.MsgpackDriverConfig != nil {
		return errors.New("either config or msgpack_driver_config, not both")
	}
	if s.task.GetResources().GetAllocatedResources() != nil && (s.CPU != 0 || s.Memory != 0 || s.MemoryMax != 0) {
		return errors.New("either cpu, memory and memory_max or resources.allocated_resources, not both")
	}
	return nil
}

// identify fills in the names that the file does not give.
func (s *spec) identify(path string) {
	t := s.task
	sum := sha256.Sum256([]byte(path))
	name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	setDefault(&t.Name, name)
	setDefault(&t.AllocId, ids.FromBytes([16]byte(sum[:16])))
	setDefault(&t.Id, t.AllocId+"/"+t.Name+"/"+fmt.Sprintf("%x", sum[16:20]))
	setDefault(&t.JobName, t.Name)
	setDefault(&t.JobId, t.JobName)
	setDefault(&t.TaskGroupName, t.Name)
	setDefault(&t.Namespace, "default")
	setDefault(&t.NodeId, ids.FromBytes([16]byte{}))
	if t.NodeName == "" {
		t.NodeName, _ = os.Hostname()
	}
	uid := firstDynamicUser + binary.BigEndian.Uint32(sum[20:24])%dynamicUsers
	setDefault(&t.User, fmt.Sprintf("nomad-%d", uid))
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// fillResources works out the limits as the client does. total is the MHz of all
// cores.
func (s *spec) fillResources(total uint64) {
	r := s.task.Resources
	if r == nil {
		r = &pb.Resources{}
		s.task.Resources = r
	}
	if r.AllocatedResources == nil {
		r.AllocatedResources = &pb.AllocatedTaskResources{
			Cpu:    &pb.AllocatedCpuResources{CpuShares: orDefault(s.CPU, defaultCPU)},
			Memory: &pb.AllocatedMemoryResources{MemoryMb: orDefault(s.Memory, defaultMemoryMB), MemoryMaxMb: s.MemoryMax},
		}
	}
	if r.LinuxResources == nil {
		r.LinuxResources = &pb.LinuxResources{}
	}
	shares := r.AllocatedResources.GetCpu().GetCpuShares()
	memory := r.AllocatedResources.GetMemory()
	l := r.LinuxResources
	l.CpuShares = orDefault(l.CpuShares, shares)
	l.MemoryLimitBytes = orDefault(l.MemoryLimitBytes, max(memory.GetMemoryMb(), memory.GetMemoryMaxMb())<<20)
	if l.PercentTicks == 0 {
		l.PercentTicks = float64(shares) / float64(max(total, 1))
	}
}

func orDefault(n, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	return n
}
