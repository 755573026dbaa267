package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long one attack may take; an emulated CPU is slow.
const limit = 30 * time.Second

// outcome is the answer to one attack.
type outcome struct {
	Name   string `json:"name"`
	Result string `json:"result"`
	// Ms is how long it took, in milliseconds.
	Ms int64 `json:"ms"`
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "as JSON")
	group := flags.String("group", "", "only this group")
	path := flags.String("targets", os.Getenv("NOMAD_ALLOC_DIR")+"/targets.json", "the file that serve wrote")
	inherit := flags.String("inherit", "", "a file that each attack inherits, for the control")
	if err := flags.Parse(args); err != nil {
		return err
	}
	attacks, err := chosen(*group, flags.Args())
	if err != nil {
		return err
	}
	if _, err := readTargets(*path); err != nil {
		return err
	}
	if *inherit != "" {
		// Without close-on-exec.
		if _, err := unix.Open(*inherit, unix.O_RDONLY, 0); err != nil {
			return err
		}
	}
	outcomes := runAll(attacks, *path)
	if *asJSON {
		return json.NewEncoder(out).Encode(outcomes)
	}
	for _, each := range outcomes {
		fmt.Fprintf(out, "%-24s %s\n", each.Name, each.Result)
	}
	return nil
}

// runAll keeps every CPU busy: most of the time is the start of processes.
func runAll(attacks []Attack, path string) []outcome {
	outcomes := make([]outcome, len(attacks))
	next := make(chan int)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range next {
				begin := time.Now()
				outcomes[i] = outcome{attacks[i].Name, inProcess(attacks[i].Name, path), 0}
				outcomes[i].Ms = time.Since(begin).Milliseconds()
			}
		}()
	}
	for i := range attacks {
		next <- i
	}
	close(next)
	workers.Wait()
	return outcomes
}

// inProcess runs an attack in a process of its own, and ends that at the limit.
func inProcess(name, path string) string {
	self, err := os.Executable()
	if err != nil {
		return "error: " + err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, self, "one", name, path)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = limit
	// A session of its own: a terminal that an attack takes must not be the caller's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Sprintf("error: no answer within %s", limit)
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		return refused + unix.SignalName(exit.Sys().(syscall.WaitStatus).Signal())
	case err != nil:
		return strings.TrimSpace("error: " + err.Error() + ": " + errs.String())
	}
	return strings.TrimSpace(out.String())
}
