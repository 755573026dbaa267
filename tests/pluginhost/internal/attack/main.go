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
)

const usage = `usage: attack VERB
  list [-json]                                the attacks
  run [-json] [-group G] [-targets F] [NAME…]  try them, each in a process of its own
  serve -dir DIR -uid UID -targets F [-socket S] [-plugin S]
                                              make what is attacked, on the host as root, and stay
  bomb KIND [-for D]                          use up a resource of the host: fork, memory, fd, inode, pipe, log
  neighbour -for D                            a task that must not suffer from bombs
The targets are in $NOMAD_ALLOC_DIR/targets.json unless -targets names a file.
`

// Main runs the verb that args name and returns the exit code.
func Main(args []string, out, errs io.Writer) int {
	// Namespaces, ids and priorities belong to a thread.
	runtime.LockOSThread()
	verbs := map[string]func([]string, io.Writer) error{
		"list": list, "run": run, "one": one, "serve": serve, "victim": victim, "bomb": bomb, "neighbour": neighbour,
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

// one runs a single attack, in the process that run started for it.
func one(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: attack one NAME TARGETS")
	}
	attack, err := find(args[0])
	if err != nil {
		return err
	}
	t, err := readTargets(args[1])
	if err != nil {
		return err
	}
	fmt.Fprintln(out, result(attack.run(t)))
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
