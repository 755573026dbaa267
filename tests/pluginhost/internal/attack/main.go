package attack

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

const usage = `usage: attack VERB
  list [-json]                                the attacks
  run [-json] [-group G] [-targets F] [NAME…] try them
  serve -dir DIR -uid UID -targets F [-socket S] [-plugin S]
                                              make what is attacked, on the host as root, and stay
  bomb KIND [-for D] [-until N]               use up a resource of the host, and report how far that went:
                                              fork, memory, fd, inode, pipe, log, event, kill
  neighbour -for D                            a task that must not suffer from bombs
  swap -task NAME -outside DIR                in the alloc directory, put links to DIR in place of what another task
                                              uses there, until it is stopped
  look -outside DIR                           a task that is started meanwhile, and looks for the secret of DIR
The targets are in $NOMAD_ALLOC_DIR/targets.json unless -targets names a file.
`

// Main runs the verb that args name and returns the exit code.
func Main(args []string, out, errs io.Writer) int {
	// Namespaces, ids and priorities belong to a thread.
	runtime.LockOSThread()
	verbs := map[string]func([]string, io.Writer) error{
		"list": list, "run": run, "some": some, "serve": serve, "victim": victim, "bystander": bystander, "bomb": bomb, "neighbour": neighbour, "swap": swap, "look": look,
		"true": func([]string, io.Writer) error { return nil }, "status": status,
	}
	if len(args) == 0 || verbs[args[0]] == nil {
		fmt.Fprint(errs, usage)
		return 2
	}
	err := verbs[args[0]](args[1:], out)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(errs, "attack:", err)
	return 1
}

func list(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("list", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(Attacks())
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, a := range Attacks() {
		fmt.Fprintf(table, "%s\t%s\t%s\n", a.Group, a.Name, a.Tries)
	}
	return table.Flush()
}

// some runs attacks one after the other, in the process that run started for them.
func some(args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("usage: attack some TARGETS NAME...")
	}
	t, err := readTargets(args[0])
	if err != nil {
		return err
	}
	answers := json.NewEncoder(out)
	for _, name := range args[1:] {
		attack, err := find(name)
		if err != nil {
			return err
		}
		begin := time.Now()
		answer := outcome{name, result(attack.run(t)), time.Since(begin).Milliseconds()}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

// status prints the ids and capabilities that a program starts with.
func status([]string, io.Writer) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

// chosen are the attacks of a group or with these names; all if neither is given.
func chosen(group string, names []string) ([]Attack, error) {
	for _, name := range names {
		if _, err := find(name); err != nil {
			return nil, err
		}
	}
	all := slices.DeleteFunc(Attacks(), func(a Attack) bool {
		return group != "" && a.Group != group || len(names) > 0 && !slices.Contains(names, a.Name)
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("no attack is in the group %q", group)
	}
	return all, nil
}
