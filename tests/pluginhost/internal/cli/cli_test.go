package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"pluginhost/internal/api"

	nomad "github.com/hashicorp/nomad/api"
)

// serve is an agent with these answers, by method and path.
func serve(t *testing.T, answers map[string]any) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	t.Setenv(api.SocketEnv, socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			http.Error(w, "No allocation(s) with prefix or id found", http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(v)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
}

func run(t *testing.T, code int, argv0, args string) (out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	if got := Main(argv0, strings.Fields(args), &o, &e); got != code {
		t.Errorf("%s %s: exit code %d, want %d\n%s%s", argv0, args, got, code, &o, &e)
	}
	return o.String(), e.String()
}

func TestUnknownCommandsAndHelp(t *testing.T) {
	run(t, unknownCommand, "pluginhost", "nope")
	if out, _ := run(t, 0, "pluginhost", "help"); !strings.Contains(out, "alloc status") || !strings.Contains(out, "task") {
		t.Errorf("help: %s", out)
	}
	if out, _ := run(t, 0, "nomad", "version"); !strings.Contains(out, "not Nomad") {
		t.Errorf("version: %s", out)
	}
}

func TestRunMeansAJobWhenCalledNomad(t *testing.T) {
	serve(t, nil)
	if _, errs := run(t, 1, "nomad", "run"); !strings.Contains(errs, "takes one argument: <path>") {
		t.Errorf("nomad run: %s", errs)
	}
	if _, errs := run(t, 1, "pluginhost", "run"); !strings.Contains(errs, "usage: pluginhost run") {
		t.Errorf("pluginhost run: %s", errs)
	}
}

func TestAllocationsAsScenariosReadThem(t *testing.T) {
	stub := &nomad.AllocationListStub{ID: "01234567-89ab", TaskGroup: "g", DesiredStatus: "run", ClientStatus: "running", JobVersion: 3}
	serve(t, map[string]any{"GET /v1/allocations": []any{stub}})
	out, _ := run(t, 0, "nomad", "job allocs -json demo")
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0]["ClientStatus"] != "running" || list[0]["TaskGroup"] != "g" {
		t.Errorf("%s, %v", out, err)
	}
	if out, _ = run(t, 0, "nomad", "job allocs -t {{range.}}{{.ID}}|{{.ClientStatus}}{{end}} demo"); out != "01234567-89ab|running" {
		t.Errorf("%q", out)
	}
	if _, errs := run(t, 1, "nomad", "job allocs -t {{.Nothing}} demo"); !strings.Contains(errs, "Nothing") {
		t.Errorf("%s", errs)
	}
	out, _ = run(t, 0, "nomad", "job allocs demo")
	if rows := strings.Split(out, "\n"); !strings.HasPrefix(rows[1], "01234567  ") || strings.Fields(rows[1])[4] != "running" {
		t.Errorf("%s", out)
	}
	if _, errs := run(t, 1, "nomad", "alloc status -json zz"); !strings.Contains(errs, "No allocation(s)") {
		t.Errorf("%s", errs)
	}
}

func TestAnUnplacedJobExitsWith2(t *testing.T) {
	serve(t, map[string]any{"POST /v1/jobs": api.Registered{EvalID: "e", JobID: "j", Unplaced: "missing drivers"}})
	job := filepath.Join("..", "..", "..", "..", "examples", "env.nomad.hcl")
	if _, errs := run(t, 2, "nomad", "job run "+job); !strings.Contains(errs, "missing drivers") {
		t.Errorf("%s", errs)
	}
	run(t, 0, "nomad", "job run -detach "+job)
	run(t, 0, "nomad", "job validate "+job)
}

func TestViolationsFailTheCommand(t *testing.T) {
	serve(t, map[string]any{"GET /v1/violations": []any{map[string]string{"Plugin": "p", "Text": "broken"}}})
	if out, _ := run(t, 1, "pluginhost", "violations"); !strings.Contains(out, "p: broken") {
		t.Errorf("%s", out)
	}
	serve(t, map[string]any{"GET /v1/violations": []any{}})
	if out, _ := run(t, 0, "pluginhost", "violations"); out != "" {
		t.Errorf("%s", out)
	}
}
