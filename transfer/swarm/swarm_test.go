package swarm_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/transfer/swarm"
)

func TestAFetchBringsTheBlob(t *testing.T) {
	w := newTown(t)
	content := random(3<<20 + 17)
	root := w.put(w.add(server), content)
	got, err := w.add().fetch(within(t), root)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestAgentsTradeAmongThemselves(t *testing.T) {
	w := newTown(t)
	content := random(16 << 20)
	seed := w.add(server)
	root := w.put(seed, content)
	var agents []*node
	for range 6 {
		agents = append(agents, w.add())
	}
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() {
			got, err := a.fetch(within(t), root)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	copies := float64(seed.bytes("sent", "")) / float64(len(content))
	t.Logf("the seed sent %.2f copies to %d agents", copies, len(agents))
	if copies > 5 {
		t.Error("agents did not trade")
	}
	_ = swarm.Hints{}
}
