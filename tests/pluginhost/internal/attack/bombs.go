package attack

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A kind of bomb uses up a bit more of one resource, and returns how much it has.
type kind func() (int64, error)

func kinds() map[string]kind {
	return map[string]kind{
		"fork": forkBomb, "memory": memoryBomb, "fd": descriptorBomb, "inode": inodeBomb, "pipe": pipeBomb, "log": logBomb,
		"event": eventBomb, "kill": killBomb,
	}
}

// effect is what a bomb reports of itself.
type effect struct {
	// Reached is the most that it had: processes, descriptors, files, kills, or bytes.
	Reached int64 `json:"reached"`
	// Refused is the last error.
	Refused string `json:"refused,omitempty"`
}

// bomb uses up one resource until the time is over or a signal stops it, and tries again after each refusal.
// With -until it is a control, which has to reach that much. Its report goes to stderr: stdout belongs to the log bomb.
func bomb(args []string, _ io.Writer) error {
	if len(args) == 0 || kinds()[args[0]] == nil {
		return errors.New("usage: attack bomb fork|memory|fd|inode|pipe|log|event|kill [-for D] [-until N]")
	}
	flags := flag.NewFlagSet("bomb", flag.ContinueOnError)
	span := flags.Duration("for", 5*time.Second, "how long")
	until := flags.Int64("until", 0, "how much is enough")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	explode := kinds()[args[0]]
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	var total effect
	for end := time.Now().Add(*span); time.Now().Before(end) && len(stop) == 0 && (*until == 0 || total.Reached < *until); {
		reached, err := explode()
		total.Reached = max(total.Reached, reached)
		if err != nil {
			total.Refused = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stderr).Encode(total); err != nil {
		return err
	}
	if total.Reached < *until {
		return fmt.Errorf("the bomb has reached %d, not %d", total.Reached, *until)
	}
	return nil
}

var started int64

// forkBomb starts a process that stays, and once that is refused, one that starts two of its kind.
func forkBomb() (int64, error) {
	if err := exec.Command("/bin/sleep", "1000").Start(); err == nil {
		started++
		return started, nil
	}
	return started, exec.Command("/bin/sh", "-c", "f() { f | f & }; f; sleep 1").Run()
}

var held [][]byte

func memoryBomb() (int64, error) {
	held = append(held, bytes.Repeat([]byte{1}, 1<<20))
	return int64(len(held)) << 20, nil
}

var (
	duplicates []int
	most       int64
)

// descriptorBomb gives a few back once it is refused: its own runtime needs some.
func descriptorBomb() (int64, error) {
	for range 100 {
		fd, err := unix.Dup(0)
		if err != nil {
			keep := max(len(duplicates)-8, 0)
			for _, each := range duplicates[keep:] {
				unix.Close(each)
			}
			duplicates = duplicates[:keep]
			time.Sleep(time.Millisecond)
			return most, err
		}
		duplicates = append(duplicates, fd)
		most = max(most, int64(fd)+1)
	}
	return most, nil
}

var made int64

// inodeBomb makes files in memory. On a disk it would fill what an allocation's directory is on, which
// docs/security.md has among what remains.
func inodeBomb() (int64, error) {
	var failure error
	for _, dir := range []string{"/dev/shm", os.Getenv("NOMAD_SECRETS_DIR")} {
		if dir == "" {
			continue
		}
		for range 100 {
			fd, err := unix.Open(fmt.Sprintf("%s/exec2-bomb-%d", dir, made), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			if err != nil {
				failure = err
				break
			}
			unix.Close(fd)
			made++
		}
	}
	return made, failure
}

var piped int64

func pipeBomb() (int64, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK); err != nil {
		time.Sleep(time.Millisecond)
		return piped, err
	}
	unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, 1<<20)
	n, err := unix.Write(ends[1], make([]byte, 1<<20))
	piped += int64(max(n, 0))
	return piped, err
}

var logged int64

func logBomb() (int64, error) {
	n, err := os.Stdout.Write(bytes.Repeat([]byte("log bomb\n"), 1000))
	logged += int64(n)
	return logged, err
}

var events int64

// eventBomb leaves orphans for the shim, and has a child killed by the OOM killer, both of which the driver
// notices. It counts the kills.
func eventBomb() (int64, error) {
	if err := exec.Command("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do (true &) done").Run(); err != nil {
		return events, err
	}
	// A buffer larger than the task's memory.
	err := exec.Command("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=500M", "count=1").Run()
	if killed(err) {
		events++
		return events, nil
	}
	return events, err
}

var killings int64

// killBomb kills all processes that its user may kill, and counts how often a child was among them.
func killBomb() (int64, error) {
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		return killings, err
	}
	if err := unix.Kill(-1, unix.SIGKILL); err != nil {
		return killings, err
	}
	err := cmd.Wait()
	if killed(err) {
		killings++
		return killings, nil
	}
	return killings, err
}

func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL
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
