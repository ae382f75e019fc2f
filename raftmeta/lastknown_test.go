package raftmeta

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What a process wrote is there for the next one although it was killed: the files as
// they are on disk, without a close, hold it.
func TestLastKnownOutlivesAKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mirror")
	k, err := openLastKnown(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	node := meta.Node{ID: "12D3KooWExample", Region: "r1"}
	if err := k.node(RosterChange{Node: node}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		killed := filepath.Join(t.TempDir(), "mirror")
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		after, err := openLastKnown(killed)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := after.load(func(string, *answer) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := after.close(); err != nil {
			t.Fatal(err)
		}
		if len(nodes) == 1 && nodes[0].ID == node.ID {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the next process knows %v", nodes)
		}
	}
}
