package attack

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bomb uses up one resource until the time is over, and tries again after each refusal.
func bomb(args []string, out io.Writer) error {
	kinds := map[string]func() error{
		"fork": forkBomb, "memory": memoryBomb, "fd": descriptorBomb, "inode": inodeBomb, "pipe": pipeBomb, "log": logBomb,
	}
	if len(args) == 0 || kinds[args[0]] == nil {
		return fmt.Errorf("usage: attack bomb fork|memory|fd|inode|pipe|log [-for D]")
	}
	flags := flag.NewFlagSet("bomb", flag.ContinueOnError)
	span := flags.Duration("for", 5*time.Second, "how long")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	end := time.Now().Add(*span)
	var refusal error
	for time.Now().Before(end) {
		if err := kinds[args[0]](); err != nil {
			refusal = err
		}
	}
	fmt.Fprintln(out, "refused:", refusal)
	return nil
}

// forkBomb starts a process that starts two of its kind.
func forkBomb() error {
	return exec.Command("/bin/sh", "-c", "f() { f | f & }; f; sleep 1").Run()
}

var held [][]byte

func memoryBomb() error {
	block := bytes.Repeat([]byte{1}, 1<<20)
	held = append(held, block)
	return nil
}

func descriptorBomb() error {
	for {
		if _, err := unix.Dup(0); err != nil {
			time.Sleep(time.Millisecond)
			return err
		}
	}
}

var made int

// inodeBomb makes files on every file system that the task may write.
func inodeBomb() error {
	for _, dir := range []string{"/tmp", "/dev/shm", os.Getenv("NOMAD_SECRETS_DIR"), os.Getenv("NOMAD_TASK_DIR"), os.Getenv("NOMAD_ALLOC_DIR")} {
		made++
		if err := os.WriteFile(fmt.Sprintf("%s/inode-%d", dir, made), nil, 0o600); err != nil && dir != "/tmp" {
			continue
		}
	}
	return nil
}

func pipeBomb() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK); err != nil {
		time.Sleep(time.Millisecond)
		return err
	}
	unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, 1<<20)
	_, err := unix.Write(ends[1], make([]byte, 1<<20))
	return err
}

func logBomb() error {
	_, err := os.Stdout.Write(bytes.Repeat([]byte("log bomb\n"), 1000))
	return err
}

// neighbour does what ordinary tasks do, and reports how often it managed, and what failed.
func neighbour(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("neighbour", flag.ContinueOnError)
	span := flags.Duration("for", 5*time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rounds, worst := 0, time.Duration(0)
	for end := time.Now().Add(*span); time.Now().Before(end); rounds++ {
		begin := time.Now()
		if err := ordinaryWork(); err != nil {
			return fmt.Errorf("round %d: %w", rounds, err)
		}
		worst = max(worst, time.Since(begin))
		time.Sleep(50 * time.Millisecond)
	}
	_, err := fmt.Fprintf(out, `{"rounds": %d, "worst_ms": %d}`+"\n", rounds, worst.Milliseconds())
	return err
}

// ordinaryWork starts a process, makes a file, a pipe, a socket and memory.
func ordinaryWork() error {
	cmd := exec.Command(self(), "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return err
	}
	path := os.Getenv("NOMAD_TASK_DIR") + "/work"
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 1<<16), 0o600); err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	defer writer.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = writer.Write(make([]byte, 4096))
	return err
}
