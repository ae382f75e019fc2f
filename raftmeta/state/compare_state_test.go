package state

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// However entries come in batches, each replica looks at its state at the comparison
// itself, and one state has one hash.
func TestCompareStateLooksAtItsOwnIndex(t *testing.T) {
	var log []Entry
	add := func(c Command) {
		b, err := Encode(Origin{RequestID: fmt.Sprint(len(log)), Time: meta.Time(len(log) + 1)}, c)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, Entry{Index: uint64(len(log) + 1), Term: 1, Command: b})
	}
	add(Bootstrap{Cluster: meta.Cluster{ID: "c1", Epoch: 1, Level: Level}, Node: server("eu-1", "eu"), Region: meta.Region{Name: "eu", Primary: true}})
	for i := range 10 {
		add(CreateTenant{Name: meta.TenantName(fmt.Sprint("tenant", i))})
	}
	add(CompareState{})
	at := log[len(log)-1].Index
	for i := range 10 {
		add(CreateTenant{Name: meta.TenantName(fmt.Sprint("later", i))})
	}
	var want [32]byte
	for _, size := range []int{1, 5, len(log)} {
		looked := 0
		m, err := Open(t.TempDir(), Options{Compare: func(v *View) bool {
			looked++
			sum, err := v.Hash(t.Context())
			if err != nil || v.Index() != at {
				t.Errorf("batches of %d: a look at %d, %v", size, v.Index(), err)
			}
			if size == 1 {
				want = sum
			} else if sum != want {
				t.Errorf("batches of %d: another hash", size)
			}
			return v.Close() == nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		for from := 0; from < len(log); from += size {
			if _, err := m.ApplyBatch(log[from:min(from+size, len(log))]); err != nil {
				t.Fatal(err)
			}
		}
		if looked != 1 {
			t.Errorf("batches of %d: looked %d times", size, looked)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReportState(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	hash := func(fill byte) []byte { return bytes.Repeat([]byte{fill}, 32) }
	b.refuse(ReportState{Index: 1, Server: "eu-1", Hash: hash(1)}, meta.ErrNotFound, "comparison")
	var first uint64
	for range comparisonsKept + 1 {
		r := b.must(CompareState{})
		if first == 0 {
			first = r.Index
		}
	}
	b.refuse(ReportState{Index: first, Server: "eu-1", Hash: hash(1)}, meta.ErrNotFound, "comparison")
	b.refuse(ReportState{Index: first + 1, Server: "nobody", Hash: hash(1)}, meta.ErrNotFound, "server")
	b.must(ReportState{Index: first + 1, Server: "eu-1", Hash: hash(1)})
	b.must(ReportState{Index: first + 1, Server: "eu-1", Hash: hash(2)})
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	all, err := ListComparisons{}.Answer(v)
	if err != nil || len(all) != comparisonsKept || all[0].Index != first+1 || len(all[0].Said) != 1 || all[0].Said[0].Hash[0] != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestMajorityOfStates(t *testing.T) {
	servers := []meta.NodeID{"a", "b", "c"}
	for _, test := range []struct {
		said string // a letter a server, the hash as a digit
		want byte   // 0: none
	}{
		{"", 0}, {"a1", 0}, {"a1 b1", 1}, {"a1 b2", 0}, {"a2 b1 c1", 1}, {"a1 b2 c3", 0}, {"a1 x1 y1", 0}, {"x1 a2 b2", 2},
	} {
		c := Comparison{}
		var id string
		var n byte
		for _, word := range bytes.Fields([]byte(test.said)) {
			if _, err := fmt.Sscanf(string(word), "%1s%d", &id, &n); err != nil {
				t.Fatal(err)
			}
			c.Said = append(c.Said, Said{Server: meta.NodeID(id), Hash: []byte{n}})
		}
		got, ok := c.Majority(servers)
		if ok != (test.want != 0) || ok && got[0] != test.want {
			t.Errorf("%q: %v, %v", test.said, got, ok)
		}
	}
}
