package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"pluginhost/internal/agentconfig"
	"pluginhost/internal/api"
	"pluginhost/internal/client"
	"pluginhost/internal/ids"
	"pluginhost/internal/violations"

	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
)

// pathFlags collects a flag that may be repeated.
type pathFlags []string

func (p *pathFlags) String() string     { return "" }
func (p *pathFlags) Set(s string) error { *p = append(*p, s); return nil }

func agentVerb(args []string, _ io.Writer) error {
	f := newFlags("agent")
	var configs pathFlags
	f.Var(&configs, "config", "file or directory")
	pluginDir := f.String("plugin-dir", "", "directory of plugins")
	dataDir := f.String("data-dir", "", "data directory")
	level := f.String("log-level", "", "TRACE, DEBUG, INFO, WARN or ERROR")
	if err := f.Parse(args); err != nil {
		return err
	}
	cfg, err := agentconfig.Load(configs)
	if err != nil {
		return err
	}
	for dst, src := range map[*string]string{&cfg.PluginDir: *pluginDir, &cfg.LogLevel: *level} {
		if src != "" {
			*dst = src
		}
	}
	if *dataDir != "" {
		cfg.SetDataDir(*dataDir)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "pluginhost", Level: hclog.LevelFromString(cfg.LogLevel), Output: os.Stderr})
	a, err := client.New(cfg, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return a.Run(ctx, api.SocketPath())
}

func nodeStatusVerb(args []string, out io.Writer) error {
	f := newFlags("node status")
	self := f.Bool("self", false, "")
	asJSON := f.Bool("json", false, "")
	f.Bool("verbose", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var n nomad.Node
	if err := api.Call("GET", "/v1/node", nil, nil, &n); err != nil {
		return err
	}
	if id := f.Arg(0); id != "" && !strings.HasPrefix(n.ID, id) {
		return fmt.Errorf("No node(s) with prefix or id %q found", id)
	}
	one := *self || f.NArg() > 0
	switch {
	case *asJSON && one:
		return printJSON(out, n)
	case *asJSON:
		return printJSON(out, []nomad.Node{n})
	case !one:
		columns(out, [][]string{
			{"ID", "Node Pool", "DC", "Name", "Class", "Drain", "Eligibility", "Status"},
			{ids.Short(n.ID), n.NodePool, n.Datacenter, n.Name, "<none>", "false", n.SchedulingEligibility, n.Status},
		})
		return nil
	}
	pairs(out, [][2]string{{"ID", ids.Short(n.ID)}, {"Name", n.Name}, {"DC", n.Datacenter}, {"Eligibility", n.SchedulingEligibility}, {"Status", n.Status}})
	fmt.Fprintln(out, "\nDrivers")
	rows := [][]string{{"Driver", "Detected", "Healthy", "Message"}}
	for _, name := range slices.Sorted(maps.Keys(n.Drivers)) {
		d := n.Drivers[name]
		rows = append(rows, []string{name, fmt.Sprint(d.Detected), fmt.Sprint(d.Healthy), d.HealthDescription})
	}
	columns(out, rows)
	fmt.Fprintln(out, "\nAttributes")
	var attrs [][2]string
	for _, k := range slices.Sorted(maps.Keys(n.Attributes)) {
		attrs = append(attrs, [2]string{k, n.Attributes[k]})
	}
	pairs(out, attrs)
	return nil
}

func versionVerb(_ []string, out io.Writer) error {
	fmt.Fprintln(out, "pluginhost, a stand-in for the Nomad client; not Nomad")
	return nil
}

func gcVerb([]string, io.Writer) error { return api.Call("POST", "/v1/gc", nil, nil, nil) }

func violationsVerb(args []string, out io.Writer) error {
	f := newFlags("violations")
	asJSON := f.Bool("json", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var list []violations.Violation
	if err := api.Call("GET", "/v1/violations", nil, nil, &list); err != nil {
		return err
	}
	if *asJSON {
		if err := printJSON(out, list); err != nil {
			return err
		}
	} else {
		for _, v := range list {
			fmt.Fprintf(out, "%s %s: %s\n", v.Time.Format("15:04:05.000"), v.Plugin, v.Text)
		}
	}
	if len(list) > 0 {
		return &exitError{code: 1}
	}
	return nil
}

func eventsVerb(_ []string, out io.Writer) error {
	var list []api.DriverEvent
	if err := api.Call("GET", "/v1/events", nil, nil, &list); err != nil {
		return err
	}
	return printJSON(out, list)
}

func pluginVerb(op string) func([]string, io.Writer) error {
	return func(args []string, out io.Writer) error {
		f := newFlags("plugin " + op)
		driver := f.String("driver", "", "")
		if err := f.Parse(args); err != nil {
			return err
		}
		var answer json.RawMessage
		if err := api.Call("POST", "/v1/plugin/"+op, url.Values{"driver": {*driver}}, nil, &answer); err != nil {
			return err
		}
		return printJSON(out, answer)
	}
}

func rpcVerb(args []string, out io.Writer) error {
	f := newFlags("rpc")
	driver := f.String("driver", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	body := f.Arg(1)
	if body == "" {
		body = "{}"
	}
	var answer json.RawMessage
	err := api.Call("POST", "/v1/plugin/rpc", url.Values{"driver": {*driver}, "method": {f.Arg(0)}}, []byte(body), &answer)
	if err != nil {
		return err
	}
	return printJSON(out, answer)
}
