package client

import (
	"fmt"
	"io"
	"net/http"
	"syscall"

	"pluginhost/internal/api"
	"pluginhost/internal/plugin"
)

// manager returns the plugin that the request names, or the only one.
func (a *Agent) manager(name string) (*plugin.Manager, error) {
	if name == "" && len(a.managers) == 1 {
		for _, m := range a.managers {
			return m, nil
		}
	}
	if m := a.managers[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("no driver %q here", name)
}

// pluginRequest serves the requests about the plugin itself.
func (a *Agent) pluginRequest(r *http.Request) (any, error) {
	m, err := a.manager(r.FormValue("driver"))
	if err != nil {
		return nil, err
	}
	d, err := m.Dispense()
	if err != nil {
		return nil, err
	}
	switch r.PathValue("op") {
	case "pid":
		h := m.History()
		return api.Plugin{
			Pid: d.Pid, Starts: h.Starts, Reattached: d.Reattached, Name: m.Info.GetName(),
			Version: m.Info.GetPluginVersion(), Socket: d.ReattachInfo().Socket, Launches: h.Launches,
		}, nil
	case "kill":
		return map[string]any{"Pid": d.Pid}, syscall.Kill(d.Pid, syscall.SIGKILL)
	case "rpc":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		return d.Call(r.Context(), r.FormValue("method"), body)
	}
	return nil, fmt.Errorf("unknown operation %q", r.PathValue("op"))
}
