package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The event types that Nomad shows, by its own names.
const (
	eventReceived         = "Received"
	eventTaskSetup        = "Task Setup"
	eventSetupFailure     = "Setup Failure"
	eventFailedValidation = "Failed Validation"
	eventDriverFailure    = "Driver Failure"
	eventDriver           = "Driver"
	eventStarted          = "Started"
	eventTerminated       = "Terminated"
	eventKilling          = "Killing"
	eventKilled           = "Killed"
	eventRestarting       = "Restarting"
	eventNotRestarting    = "Not Restarting"
	eventRestartSignal    = "Restart Signaled"
	eventSignaling        = "Signaling"
	eventSiblingFailed    = "Sibling Task Failed"
	eventLeaderDead       = "Leader Task Dead"
	eventMainDead         = "Main Tasks Dead"
	eventRestoreFailed    = "Failed Restoring Task"
)

// Task states.
const (
	statePending = "pending"
	stateRunning = "running"
	stateDead    = "dead"
)

// TaskState is a task's part of an allocation, in the shape of Nomad's API.
type TaskState struct {
	State       string
	Failed      bool
	Restarts    uint64
	LastRestart time.Time
	StartedAt   time.Time
	FinishedAt  time.Time
	Events      []*TaskEvent
}

// maxEvents is how many events Nomad keeps for a task.
const maxEvents = 10

// TaskEvent is one event of a task, in the shape of Nomad's API.
type TaskEvent struct {
	Type           string
	Time           int64 // ns since the epoch
	DisplayMessage string
	Details        map[string]string
	Message        string
	FailsTask      bool
	ExitCode       int
	Signal         int
	DriverError    string
	RestartReason  string
	SetupError     string
	DriverMessage  string
	// ValidationError is set when the config block does not fit the schema.
	ValidationError string
	FailedSibling   string
}

func newEvent(kind, display string) *TaskEvent {
	return &TaskEvent{Type: kind, Time: time.Now().UnixNano(), DisplayMessage: display, Details: map[string]string{}}
}

func (e *TaskEvent) with(key, value string) *TaskEvent {
	e.Details[key] = value
	// Nomad's API has most of them a second time, as deprecated fields.
	switch key {
	case "message":
		e.Message = value
	case "restart_reason":
		e.RestartReason = value
	case "setup_error":
		e.SetupError = value
	case "driver_error":
		e.DriverError = value
	case "driver_message":
		e.DriverMessage = value
	case "validation_error":
		e.ValidationError = value
	case "failed_sibling":
		e.FailedSibling = value
	}
	return e
}

func (e *TaskEvent) fails() *TaskEvent {
	e.FailsTask = true
	return e.with("fails_task", "true")
}

// terminatedEvent tells how a task ended.
func terminatedEvent(r exitResult) *TaskEvent {
	parts := []string{fmt.Sprintf("Exit Code: %d", r.Code)}
	if r.Signal != 0 {
		parts = append(parts, fmt.Sprintf("Signal: %d", r.Signal))
	}
	if r.Err != nil {
		parts = append(parts, fmt.Sprintf("Exit Message: %q", r.Err))
	}
	e := newEvent(eventTerminated, strings.Join(parts, ", "))
	e.ExitCode, e.Signal = r.Code, r.Signal
	e.with("exit_code", strconv.Itoa(r.Code)).with("signal", strconv.Itoa(r.Signal)).with("oom_killed", strconv.FormatBool(r.OOMKilled))
	if r.Err != nil {
		e.with("exit_message", r.Err.Error())
	}
	return e
}

// driverFailureEvent tells why a task did not start. "recoverable" is ours:
// Nomad honours it, but does not show it.
func driverFailureEvent(err error) *TaskEvent {
	e := newEvent(eventDriverFailure, err.Error()).with("driver_error", err.Error())
	return e.with("recoverable", strconv.FormatBool(isRecoverable(err)))
}

// recoverableError is a start error that may pass by itself.
type recoverableError struct {
	error
	recoverable bool
}

func (e *recoverableError) Unwrap() error { return e.error }

func isRecoverable(err error) bool {
	var r *recoverableError
	return errors.As(err, &r) && r.recoverable
}

// exitResult is how a task ended.
type exitResult struct {
	Code, Signal int
	OOMKilled    bool
	Err          error
}

func (r exitResult) successful() bool { return r.Code == 0 && r.Signal == 0 && r.Err == nil }
