// Package violations records breaches of the plugin protocol.
package violations

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"pluginhost/internal/files"
)

// Violation is a breach of a plugin's contract with Nomad: Nomad would panic,
// misread or lose a message, or waste CPU.
type Violation struct {
	Time   time.Time
	Plugin string
	Text   string
}

// Log keeps the violations in memory and, one JSON object a line, in a file,
// so that they outlive a restart of the host.
type Log struct {
	mu   sync.Mutex
	path string
	list []Violation
	echo func(Violation)
}

// Open reads back what earlier runs recorded in path. echo is called for each
// new violation.
func Open(path string, echo func(Violation)) (*Log, error) {
	l := &Log{path: path, echo: echo}
	raw, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, line := range files.Lines(raw) {
		var v Violation
		if err := json.Unmarshal(line, &v); err != nil {
			return nil, fmt.Errorf("failed to parse %s: %w", path, err)
		}
		l.list = append(l.list, v)
	}
	return l, nil
}

// Add records one violation.
func (l *Log) Add(plugin, text string) {
	v := Violation{Time: time.Now().UTC(), Plugin: plugin, Text: text}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, v)
	l.echo(v)
	if err := l.write(v); err != nil {
		fmt.Fprintf(os.Stderr, "pluginhost: failed to record a violation: %v\n", err)
	}
}

func (l *Log) write(v Violation) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

// All returns a copy of what was recorded.
func (l *Log) All() []Violation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Violation{}, l.list...)
}
