package main

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
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

// socketPath is where the agent is.
func socketPath() string {
	if p := os.Getenv(socketEnv); p != "" {
		return p
	}
	return defaultSocket
}

// call asks the agent. into may be nil.
func call(method, path string, query url.Values, body, into any) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socketPath())
		},
		DisableKeepAlives: true,
	}}
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		in = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, "http://pluginhost"+path+"?"+query.Encode(), in)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("Error querying agent: no pluginhost agent at %s: %w", socketPath(), err)
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

// printJSON prints like Nomad: indented by four, no HTML escapes.
func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "    ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// columns prints rows of cells in aligned columns.
func columns(out io.Writer, rows [][]string) {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(c))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			fmt.Fprintf(&b, "%-*s", width[i], c)
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		fmt.Fprintln(out, strings.TrimRight(b.String(), " "))
	}
}

// pairs prints "Key = value" lines as Nomad does.
func pairs(out io.Writer, kv [][2]string) {
	width := 0
	for _, p := range kv {
		width = max(width, len(p[0]))
	}
	for _, p := range kv {
		fmt.Fprintf(out, "%-*s = %s\n", width, p[0], p[1])
	}
}

// pathFlags collects a flag that may be repeated.
type pathFlags []string

func (p *pathFlags) String() string     { return "" }
func (p *pathFlags) Set(s string) error { *p = append(*p, s); return nil }

func agentVerb(args []string, _ io.Writer) error {
	f := newFlags("agent")
	var configs pathFlags
	f.Var(&configs, "config", "file or folder")
	pluginDir := f.String("plugin-dir", "", "folder of plugins")
	dataDir := f.String("data-dir", "", "data directory")
	level := f.String("log-level", "", "TRACE, DEBUG, INFO, WARN or ERROR")
	if err := f.Parse(args); err != nil {
		return err
	}
	cfg, err := loadAgentConfig(configs)
	if err != nil {
		return err
	}
	for dst, src := range map[*string]string{&cfg.PluginDir: *pluginDir, &cfg.LogLevel: *level} {
		if src != "" {
			*dst = src
		}
	}
	if *dataDir != "" {
		cfg.setDataDir(*dataDir)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "pluginhost", Level: hclog.LevelFromString(cfg.LogLevel), Output: os.Stderr})
	a, err := newAgent(cfg, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return a.run(ctx, socketPath())
}

func nodeStatusVerb(args []string, out io.Writer) error {
	f := newFlags("node status")
	self := f.Bool("self", false, "")
	asJSON := f.Bool("json", false, "")
	f.Bool("verbose", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var n Node
	if err := call("GET", "/v1/node", nil, nil, &n); err != nil {
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
		return printJSON(out, []Node{n})
	case !one:
		columns(out, [][]string{
			{"ID", "Node Pool", "DC", "Name", "Class", "Drain", "Eligibility", "Status"},
			{short(n.ID), n.NodePool, n.Datacenter, n.Name, "<none>", "false", n.SchedulingEligibility, n.Status},
		})
		return nil
	}
	pairs(out, [][2]string{{"ID", short(n.ID)}, {"Name", n.Name}, {"DC", n.Datacenter}, {"Eligibility", n.SchedulingEligibility}, {"Status", n.Status}})
	fmt.Fprintln(out, "\nDrivers")
	rows := [][]string{{"Driver", "Detected", "Healthy", "Message"}}
	for _, name := range sortedKeys(n.Drivers) {
		d := n.Drivers[name]
		rows = append(rows, []string{name, fmt.Sprint(d.Detected), fmt.Sprint(d.Healthy), d.HealthDescription})
	}
	columns(out, rows)
	fmt.Fprintln(out, "\nAttributes")
	var attrs [][2]string
	for _, k := range sortedKeys(n.Attributes) {
		attrs = append(attrs, [2]string{k, n.Attributes[k]})
	}
	pairs(out, attrs)
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func versionVerb(_ []string, out io.Writer) error {
	fmt.Fprintln(out, "pluginhost, a stand-in for the Nomad client; not Nomad")
	return nil
}

func gcVerb([]string, io.Writer) error { return call("POST", "/v1/gc", nil, nil, nil) }

func violationsVerb(args []string, out io.Writer) error {
	f := newFlags("violations")
	asJSON := f.Bool("json", false, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	var list []Violation
	if err := call("GET", "/v1/violations", nil, nil, &list); err != nil {
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
	var list []driverEvent
	if err := call("GET", "/v1/events", nil, nil, &list); err != nil {
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
		if err := call("POST", "/v1/plugin/"+op, url.Values{"driver": {*driver}}, nil, &answer); err != nil {
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
	err := call("POST", "/v1/plugin/rpc", url.Values{"driver": {*driver}, "method": {f.Arg(0)}}, []byte(body), &answer)
	if err != nil {
		return err
	}
	return printJSON(out, answer)
}
