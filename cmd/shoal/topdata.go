package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// What `shoal top` shows, computed from two samples of each node. Pure but for
// fetchView.

// maxViewBytes bounds what a node may answer.
const maxViewBytes = 16 << 20

// sample is a node's answer.
type sample struct {
	ops  string
	view node.View
	err  error
}

// fetchView asks one ops listener.
func fetchView(ctx context.Context, client *http.Client, ops string) (v node.View, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/view/swarm", nil)
	if err != nil {
		return v, err
	}
	res, err := client.Do(r)
	if err != nil {
		return v, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return v, fmt.Errorf("%s answers %s: is it the --ops address of a shoal node?", ops, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxViewBytes)).Decode(&v); err != nil {
		return v, fmt.Errorf("%s: %w", ops, err)
	}
	return v, nil
}

// takeSamples asks all at once.
func takeSamples(ctx context.Context, client *http.Client, ops []string) []sample {
	out := make([]sample, len(ops))
	var group sync.WaitGroup
	for i, o := range ops {
		group.Go(func() {
			v, err := fetchView(ctx, client, o)
			out[i] = sample{o, v, err}
		})
	}
	group.Wait()
	return out
}

// topView is what is shown, and what --json prints.
type topView struct {
	At time.Time `json:"at"`
	// Seconds lie between the two samples that rates come from.
	Seconds float64   `json:"seconds"`
	Totals  topRates  `json:"totals"`
	Nodes   []topNode `json:"nodes"`
	Blobs   []topBlob `json:"blobs"`
	// Peers are there for a single node.
	Peers    []topPeer     `json:"peers,omitempty"`
	Swarms   []topSwarm    `json:"swarms,omitempty"`
	Banned   []topBanned   `json:"banned"`
	Reported []topReported `json:"reported"`
}

// topRates are what moves, bytes and chunks a second, and counters since the nodes
// started.
type topRates struct {
	InPerSec        float64     `json:"in_bytes_per_sec"`
	OutPerSec       float64     `json:"out_bytes_per_sec"`
	ChunksInPerSec  float64     `json:"chunks_in_per_sec"`
	ChunksOutPerSec float64     `json:"chunks_out_per_sec"`
	In              swarm.Bytes `json:"in"`
	Out             swarm.Bytes `json:"out"`
	// Recent is what came between the samples, by source.
	Recent swarm.Bytes `json:"recent_in"`
	Hedges int64       `json:"hedges"`
	Wasted int64       `json:"wasted"`
	Bad    int64       `json:"bad"`
}

type topNode struct {
	Ops      string          `json:"ops"`
	Error    string          `json:"error,omitempty"`
	Node     meta.NodeID     `json:"node,omitempty"`
	Role     meta.Role       `json:"role,omitempty"`
	Region   meta.RegionName `json:"region,omitempty"`
	Zone     string          `json:"zone,omitempty"`
	Alone    bool            `json:"alone,omitempty"` // an agent that reaches no server
	Roots    int             `json:"roots"`
	Fetching int             `json:"fetching"`
	Links    int             `json:"links"`
	topRates
}

// topBlob is a blob over all nodes that were asked.
type topBlob struct {
	Root string `json:"root"`
	Name string `json:"name,omitempty"`
	// Nodes have some of it, Whole all of it, Fetching are bringing it.
	Nodes    int `json:"nodes"`
	Whole    int `json:"whole"`
	Fetching int `json:"fetching"`
	// Bytes is its size, 0 unknown; Have is the mean share here, 0 to 1.
	Bytes int64   `json:"bytes"`
	Have  float64 `json:"have"`
	// Peers are connected members as the nodes see them, Complete those that are whole.
	Peers    int `json:"peers"`
	Complete int `json:"complete"`
	// ETASeconds is until the last of the nodes has it at the present rate: 0 when all
	// have, negative when nothing comes.
	ETASeconds float64 `json:"eta_seconds"`
	Trouble    string  `json:"trouble,omitempty"`
	topRates
}

type topPeer struct {
	swarm.PeerSnapshot
	InPerSec  float64 `json:"in_bytes_per_sec"`
	OutPerSec float64 `json:"out_bytes_per_sec"`
}

