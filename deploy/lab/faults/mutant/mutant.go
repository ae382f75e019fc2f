// Package mutant keeps small faults of the kind that lose data, so that it can be shown
// that the fault rounds see them.
//
// Start reading at All, the table; Build makes a binary with one of them in it. The
// product has none of this code: a mutant is a few replaced lines, compiled with `go build
// -overlay` from a copy of the file. A test asserts that every replaced text is still
// there, exactly once. No goroutines.
package mutant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Mutant is one fault of the product.
type Mutant struct {
	Name  string
	What  string
	Edits []Edit
	// Only are the faults of the round that must find it.
	Only []string
	// Keys in use; few of them bring more operations to each.
	Keys int
	// LargeEvery, when not 0, is how many artifacts there are for each that has several
	// chunks.
	LargeEvery int
}

// Edit replaces text in a file of the module. Old occurs in it exactly once.
type Edit struct{ File, Old, New string }

const (
	machineFile = "raftmeta/state/machine.go"
	nodeFile    = "raftmeta/consensus/node.go"
	roundFile   = "raftmeta/consensus/round.go"
	proposeFile = "raftmeta/consensus/propose.go"
	storeFile   = "raftmeta/store.go"
	publishFile = "gateway/catalog/publish.go"
	blobFile    = "transfer/store/blob.go"
	filesFile   = "transfer/store/files.go"
)

// All returns the mutants. Where a moment is too short for a kill to hit it in minutes, the
// mutant makes it longer; the mistake is the same.
func All() []Mutant {
	return []Mutant{
		{
			Name: "index-outside-the-batch",
			What: "the applied index is written before the entry's changes, not with them",
			Edits: []Edit{
				{machineFile, "if err := b.Set(keyApplied, value, nil); err != nil {\n\t\treturn nil, &StorageError{Cause: err}\n\t}\n",
					"if err := db.Set(keyApplied, value, pebble.NoSync); err != nil {\n\t\treturn nil, &StorageError{Cause: err}\n\t}\n\ttime.Sleep(5 * time.Millisecond)\n"},
				{machineFile, "\t\"sync\"\n", "\t\"sync\"\n\t\"time\"\n"},
			},
			Only: []string{"kill", "kill-leader", "kill-all"}, Keys: 32,
		},
		{
			Name: "log-without-fsync",
			What: "an entry of the log is acknowledged 300 ms before it is durable",
			Edits: []Edit{
				{nodeFile, "wal.WithSegmentSize(cfg.Snapshots.SegmentBytes))", "wal.WithSegmentSize(cfg.Snapshots.SegmentBytes), wal.WithSegmentFiler(segment.NewFiler(walDir(cfg.Dir), forgetful{fs.New()})))"},
				{nodeFile, "\twal \"github.com/hashicorp/raft-wal\"\n", "\twal \"github.com/hashicorp/raft-wal\"\n\t\"github.com/hashicorp/raft-wal/fs\"\n\t\"github.com/hashicorp/raft-wal/segment\"\n\t\"github.com/hashicorp/raft-wal/types\"\n"},
				{nodeFile, "// New opens", `type forgetful struct{ types.VFS }

func (f forgetful) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.VFS.Create(dir, name, size)
	return forgetfulFile{w}, err
}

func (f forgetful) OpenWriter(dir, name string) (types.WritableFile, error) {
	w, err := f.VFS.OpenWriter(dir, name)
	return forgetfulFile{w}, err
}

type forgetfulFile struct{ types.WritableFile }

func (f forgetfulFile) Sync() error {
	time.AfterFunc(300*time.Millisecond, func() { _ = f.WritableFile.Sync() })
	return nil
}

// New opens`},
			},
			Only: []string{"power-all"}, Keys: 32,
		},
		{
			Name: "leader-trusts-itself",
			What: "who believes to lead answers strong reads without asking the others (as after raft's VerifyLeader, a moment later)",
			Edits: []Edit{
				{roundFile, "\t\tmode = meta.ModeStrong\n\t\tbegan, err := n.rounds.join(ctx)\n", "\t\tmode = meta.ModeStrong\n\t\tbegan, err := time.Now(), error(nil)\n\t\tif n.Leader() != n.cfg.Self {\n\t\t\tbegan, err = n.rounds.join(ctx)\n\t\t}\n"},
			},
			Only: []string{"pause-leader"}, Keys: 8,
		},
		{
			Name: "follower-does-not-wait",
			What: "a follower answers strong reads from its own state",
			Edits: []Edit{
				{roundFile, "\t\tmode = meta.ModeStrong\n\t\tbegan, err := n.rounds.join(ctx)\n", "\t\tmode = meta.ModeStrong\n\t\tbegan, err := time.Now(), error(nil)\n\t\tif n.Leader() == n.cfg.Self {\n\t\t\tbegan, err = n.rounds.join(ctx)\n\t\t}\n"},
			},
			Only: []string{"isolate", "deaf", "mute"}, Keys: 16,
		},
		{
			Name: "age-of-a-moment-ago",
			What: "a bounded answer says that it is younger than it is",
			Edits: []Edit{
				{roundFile, "return time.Since(f.began)\n", "return min(time.Since(f.began), 10*time.Millisecond)\n"},
			},
			Only: []string{"isolate", "deaf", "mute"}, Keys: 16,
		},
		{
			Name: "token-not-awaited",
			What: "a read with the token of a write does not wait for that write",
			Edits: []Edit{
				{roundFile, "if f.After.Index > 0 {", "if f.After.Index > 1<<62 {"},
			},
			Only: []string{"isolate", "deaf", "slow"}, Keys: 32,
		},
		{
			Name: "acknowledged-before-commit",
			What: "a publish is acknowledged when it takes long, committed or not",
			Edits: []Edit{
				{storeFile, "\tout, err := s.node.Propose(ctx, command)\n\tif err != nil {\n\t\treturn Receipt{}, fmt.Errorf(\"%s: %w\", state.Name(c), err)\n", `	type proposed struct {
		out consensus.Outcome
		err error
	}
	answer := make(chan proposed, 1)
	go func() {
		out, err := s.node.Propose(context.WithoutCancel(ctx), command)
		answer <- proposed{out, err}
	}()
	var out consensus.Outcome
	publish := time.After(time.Hour)
	if _, is := c.(state.Publish); is {
		publish = time.After(100 * time.Millisecond)
	}
	select {
	case p := <-answer:
		out, err = p.out, p.err
	case <-publish:
		index, _ := s.machine.Applied()
		return Receipt{Token: meta.Token{Index: index}}, nil
	}
	if err != nil {
		return Receipt{}, fmt.Errorf("%s: %w", state.Name(c), err)
`},
			},
			Only: []string{"kill-leader", "isolate-leader", "kill-all"}, Keys: 32,
		},
		{
			Name: "publish-in-two-entries",
			What: "a version is published first, and its aliases are set by further entries",
			Edits: []Edit{
				{publishFile, `		return c.do(ctx, by, stepPublish, state.Publish{
			Version: v, Files: files, Blobs: blobs, Aliases: d.Aliases, Base: d.Base,
			Spelling: d.Spelling, NewSpelling: d.Spelling != "" && d.NewSpelling,
		})
`, `		receipt, err := c.do(ctx, by, stepPublish, state.Publish{
			Version: v, Files: files, Blobs: blobs, Base: d.Base,
			Spelling: d.Spelling, NewSpelling: d.Spelling != "" && d.NewSpelling,
		})
		for i, alias := range d.Aliases {
			if err != nil {
				break
			}
			value := receipt.Value
			receipt, err = c.do(ctx, by, 1_000_000+i, state.MoveAlias{Repo: repo, Package: v.Package, Name: alias, Version: v.Name})
			receipt.Value = value
		}
		return receipt, err
`},
			},
			Only: []string{"kill-all", "kill-leader", "pause"}, Keys: 8,
		},
		{
			Name: "blob-without-fsync",
			What: "a blob is acknowledged before its bytes and its name are durable",
			Edits: []Edit{
				{filesFile, "\t\terr := unix.Fdatasync(int(f.Fd()))\n", "\t\tvar err error\n"},
				{filesFile, "\treturn errors.Join(f.Sync(), f.Close())\n", "\treturn f.Close()\n"},
			},
			Only: []string{"power-all"}, Keys: 32,
		},
		{
			Name: "chunk-not-verified",
			What: "a chunk is served as it comes from the disk",
			Edits: []Edit{
				{blobFile, "if err == nil && digest.Sum(b) == e.m.Chunks[i].ID {\n\t\treturn b, nil\n\t}\n\t// Memory", "if err == nil {\n\t\treturn b, nil\n\t}\n\t// Memory"},
			},
			// What has one chunk is still compared with its digest before it is served.
			Only: []string{"flip-blobs", "kill-all"}, Keys: 8, LargeEvery: 2,
		},
		{
			Name: "request-applied-twice",
			What: "a repeated request id is applied again, and answers come late, so that some are lost",
			Edits: []Edit{
				{machineFile, "if before != nil {", "if before != nil && e.Index == 0 {"},
				{proposeFile, "\tcase err == nil:\n\t\treturn &forwarded{Status: statusCommitted", "\tcase err == nil:\n\t\ttime.Sleep(100 * time.Millisecond)\n\t\treturn &forwarded{Status: statusCommitted"},
			},
			Only: []string{"kill-leader"}, Keys: 16,
		},
	}
}

