package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

var (
	topEpoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	topRoot  = digest.Sum([]byte("a blob"))
)

// arriving is a node that has bytes of a blob of 100 MiB, seconds after it began.
func arriving(seconds int, have int64) node.View {
	const mib = 1 << 20
	in := swarm.Bytes{Zone: have / 2, Region: have - have/2}
	return node.View{
		Node: "12D3KooWnode0000", Role: "agent", Region: "eu", Zone: "a",
		Snapshot: swarm.Snapshot{
			At:     topEpoch.Add(time.Duration(seconds) * time.Second),
			Totals: swarm.Totals{In: in, ChunksIn: have / mib, Roots: 1, Fetching: 1, Links: 3, Hedges: 2},
			Roots: []swarm.RootSnapshot{{
				Root: topRoot, Bytes: 100 * mib, HaveBytes: have, Chunks: 100, Have: int(have / mib), Readers: 1,
				Peers: 3, Complete: 1, Servers: 1, In: in, ChunksIn: have / mib, Hedges: 2,
			}},
			Peers: []swarm.PeerSnapshot{{ID: "12D3KooWpeer0001", Region: "eu", Server: true, RTT: time.Millisecond, In: have, Roots: 1}},
		},
		Names: map[string]string{topRoot.Hex(): "acme/app@sha256:" + strings.Repeat("ab", 32)},
	}
}

func TestTopComputesRates(t *testing.T) {
	const mib = 1 << 20
	before := []sample{{ops: "a:1", view: arriving(0, 10*mib)}}
	now := []sample{{ops: "a:1", view: arriving(2, 50*mib)}}
	v := compare(before, now)
	if v.Totals.InPerSec != 20*mib || v.Totals.ChunksInPerSec != 20 || v.Totals.Recent.Zone != 20*mib {
		t.Errorf("totals: %+v", v.Totals)
	}
	b := v.Blobs[0]
	if b.ETASeconds != 2.5 || b.Have != 0.5 || b.Fetching != 1 || b.Whole != 0 || !strings.HasPrefix(b.Name, "acme/app@") {
		t.Errorf("blob: %+v", b)
	}
	if p := v.Peers[0]; p.InPerSec != 20*mib {
		t.Errorf("peer: %+v", p)
	}
	if first := compare(nil, now); first.Totals.InPerSec != 0 || first.Blobs[0].InPerSec != 0 || first.Blobs[0].ETASeconds != -1 {
		t.Errorf("one sample has rates: %+v", first.Totals)
	}
	// A node that was started anew begins with zero, not below.
	if again := compare(now, []sample{{ops: "a:1", view: arriving(4, 2*mib)}}); again.Totals.InPerSec != mib {
		t.Errorf("after a restart: %+v", again.Totals)
	}
	// Over two nodes rates add up, and the slower one ends it.
	slow := arriving(2, 20*mib)
	slow.Node = "another"
	was := arriving(0, 15*mib)
	was.Node = "another"
	two := compare(append(before, sample{ops: "b:1", view: was}), append(now, sample{ops: "b:1", view: slow}))
	if b := two.Blobs[0]; b.Nodes != 2 || b.Have != 0.35 || b.ETASeconds != 32 || two.Totals.InPerSec != 22.5*mib || len(two.Peers) != 0 {
		t.Errorf("two nodes: %+v", b)
	}
}

func TestTopFrame(t *testing.T) {
	const mib = 1 << 20
	before := []sample{{ops: "a:1", view: arriving(0, 10*mib)}}
	view := arriving(2, 50*mib)
	view.Reported = []dht.ReportedPeer{{ID: "12D3KooWliar0001", By: nil, Last: topEpoch, Shunned: topEpoch.Add(time.Minute)}}
	alone := false
	view.ServerReachable = &alone
	lines := frame(compare(before, []sample{{ops: "a:1", view: view}}), 0, 0)
	text := strings.Join(lines, "\n")
	for _, want := range []string{
		"NO SERVER REACHABLE",
		"in 20.0MiB/s (zone 50% region 50% wan 0%)  out 0B/s  chunks/s 20 in, 0 out",
		"liar0001", "kept away",
		"acme/app@sha256:abababababab  100MiB  #####.....  50%    0/1  20.0MiB/s  0B/s    1+2  0B/25.0MiB/25.0MiB/0B        20       2    0  2.5s",
		"peer0001  server  eu     1ms  20.0MiB/s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the frame lacks %q:\n%s", want, text)
		}
	}
	for _, l := range frame(compare(before, []sample{{ops: "a:1", view: view}}), 40, 6) {
		if len(l) > 40 {
			t.Errorf("a line of %d columns: %s", len(l), l)
		}
	}
	if got := len(frame(compare(before, []sample{{ops: "a:1", view: view}}), 80, 6)); got != 6 {
		t.Errorf("%d lines in a window of 6", got)
	}
	// What a node says does not steer the terminal.
	view.Names[topRoot.Hex()] = "acme/\x1b[2Japp\r\n@sha256:ab"
	if text := strings.Join(frame(compare(before, []sample{{ops: "a:1", view: view}}), 0, 0), ""); strings.ContainsAny(text, "\x1b\r\n") {
		t.Errorf("control characters reach the terminal: %q", text)
	}
}

func TestTopForScripts(t *testing.T) {
	var calls atomic.Int64
	ops := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/view/swarm" {
			http.NotFound(w, r)
			return
		}
		n := calls.Add(1)
		_ = json.NewEncoder(w).Encode(arriving(int(n), n*10<<20))
	}))
	defer ops.Close()
	address := strings.TrimPrefix(ops.URL, "http://")
	execute := func(args ...string) (string, error) {
		var out bytes.Buffer
		root := newRoot()
		root.SetArgs(append([]string{"top", "--interval", "100ms", "--ops", address}, args...))
		root.SetOut(&out)
		root.SetErr(&out)
		err := root.Execute()
		return out.String(), err
	}
	text, err := execute() // no terminal: one view
	if err != nil || !strings.Contains(text, "in 10.0MiB/s") || strings.Contains(text, "\x1b") {
		t.Errorf("%v:\n%s", err, text)
	}
	t.Setenv("SHOAL_OPS", address)
	var out bytes.Buffer
	named := newRoot()
	named.SetArgs([]string{"top", "--interval", "100ms", "--once"})
	named.SetOut(&out)
	if err := named.Execute(); err != nil || !strings.Contains(out.String(), "in 10.0MiB/s") {
		t.Errorf("by SHOAL_OPS: %v:\n%s", err, out.String())
	}
	text, err = execute("--once", "--json", "--ops", "127.0.0.1:1") // the other one is not there
	var v topView
	if err != nil || json.Unmarshal([]byte(text), &v) != nil || len(v.Nodes) != 2 || v.Nodes[1].Error == "" || v.Totals.InPerSec != 10<<20 {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := execute("--interval", "1ns"); err == nil {
		t.Error("an interval of nothing is taken")
	}
	if _, err := execute("--ops", "nowhere"); err == nil {
		t.Error("an address without a port is taken")
	}
	ops.Close()
	if _, err := execute("--once"); err == nil {
		t.Error("nobody answers, and that is no error")
	}
}
