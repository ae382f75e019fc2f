package main

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/node/limits"
	"github.com/shoal-registry/shoal/transfer/limit"
)

// limited serves the limits of a node and returns a function that runs `shoal limit`
// with a line of arguments against it.
func limited(t *testing.T, configured limit.Limits) func(line string) (string, error) {
	t.Helper()
	b, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := limits.Open(limits.Config{
		Configured: configured, Budgets: b, File: filepath.Join(t.TempDir(), "limits.json"),
		Write: os.WriteFile, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(k.Handler())
	t.Cleanup(s.Close)
	return func(line string) (string, error) {
		var out bytes.Buffer
		root := newRoot()
		root.SetArgs(append([]string{"limit"}, append(strings.Fields(line), "--ops", strings.TrimPrefix(s.URL, "http://"))...))
		root.SetOut(&out)
		root.SetErr(&out)
		err := root.Execute()
		return out.String(), err
	}
}

func TestLimitVerbs(t *testing.T) {
	run := limited(t, limit.Limits{Up: 100e6, Classes: map[limit.Class]int64{limit.Prewarm: 20e6}})
	for _, step := range []struct{ line, want string }{
		{"show", `
BUDGET           LIMIT    CONFIGURED  CHANGED
classes.prewarm  20MB/s   20MB/s      
up               100MB/s  100MB/s     
`},
		{"set --up 400mbit --wan-down 1gbit --tenant acme=30MB/s --tenant beta=1.5MB/s --class prewarm=none", `
BUDGET           LIMIT     CONFIGURED  CHANGED
classes.prewarm  none      20MB/s      none
tenants.acme     30MB/s                30MB/s
tenants.beta     1.5MB/s               1.5MB/s
up               50MB/s    100MB/s     50MB/s
wan-down         125MB/s               125MB/s
`},
		{"set --up configured --tenant acme=configured", `
BUDGET           LIMIT    CONFIGURED  CHANGED
classes.prewarm  none     20MB/s      none
tenants.beta     1.5MB/s              1.5MB/s
up               100MB/s  100MB/s     
wan-down         125MB/s              125MB/s
`},
		{"reset --json", `
{
  "limits": {
    "classes.prewarm": 20000000,
    "up": 100000000
  },
  "configured": {
    "classes.prewarm": 20000000,
    "up": 100000000
  },
  "changed": {}
}
`},
	} {
		out, err := run(step.line)
		// Columns are aligned by the longest entry, whatever it is.
		if err != nil || strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(step.want), " ") {
			t.Errorf("limit %s: %v\n%s", step.line, err, out)
		}
	}
	for line, want := range map[string]string{
		"set":                     "--up 50MB/s",
		"set --up 50MB":           `up: rate "50MB": write it like 100MB/s`,
		"set --up 5KB/s":          "the least is",
		"set --tenant acme":       "NAME=RATE",
		"set --class slow=1gbit":  `class "slow": write urgent, bulk, prewarm`,
		"set --tenant Acme=1gbit": "inner hyphens",
		"set --upp 1gbit":         "unknown flag",
		"show more":               "unknown command",
	} {
		if out, err := run(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("limit %s: %v\n%s", line, err, out)
		}
	}
	if out, err := limited(t, limit.Limits{})("show"); err != nil || out != "no limits\n" {
		t.Errorf("without limits: %q, %v", out, err)
	}
}