// Find returns the mutant of that name.
func Find(name string) (Mutant, error) {
	var names []string
	for _, m := range All() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Mutant{}, fmt.Errorf("no mutant %q; there are %s", name, strings.Join(names, ", "))
}

// Apply returns the mutated files of the module at root, by their paths in it.
//
// Errors: a text that is not in its file exactly once, since the product has changed.
func (m Mutant) Apply(root string) (map[string]string, error) {
	files := make(map[string]string)
	for _, e := range m.Edits {
		text, ok := files[e.File]
		if !ok {
			content, err := os.ReadFile(filepath.Join(root, e.File))
			if err != nil {
				return nil, fmt.Errorf("mutant %s: %w", m.Name, err)
			}
			text = string(content)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return nil, fmt.Errorf("mutant %s: %s has this text %d times instead of once, bring the mutant up to date:\n%s", m.Name, e.File, n, e.Old)
		}
		files[e.File] = strings.Replace(text, e.Old, e.New, 1)
	}
	return files, nil
}

// Build builds the binary of the module at root with the mutant in it, in dir, and
// returns its path.
func (m Mutant) Build(ctx context.Context, root, dir string) (string, error) {
	files, err := m.Apply(root)
	if err != nil {
		return "", err
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range files {
		mutated := filepath.Join(dir, m.Name+"-"+strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(mutated, []byte(text), 0o644); err != nil {
			return "", err
		}
		overlay.Replace[filepath.Join(root, name)] = mutated
	}
	description, err := json.Marshal(overlay)
	overlayFile := filepath.Join(dir, m.Name+".json")
	if err = errors.Join(err, os.WriteFile(overlayFile, description, 0o644)); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "shoal-"+m.Name)
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlayFile, "-o", binary, "./cmd/shoal")
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build mutant %s: %w: %s", m.Name, err, output)
	}
	return binary, nil
}
