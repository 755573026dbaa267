package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"time"
)

// readJobFile parses a job file; "-" is standard input.
func readJobFile(path string, vars varFlags) (*Job, error) {
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
	j, err := parseJob(path, src, vars)
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
		f.String(ignore, "", "accepted, not used")
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
	var answer registered
	if err := call("POST", "/v1/jobs", nil, j, &answer); err != nil {
		return err
	}
	if *detach {
		fmt.Fprintf(out, "Job registration successful\nEvaluation ID: %s\n", answer.EvalID)
		return nil
	}
	fmt.Fprintf(out, "==> Monitoring evaluation %q\n    Evaluation triggered by job %q\n", short(answer.EvalID), j.ID)
	for _, id := range answer.AllocIDs {
		var a Alloc
		if err := call("GET", "/v1/allocation", url.Values{"id": {id}}, nil, &a); err != nil {
			return err
		}
		fmt.Fprintf(out, "    Allocation %q created: node %q, group %q\n", short(id), short(a.NodeID), a.TaskGroup)
	}
	fmt.Fprintf(out, "    Evaluation status changed: \"pending\" -> \"complete\"\n==> Evaluation %q finished with status \"complete\"\n", short(answer.EvalID))
	if answer.Unplaced != "" {
		return &exitError{code: 2, err: fmt.Errorf("    * Failed to place all allocations: %s", answer.Unplaced)}
	}
	if j.Type != "service" {
		return nil
	}
	return waitPlaced(j.ID, answer.AllocIDs)
}

// waitPlaced waits until no alloc of a service is pending, as Nomad waits for
// the deployment. A failed alloc fails the command.
func waitPlaced(job string, ids []string) error {
	for {
		var list []*Alloc
		if err := call("GET", "/v1/allocations", url.Values{"job": {job}}, nil, &list); err != nil {
			return err
		}
		pending := false
		for _, a := range list {
			if !slices.Contains(ids, a.ID) {
				continue
			}
			switch a.ClientStatus {
			case "pending":
				pending = true
			case "failed":
				return fmt.Errorf("Allocation %q failed", short(a.ID))
			}
		}
		if !pending {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
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
		var answer struct{ EvalID string }
		if err := call("DELETE", "/v1/job", url.Values{"id": {id}, "purge": {fmt.Sprint(*purge)}}, nil, &answer); err != nil {
			return err
		}
		if *detach {
			fmt.Fprintln(out, answer.EvalID)
			continue
		}
		fmt.Fprintf(out, "==> Monitoring evaluation %q\n==> Evaluation %q finished with status \"complete\"\n", short(answer.EvalID), short(answer.EvalID))
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
	var d jobDetail
	if err := call("GET", "/v1/job", url.Values{"id": {f.Arg(0)}}, nil, &d); err != nil {
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
	for _, g := range sortedKeys(counts) {
		c := counts[g]
		rows = append(rows, []string{g, "0", fmt.Sprint(c["pending"]), fmt.Sprint(c["running"]), fmt.Sprint(c["failed"]), fmt.Sprint(c["complete"]), "0", "0"})
	}
	columns(out, rows)
	fmt.Fprintln(out, "\nAllocations")
	printAllocs(out, d.Allocations)
	return nil
}

func listJobs(out io.Writer, asJSON bool) error {
	var jobs []jobStub
	if err := call("GET", "/v1/jobs", nil, nil, &jobs); err != nil {
		return err
	}
	if asJSON {
		all := []any{}
		for _, j := range jobs {
			var d jobDetail
			if err := call("GET", "/v1/job", url.Values{"id": {j.ID}}, nil, &d); err != nil {
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
func summarize(allocs []*Alloc) map[string]map[string]int {
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
func jobJSON(d jobDetail) map[string]any {
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
	f.Bool("verbose", false, "")
	f.Bool("all", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("This command takes one argument: <job>")
	}
	var list []*Alloc
	if err := call("GET", "/v1/allocations", url.Values{"job": {f.Arg(0)}}, nil, &list); err != nil {
		return err
	}
	if *asJSON {
		return printJSON(out, list)
	}
	printAllocs(out, list)
	return nil
}

func printAllocs(out io.Writer, list []*Alloc) {
	if len(list) == 0 {
		fmt.Fprintln(out, "No allocations placed")
		return
	}
	rows := [][]string{{"ID", "Node ID", "Task Group", "Version", "Desired", "Status", "Created", "Modified"}}
	for _, a := range list {
		rows = append(rows, []string{
			short(a.ID), short(a.NodeID), a.TaskGroup, fmt.Sprint(a.JobVersion), a.DesiredStatus, a.ClientStatus,
			ago(a.CreateTime), ago(a.ModifyTime),
		})
	}
	columns(out, rows)
}

func ago(ns int64) string {
	return time.Since(time.Unix(0, ns)).Round(time.Second).String() + " ago"
}
