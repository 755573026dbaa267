// Package plugintest makes a test binary a driver plugin: it notes every call and
// misbehaves on demand.
package plugintest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pluginhost/internal/files"
	"pluginhost/internal/plugin"
	"pluginhost/pb"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// The environment of the fake plugin.
const (
	logEnv  = "FAKE_LOG"  // the file in which it notes its calls
	modeEnv = "FAKE_MODE" // how it misbehaves, comma-separated
	markEnv = "FAKE_MARK" // shows that the plugin gets the host's environment
)

// Modes of the fake plugin.
const (
	RefuseConfig = "refuse"    // SetConfig fails
	EndStream    = "endstream" // Fingerprint ends although the plugin lives
	BadLog       = "badlog"    // writes lines to stderr that Nomad cannot parse
	NoExec       = "noexec"    // ExecTask and ExecTaskStreaming are unimplemented
)

// Fake is how a test starts the fake plugin and reads its notes.
type Fake struct {
	Bin string
	log string
}

// Main is TestMain of a package whose test binary becomes the fake plugin.
func Main(m *testing.M) {
	if os.Getenv(plugin.Handshake.MagicCookieKey) == plugin.Handshake.MagicCookieValue {
		serve()
		return
	}
	os.Exit(m.Run())
}

// New prepares the environment of a fake plugin.
func New(t *testing.T, modes ...string) *Fake {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{Bin: self, log: filepath.Join(t.TempDir(), "calls")}
	t.Setenv(logEnv, f.log)
	t.Setenv(modeEnv, strings.Join(modes, ","))
	t.Setenv(markEnv, "inherited")
	return f
}

// Calls returns the noted calls, a list for each process in its order.
func (f *Fake) Calls(t *testing.T) [][]string {
	t.Helper()
	raw, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	index := map[string]int{}
	for _, line := range files.Lines(raw) {
		pid, text, _ := strings.Cut(string(line), " ")
		i, ok := index[pid]
		if !ok {
			i = len(out)
			index[pid] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], text)
	}
	return out
}

const (
	waitTries = 100
	waitPause = 100 * time.Millisecond
)

// Eventually fails the test unless f soon becomes true.
func Eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range waitTries {
		if f() {
			return
		}
		time.Sleep(waitPause)
	}
	t.Fatalf("%s: not so after %v", what, waitTries*waitPause)
}

func mode(name string) bool {
	return slices.Contains(strings.Split(os.Getenv(modeEnv), ","), name)
}

func note(format string, args ...any) {
	f, err := os.OpenFile(os.Getenv(logEnv), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d "+format+"\n", append([]any{os.Getpid()}, args...)...)
}

func serve() {
	note("launch ppid_env=%s sockdir=%q", os.Getenv(markEnv), os.Getenv(goplugin.EnvUnixSocketDir))
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: plugin.Handshake,
		Plugins:         goplugin.PluginSet{"base": server{}, "driver": server{}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(opts...)
			pb.RegisterBasePluginServer(s, base{})
			pb.RegisterDriverServer(s, newDriver())
			return s
		},
	})
}

// server has nothing to add to the gRPC server that serve makes.
type server struct{ plugin.Bridge }

func (server) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }
