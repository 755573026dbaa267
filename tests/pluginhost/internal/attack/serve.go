package attack

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A number that no process of a task has: its namespace counts from 1.
const victimsPid = 30000

// serve makes the targets, writes them to a file, and passes descriptors until it is killed.
func serve(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	t := new(targets)
	flags.StringVar(&t.Dir, "dir", "", "where to mount the file system with the targets")
	flags.IntVar(&t.UID, "uid", 0, "the user of the task")
	flags.StringVar(&t.Plugin, "plugin", "", "the plugin's socket")
	flags.StringVar(&t.Data, "data", "", "a directory of Nomad's client")
	file := flags.String("targets", "", "the file to write")
	socket := flags.String("socket", "", "a further socket that passes descriptors, in the alloc directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if t.Dir == "" || *file == "" {
		return errors.New("-dir and -targets are required")
	}
	steps := []func() error{t.makeFiles, t.makePrograms, t.makeHostsFiles, t.makeSockets, t.findDevices, t.startVictim, t.startBystanders, t.makeOthersKey}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	passed, err := t.openPassed()
	if err != nil {
		return err
	}
	sockets := []string{t.path("passing")}
	if *socket != "" {
		sockets = append(sockets, *socket)
	}
	for _, path := range sockets {
		if err := pass(path, passed, t.state); err != nil {
			return err
		}
	}
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*file, text, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(*file, 0o644); err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	return waits()
}

