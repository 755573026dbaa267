// Package harness sends single tasks straight to a plugin, without jobs and
// without an agent: "pluginhost task VERB FILE.json". The plugin keeps running
// between the commands.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Exit codes of the command line.
const (
	exitRPC   = 1 // the driver refused; the error is on stdout
	exitUsage = 2 // the harness failed; the error is on stderr
)

// command is one verb with its parsed arguments.
type command struct {
	ctx   context.Context
	out   io.Writer
	stdin io.Reader
	flags *flag.FlagSet
	opts  options
	file  string   // the first argument: the task's file, or what a verb takes instead
	rest  []string // the arguments after it
}

// options are the flags of all verbs.
type options struct {
	plugin string
	state  string
	config string
	plain  bool
	asIs   bool
}

// verb is a name, its usage, and a function that declares its flags and returns
// the action.
type verb struct {
	name, args, help string
	setup            func(*command) func() error
}

func verbs() []verb {
	const file = "FILE.json"
	return []verb{
		{"prepare", file, "make the directories, fifos and cgroup; print the TaskConfig", prepareVerb},
		{"start", file, "prepare, then StartTask; keep the handle", startVerb},
		{"wait", file, "WaitTask; -timeout D", waitVerb},
		{"stop", file, "StopTask; -s SIGNAL, -timeout D", stopVerb},
		{"signal", file, "SignalTask; -s SIGNAL", signalVerb},
		{"stats", file, "TaskStats; -interval D, -count N", statsVerb},
		{"inspect", file, "InspectTask", inspectVerb},
		{"exec", file + " [--] COMMAND …", "ExecTask; with -stream ExecTaskStreaming", execVerb},
		{"destroy", file, "DestroyTask; -force", destroyVerb},
		{"recover", file, "RecoverTask with the handle of the last start", recoverVerb},
		{"logs", file, "what the task wrote; -stderr", logsVerb},
		{"cleanup", file, "remove what prepare made", cleanupVerb},
		{"rpc", "METHOD [JSON]", "any call; -count N answers of a stream, -timeout D", rpcVerb},
		{"plugin", "pid|kill|stop", "the plugin's process; stop also ends the log collector", pluginVerb},
		{"violations", "", "what the plugin's output breaks of the protocol; exit 1 if anything", violationsVerb},
	}
}

// Main runs "task ARGS" and returns the exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, out, errs io.Writer) int {
	if len(args) == 0 || strings.TrimLeft(args[0], "-") == "help" || args[0] == "-h" {
		usage(errs)
		return exitUsage
	}
	all := verbs()
	i := slices.IndexFunc(all, func(v verb) bool { return v.name == args[0] })
	if i < 0 {
		fmt.Fprintf(errs, "unknown command \"task %s\"\n", args[0])
		usage(errs)
		return exitUsage
	}
	err := all[i].run(ctx, args[1:], stdin, out, errs)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errPrinted):
		return exitRPC
	}
	fmt.Fprintf(errs, "task %s: %v\n", args[0], err)
	return exitUsage
}

func (v verb) run(ctx context.Context, args []string, stdin io.Reader, out, errs io.Writer) error {
	c := &command{ctx: ctx, out: out, stdin: stdin, flags: flag.NewFlagSet("task "+v.name, flag.ContinueOnError)}
	c.flags.SetOutput(errs)
	c.opts.declare(c.flags)
	action := v.setup(c)
	if err := c.flags.Parse(args); err != nil {
		return err
	}
	if c.flags.NArg() == 0 && v.args != "" {
		return fmt.Errorf("usage: pluginhost task %s [flags] %s", v.name, v.args)
	}
	if c.flags.NArg() > 0 {
		c.file, c.rest = c.flags.Arg(0), c.flags.Args()[1:]
	}
	return action()
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "Usage: pluginhost task VERB [flags] ARGS\n\nVerbs:")
	for _, v := range verbs() {
		fmt.Fprintf(w, "  %-31s %s\n", v.name+" "+v.args, v.help)
	}
	fmt.Fprintln(w, "\nFlags of all verbs:")
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(w)
	new(options).declare(f)
	f.PrintDefaults()
}

// timeoutFlag declares -timeout and returns a function that makes the context of
// the call. Zero is no limit.
func (c *command) timeoutFlag(otherwise time.Duration) func() (context.Context, context.CancelFunc) {
	timeout := c.flags.Duration("timeout", otherwise, "give up after this time; 0: never")
	return func() (context.Context, context.CancelFunc) {
		if *timeout == 0 {
			return context.WithCancel(c.ctx)
		}
		return context.WithTimeout(c.ctx, *timeout)
	}
}
