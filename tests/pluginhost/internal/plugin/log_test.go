package plugin

import (
	"bytes"
	"strings"
	"testing"
)

func TestLogLines(t *testing.T) {
	good := `{"@level":"info","@message":"m","@module":"x","@timestamp":"2026-01-02T03:04:05.123456Z","k":1}`
	for _, c := range []struct {
		line  string
		fatal bool
		want  string
	}{
		{good, false, ""},
		{strings.Replace(good, "Z", "+02:00", 1), false, ""},
		{"plain text", false, "not one JSON object"},
		{good + good, false, "not one JSON object"},
		{strings.Replace(good, `"m"`, `{"a":1}`, 1), true, "would panic"},
		{strings.Replace(good, `"info"`, `3`, 1), true, "would panic"},
		{strings.Replace(good, ".123456Z", ".123Z", 1), false, "has not the form"},
		{strings.Replace(good, ".123456Z", ".123456789Z", 1), false, "has not the form"},
		{strings.Replace(good, "info", "notice", 1), false, "unknown @level"},
		{`{"@level":"info","@timestamp":"2026-01-02T03:04:05.123456Z"}`, false, "no @message"},
		{strings.Replace(good, `"m"`, `"`+strings.Repeat("m", maxLogLine)+`"`, 1), false, "more than"},
	} {
		fatal, err := checkLogLine([]byte(c.line))
		if fatal != c.fatal || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80s: fatal %v, error %v", c.line, fatal, err)
		}
	}
}

func TestStderrFilterDropsOnlyWhatPanics(t *testing.T) {
	good := `{"@level":"info","@message":"m","@timestamp":"2026-01-02T03:04:05.123456Z"}` + "\n"
	var out bytes.Buffer
	var reports []string
	filterStderr(&out, strings.NewReader(good+"text\n"+`{"@message":5}`+"\n"+good), func(s string) { reports = append(reports, s) })
	if out.String() != good+"text\n"+good {
		t.Errorf("passed on: %q", out.String())
	}
	if len(reports) != 2 {
		t.Errorf("reports: %q", reports)
	}
}

func TestStdoutFilter(t *testing.T) {
	for in, want := range map[string]int{
		"1|2|unix|/tmp/s|grpc|\n":                            0,
		"1|2|unix|/tmp/s|grpc|\nmore\n":                      1,
		"1|2|unix|/tmp/s|grpc|":                              1, // not flushed with its newline
		"1|2|tcp|127.0.0.1:1|grpc|\n":                        1,
		"1|2|unix|/tmp/s|grpc||true\n":                       1,
		"hello\n1|2|unix|/tmp/s|grpc|\n":                     2,
		"1|2|unix|/" + strings.Repeat("s", 107) + "|grpc|\n": 1,
		"1|2|unix|/" + strings.Repeat("s", 106) + "|grpc|\n": 0,
	} {
		var reports []string
		filterStdout(&bytes.Buffer{}, strings.NewReader(in), func(s string) { reports = append(reports, s) })
		if len(reports) != want {
			t.Errorf("%.60q: %q", in, reports)
		}
	}
}

func TestPluginVersions(t *testing.T) {
	for v, want := range map[string]bool{"1.2.3": true, "v2.0.0": true, "0.1.0-rc.1+x": true, "1.2": false, "": false, "a.b.c": false, "1.2.3.4": false} {
		if validVersion(v) != want {
			t.Errorf("version %q", v)
		}
	}
}
