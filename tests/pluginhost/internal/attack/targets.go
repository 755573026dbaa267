package attack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
)

// word is what the secrets contain.
const word = "exec2-attack-secret"

// otherAllocation is the directory of another allocation, in that of Nomad's client.
const otherAllocation = "exec2-attack-other"

// targets are the things of the host that the attacks are about. Those with an owner
// belong to the user of the task, so that it is not file permissions that stop an attack.
type targets struct {
	// UID is the user of the task, and owner of the targets.
	UID int `json:"uid"`
	// Dir is a file system of its own, with
	//   secret     mode 0600
	//   writable   mode 0666
	//   open/      a directory, mode 0777, with the files `old` and `own`
	//   program    a static program, dynamic: one that needs the dynamic loader
	//   stream, datagram: sockets, mode 0777
	Dir string `json:"dir"`
	// Pid is a process of UID that has the secret open, mapped at Address, and in its environment.
	Pid     int     `json:"pid"`
	Address uintptr `json:"address"`
	// Fd is the descriptor of the secret in that process.
	Fd int `json:"fd"`
	// Bystander is another process of UID, with a process group of its own, and a process of
	// Other is beside it.
	Bystander int `json:"bystander"`
	// Stream and Datagram are abstract sockets, Passing the one that sends descriptors.
	Stream   string `json:"stream"`
	Datagram string `json:"datagram"`
	Passing  string `json:"passing"`
	// Port is of TCP on the loopback address.
	Port int `json:"port"`
	// Handle is the file handle of the secret, of type HandleType.
	Handle     []byte `json:"handle"`
	HandleType int32  `json:"handle_type"`
	// Key is in the user keyring of UID.
	Key int `json:"key"`
	// OtherKey belongs to Other, who lets everybody read it.
	OtherKey int `json:"other_key"`
	// Terminal is one that a session of root has.
	Terminal string `json:"terminal"`
	// Disk is the number of a block device of the host, with its node.
	Disk     uint64 `json:"disk"`
	DiskNode string `json:"disk_node"`
	// QuotaNode is the node of a file system that could have quotas; empty if there is none.
	QuotaNode string `json:"quota_node"`
	// Plugin is the plugin's socket; Data a directory that only Nomad's client may enter.
	Plugin string `json:"plugin"`
	Data   string `json:"data"`
	// SetID is a program with the set-uid bit of another user, Capable one with file capabilities.
	SetID   string `json:"set_id"`
	Capable string `json:"capable"`
	// Other is a user that is not UID.
	Other int `json:"other"`
}

func readTargets(path string) (*targets, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := new(targets)
	return t, json.Unmarshal(text, t)
}

func (t *targets) path(name string) string { return filepath.Join(t.Dir, name) }

// own is a new path in a directory that the attacker may write.
func (t *targets) own(name string) string {
	dir := os.Getenv("NOMAD_TASK_DIR")
	if dir == "" {
		dir = t.path("open/own")
	}
	return filepath.Join(dir, name+"-"+strconv.Itoa(os.Getpid()))
}

// sandboxed tells a task from a control.
func sandboxed() bool { return os.Getenv("NOMAD_TASK_DIR") != "" }

// shimPid is the process that waits for the task: PID 1 of its namespace. For a control, it is the victim.
func (t *targets) shimPid() int {
	if sandboxed() {
		return 1
	}
	return t.Pid
}