// waits until the process is killed.
func waits() error {
	for {
		if err := unix.Pause(); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// makeFiles mounts a file system and makes the files that belong to the task's user.
func (t *targets) makeFiles() error {
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("exec2-attack", t.Dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("failed to mount on %s: %w", t.Dir, err)
	}
	files := []struct {
		name string
		mode os.FileMode
	}{{"secret", 0o600}, {"writable", 0o666}, {"open/old", 0o666}, {"open/removed", 0o666}, {"open/unlinked", 0o666}, {"open/out", 0o666}, {signalled, 0o666}}
	for _, dir := range []string{"open", "open/own"} {
		if err := os.Mkdir(t.path(dir), 0o777); err != nil {
			return err
		}
		if err := os.Chmod(t.path(dir), 0o777); err != nil {
			return err
		}
	}
	for _, each := range files {
		if err := t.plant(t.path(each.name), each.mode); err != nil {
			return err
		}
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, t.path("secret"), 0)
	if err != nil {
		return err
	}
	t.Handle, t.HandleType = handle.Bytes(), handle.Type()
	return nil
}

// plant makes a file with the secret, of the task's user.
func (t *targets) plant(path string, mode os.FileMode) error {
	if err := os.WriteFile(path, []byte(word+"\n"), mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	return os.Chown(path, t.UID, t.UID)
}

// makePrograms copies this one to where tasks may not execute it, and to where they may.
func (t *targets) makePrograms() error {
	t.Other = 65534
	t.SetID, t.Capable = filepath.Join(filepath.Dir(self()), "exec2-set-id"), filepath.Join(filepath.Dir(self()), "exec2-capable")
	for from, to := range map[string][]string{self(): {t.path("program"), t.SetID, t.Capable}, "/bin/true": {t.path("dynamic")}} {
		program, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		for _, path := range to {
			if err := os.WriteFile(path, program, 0o755); err != nil {
				return err
			}
		}
	}
	if err := os.Chown(t.SetID, t.Other, t.Other); err != nil {
		return err
	}
	if err := unix.Chmod(t.SetID, 0o4755); err != nil {
		return err
	}
	return unix.Setxattr(t.Capable, "security.capability", fileCapability(unix.CAP_SYS_ADMIN), 0)
}

// makeHostsFiles makes what is in directories that the task has of its own.
func (t *targets) makeHostsFiles() error {
	for _, path := range []string{"/dev/shm/exec2-attack", "/tmp/exec2-attack"} {
		os.Remove(path)
		if err := t.plant(path, 0o600); err != nil {
			return err
		}
	}
	if _, err := unix.SysvShmGet(sysvKey, os.Getpagesize(), unix.IPC_CREAT|0o666); err != nil {
		return err
	}
	attributes := [8]int64{0, 1, 16}
	fd, err := callFd(unix.SYS_MQ_OPEN, text("exec2-attack"), unix.O_RDWR|unix.O_CREAT, 0o666, address(&attributes))
	if err != nil {
		return err
	}
	if err := unix.Fchmod(fd, 0o666); err != nil {
		return err
	}
	// A directory of another allocation.
	return os.MkdirAll(filepath.Join(t.Data, otherAllocation), 0o755)
}

// makeSockets listens on all sockets that the host does not have.
func (t *targets) makeSockets() error {
	id := strconv.Itoa(os.Getpid())
	t.Stream, t.Datagram = "exec2-attack-stream-"+id, "exec2-attack-datagram-"+id
	streams := []string{t.path("stream"), "@" + t.Stream}
	for _, service := range services {
		if err := connects(unix.SOCK_STREAM, service.path); err == unix.ENOENT || err == unix.ECONNREFUSED {
			os.Remove(service.path)
			streams = append(streams, service.path)
		}
	}
	for _, name := range streams {
		os.MkdirAll(filepath.Dir(name), 0o755)
		listener, err := net.Listen("unix", name)
		if err != nil {
			return err
		}
		go hangUp(listener)
		if name[0] != '@' {
			os.Chmod(name, 0o777)
		}
	}
	for _, name := range []string{t.path("datagram"), "@" + t.Datagram} {
		if _, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"}); err != nil {
			return err
		}
	}
	os.Chmod(t.path("datagram"), 0o777)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	t.Port = listener.Addr().(*net.TCPAddr).Port
	return nil
}

// hangUp accepts each connection and closes it: the C library waits for an answer of nscd.
func hangUp(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}

// findDevices names a disk, and opens a terminal.
func (t *targets) findDevices() error {
	// Not every kernel has them: the attacks say what they need.
	exec.Command("modprobe", "-a", "loop", "tun", "binfmt_misc").Run()
	unix.Mount("none", "/proc/sys/fs/binfmt_misc", "binfmt_misc", 0, "")
	disks, _ := filepath.Glob("/dev/vd?")
	if len(disks) == 0 {
		return errors.New("the host has no /dev/vd?")
	}
	var stat unix.Stat_t
	if err := unix.Stat(disks[0], &stat); err != nil {
		return err
	}
	t.DiskNode, t.Disk = disks[0], stat.Rdev
	if i := slices.IndexFunc(disks, func(disk string) bool { return setsQuota(disk) == nil }); i >= 0 {
		t.QuotaNode = disks[i]
	}
	// A number that the tasks' own terminals do not have.
	number := 0
	for number < 20 {
		master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if number, err = unix.IoctlGetInt(master, unix.TIOCGPTN); err != nil {
			return err
		}
		unlocked := int32(0)
		if err := call(unix.SYS_IOCTL, uintptr(master), unix.TIOCSPTLCK, address(&unlocked)); err != nil {
			return err
		}
	}
	t.Terminal = "/dev/pts/" + strconv.Itoa(number)
	return os.Chown(t.Terminal, t.UID, t.UID)
}

// found is what a victim tells of itself.
type found struct {
	Fd      int
	Address uintptr
	Key     int
}

func (t *targets) startVictim() error {
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(victimsPid)), 0); err != nil {
		return err
	}
	cmd := exec.Command(t.path("program"), "victim")
	cmd.Dir, cmd.Env = t.Dir, []string{"SECRET=" + word}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(t.UID), Gid: uint32(t.UID)}, Pdeathsig: syscall.SIGKILL}
	output, err := startedChild(cmd)
	if err != nil {
		return err
	}
	var its found
	if err := json.NewDecoder(output).Decode(&its); err != nil {
		return fmt.Errorf("failed to read what the victim says: %w", err)
	}
	t.Pid, t.Fd, t.Address, t.Key = cmd.Process.Pid, its.Fd, its.Address, its.Key
	if t.Pid < victimsPid {
		return fmt.Errorf("the victim has the number %d, which a process of a task could have too", t.Pid)
	}
	return nil
}

// startedChild starts a process of this program, and returns what it says.
func startedChild(cmd *exec.Cmd) (io.Reader, error) {
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return output, cmd.Start()
}

// startBystanders starts a process of the task's user and one of another user.
func (t *targets) startBystanders() error {
	for _, uid := range []int{t.Other, t.UID} {
		cmd := exec.Command(t.path("program"), "bystander", t.path(signalled))
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Pdeathsig: syscall.SIGKILL, Setpgid: true,
		}
		output, err := startedChild(cmd)
		if err != nil {
			return err
		}
		// It is ready to count signals.
		if _, err := output.Read(make([]byte, 1)); err != nil {
			return err
		}
		t.Bystander = cmd.Process.Pid
	}
	return nil
}

// signalled is a file that grows with each signal.
const signalled = "signalled"

// bystander appends to a file for each SIGWINCH, which harms nobody who does not expect it.
func bystander(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: attack bystander FILE")
	}
	file, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH)
	fmt.Fprint(out, ".")
	for range signals {
		if _, err := file.WriteString("."); err != nil {
			return err
		}
	}
	return nil
}

