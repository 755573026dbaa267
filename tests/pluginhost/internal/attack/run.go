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

// limit is how long the attacks of one process may take; an emulated CPU is slow.
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

// batch is how many attacks share a process: most of the time is the start of processes.
const batch = 12

// batches divides the attacks into those that run in one process, in their order.
func batches(attacks []Attack) [][]Attack {
	var all [][]Attack
	var open []Attack
	for _, each := range attacks {
		if each.alone {
			all = append(all, []Attack{each})
			continue
		}
		// One group's attacks are about the same targets, and must not race each other.
		if len(open) == batch || len(open) > 0 && open[0].Group != each.Group {
			all, open = append(all, open), nil
		}
		open = append(open, each)
	}
	if len(open) > 0 {
		all = append(all, open)
	}
	return all
}

// runAll keeps every CPU busy.
func runAll(attacks []Attack, path string) []outcome {
	found := map[string]outcome{}
	var lock sync.Mutex
	next := make(chan []Attack)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for each := range next {
				outcomes := inProcess(each, path)
				lock.Lock()
				for _, outcome := range outcomes {
					found[outcome.Name] = outcome
				}
				lock.Unlock()
			}
		}()
	}
	for _, each := range batches(attacks) {
		next <- each
	}
	close(next)
	workers.Wait()
	outcomes := make([]outcome, len(attacks))
	for i, each := range attacks {
		outcomes[i] = found[each.Name]
	}
	return outcomes
}

// inProcess runs attacks in one process. Those that it did not come to, because an earlier one
// ended it, get a process each.
func inProcess(attacks []Attack, path string) []outcome {
	var outcomes []outcome
	begin := time.Now()
	answers, failure := tries(attacks, path)
	for _, each := range attacks {
		answer, ok := answers[each.Name]
		switch {
		case ok:
			outcomes = append(outcomes, answer)
		case len(attacks) == 1:
			outcomes = append(outcomes, outcome{each.Name, failure, time.Since(begin).Milliseconds()})
		default:
			outcomes = append(outcomes, inProcess([]Attack{each}, path)...)
		}
	}
	return outcomes
}

// tries starts a process for attacks, and ends it at the limit. It returns what the process
// answered, and what became of it if that is not all.
func tries(attacks []Attack, path string) (map[string]outcome, string) {
	answers := map[string]outcome{}
	args := []string{"some", path}
	for _, each := range attacks {
		args = append(args, each.Name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, self(), args...)
	// Its own standard input is what some attacks are about.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, &out, &errs
	cmd.WaitDelay = limit
	// A session of its own: a terminal that an attack takes must not be the caller's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Run()
	for line := range strings.Lines(out.String()) {
		var answer outcome
		if json.Unmarshal([]byte(line), &answer) == nil {
			answers[answer.Name] = answer
		}
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return answers, fmt.Sprintf("error: no answer within %s", limit)
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		return answers, refused + unix.SignalName(exit.Sys().(syscall.WaitStatus).Signal())
	}
	return answers, strings.TrimSpace(fmt.Sprintf("error: %v: %s", err, errs.String()))
}
