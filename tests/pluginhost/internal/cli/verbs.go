// Package cli is the command line: Nomad's verbs as far as scenarios use them, and
// the host's own.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"pluginhost/internal/harness"
	"pluginhost/internal/logmon"
	"pluginhost/internal/testdevice"
)

// exitError carries an exit code other than 1.
type exitError struct {
	code int
	err  error // nil: nothing more to say
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// unknownCommand is the exit code of a shell for it.
const unknownCommand = 127

// Main runs the verb that args name and returns the exit code.
func Main(argv0 string, args []string, out, errs io.Writer) int {
	err := dispatch(argv0, args, out)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(errs, msg)
	}
	var ee *exitError
	if errors.As(err, &ee) {
		return ee.code
	}
	return 1
}

// verb is one command: its name of one or two words, and its function.
type verb struct {
	name string
	help string
	run  func(args []string, out io.Writer) error
}

// verbs lists Nomad's commands first, then the host's.
func verbs() []verb {
	return []verb{
		{"agent", "-config PATH … [-plugin-dir DIR]   run the agent", agentVerb},
		{"node status", "[-self] [-json] [ID]   the node, its drivers and attributes", nodeStatusVerb},
		{"job run", "[-detach] [-var k=v] FILE   run a job; exit 2 if it cannot be placed", jobRunVerb},
		{"job stop", "[-purge] [-detach] JOB   stop a job", jobStopVerb},
		{"job status", "[-json] [JOB]   one job, or all", jobStatusVerb},
		{"job allocs", "[-json | -t FORMAT] JOB   a job's allocations", jobAllocsVerb},
		{"job validate", "[-var k=v] FILE   check a job file", jobValidateVerb},
		{"alloc status", "[-json] [ALLOC]   one allocation, or all", allocStatusVerb},
		{"alloc logs", "[-stderr] [-f] [-tail [-n N]] [-task T] ALLOC [TASK]   a task's output", allocLogsVerb},
		{"alloc signal", "[-s SIGNAL] [-task T] ALLOC [TASK]   signal a task", allocSignalVerb},
		{"alloc restart", "[-task T] ALLOC [TASK]   restart a task", allocRestartVerb},
		{"alloc stop", "[-detach] ALLOC   stop an allocation; another one replaces it", allocStopVerb},
		{"system gc", "remove the directories of finished allocations", gcVerb},
		{"version", "print what this is", versionVerb},

		{"run", "[--plugin BIN] [--config AGENT.hcl] [--var k=v] [--json] JOB   one job, with a live trace", oneshotVerb},
		{"stats", "[-interval 1s] [-count N] ALLOC [TASK]   TaskStats as JSON", statsVerb},
		{"inspect", "ALLOC [TASK]   InspectTask as JSON", taskVerb("inspect")},
		{"taskid", "ALLOC [TASK]   the task's id and cgroup", taskVerb("taskid")},
		{"destroy", "[-force] ALLOC [TASK]   DestroyTask, bypassing the task runner", destroyVerb},
		{"events", "the TaskEvents received", eventsVerb},
		{"violations", "breaches of the plugin protocol; exit 1 if there are any", violationsVerb},
		{"plugin pid", "[-driver D]   the plugin's process", pluginVerb("pid")},
		{"plugin kill", "[-driver D]   SIGKILL the plugin", pluginVerb("kill")},
		{"rpc", "[-driver D] METHOD JSON   one raw unary call", rpcVerb},
		{"task", "VERB [flags] FILE.json   one task straight to a plugin; see task -h", harnessVerb},
		{"device-plugin", "ROOT SHARE   a device plugin for tests: the nodes of ROOT/nodes, and ROOT/share at SHARE", devicePluginVerb},
		{"logmon", "SOCKET   (internal) the log collector", logmonVerb},
	}
}

// harnessVerb runs the driver-level harness, until it is interrupted.
func harnessVerb(args []string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if code := harness.Main(ctx, args, os.Stdin, out, os.Stderr); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func logmonVerb(args []string, _ io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: pluginhost logmon SOCKET")
	}
	return logmon.Serve(args[0])
}

func devicePluginVerb(args []string, _ io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: pluginhost device-plugin ROOT SHARE, by an agent's plugin block")
	}
	return testdevice.Serve(args[0], args[1])
}

// dispatch runs the longest verb that the arguments begin with. Under the name "nomad",
// run, stop and status have Nomad's meaning.
func dispatch(argv0 string, args []string, out io.Writer) error {
	if argv0 == "nomad" && len(args) > 0 && (args[0] == "run" || args[0] == "stop" || args[0] == "status") {
		args = append([]string{"job"}, args...)
	}
	for _, words := range []int{2, 1} {
		if len(args) < words {
			continue
		}
		name := strings.Join(args[:words], " ")
		for _, v := range verbs() {
			if v.name == name {
				return v.run(args[words:], out)
			}
		}
	}
	help := len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help")
	if help {
		_, err := io.WriteString(out, usage())
		return err
	}
	return &exitError{code: unknownCommand, err: errors.New(strings.TrimSuffix(usage(), "\n"))}
}

func usage() string {
	var b strings.Builder
	b.WriteString("pluginhost stands in for the Nomad client, for tests and demos of driver plugins.\n\nUsage:\n")
	for _, v := range verbs() {
		fmt.Fprintf(&b, "  %-14s %s\n", v.name, v.help)
	}
	return b.String()
}

// newFlags makes a flag set in Nomad's style.
func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	// Nomad takes these everywhere; there is only one agent and one namespace here.
	for _, ignore := range []string{"address", "namespace", "region", "token"} {
		f.String(ignore, "", "accepted and ignored")
	}
	f.Bool("no-color", false, "accepted and ignored")
	return f
}

// varFlags collects -var k=v.
type varFlags map[string]string

func (v varFlags) String() string { return "" }

func (v varFlags) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q is not key=value", s)
	}
	v[key] = value
	return nil
}
