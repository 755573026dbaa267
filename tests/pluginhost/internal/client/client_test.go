package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pluginhost/internal/jobspec"
	"pluginhost/internal/plugin"

	nomad "github.com/hashicorp/nomad/api"
)

func TestRestartPolicy(t *testing.T) {
	fail, ok := &plugin.ExitResult{Code: 1}, &plugin.ExitResult{}
	perm := fmt.Errorf("no")
	temp := &plugin.StartError{Err: perm, Recoverable: true}
	now := time.Now()
	tr := func(attempts int, mode string, onSuccess bool) *restartTracker {
		return &restartTracker{policy: nomad.RestartPolicy{Attempts: &attempts, Interval: ptr(time.Hour), Delay: ptr(time.Second), Mode: &mode}, onSuccess: onSuccess}
	}
	check := func(r *restartTracker, startErr error, exit *plugin.ExitResult, want string) {
		t.Helper()
		if got, reason, _ := r.next(startErr, exit, now); got != want {
			t.Errorf("got %s (%s), want %s", got, reason, want)
		}
	}
	check(tr(0, "fail", false), nil, fail, verdictGiveUp)
	check(tr(0, "fail", false), nil, ok, verdictTerminated)
	check(tr(0, "fail", true), nil, ok, verdictGiveUp)
	check(tr(1, "fail", true), nil, ok, verdictRestart)
	check(tr(1, "fail", false), nil, ok, verdictTerminated)
	check(tr(1, "fail", false), perm, nil, verdictGiveUp)
	check(tr(1, "fail", false), temp, nil, verdictRestart)
	check(tr(1, "fail", false), fmt.Errorf("again: %w", temp), nil, verdictRestart)
	r := tr(2, "fail", false)
	check(r, nil, fail, verdictRestart)
	check(r, nil, fail, verdictRestart)
	check(r, nil, fail, verdictGiveUp)
	now = now.Add(2 * time.Hour) // a new interval
	check(r, nil, fail, verdictRestart)
	d := tr(1, "delay", false)
	check(d, nil, fail, verdictRestart)
	if _, _, delay := d.next(nil, fail, now.Add(time.Minute)); delay != 59*time.Minute {
		t.Errorf("delay to the next interval: %v", delay)
	}
}

const job = `
job "demo" {
  type = "batch"
  meta { owner = "ops" }
  group "g" {
    network {
      mode = "bridge"
      port "http" { to = 8080 }
      port "fixed" { static = 99 }
    }
    task "t" {
      driver = "exec2"
      config {
        command = "true"
        opts {
          a = "b"
        }
      }
    }
  }
}`

func TestSameJobSurvivesTheDisk(t *testing.T) {
	parse := func() *nomad.Job {
		j, err := jobspec.Parse("job.hcl", []byte(job), nil)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	var stored nomad.Job
	if err := remarshal(parse(), &stored); err != nil {
		t.Fatal(err)
	}
	stored.Version, stored.SubmitTime = ptr(uint64(4)), ptr(int64(5))
	fresh := parse()
	if !sameJob(&stored, fresh) {
		t.Error("the same file must be the same job")
	}
	fresh.TaskGroups[0].Tasks[0].Config["command"] = "other"
	if sameJob(&stored, fresh) {
		t.Error("a changed config must be another job")
	}
}

func TestOneFailedTaskFailsTheAlloc(t *testing.T) {
	for want, states := range map[string]map[string]*nomad.TaskState{
		"running":  {"a": {State: stateDead}, "b": {State: stateRunning}},
		"pending":  {"a": {State: stateDead}, "b": {State: statePending}},
		"failed":   {"a": {State: stateDead, Failed: true}, "b": {State: stateRunning}},
		"complete": {"a": {State: stateDead}},
	} {
		if got, description := clientStatus(states); got != want || description == "" {
			t.Errorf("got %s (%s), want %s", got, description, want)
		}
	}
}

func TestEventsHaveTheDeprecatedFieldsToo(t *testing.T) {
	ev := driverFailureEvent(&plugin.StartError{Err: errors.New("x"), Recoverable: true})
	if ev.Details["recoverable"] != "true" || ev.DriverError != "x" || ev.Details["driver_error"] != "x" {
		t.Errorf("%+v", ev)
	}
	ev = terminatedEvent(plugin.ExitResult{Code: 3, Signal: 9, OOMKilled: true})
	if ev.ExitCode != 3 || ev.Signal != 9 || ev.Details["oom_killed"] != "true" || ev.DisplayMessage != "Exit Code: 3, Signal: 9" {
		t.Errorf("%+v", ev)
	}
	if ev := failing(setupFailure(errors.New("y"))); !ev.FailsTask || ev.SetupError != "y" {
		t.Errorf("%+v", ev)
	}
}
