package client

import (
	"fmt"
	"math/rand/v2"
	"time"

	"pluginhost/internal/plugin"

	nomad "github.com/hashicorp/nomad/api"
)

// restartTracker decides what follows a task's end, by its restart policy.
type restartTracker struct {
	policy nomad.RestartPolicy
	count  int
	start  time.Time
	// onSuccess restarts a task that ended well: service tasks, but not their
	// prestart and poststart helpers.
	onSuccess bool
}

// The verdicts of the tracker, which are the types of the events.
const (
	verdictRestart    = nomad.TaskRestarting
	verdictGiveUp     = nomad.TaskNotRestarting
	verdictTerminated = nomad.TaskTerminated
)

// next takes either a start error or an exit result and returns what follows.
func (r *restartTracker) next(startErr error, exit *plugin.ExitResult, now time.Time) (verdict, reason string, delay time.Duration) {
	ended := startErr == nil && exit != nil && exit.Successful() && !r.onSuccess
	if *r.policy.Attempts == 0 {
		if ended {
			return verdictTerminated, "Policy allows no restarts", 0
		}
		return verdictGiveUp, "Policy allows no restarts", 0
	}
	if end := r.start.Add(*r.policy.Interval); now.After(end) {
		r.count, r.start = 0, now
	}
	r.count++
	if startErr != nil && !plugin.IsRecoverable(startErr) {
		return verdictGiveUp, "Error was unrecoverable", 0
	}
	if ended {
		return verdictTerminated, "Restart unnecessary as task terminated successfully", 0
	}
	if r.count > *r.policy.Attempts {
		if *r.policy.Mode == "fail" {
			return verdictGiveUp, fmt.Sprintf("Exceeded allowed attempts %d in interval %v and mode is \"fail\"", *r.policy.Attempts, *r.policy.Interval), 0
		}
		return verdictRestart, "Exceeded allowed attempts, applying a delay", r.start.Add(*r.policy.Interval).Sub(now)
	}
	return verdictRestart, "Restart within policy", jitter(*r.policy.Delay)
}

// jitter adds up to a quarter, as Nomad does.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + time.Duration(float64(rand.Int64N(int64(d)))*0.25)
}
