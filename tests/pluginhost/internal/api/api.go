// Package api is the interface between the agent and its command line: HTTP on a
// unix socket, with the types of Nomad's API where there are any.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// defaultSocket is where an agent serves the command line.
const defaultSocket = "/run/pluginhost.sock"

// SocketEnv overrides defaultSocket, for more than one agent on a host.
const SocketEnv = "PLUGINHOST_SOCK"

// Registered answers a job's registration. Unplaced is why it cannot run here.
type Registered struct {
	EvalID, JobID, Unplaced string
	AllocIDs                []string
}

// Evaluation answers what stops a job or an allocation.
type Evaluation struct{ EvalID, JobID string }

// JobView is a job with its allocations, newest first.
type JobView struct {
	Job         *nomad.JobListStub
	Allocations []*nomad.AllocationListStub
}

// Task is what identifies a task to its driver and to the kernel.
type Task struct{ TaskID, Cgroup string }

// Plugin is a plugin's process and the history of its starts.
type Plugin struct {
	Pid        int
	Starts     int
	Reattached bool
	Name       string
	Version    string
	Socket     string
	Launches   []string
}

// DriverEvent is a TaskEvents message.
type DriverEvent struct {
	Time        time.Time
	TaskID      string
	AllocID     string
	TaskName    string
	Message     string
	Annotations map[string]string
}

// SocketPath is where the agent is.
func SocketPath() string {
	if p := os.Getenv(SocketEnv); p != "" {
		return p
	}
	return defaultSocket
}

// Call sends a request to the agent. body is JSON or a value to encode; both body
// and into may be nil.
func Call(method, path string, query url.Values, body, into any) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", SocketPath())
		},
		DisableKeepAlives: true,
	}}
	in, err := encode(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, "http://pluginhost"+path+"?"+query.Encode(), in)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("Error querying agent: no pluginhost agent at %s: %w", SocketPath(), err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(raw)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

func encode(body any) (io.Reader, error) {
	switch b := body.(type) {
	case nil:
		return nil, nil
	case []byte:
		return bytes.NewReader(b), nil
	}
	raw, err := json.Marshal(body)
	return bytes.NewReader(raw), err
}
