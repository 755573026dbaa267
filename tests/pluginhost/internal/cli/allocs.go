package cli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"pluginhost/internal/api"
	"pluginhost/internal/ids"
	"pluginhost/internal/logmon"

	nomad "github.com/hashicorp/nomad/api"
)

// pollPause is the interval for polling the agent.
const pollPause = 100 * time.Millisecond

func allocStatusVerb(args []string, out io.Writer) error {
	f := newFlags("alloc status")
	asJSON := f.Bool("json", false, "")
	for _, ignore := range []string{"verbose", "short", "stats"} {
		f.Bool(ignore, false, "accepted and ignored")
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		var list []*nomad.AllocationListStub
		if err := api.Call("GET", "/v1/allocations", nil, nil, &list); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(out, list)
		}
		printAllocs(out, list)
		return nil
	}
	var a nomad.Allocation
	if err := api.Call("GET", "/v1/allocation", url.Values{"id": {f.Arg(0)}}, nil, &a); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(out, &a)
	}
	pairs(out, [][2]string{
		{"ID", a.ID}, {"Eval ID", ids.Short(a.EvalID)}, {"Name", a.Name}, {"Node ID", ids.Short(a.NodeID)}, {"Node Name", a.NodeName}, {"Job ID", a.JobID}, {"Job Version", fmt.Sprint(*a.Job.Version)},
		{"Client Status", a.ClientStatus}, {"Client Description", a.ClientDescription}, {"Desired Status", a.DesiredStatus},
		{"Created", ago(a.CreateTime)}, {"Modified", ago(a.ModifyTime)},
	})
	for _, name := range slices.Sorted(maps.Keys(a.TaskStates)) {
		ts := a.TaskStates[name]
		fmt.Fprintf(out, "\nTask %q is %q\n", name, ts.State)
		pairs(out, [][2]string{
			{"Started At", when(ts.StartedAt)}, {"Finished At", when(ts.FinishedAt)}, {"Total Restarts", fmt.Sprint(ts.Restarts)},
		})
		fmt.Fprintln(out, "\nRecent Events:")
		rows := [][]string{{"Time", "Type", "Description"}}
		for i := len(ts.Events) - 1; i >= 0; i-- {
			ev := ts.Events[i]
			rows = append(rows, []string{time.Unix(0, ev.Time).Format(time.RFC3339), ev.Type, ev.DisplayMessage})
		}
		columns(out, rows)
	}
	return nil
}

func when(t time.Time) string {
	if t.IsZero() {
		return "N/A"
	}
	return t.Format(time.RFC3339)
}

// taskArgs parses ALLOC [TASK] with the -task flag.
func taskArgs(f *flag.FlagSet, args []string) (alloc, task string, err error) {
	flagTask := f.String("task", "", "")
	if err := f.Parse(args); err != nil {
		return "", "", err
	}
	switch {
	case f.NArg() == 0:
		return "", "", errors.New("This command takes at least one argument: <allocation>")
	case f.NArg() > 1:
		return f.Arg(0), f.Arg(1), nil
	}
	return f.Arg(0), *flagTask, nil
}

func allocLogsVerb(args []string, out io.Writer) error {
	f := newFlags("alloc logs")
	stderr := f.Bool("stderr", false, "")
	f.Bool("stdout", true, "")
	follow := f.Bool("f", false, "")
	tail := f.Bool("tail", false, "")
	lines := f.Int("n", 10, "lines of -tail")
	job := f.Bool("job", false, "")
	f.Bool("verbose", false, "")
	alloc, task, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	if *job {
		var list []*nomad.AllocationListStub
		if err := api.Call("GET", "/v1/allocations", url.Values{"job": {alloc}}, nil, &list); err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("No allocations for job %q", alloc)
		}
		alloc = list[0].ID
	}
	q := url.Values{"id": {alloc}, "task": {task}, "type": {"stdout"}}
	if *stderr {
		q.Set("type", "stderr")
	}
	if !*tail {
		return copyLog(q, *follow, out)
	}
	var b strings.Builder
	if err := copyLog(q, false, &b); err != nil {
		return err
	}
	all := strings.SplitAfter(b.String(), "\n")
	if all[len(all)-1] == "" {
		all = all[:len(all)-1]
	}
	_, err = io.WriteString(out, strings.Join(all[max(0, len(all)-*lines):], ""))
	return err
}

// copyLog writes a log to out; with follow until the task is over.
func copyLog(q url.Values, follow bool, out io.Writer) error {
	for {
		var c logmon.Chunk
		if err := api.Call("GET", "/v1/logs", q, nil, &c); err != nil {
			return err
		}
		if _, err := out.Write(c.Data); err != nil {
			return err
		}
		q.Set("index", fmt.Sprint(c.Index))
		q.Set("offset", fmt.Sprint(c.Offset))
		switch {
		case len(c.Data) > 0:
		case !follow || c.Done:
			return nil
		default:
			time.Sleep(pollPause)
		}
	}
}

func allocSignalVerb(args []string, _ io.Writer) error {
	f := newFlags("alloc signal")
	sig := f.String("s", "SIGKILL", "")
	f.Bool("verbose", false, "")
	alloc, task, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	return api.Call("POST", "/v1/alloc/signal", url.Values{"id": {alloc}, "task": {task}, "signal": {*sig}}, nil, nil)
}

func allocRestartVerb(args []string, _ io.Writer) error {
	f := newFlags("alloc restart")
	f.Bool("verbose", false, "")
	alloc, task, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	return api.Call("POST", "/v1/alloc/restart", url.Values{"id": {alloc}, "task": {task}}, nil, nil)
}

func allocStopVerb(args []string, out io.Writer) error {
	f := newFlags("alloc stop")
	detach := f.Bool("detach", false, "")
	f.Bool("verbose", false, "")
	alloc, _, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	var answer api.Evaluation
	if err := api.Call("POST", "/v1/alloc/stop", url.Values{"id": {alloc}}, nil, &answer); err != nil {
		return err
	}
	if *detach {
		fmt.Fprintln(out, answer.EvalID)
		return nil
	}
	fmt.Fprintf(out, "==> Monitoring evaluation %q\n==> Evaluation %q finished with status \"complete\"\n", ids.Short(answer.EvalID), ids.Short(answer.EvalID))
	return nil
}

func statsVerb(args []string, out io.Writer) error {
	f := newFlags("stats")
	interval := f.Duration("interval", time.Second, "")
	count := f.Int("count", 1, "samples")
	alloc, task, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	var list []json.RawMessage
	err = api.Call("POST", "/v1/alloc/stats", url.Values{
		"id": {alloc}, "task": {task}, "interval": {interval.String()}, "count": {fmt.Sprint(*count)},
	}, nil, &list)
	if err != nil {
		return err
	}
	if *count == 1 && len(list) == 1 {
		return printJSON(out, list[0])
	}
	return printJSON(out, list)
}

func taskVerb(op string) func([]string, io.Writer) error {
	return func(args []string, out io.Writer) error {
		alloc, task, err := taskArgs(newFlags(op), args)
		if err != nil {
			return err
		}
		var answer json.RawMessage
		if err := api.Call("POST", "/v1/alloc/"+op, url.Values{"id": {alloc}, "task": {task}}, nil, &answer); err != nil {
			return err
		}
		return printJSON(out, answer)
	}
}

func destroyVerb(args []string, _ io.Writer) error {
	f := newFlags("destroy")
	force := f.Bool("force", false, "")
	alloc, task, err := taskArgs(f, args)
	if err != nil {
		return err
	}
	return api.Call("POST", "/v1/alloc/destroy", url.Values{"id": {alloc}, "task": {task}, "force": {fmt.Sprint(*force)}}, nil, nil)
}
