package plugin

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// handshakeTimeout bounds the start of a plugin, as in go-plugin.
	handshakeTimeout = time.Minute
	handshakePause   = 10 * time.Millisecond
)

// The port range that go-plugin offers to plugins without a unix socket.
const minTCPPort, maxTCPPort = 10000, 25000

// socketField is the place of the socket's path in the handshake line.
const socketField = 3

// Detach starts bin so that it outlives this process, with stdout and stderr in
// files, and returns what Attach needs. Nomad's own plugins would get SIGPIPE at
// their next log line if a pipe to the host were closed.
func Detach(bin, stdout, stderr string) (Reattach, error) {
	cmd := exec.Command(bin)
	cmd.Env = append(os.Environ(),
		Handshake.MagicCookieKey+"="+Handshake.MagicCookieValue,
		fmt.Sprintf("PLUGIN_MIN_PORT=%d", minTCPPort), fmt.Sprintf("PLUGIN_MAX_PORT=%d", maxTCPPort),
		"PLUGIN_PROTOCOL_VERSIONS="+strconv.FormatUint(uint64(Handshake.ProtocolVersion), 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for path, dst := range map[string]*io.Writer{stdout: &cmd.Stdout, stderr: &cmd.Stderr} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return Reattach{}, err
		}
		defer f.Close()
		*dst = f
	}
	if err := cmd.Start(); err != nil {
		return Reattach{}, fmt.Errorf("failed to launch %s: %w", bin, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // reaps it if it exits before us
	socket, err := awaitHandshake(stdout, exited)
	if err != nil {
		cmd.Process.Kill()
		log, _ := os.ReadFile(stderr)
		return Reattach{}, fmt.Errorf("failed to launch %s: %w: %s", bin, err, clip(string(log)))
	}
	return Reattach{Pid: cmd.Process.Pid, Socket: socket}, nil
}

// awaitHandshake waits for the handshake line in a file and returns its socket.
func awaitHandshake(stdout string, exited <-chan error) (string, error) {
	for end := time.Now().Add(handshakeTimeout); time.Now().Before(end); time.Sleep(handshakePause) {
		select {
		case err := <-exited:
			return "", fmt.Errorf("it exited before the handshake: %v", err)
		default:
		}
		raw, err := os.ReadFile(stdout)
		if err != nil {
			return "", err
		}
		line, _, ok := bytes.Cut(raw, []byte("\n"))
		if !ok {
			continue
		}
		if err := checkHandshake(string(line) + "\n"); err != nil {
			return "", fmt.Errorf("handshake %q: %w", clip(string(line)), err)
		}
		return strings.Split(string(line), "|")[socketField], nil
	}
	return "", fmt.Errorf("no handshake within %v", handshakeTimeout)
}

// CheckOutput reports what breaks the contract in the stdout and stderr of a
// plugin.
func CheckOutput(stdout, stderr io.Reader, report func(string)) {
	filterStdout(io.Discard, stdout, report)
	filterStderr(io.Discard, stderr, report)
}
