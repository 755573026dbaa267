package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"text/template"
	"time"

	"pluginhost/internal/agentconfig"
	"pluginhost/internal/api"
	"pluginhost/internal/client"
	"pluginhost/internal/ids"
	"pluginhost/internal/jobspec"

	nomad "github.com/hashicorp/nomad/api"
)

// readJobFile parses a job file; "-" is standard input.
func readJobFile(path string, vars varFlags) (*nomad.Job, error) {
	var src []byte
	var err error
	if path == "-" {
		src, err = io.ReadAll(os.Stdin)
	} else {
		src, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("Error getting job struct: %w", err)
	}
	j, err := jobspec.Parse(path, src, vars)
	if err != nil {
		return nil, fmt.Errorf("Error getting job struct: %w", err)
	}
	return j, nil
}

func jobRunVerb(args []string, out io.Writer) error {
	f := newFlags("job run")
	detach := f.Bool("detach", false, "")
	vars := varFlags{}
	f.Var(vars, "var", "key=value")
	for _, ignore := range []string{"verbose", "check-index", "eval-priority", "policy-override"} {
		f.String(ignore, "", "accepted and ignored")
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("This command takes one argument: <path>")
	}
	j, err := readJobFile(f.Arg(0), vars)
	if err != nil {
		return err
	}
	var answer api.Registered
	if err := api.Call("POST", "/v1/jobs", nil, j, &answer); err != nil {
		return err
	}
	if *detach {
		fmt.Fprintf(out, "Job registration successful\nEvaluation ID: %s\n", answer.EvalID)
		return nil
	}
	fmt.Fprintf(out, "==> Monitoring evaluation %q\n    Evaluation triggered by job %q\n", ids.Short(answer.EvalID), *j.ID)
	for _, id := range answer.AllocIDs {
		var a nomad.Allocation
		if err := api.Call("GET", "/v1/allocation", url.Values{"id": {id}}, nil, &a); err != nil {
			return err
		}
		fmt.Fprintf(out, "    Allocation %q created: node %q, group %q\n", ids.Short(id), ids.Short(a.NodeID), a.TaskGroup)
	}
	fmt.Fprintf(out, "    Evaluation status changed: \"pending\" -> \"complete\"\n==> Evaluation %q finished with status \"complete\"\n", ids.Short(answer.EvalID))
	if answer.Unplaced != "" {
		return &exitError{code: 2, err: fmt.Errorf("    * Failed to place all allocations: %s", answer.Unplaced)}
	}
	if *j.Type != nomad.JobTypeService {
		return nil
	}
	return waitPlaced(*j.ID, answer.AllocIDs)
}

// waitPlaced waits until no alloc of a service is pending, as Nomad waits for
// the deployment. A failed alloc fails the command.
func waitPlaced(job string, placed []string) error {
	for {
		var list []*nomad.AllocationListStub
		if err := api.Call("GET", "/v1/allocations", url.Values{"job": {job}}, nil, &list); err != nil {
			return err
		}
		pending := false
		for _, a := range list {
			if !slices.Contains(placed, a.ID) {
				continue
			}
			switch a.ClientStatus {
			case nomad.AllocClientStatusPending:
				pending = true
			case nomad.AllocClientStatusFailed:
				return fmt.Errorf("Allocation %q failed", ids.Short(a.ID))
			}
		}
		if !pending {
			return nil
		}
		time.Sleep(pollPause)
	}
}

func jobValidateVerb(args []string, out io.Writer) error {
	f := newFlags("job validate")
	vars := varFlags{}
	f.Var(vars, "var", "key=value")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, err := readJobFile(f.Arg(0), vars); err != nil {
		return err
	}
	fmt.Fprintln(out, "Job validation successful")
	return nil
}

func jobStopVerb(args []string, out io.Writer) error {
	f := newFlags("job stop")
	purge := f.Bool("purge", false, "")
	detach := f.Bool("detach", false, "")
	f.Bool("yes", false, "")
	f.Bool("verbose", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() < 1 {
		return errors.New("This command takes at least one argument: <job>")
	}
	for _, id := range f.Args() {
		var answer api.Evaluation
		if err := api.Call("DELETE", "/v1/job", url.Values{"id": {id}, "purge": {fmt.Sprint(*purge)}}, nil, &answer); err != nil {
			return err
		}
		if *detach {
			fmt.Fprintln(out, answer.EvalID)
			continue
		}
		fmt.Fprintf(out, "==> Monitoring evaluation %q\n==> Evaluation %q finished with status \"complete\"\n", ids.Short(answer.EvalID), ids.Short(answer.EvalID))
	}
	return nil
}

func jobStatusVerb(args []string, out io.Writer) error {
	f := newFlags("job status")
	asJSON := f.Bool("json", false, "")
	shortForm := f.Bool("short", false, "")
	f.Bool("verbose", false, "")
	f.Bool("all-allocs", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return listJobs(out, *asJSON)
	}
	var d api.JobView
	if err := api.Call("GET", "/v1/job", url.Values{"id": {f.Arg(0)}}, nil, &d); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(out, []any{jobJSON(d)})
	}
	status := d.Job.Status
	if d.Job.Stop {
		status += " (stopped)"
	}
	pairs(out, [][2]string{
		{"ID", d.Job.ID}, {"Name", d.Job.Name}, {"Submit Date", time.Unix(0, d.Job.SubmitTime).Format(time.RFC3339)},
		{"Type", d.Job.Type}, {"Priority", fmt.Sprint(d.Job.Priority)}, {"Datacenters", "*"}, {"Namespace", d.Job.Namespace},
		{"Node Pool", "default"}, {"Status", status},
		{"Periodic", "false"}, {"Parameterized", "false"},
	})
	if *shortForm {
		return nil
	}
	fmt.Fprintln(out, "\nSummary")
	rows := [][]string{{"Task Group", "Queued", "Starting", "Running", "Failed", "Complete", "Lost", "Unknown"}}
	counts := summarize(d.Allocations)
	for _, g := range slices.Sorted(maps.Keys(counts)) {
		c := counts[g]
		rows = append(rows, []string{g, "0", fmt.Sprint(c["pending"]), fmt.Sprint(c["running"]), fmt.Sprint(c["failed"]), fmt.Sprint(c["complete"]), "0", "0"})
	}
	columns(out, rows)
	fmt.Fprintln(out, "\nAllocations")
	printAllocs(out, d.Allocations)
	return nil
}