// state is what becomes of the bystander. The task cannot see it, so the accomplice passes it as a file.
type state struct {
	Nice, IOPriority int
	Signals          int64
}

func (t *targets) state() (int, error) {
	var now state
	var err error
	if now.Nice, err = niceOf(unix.PRIO_PROCESS, t.Bystander); err != nil {
		return -1, err
	}
	if now.IOPriority, err = callFd(unix.SYS_IOPRIO_GET, whoProcess, uintptr(t.Bystander)); err != nil {
		return -1, err
	}
	info, err := os.Stat(t.path(signalled))
	if err != nil {
		return -1, err
	}
	now.Signals = info.Size()
	text, err := json.Marshal(now)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	_, err = unix.Write(fd, text)
	return fd, err
}

// makeOthersKey makes a key in the process keyring of this thread, and gives it away.
func (t *targets) makeOthersKey() error {
	key, err := unix.AddKey("user", keyName+"-other", []byte(word), unix.KEY_SPEC_PROCESS_KEYRING)
	if err != nil {
		return err
	}
	const all = 0x3f3f3f3f
	if err := unix.KeyctlSetperm(key, all); err != nil {
		return err
	}
	t.OtherKey = key
	return call(unix.SYS_KEYCTL, unix.KEYCTL_CHOWN, uintptr(key), uintptr(t.Other), uintptr(t.Other))
}

// makeKey puts a key into the user keyring. All of the uid, and others, may read it.
func makeKey() (int, error) {
	const all = 0x3f3f3f3f
	ring, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true)
	if err != nil {
		return 0, err
	}
	// Who possesses a key may change its permissions; the session keyring makes a process a possessor.
	session, err := unix.KeyctlJoinSessionKeyring(keyName)
	if err != nil {
		return 0, err
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_LINK, ring, session, 0, 0); err != nil {
		return 0, err
	}
	key, err := unix.AddKey("user", keyName, []byte(word), ring)
	if err != nil {
		return 0, err
	}
	return key, unix.KeyctlSetperm(key, all)
}

// victim has the secret open, in memory and as a key, and waits.
func victim([]string, io.Writer) error {
	fd, err := unix.Open("secret", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	key, err := makeKey()
	if err != nil {
		return fmt.Errorf("failed to make a key: %w", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found{fd, uintptr(unsafe.Pointer(&memory[0])), key}); err != nil {
		return err
	}
	return waits()
}

// openPassed opens what an accomplice gives to the task.
func (t *targets) openPassed() (map[string]int, error) {
	passed := map[string]int{}
	for name, open := range map[string]func() (int, error){
		"file":      func() (int, error) { return unix.Open(t.path("secret"), unix.O_RDONLY, 0) },
		"path":      func() (int, error) { return unix.Open(t.path("secret"), unix.O_PATH, 0) },
		"writable":  func() (int, error) { return unix.Open(t.path("writable"), unix.O_RDONLY, 0) },
		"directory": func() (int, error) { return unix.Open(t.Dir, unix.O_RDONLY|unix.O_DIRECTORY, 0) },
		"tree":      func() (int, error) { return unix.OpenTree(unix.AT_FDCWD, t.Dir, unix.OPEN_TREE_CLONE) },
		"cgroup":    func() (int, error) { return unix.Open("/sys/fs/cgroup", unix.O_RDONLY|unix.O_DIRECTORY, 0) },
		"pidfd":     func() (int, error) { return unix.PidfdOpen(t.Pid, 0) },
		"uts":       func() (int, error) { return unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0) },
	} {
		fd, err := open()
		if err != nil {
			return nil, fmt.Errorf("failed to open %q: %w", name, err)
		}
		passed[name] = fd
	}
	return passed, nil
}

// pass answers each word with the descriptor of that name, and `state` with a new one.
func pass(path string, passed map[string]int, state func() (int, error)) error {
	// Longer than the name of a socket can be; nothing else depends on the working directory.
	if err := os.Chdir(filepath.Dir(path)); err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Base(path), Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(filepath.Base(path), 0o777); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			name := make([]byte, 64)
			n, _ := conn.Read(name)
			if fd, ok := passed[string(name[:n])]; ok {
				conn.WriteMsgUnix([]byte("."), unix.UnixRights(fd), nil)
			} else if fd, err := state(); err == nil {
				conn.WriteMsgUnix([]byte("."), unix.UnixRights(fd), nil)
				unix.Close(fd)
			}
			conn.Close()
		}
	}()
	return nil
}
