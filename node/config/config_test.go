package config_test

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
)

func load(t *testing.T, role meta.Role, env map[string]string, args ...string) (config.Config, []config.Explained, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.AddFlags(flags, role)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return config.Load(role, flags, func(k string) string { return env[k] })
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "shoal.yaml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	name := file(t, "data: /from/file\nregion: file\nzone: file\nraft:\n  profile: site\n")
	c, explained, err := load(t, meta.RoleServer,
		map[string]string{"SHOAL_REGION": "env", "SHOAL_ZONE": "env"},
		"--config", name, "--zone", "flag")
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != "/from/file" || c.Region != "env" || c.Zone != "flag" || c.RaftProfile != "site" || c.Rack != "" {
		t.Errorf("got %+v", c)
	}
	want := map[string]string{
		"data": "file " + name, "region": "environment SHOAL_REGION", "zone": "flag --zone",
		"raft.profile": "file " + name, "rack": "default",
	}
	for _, e := range explained {
		if w, ok := want[e.Key]; ok && e.Source != w {
			t.Errorf("%s came from %q, want %q", e.Key, e.Source, w)
		}
	}
}

func TestJoinTokenIsNotTheClientToken(t *testing.T) {
	c, explained, err := load(t, meta.RoleAgent, map[string]string{"SHOAL_TOKEN": "client", "SHOAL_JOIN_TOKEN": "join"}, "--data", "/d")
	if err != nil {
		t.Fatal(err)
	}
	if c.Token.Reveal() != "join" {
		t.Errorf("token = %q", c.Token.Reveal())
	}
	for _, e := range explained {
		if e.Key == "token" && e.Value != "***" {
			t.Errorf("explain shows the token: %q", e.Value)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		role meta.Role
		args []string
		want string
	}{
		{"no data", meta.RoleAgent, nil, "--data DIR"},
		{"no region", meta.RoleServer, []string{"--data", "/d"}, "--region"},
		{"bad region", meta.RoleServer, []string{"--data", "/d", "--region", "EU West"}, "inner hyphens"},
		{"bad address", meta.RoleAgent, []string{"--data", "/d", "--gateway", "5000"}, "HOST:PORT"},
		{"both ways in", meta.RoleServer, []string{"--data", "/d", "--region", "r", "--bootstrap", "--join", "https://a:1"}, "one of them"},
		{"plain join", meta.RoleAgent, []string{"--data", "/d", "--join", "http://a:1"}, "https://"},
		{"bad size", meta.RoleAgent, []string{"--data", "/d", "--cache-size", "lots"}, "50GiB"},
		{"rate without time", meta.RoleAgent, []string{"--data", "/d", "--up", "100MB"}, "100MB/s or 800mbit"},
		{"rate too small", meta.RoleAgent, []string{"--data", "/d", "--wan-down", "5KB/s"}, "limit wan_down of 5000 bytes/s: the least is"},
		{"rate below none", meta.RoleAgent, []string{"--data", "/d", "--up", "-1mbit"}, "800mbit"},
		{"limit of no tenant", meta.RoleAgent, []string{"--data", "/d", "--tenant-limits", "Acme=1gbit"}, "inner hyphens"},
		{"limit of no class", meta.RoleServer, []string{"--data", "/d", "--region", "r", "--class-limits", "slow=1gbit"}, "urgent, bulk, prewarm"},
		{"table without names", meta.RoleAgent, []string{"--data", "/d", "--tenant-limits", "1gbit"}, "NAME=RATE"},
		{"a cache beside a disk", meta.RoleServer, []string{"--data", "/d", "--region", "r", "--cache-size", "1GiB"}, "cache-size (from flag --cache-size): a server that keeps its blobs on a disk has no cache"},
		{"a bucket to take, and none", meta.RoleServer, []string{"--data", "/d", "--region", "r", "--take-bucket", "c"}, "--blobs s3://"},
		{"bad profile", meta.RoleServer, []string{"--data", "/d", "--region", "r", "--raft-profile", "lan"}, "wan or site"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := load(t, c.role, nil, c.args...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
		})
	}
}

func TestUnknownKeySuggests(t *testing.T) {
	_, _, err := load(t, meta.RoleAgent, nil, "--data", "/d", "--config", file(t, "cash-size: 1GiB\n"))
	if err == nil || !strings.Contains(err.Error(), `did you mean "cache-size"`) {
		t.Errorf("got %v", err)
	}
	_, _, err = load(t, meta.RoleAgent, nil, "--data", "/d", "--config", filepath.Join(t.TempDir(), "absent.yaml"))
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("got %v", err)
	}
}

func TestBytes(t *testing.T) {
	for in, want := range map[string]config.Bytes{"0": 0, "1024": 1024, "1KiB": 1024, "1.5GiB": 3 << 29, "64MB": 64e6, "2 TiB": 2 << 40} {
		got, err := config.ParseBytes(in)
		if err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
		if back, err := config.ParseBytes(got.String()); err != nil || back != got {
			t.Errorf("%q prints as %q, which reads as %d, %v", in, got, back, err)
		}
	}
	for _, in := range []string{"", "-1", "x", "1PiBs"} {
		if got, err := config.ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", in, got)
		}
	}
}