type topSwarm struct {
	Region meta.RegionName `json:"region"`
	Server meta.NodeID     `json:"server"`
	Name   string          `json:"name,omitempty"`
	node.RegionSwarm
}

type topBanned struct {
	By meta.NodeID `json:"by"`
	swarm.BannedPeer
}

type topReported struct {
	Region meta.RegionName `json:"region"`
	ID     meta.NodeID     `json:"id"`
	By     int             `json:"by"`
	// Shunned says that nobody is introduced to it.
	Shunned bool      `json:"shunned"`
	Last    time.Time `json:"last"`
}

func minusBytes(a, b swarm.Bytes) swarm.Bytes {
	return swarm.Bytes{Local: a.Local - b.Local, Rack: a.Rack - b.Rack, Zone: a.Zone - b.Zone, Region: a.Region - b.Region, WAN: a.WAN - b.WAN}
}

func plusBytes(a, b swarm.Bytes) swarm.Bytes {
	return minusBytes(a, minusBytes(swarm.Bytes{}, b))
}

// add sums the rates of another node or blob.
func (r *topRates) add(o topRates) {
	r.InPerSec += o.InPerSec
	r.OutPerSec += o.OutPerSec
	r.ChunksInPerSec += o.ChunksInPerSec
	r.ChunksOutPerSec += o.ChunksOutPerSec
	r.In, r.Out, r.Recent = plusBytes(r.In, o.In), plusBytes(r.Out, o.Out), plusBytes(r.Recent, o.Recent)
	r.Hedges += o.Hedges
	r.Wasted += o.Wasted
	r.Bad += o.Bad
}

// counters is what both a node's totals and a root have.
type counters struct {
	in, out             swarm.Bytes
	chunksIn, chunksOut int64
	hedges, wasted, bad int64
}

func countersOf(t swarm.Totals) counters {
	return counters{t.In, t.Out, t.ChunksIn, t.ChunksOut, t.Hedges, t.Wasted, t.Bad}
}

func countersOfRoot(r swarm.RootSnapshot) counters {
	return counters{r.In, r.Out, r.ChunksIn, r.ChunksOut, r.Hedges, r.Wasted, r.Bad}
}

// rates compares two samples; one that went back (a restart) counts as zero before.
func (c counters) rates(before counters, seconds float64) topRates {
	if c.in.Sum() < before.in.Sum() || c.out.Sum() < before.out.Sum() {
		before = counters{}
	}
	out := topRates{In: c.in, Out: c.out, Recent: minusBytes(c.in, before.in), Hedges: c.hedges, Wasted: c.wasted, Bad: c.bad}
	if seconds > 0 {
		out.InPerSec = float64(out.Recent.Sum()) / seconds
		out.OutPerSec = float64(c.out.Sum()-before.out.Sum()) / seconds
		out.ChunksInPerSec = float64(c.chunksIn-before.chunksIn) / seconds
		out.ChunksOutPerSec = float64(c.chunksOut-before.chunksOut) / seconds
	}
	return out
}

