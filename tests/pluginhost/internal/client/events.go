package client

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pluginhost/internal/plugin"

	nomad "github.com/hashicorp/nomad/api"
)

// Event types of Nomad's client that its API module does not name.
const (
	eventMainDead      = "Main Tasks Dead"
	eventRestoreFailed = "Failed Restoring Task"
)

// Task states, which Nomad's API module does not name.
const (
	statePending = "pending"
	stateRunning = "running"
	stateDead    = "dead"
)

// maxEvents is how many events Nomad keeps for a task.
const maxEvents = 10

// details are the fields of an event, by Nomad's names.
type details map[string]string

func newEvent(kind, display string, d details) *nomad.TaskEvent {
	if d == nil {
		d = details{}
	}
	return &nomad.TaskEvent{
		Type: kind, Time: time.Now().UnixNano(), DisplayMessage: display, Details: d,
		// Nomad's API has these a second time, as deprecated fields.
		Message: d["message"], RestartReason: d["restart_reason"], SetupError: d["setup_error"], DriverError: d["driver_error"],
		DriverMessage: d["driver_message"], ValidationError: d["validation_error"], FailedSibling: d["failed_sibling"],
	}
}

// failing marks an event that makes the task fail.
func failing(e *nomad.TaskEvent) *nomad.TaskEvent {
	e.FailsTask = true
	e.Details["fails_task"] = "true"
	return e
}

// setupFailure reports a step before the start of a task that failed.
func setupFailure(err error) *nomad.TaskEvent {
	return newEvent(nomad.TaskSetupFailure, err.Error(), details{"setup_error": err.Error()})
}

// terminatedEvent reports how a task ended.
func terminatedEvent(r plugin.ExitResult) *nomad.TaskEvent {
	parts := []string{fmt.Sprintf("Exit Code: %d", r.Code)}
	d := details{
		"exit_code": strconv.Itoa(r.Code), "signal": strconv.Itoa(r.Signal), "oom_killed": strconv.FormatBool(r.OOMKilled),
	}
	if r.Signal != 0 {
		parts = append(parts, fmt.Sprintf("Signal: %d", r.Signal))
	}
	if r.Err != nil {
		parts = append(parts, fmt.Sprintf("Exit Message: %q", r.Err))
		d["exit_message"] = r.Err.Error()
	}
	e := newEvent(nomad.TaskTerminated, strings.Join(parts, ", "), d)
	e.ExitCode, e.Signal = r.Code, r.Signal
	return e
}

// driverFailureEvent reports why a task did not start. The field "recoverable" is
// an addition: Nomad honours it, but does not show it.
func driverFailureEvent(err error) *nomad.TaskEvent {
	return newEvent(nomad.TaskDriverFailure, err.Error(), details{
		"driver_error": err.Error(), "recoverable": strconv.FormatBool(plugin.IsRecoverable(err)),
	})
}
