package attack

import (
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// many are attacks on all processes of a user or of a process group at once. The kernel leaves out
// those of other PID namespaces and reports a success if it found any other, so the accomplice says
// what became of a process outside.
func many() []Attack {
	return []Attack{
		{Name: "signal-all", Tries: "send a signal to all processes that the user may signal (kill -1)", run: onBystander(signalsAll)},
		{Name: "signal-group", Tries: "send a signal to a process group", run: func(t *targets) error { return unix.Kill(-t.Bystander, 0) }},
		{Name: "setpriority-group", Tries: "change the priority of a process group", run: func(t *targets) error {
			return unix.Setpriority(unix.PRIO_PGRP, t.Bystander, 1)
		}},
		{Name: "setpriority-user", Tries: "change the priority of all processes of the task's user", run: onBystander(func(t *targets, before state) (bool, error) {
			if err := unix.Setpriority(unix.PRIO_USER, t.UID, min(before.Nice+1, 19)); err != nil {
				return false, err
			}
			now, err := t.askState()
			return now.Nice != before.Nice, err
		})},
		{Name: "getpriority-group", Tries: "read the priority of a process group", run: func(t *targets) error {
			_, err := niceOf(unix.PRIO_PGRP, t.Bystander)
			return err
		}},
		{Name: "getpriority-user", Tries: "find out whether another user has processes", run: func(t *targets) error {
			_, err := niceOf(unix.PRIO_USER, t.Other)
			return err
		}},
		{Name: "ioprio-group", Tries: "change the I/O priority of a process group", run: func(t *targets) error {
			return call(unix.SYS_IOPRIO_SET, whoGroup, uintptr(t.Bystander), lowIOPriority)
		}},
		{Name: "ioprio-user", Tries: "change the I/O priority of all processes of the task's user", run: onBystander(func(t *targets, before state) (bool, error) {
			// Not what ioprio-group has set.
			if err := call(unix.SYS_IOPRIO_SET, whoUser, uintptr(t.UID), lowIOPriority-1); err != nil {
				return false, err
			}
			now, err := t.askState()
			return now.IOPriority != before.IOPriority, err
		})},
	}
}

// lowIOPriority is the last of the class "best effort".
const lowIOPriority = 2<<13 | 7

// onBystander is for attacks that the accomplice has to judge. As root on the host they would be about every
// process there, so their control is the user's.
func onBystander(attempt func(t *targets, before state) (bool, error)) func(*targets) error {
	return func(t *targets) error {
		if !sandboxed() && os.Getuid() == 0 {
			return absent("only for a user")
		}
		before, err := t.askState()
		if err != nil {
			return err
		}
		reached, err := attempt(t, before)
		// Another attack of the control has more capabilities for a moment, as a program with
		// file capabilities.
		for end := time.Now().Add(patience()); err == unix.EPERM && !sandboxed() && time.Now().Before(end); time.Sleep(pause) {
			reached, err = attempt(t, before)
		}
		if err == nil && !reached {
			return hidden
		}
		return err
	}
}

// pause is between two looks at what an attack has done.
const pause = 50 * time.Millisecond

// patience is how long an attack has to take effect.
func patience() time.Duration {
	if sandboxed() {
		return time.Second
	}
	return 10 * time.Second
}

// signalsAll waits until a signal has arrived, or could have.
func signalsAll(t *targets, before state) (bool, error) {
	if err := unix.Kill(-1, unix.SIGWINCH); err != nil {
		return false, err
	}
	for end := time.Now().Add(patience()); time.Now().Before(end); time.Sleep(pause) {
		now, err := t.askState()
		if err != nil || now.Signals > before.Signals {
			return err == nil, err
		}
	}
	return false, nil
}

// askState asks the accomplice for the state of the bystander.
func (t *targets) askState() (state, error) {
	var now state
	fd, err := receive(t, "state")
	if err != nil {
		return now, err
	}
	defer unix.Close(fd)
	text := make([]byte, 256)
	n, err := unix.Pread(fd, text, 0)
	if err != nil {
		return now, err
	}
	return now, json.Unmarshal(text[:n], &now)
}

// niceOf is getpriority without the C library's conversion.
func niceOf(which, who int) (int, error) {
	priority, err := unix.Getpriority(which, who)
	return 20 - priority, err
}
