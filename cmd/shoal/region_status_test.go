package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestRegionStatusIsReadable(t *testing.T) {
	at := func(s int) meta.Time {
		return meta.TimeOf(time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC).Add(time.Duration(s) * time.Second))
	}
	s := regionStatus{
		Regions: []meta.RegionHealth{
			{Region: "eu", State: meta.HealthHealthy},
			{Region: "us", State: meta.HealthDown, Since: at(0), Kind: meta.IncidentDown, Why: "1 of 1 servers not heard", Incident: 7, Backups: []meta.RegionName{"eu", "ap"},
				Servers: []meta.ServerHealth{{Server: "us-1", Silent: at(0), Unchecked: 7}}},
		},
		Incidents: []meta.Incident{{ID: 7, Region: "us", Kind: meta.IncidentDown, Opened: at(0), Closed: at(95), More: 2, Events: []meta.IncidentEvent{
			{At: at(0), Kind: meta.EventOpened, Text: "down: \x1b[31mred"},
			{At: at(0), Kind: meta.EventWritesMoved, Region: "eu"},
			{At: at(90), Kind: meta.EventChecked, Server: "us-1", Copies: 12, Missing: 3},
			{At: at(95), Kind: meta.EventClosed},
		}}},
	}
	cmd := newRegionStatus()
	var out bytes.Buffer
	cmd.SetOut(&out)
	printRegionStatus(cmd, s, at(60).Std())
	t.Logf("\n%s", out.String())
	for _, want := range []string{
		"eu      healthy  -", "us      down     2026-11-22T08:00:00Z (1m0s)  to eu", "not heard since 2026-11-22T08:00:00Z; its copies do not count",
		"incident 7: region us, region_down, closed after 1m35s", "+0s       writes moved to region eu",
		"+1m30s    server us-1 looked at its 12 copies, 3 were missing", "+1m35s    closed", "and 2 more",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("what a server says reaches the terminal as it is")
	}
}
