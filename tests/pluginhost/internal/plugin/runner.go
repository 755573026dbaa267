package plugin

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
)

// processRunner starts a plugin for go-plugin as go-plugin's own runner does, and
// checks every line of stdout and stderr.
type processRunner struct {
	cmd            *exec.Cmd
	report         func(string)
	stdout, stderr io.ReadCloser
	rawOut, rawErr io.ReadCloser
	// drained has one token for each of the two pipes read to its end:
	// exec.Cmd.Wait closes them and would cut off what is still inside.
	drained chan struct{}
}

var _ runner.Runner = (*processRunner)(nil)

// newProcessRunner builds the command for bin from go-plugin's spec, without the
// socket directory that go-plugin adds for custom runners: Nomad starts its
// plugins without it.
func newProcessRunner(bin string, spec *exec.Cmd, report func(string)) (*processRunner, error) {
	cmd := &exec.Cmd{Path: bin, Args: []string{bin}, Stdin: spec.Stdin}
	for _, kv := range spec.Env {
		if !strings.HasPrefix(kv, goplugin.EnvUnixSocketDir+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	r := &processRunner{cmd: cmd, report: report, drained: make(chan struct{}, 2)}
	var err error
	if r.rawOut, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if r.rawErr, err = cmd.StderrPipe(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *processRunner) Start(context.Context) error {
	if err := r.cmd.Start(); err != nil {
		return err
	}
	outR, outW := io.Pipe()
	errR, errW := io.Pipe()
	r.stdout, r.stderr = outR, errR
	go func() {
		filterStdout(outW, r.rawOut, r.report)
		outW.Close()
		r.drained <- struct{}{}
	}()
	go func() {
		filterStderr(errW, r.rawErr, r.report)
		errW.Close()
		r.drained <- struct{}{}
	}()
	return nil
}

func (r *processRunner) Wait(context.Context) error {
	<-r.drained
	<-r.drained
	return r.cmd.Wait()
}

func (r *processRunner) Kill(context.Context) error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (r *processRunner) Stdout() io.ReadCloser           { return r.stdout }
func (r *processRunner) Stderr() io.ReadCloser           { return r.stderr }
func (r *processRunner) Name() string                    { return r.cmd.Path }
func (r *processRunner) Diagnose(context.Context) string { return "" }
func (r *processRunner) pid() int                        { return r.cmd.Process.Pid }

func (r *processRunner) ID() string {
	if r.cmd.Process == nil {
		return ""
	}
	return strconv.Itoa(r.cmd.Process.Pid)
}

func (r *processRunner) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

func (r *processRunner) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}
