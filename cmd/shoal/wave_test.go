package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestWaveFlags(t *testing.T) {
	if at, in, err := parseAt("+10m"); err != nil || at != 0 || in != 600 {
		t.Errorf("+10m is %v, %d, %v", at, in, err)
	}
	if at, in, err := parseAt("2030-01-01T06:00:00+01:00"); err != nil || in != 0 || at.Std().Format(time.RFC3339) != "2030-01-01T05:00:00Z" {
		t.Errorf("an instant is %v, %d, %v", at.Std(), in, err)
	}
	if a, err := parseAbort("5%"); err != nil || *a != (meta.WaveAbort{Above: 5, Percent: true}) {
		t.Errorf("5%% is %v, %v", a, err)
	}
	if a, err := parseAbort("0"); err != nil || *a != (meta.WaveAbort{}) {
		t.Errorf("0 is %v, %v", a, err)
	}
	if a, err := parseAbort(""); err != nil || a != nil {
		t.Errorf("nothing is %v, %v", a, err)
	}
	for _, line := range []string{
		"wave create", "wave create acme/app/api:1 --at soon", "wave create acme/app/api:1 --at +-1m",
		"wave create acme/app/api:1 --abort-above 101%", "wave create acme/app/api:1 --abort-above many",
		"wave create acme/app/api:1 --target zone", "wave create acme/app/api:1 --target planet=mars",
		"wave create acme/app/api:1 --target region=eu,region=us", "wave create acme/app/api:1 --pin-for 1s",
		"wave status", "wave nope",
	} {
		// No server is reached: what is wrong is said before.
		if err := run(append(strings.Fields(line), "--server", "http://127.0.0.1:1")...); err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("shoal %s: %v", line, err)
		}
	}
}

// What hosts say must not reach the terminal's controls, nor break a table's rows.
func TestTableIsText(t *testing.T) {
	var out strings.Builder
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	table(cmd, []string{"host", "reason"}, [][]string{{"h1", "no\x1b[2J\u009b2J\n\tspace"}})
	if got, want := out.String(), "HOST  REASON\nh1    no.[2J.2J..space\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s := client.WaveStatus{Wave: meta.Wave{ID: "w1", State: meta.WaveAborted, Reason: "no\x1b[2Jspace"}}
	if err := waveResult(&s); err == nil || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("got %q", err)
	}
}

func TestWaveText(t *testing.T) {
	s := client.WaveStatus{
		Wave: meta.Wave{
			ID: "w1", Name: "launch", State: meta.WaveRunning, Started: 1,
			Refs:     []meta.WaveRef{{Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, Package: "api", Alias: "1"}},
			Failures: []meta.WaveHost{{Node: "h9", Region: "us", Reason: "no\x1b[2Jspace"}},
		},
		Hosts: client.WaveHosts{Targeted: 10, Waiting: 4, Fetching: 3, Done: 1, Failed: 2, Silent: 1},
		Bytes: 1 << 20, TotalBytes: 8 << 20, BytesPerSec: 1 << 20, EtaSeconds: 7,
		Regions: []client.WaveRegion{{Region: "eu", Hosts: client.WaveHosts{Targeted: 10, Done: 1, Fetching: 3, Failed: 2}, Bytes: 1 << 20, TotalBytes: 8 << 20}},
	}
	text := waveText(&s, waveSpeed{}, true)
	for _, want := range []string{
		"wave w1 (launch) is running\n", "acme/app/api:1", "10 hosts: 4 waiting, 3 fetching, 1 done, 2 failed, 1 silent",
		"1.0MiB of 8.0MiB, 1.0MiB/s, 7s left", "#.........  12%", "1/10 hosts", "failed: h9 in us: no.[2Jspace", "and 1 more: shoal wave hosts w1 --state failed",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	s.LeftOutHosts, s.LeftOut = 2, []meta.NodeID{"n1", "n2"}
	if text := waveText(&s, waveSpeed{}, false); !strings.Contains(text, "\n2 hosts are left out, for they may not hold what is of these tenants: n1, n2\n") {
		t.Errorf("with hosts that are left out:\n%s", text)
	}
	// The rate of a watch is of the last seconds, not since the start.
	var speed waveSpeed
	for i := range 10 {
		speed.add(time.Unix(int64(i), 0), int64(i)*2<<20)
	}
	if text := waveText(&s, speed, false); !strings.Contains(text, "2.0MiB/s, 3s left") {
		t.Errorf("watched:\n%s", text)
	}
	for state, want := range map[meta.WaveState]string{meta.WaveAborted: "is aborted", meta.WaveCancelled: "is cancelled", meta.WaveDone: "2 of 10 hosts failed"} {
		s.Wave.State = state
		if err := waveResult(&s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", state, err)
		}
	}
	none := client.WaveStatus{Wave: meta.Wave{ID: "w2", State: meta.WavePlanned}}
	if text := waveText(&none, waveSpeed{}, false); !strings.Contains(text, "no host matches it yet") {
		t.Errorf("for nobody:\n%s", text)
	}
	s.Wave.State, s.Hosts.Failed = meta.WaveDone, 0
	if err := waveResult(&s); err != nil {
		t.Errorf("done: %v", err)
	}
}