// compare makes the view of now, with rates since before, which is of the same nodes
// in the same order, or empty.
func compare(before, now []sample) topView {
	out := topView{Nodes: []topNode{}, Blobs: []topBlob{}, Banned: []topBanned{}, Reported: []topReported{}}
	blobs := map[string]*topBlob{}
	for i, s := range now {
		n := topNode{Ops: s.ops}
		if s.err != nil {
			n.Error = s.err.Error()
			out.Nodes = append(out.Nodes, n)
			continue
		}
		var old node.View
		if i < len(before) && before[i].err == nil && before[i].view.Node == s.view.Node {
			old = before[i].view
		}
		var seconds float64
		if !old.At.IsZero() {
			seconds = s.view.At.Sub(old.At).Seconds()
		} else {
			old.Totals = s.view.Totals // nothing to compare with
		}
		if s.view.At.After(out.At) {
			out.At, out.Seconds = s.view.At, seconds
		}
		v := s.view
		n.Node, n.Role, n.Region, n.Zone = v.Node, v.Role, v.Region, v.Zone
		n.Alone = v.ServerReachable != nil && !*v.ServerReachable
		n.Roots, n.Fetching, n.Links = v.Totals.Roots, v.Totals.Fetching, v.Totals.Links
		n.topRates = countersOf(v.Totals).rates(countersOf(old.Totals), seconds)
		out.Totals.add(n.topRates)
		out.Nodes = append(out.Nodes, n)
		mergeRoots(blobs, v, old, seconds)
		for _, b := range v.Banned {
			out.Banned = append(out.Banned, topBanned{v.Node, b})
		}
		for _, p := range v.Reported {
			out.Reported = append(out.Reported, topReported{v.Region, p.ID, len(p.By), !p.Shunned.IsZero(), p.Last})
		}
		for _, w := range v.Swarms {
			out.Swarms = append(out.Swarms, topSwarm{v.Region, v.Node, v.Names[w.Root.Hex()], w})
		}
		if len(now) == 1 {
			out.Peers = peersOf(v, old, seconds)
		}
	}
	for _, b := range blobs {
		b.Have /= float64(b.Nodes)
		out.Blobs = append(out.Blobs, *b)
	}
	slices.SortFunc(out.Blobs, func(a, b topBlob) int {
		return cmp.Or(
			cmp.Compare(min(1, b.Fetching), min(1, a.Fetching)),
			cmp.Compare(b.InPerSec+b.OutPerSec, a.InPerSec+a.OutPerSec),
			cmp.Compare(b.In.Sum()+b.Out.Sum(), a.In.Sum()+a.Out.Sum()),
			cmp.Compare(a.Root, b.Root))
	})
	return out
}

// mergeRoots adds a node's blobs to those of all.
func mergeRoots(blobs map[string]*topBlob, v, old node.View, seconds float64) {
	before := map[string]swarm.RootSnapshot{}
	for _, r := range old.Roots {
		before[r.Root.Hex()] = r
	}
	for _, r := range v.Roots {
		key := r.Root.Hex()
		b := blobs[key]
		if b == nil {
			b = &topBlob{Root: key}
			blobs[key] = b
		}
		if name := v.Names[key]; b.Name == "" || strings.Contains(name, "@") {
			b.Name = cmp.Or(name, b.Name) // a server that was not asked for it knows the digest alone
		}
		b.Nodes++
		b.Bytes = max(b.Bytes, r.Bytes)
		whole := r.Chunks > 0 && r.Have == r.Chunks
		switch {
		case whole:
			b.Whole++
			b.Have++
		case r.Bytes > 0:
			b.Have += float64(r.HaveBytes) / float64(r.Bytes)
		}
		b.Peers, b.Complete = max(b.Peers, r.Peers), max(b.Complete, r.Complete)
		was, known := before[key]
		if !known {
			was = swarm.RootSnapshot{}
			if seconds == 0 {
				was = r
			}
		}
		rates := countersOfRoot(r).rates(countersOfRoot(was), seconds)
		b.topRates.add(rates)
		if r.Readers == 0 || whole {
			continue
		}
		b.Fetching++
		b.Trouble = cmp.Or(b.Trouble, r.Trouble)
		eta := -1.0
		if got := float64(r.HaveBytes-was.HaveBytes) / max(seconds, 1e-9); seconds > 0 && got > 0 && r.Bytes > 0 {
			eta = float64(r.Bytes-r.HaveBytes) / got
		}
		if eta < 0 || b.ETASeconds < 0 {
			b.ETASeconds = -1
		} else {
			b.ETASeconds = max(b.ETASeconds, eta)
		}
	}
}

func peersOf(v, old node.View, seconds float64) []topPeer {
	before := map[meta.NodeID]swarm.PeerSnapshot{}
	for _, p := range old.Peers {
		before[p.ID] = p
	}
	out := []topPeer{}
	for _, p := range v.Peers {
		t := topPeer{PeerSnapshot: p}
		if was := before[p.ID]; seconds > 0 && p.In >= was.In && p.Out >= was.Out {
			t.InPerSec, t.OutPerSec = float64(p.In-was.In)/seconds, float64(p.Out-was.Out)/seconds
		}
		out = append(out, t)
	}
	slices.SortStableFunc(out, func(a, b topPeer) int { return cmp.Compare(b.InPerSec+b.OutPerSec, a.InPerSec+a.OutPerSec) })
	return out
}