func listJobs(out io.Writer, asJSON bool) error {
	var jobs []*nomad.JobListStub
	if err := api.Call("GET", "/v1/jobs", nil, nil, &jobs); err != nil {
		return err
	}
	if asJSON {
		all := []any{}
		for _, j := range jobs {
			var d api.JobView
			if err := api.Call("GET", "/v1/job", url.Values{"id": {j.ID}}, nil, &d); err != nil {
				return err
			}
			all = append(all, jobJSON(d))
		}
		return printJSON(out, all)
	}
	if len(jobs) == 0 {
		fmt.Fprintln(out, "No running jobs")
		return nil
	}
	rows := [][]string{{"ID", "Type", "Priority", "Status", "Submit Date"}}
	for _, j := range jobs {
		status := j.Status
		if j.Stop {
			status += " (stopped)"
		}
		rows = append(rows, []string{j.ID, j.Type, fmt.Sprint(j.Priority), status, time.Unix(0, j.SubmitTime).Format(time.RFC3339)})
	}
	columns(out, rows)
	return nil
}

// summarize counts a job's allocs by group and status.
func summarize(allocs []*nomad.AllocationListStub) map[string]map[string]int {
	counts := map[string]map[string]int{}
	for _, a := range allocs {
		if counts[a.TaskGroup] == nil {
			counts[a.TaskGroup] = map[string]int{}
		}
		counts[a.TaskGroup][a.ClientStatus]++
	}
	return counts
}

// jobJSON is what `nomad job status -json` prints for one job.
func jobJSON(d api.JobView) map[string]any {
	groups := map[string]any{}
	for g, c := range summarize(d.Allocations) {
		groups[g] = map[string]int{
			"Queued": 0, "Starting": c["pending"], "Running": c["running"], "Failed": c["failed"], "Complete": c["complete"], "Lost": 0, "Unknown": 0,
		}
	}
	return map[string]any{
		"Summary":     map[string]any{"JobID": d.Job.ID, "Namespace": d.Job.Namespace, "Summary": groups},
		"Allocations": d.Allocations, "LatestDeployment": nil, "Evaluations": []any{},
	}
}

func jobAllocsVerb(args []string, out io.Writer) error {
	f := newFlags("job allocs")
	asJSON := f.Bool("json", false, "")
	format := f.String("t", "", "")
	f.Bool("verbose", false, "")
	f.Bool("all", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("This command takes one argument: <job>")
	}
	var list []*nomad.AllocationListStub
	if err := api.Call("GET", "/v1/allocations", url.Values{"job": {f.Arg(0)}}, nil, &list); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(out, list)
	}
	if *format != "" {
		t, err := template.New("format").Parse(*format)
		if err != nil {
			return err
		}
		return t.Execute(out, list)
	}
	printAllocs(out, list)
	return nil
}

func printAllocs(out io.Writer, list []*nomad.AllocationListStub) {
	if len(list) == 0 {
		fmt.Fprintln(out, "No allocations placed")
		return
	}
	rows := [][]string{{"ID", "Node ID", "Task Group", "Version", "Desired", "Status", "Created", "Modified"}}
	for _, a := range list {
		rows = append(rows, []string{
			ids.Short(a.ID), ids.Short(a.NodeID), a.TaskGroup, fmt.Sprint(a.JobVersion), a.DesiredStatus, a.ClientStatus,
			ago(a.CreateTime), ago(a.ModifyTime),
		})
	}
	columns(out, rows)
}

func ago(ns int64) string {
	return time.Since(time.Unix(0, ns)).Round(time.Second).String() + " ago"
}

// oneshotVerb runs one job without an agent and exits with the exit code of the
// first task that failed, or 0.
func oneshotVerb(args []string, out io.Writer) error {
	f := newFlags("run")
	once := client.Once{Out: out}
	f.StringVar(&once.Plugin, "plugin", "nomad-driver-exec2", "plugin binary")
	f.BoolVar(&once.JSON, "json", false, "JSON lines")
	f.BoolVar(&once.Strict, "strict", false, "exit 70 on a protocol violation")
	f.BoolVar(&once.Verbose, "verbose", false, "show the plugin's debug log")
	var configs pathFlags
	f.Var(&configs, "config", "agent configuration, for the plugin's block")
	vars := varFlags{}
	f.Var(vars, "var", "key=value")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("usage: pluginhost run [--plugin BIN] [--config AGENT.hcl] [--var k=v] [--json] JOB")
	}
	var err error
	if once.Job, err = readJobFile(f.Arg(0), vars); err != nil {
		return err
	}
	if once.Config, err = agentconfig.Load(configs); err != nil {
		return err
	}
	code, err := once.Run()
	switch {
	case err != nil && code != 0:
		return &exitError{code: code, err: err}
	case err != nil:
		return err
	case code != 0:
		return &exitError{code: code}
	}
	return nil
}
