// Command pluginhost stands in for the Nomad client: it launches a task driver
// plugin exactly as Nomad does and runs real job files with it. Called as
// "nomad", or with a verb of Nomad's command line, it understands the part of
// that command line which tests and demos need. See README.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

func main() {
	err := dispatch(filepath.Base(os.Args[0]), os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	code := 1
	var ee *exitError
	if errors.As(err, &ee) {
		code = ee.code
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(os.Stderr, msg)
	}
	os.Exit(code)
}

// verb is one command: its name of one or two words, and what runs it.
type verb struct {
	name string
	help string
	run  func(args []string, out io.Writer) error
}

// verbs lists Nomad's commands first, then ours.
func verbs() []verb {
	return []verb{
		{"agent", "-config PATH … [-plugin-dir DIR]   run the agent", agentVerb},
		{"node status", "[-self] [-json] [ID]   the node, its drivers and attributes", nodeStatusVerb},
		{"job run", "[-detach] [-var k=v] FILE   run a job; 2 = it cannot be placed", jobRunVerb},
		{"job stop", "[-purge] [-detach] JOB   stop a job", jobStopVerb},
		{"job status", "[-json] [JOB]   one job, or all", jobStatusVerb},
		{"job allocs", "[-json] JOB   a job's allocations", jobAllocsVerb},
		{"job validate", "[-var k=v] FILE   check a job file", jobValidateVerb},
		{"alloc status", "[-json] [ALLOC]   one allocation, or all", allocStatusVerb},
		{"alloc logs", "[-stderr] [-f] [-tail [-n N]] [-task T] ALLOC [TASK]   a task's output", allocLogsVerb},
		{"alloc signal", "[-s SIGNAL] [-task T] ALLOC [TASK]   signal a task", allocSignalVerb},
		{"alloc restart", "[-task T] ALLOC [TASK]   restart a task", allocRestartVerb},
		{"alloc stop", "[-detach] ALLOC   stop an allocation; another takes its place", allocStopVerb},
		{"system gc", "remove the folders of what is over", gcVerb},
		{"version", "print what this is", versionVerb},

		{"run", "[--plugin BIN] [--config AGENT.hcl] [--var k=v] [--json] JOB   one job, with a live trace", oneshotVerb},
		{"stats", "[-interval 1s] [-count N] ALLOC [TASK]   TaskStats as JSON", statsVerb},
		{"inspect", "ALLOC [TASK]   InspectTask as JSON", taskVerb("inspect")},
		{"taskid", "ALLOC [TASK]   the task's id and cgroup", taskVerb("taskid")},
		{"destroy", "[-force] ALLOC [TASK]   DestroyTask, behind the runner's back", destroyVerb},
		{"events", "the TaskEvents seen", eventsVerb},
		{"violations", "breaches of the plugin protocol; 1 = there are some", violationsVerb},
		{"plugin pid", "[-driver D]   the plugin's process", pluginVerb("pid")},
		{"plugin kill", "[-driver D]   SIGKILL the plugin", pluginVerb("kill")},
		{"rpc", "[-driver D] METHOD JSON   one raw unary call", rpcVerb},
		{"logmon", "SOCKET   (internal) the log collector", func(args []string, _ io.Writer) error { return runLogmon(args[0]) }},
	}
}

// dispatch finds the longest verb that the arguments begin with. As "nomad",
// run, stop and status mean what they mean there.
func dispatch(argv0 string, args []string, out io.Writer) error {
	if argv0 == "nomad" && len(args) > 0 && (args[0] == "run" || args[0] == "stop" || args[0] == "status") {
		args = append([]string{"job"}, args...)
	}
	for _, words := range []int{2, 1} {
		if len(args) < words {
			continue
		}
		name := args[0]
		if words == 2 {
			name += " " + args[1]
		}
		for _, v := range verbs() {
			if v.name == name {
				return v.run(args[words:], out)
			}
		}
	}
	help := len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help")
	w := io.Writer(os.Stderr)
	if help {
		w = out
	}
	fmt.Fprintln(w, "pluginhost stands in for the Nomad client, for tests and demos of driver plugins.\n\nUsage:")
	for _, v := range verbs() {
		fmt.Fprintf(w, "  %-14s %s\n", v.name, v.help)
	}
	if help {
		return nil
	}
	return &exitError{code: 127}
}

// newFlags makes a flag set in Nomad's style.
func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	// Nomad takes these everywhere; there is only one agent and one namespace here.
	for _, ignore := range []string{"address", "namespace", "region", "token"} {
		f.String(ignore, "", "accepted, not used")
	}
	f.Bool("no-color", false, "accepted, not used")
	return f
}

// varFlags collects -var k=v.
type varFlags map[string]string

func (v varFlags) String() string { return "" }

func (v varFlags) Set(s string) error {
	for i := range s {
		if s[i] == '=' {
			v[s[:i]] = s[i+1:]
			return nil
		}
	}
	return fmt.Errorf("%q is not key=value", s)
}