func TestRates(t *testing.T) {
	for in, want := range map[string]config.Rate{
		"none": 0, "0": 0, "100MB/s": 100e6, "12.5MB/s": 12.5e6, "800mbit": 100e6, "1Gbit/s": 125e6, "64KiB/s": 64 << 10, "1000B/s": 1000,
		"1234567B/s": 1234567, "2.5GB/s": 2.5e9,
	} {
		got, err := config.ParseRate(in)
		if err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
		if back, err := config.ParseRate(got.String()); err != nil || back != got {
			t.Errorf("%q prints as %q, which reads as %d, %v", in, got, back, err)
		}
	}
	for _, in := range []string{"", "1", "100MB", "fast", "-5MB/s", "-1mbit", "mbit", "NaNmbit", "1e30gbit"} {
		if got, err := config.ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", in, got)
		}
	}
	if got := config.Rate(12_500_000).String(); got != "12.5MB/s" {
		t.Errorf("12.5 MB/s prints as %s", got)
	}
}

// Limits come from all places like other settings; a table from one place replaces
// that of another.
func TestLimits(t *testing.T) {
	name := file(t, `data: /d
limits:
  up: 100MB/s
  wan-up: 80mbit
  tenants:
    acme: 50MB/s
    beta: 1gbit
  classes:
    prewarm: 20MB/s
`)
	c, explained, err := load(t, meta.RoleAgent, map[string]string{"SHOAL_LIMITS_DOWN": "200MB/s"}, "--config", name, "--up", "40MB/s", "--yield")
	if err != nil {
		t.Fatal(err)
	}
	want := limit.Limits{
		Up: 40e6, Down: 200e6, WANUp: 10e6,
		Tenants: map[string]int64{"acme": 50e6, "beta": 125e6}, Classes: map[limit.Class]int64{limit.Prewarm: 20e6},
	}
	if !reflect.DeepEqual(c.Limits, want) || !c.Yield {
		t.Errorf("got %+v", c.Limits)
	}
	shown := map[string]string{}
	for _, e := range explained {
		shown[e.Key] = e.Value + " from " + e.Source
	}
	for key, want := range map[string]string{
		"limits.up": "40MB/s from flag --up", "limits.down": "200MB/s from environment SHOAL_LIMITS_DOWN",
		"limits.wan-up": "10MB/s from file " + name, "limits.zone-up": "none from default",
		"limits.tenants": "acme=50MB/s,beta=125MB/s from file " + name, "limits.classes": "prewarm=20MB/s from file " + name,
	} {
		if shown[key] != want {
			t.Errorf("%s: %s, want %s", key, shown[key], want)
		}
	}
	c, _, err = load(t, meta.RoleAgent, nil, "--config", name, "--tenant-limits", "acme=none,gamma=2MB/s")
	if err != nil || !reflect.DeepEqual(c.Limits.Tenants, map[string]int64{"gamma": 2e6}) {
		t.Errorf("a flag's table: %v, %v", c.Limits.Tenants, err)
	}
	_, _, err = load(t, meta.RoleAgent, nil, "--data", "/d", "--config", file(t, "limits:\n  upp: 1MB/s\n"))
	if err == nil || !strings.Contains(err.Error(), `did you mean "limits.up"`) {
		t.Errorf("a key that is none: %v", err)
	}
}

// The first server of a cluster knows nobody to ask the way to. An address of
// loopback in the roster would lead every other node to itself.
func TestAdvertiseHost(t *testing.T) {
	anywhere := "127.0.0.1"
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok {
			own[n.IP.String()] = true
			if n.IP.IsGlobalUnicast() {
				anywhere = ""
			}
		}
	}
	for _, c := range []struct{ advertise, listen, toward, want string }{
		{"first.example", "0.0.0.0:5000", "", "first.example"},
		{"", "10.0.0.7:5000", "", "10.0.0.7"},
		{"", "0.0.0.0:5000", "127.0.0.1:5000", "127.0.0.1"},
		{"", "0.0.0.0:5000", "", anywhere},
		{"", ":5000", "no such host:1", anywhere},
	} {
		got := config.Config{Advertise: c.advertise}.AdvertiseHost(c.listen, c.toward)
		if c.want != "" && got != c.want || c.want == "" && (!own[got] || net.ParseIP(got).IsLoopback()) {
			t.Errorf("AdvertiseHost(%q, %q) with --advertise %q = %q, want %q", c.listen, c.toward, c.advertise, got, c.want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	p, err := config.ParsePrefixes("10.1.2.3/16, 192.168.7.9,fd00::/8")
	if err != nil || p.String() != "10.1.0.0/16,192.168.7.9/32,fd00::/8" {
		t.Fatalf("%v %v", p, err)
	}
	for _, s := range []string{"10.0.0.0/33", "example.com", "fe80::1%eth0"} {
		if _, err := config.ParsePrefixes(s); err == nil {
			t.Errorf("%q was read", s)
		}
	}
	if p, err := config.ParsePrefixes(""); p != nil || err != nil {
		t.Fatalf("%v %v", p, err)
	}
}
