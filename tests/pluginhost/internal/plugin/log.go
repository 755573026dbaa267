package plugin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// hclogTime is the only time layout that go-plugin accepts: with other than six
// fractional digits the line loses its level and fields.
const hclogTime = "2006-01-02T15:04:05.000000Z07:00"

// maxLogLine is go-plugin's read buffer: a longer line is logged raw, in pieces.
const maxLogLine = 64 * 1024

// checkLogLine returns what is wrong with a line of a plugin's stderr, or nil.
// fatal means that go-plugin's parser would panic on it, and the Nomad agent
// with it.
func checkLogLine(line []byte) (fatal bool, err error) {
	if len(line) > maxLogLine {
		return false, fmt.Errorf("log line of %d bytes, more than the %d that Nomad parses", len(line), maxLogLine)
	}
	var fields map[string]any
	if jerr := json.Unmarshal(line, &fields); jerr != nil {
		return false, fmt.Errorf("log line is not one JSON object: %v", jerr)
	}
	for _, key := range []string{"@message", "@level", "@timestamp"} {
		v, ok := fields[key]
		if !ok {
			err = fmt.Errorf("log line has no %s", key)
			continue
		}
		if _, ok := v.(string); !ok {
			return true, fmt.Errorf("%s is %T, not a string: the Nomad agent would panic", key, v)
		}
	}
	if err != nil {
		return false, err
	}
	switch level := fields["@level"].(string); level {
	case "trace", "debug", "info", "warn", "error":
	default:
		return false, fmt.Errorf("unknown @level %q", level)
	}
	ts := fields["@timestamp"].(string)
	if t, terr := time.Parse(hclogTime, ts); terr != nil {
		return false, fmt.Errorf("@timestamp %q has not the form %s", ts, hclogTime)
	} else if t.IsZero() {
		return false, fmt.Errorf("@timestamp %q is zero", ts)
	}
	return false, nil
}

// maxSocketPath is the space in sun_path less its NUL, unix(7).
const maxSocketPath = 107

// filterStderr copies a plugin's stderr to go-plugin line by line, reports each
// line that breaks the contract, and drops those that would panic.
func filterStderr(dst io.Writer, src io.Reader, report func(string)) {
	r := bufio.NewReaderSize(src, maxLogLine)
	for {
		line, err := r.ReadBytes('\n')
		if text := bytes.TrimRight(line, "\r\n"); len(text) > 0 {
			fatal, bad := checkLogLine(text)
			if bad != nil {
				report(fmt.Sprintf("%v: %s", bad, clip(string(text))))
			}
			if !fatal {
				if _, werr := dst.Write(line); werr != nil {
					// go-plugin stopped reading: keep draining so that
					// the plugin never blocks on its log.
					dst = io.Discard
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// filterStdout copies the handshake line and reports any output after it.
func filterStdout(dst io.Writer, src io.Reader, report func(string)) {
	r := bufio.NewReader(src)
	for n := 0; ; n++ {
		line, err := r.ReadString('\n')
		if n == 0 && line != "" {
			if bad := checkHandshake(line); bad != nil {
				report(fmt.Sprintf("handshake %q: %v", clip(line), bad))
			}
			if _, werr := io.WriteString(dst, line); werr != nil {
				dst = io.Discard
			}
		} else if line != "" {
			report(fmt.Sprintf("output on stdout after the handshake: %q", clip(line)))
		}
		if err != nil {
			return
		}
	}
}

// checkHandshake checks the only line that a plugin prints on stdout.
func checkHandshake(line string) error {
	if !strings.HasSuffix(line, "\n") {
		return fmt.Errorf("no newline at its end")
	}
	parts := strings.Split(strings.TrimSuffix(line, "\n"), "|")
	if len(parts) < 6 {
		return fmt.Errorf("%d fields instead of 6", len(parts))
	}
	want := []string{"1", "2", "unix", parts[3], "grpc", ""}
	for i, w := range want {
		if parts[i] != w {
			return fmt.Errorf("field %d is %q instead of %q", i+1, parts[i], w)
		}
	}
	if len(parts[3]) == 0 || len(parts[3]) > maxSocketPath || parts[3][0] != '/' {
		return fmt.Errorf("%q is not a usable socket path", parts[3])
	}
	if len(parts) > 6 {
		return fmt.Errorf("a seventh field although PLUGIN_MULTIPLEX_GRPC was not set")
	}
	return nil
}

// maxQuoted is how much of a bad line a report quotes.
const maxQuoted = 300

func clip(s string) string {
	if len(s) > maxQuoted {
		return s[:maxQuoted] + "…"
	}
	return s
}
