package state

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// killedDir tells the process that TestKill starts where its state is.
const killedDir = "SHOAL_TEST_KILLED_DIR"

// endlessLog returns the entry of an index: the first are levelOne, then images
// come, move the same aliases and go.
func endlessLog() func(index uint64) Entry {
	first := append(levelOne(), raised())
	return func(index uint64) Entry {
		if index <= uint64(len(first)) {
			return first[index-1]
		}
		n := index / 2
		c := Command(tagged(image(fmt.Sprint("m", n%50), "layer"), "latest"))
		if index%2 == 1 {
			c = DeleteVersion{Repo: appRef, Package: "api", Version: string(blob(fmt.Sprint("m", (n+25)%50)).Digest)}
		}
		command, err := Encode(Origin{RequestID: fmt.Sprint(index), Time: meta.Time(index)}, c)
		if err != nil {
			panic(err)
		}
		return Entry{Index: index, Term: 1, Command: command}
	}
}

// raised is the entry behind levelOne that raises the level to the newest, from which
// on there is an audit log too.
func raised() Entry {
	command, err := Encode(Origin{Principal: "user:ada", Time: 1}, SetLevel{Level: Level})
	if err != nil {
		panic(err)
	}
	return Entry{Index: uint64(len(levelOne()) + 1), Term: 1, Command: command}
}

// TestKill kills a process that applies, takes snapshots and restores them, at any
// moment. What it leaves is the whole state of some index: no part of an entry, no
// half of a restore.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		applyForEver(t, dir)
	}
	dir := t.TempDir()
	log := endlessLog()
	witness := openMachine(t, t.TempDir())
	at := uint64(0)
	for round := range 8 {
		child := exec.Command(os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), killedDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("the process said %q: %v", line, err)
		}
		<-time.After(time.Duration(rand.IntN(150)) * time.Millisecond)
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // It was killed.

		m, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		applied, _ := m.Applied()
		if applied < at {
			t.Fatalf("round %d: index %d was there and is gone, %d is left", round, at, applied)
		}
		for ; at < applied; at++ {
			e := log(at + 1)
			if _, err := witness.Apply(e.Index, e.Term, e.Command); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := hash(t, m), hash(t, witness); got != want {
			t.Fatalf("round %d: the state is %s, that of its index %s", round, got, want)
		}
		check(&bench{TB: t, Machine: m})
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("killed 8 times in %d entries", at)
}

// applyForEver goes on where the state ends, until it is killed.
func applyForEver(t *testing.T, dir string) {
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	log := endlessLog()
	for {
		index, _ := m.Applied()
		var entries []Entry
		for i := range rand.Uint64N(40) {
			entries = append(entries, log(index+1+i))
		}
		if _, err := m.ApplyBatch(entries); err != nil {
			t.Fatal(err)
		}
		if rand.IntN(4) > 0 {
			continue
		}
		c, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		var snapshot bytes.Buffer
		if _, err := c.WriteTo(&snapshot); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Restore(&snapshot); err != nil {
			t.Fatal(err)
		}
	}
}
