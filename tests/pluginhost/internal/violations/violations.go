package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Violation is something a plugin did that its contract with Nomad forbids:
// Nomad would panic, misread it, lose it, or burn CPU on it.
type Violation struct {
	Time   time.Time
	Plugin string
	Text   string
}

// violationLog keeps the violations in memory and, one JSON object a line, in
// a file, so that they outlive a restart of the host.
type violationLog struct {
	mu   sync.Mutex
	path string
	list []Violation
	echo func(Violation)
}

// openViolations reads back what earlier runs recorded in path.
func openViolations(path string) (*violationLog, error) {
	l := &violationLog{path: path}
	if path == "" {
		return l, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, line := range splitLines(raw) {
		var v Violation
		if err := json.Unmarshal(line, &v); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		l.list = append(l.list, v)
	}
	return l, nil
}

// add records one violation.
func (l *violationLog) add(plugin, format string, args ...any) {
	v := Violation{Time: time.Now().UTC(), Plugin: plugin, Text: fmt.Sprintf(format, args...)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, v)
	if l.echo != nil {
		l.echo(v)
	}
	if l.path == "" {
		return
	}
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintf(os.Stderr, "pluginhost: cannot record a violation: %v\n", err)
		return
	}
	defer f.Close()
	line, err := json.Marshal(v)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "pluginhost: cannot record a violation: %v\n", err)
	}
}

// all returns a copy of what was recorded.
func (l *violationLog) all() []Violation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Violation{}, l.list...)
}
