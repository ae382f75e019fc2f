package nemesis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// errNothing says that there is nothing yet that a fault could be done to; it does not count.
var errNothing = errors.New("nothing to do it to")

// filesOf lists the files beneath a directory of a member that keep accepts, by their
// paths in it. Files come and go while a node runs.
func filesOf(m *wave.Member, dir string, keep func(name string) bool) []string {
	root := filepath.Join(m.Node.Data, dir)
	var names []string
	_ = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && keep(entry.Name()) {
			if relative, err := filepath.Rel(root, name); err == nil {
				names = append(names, relative)
			}
		}
		return nil
	})
	slices.Sort(names)
	return names
}

// flip turns a byte of a file that is not 0 into another one and returns where. Space that
// was reserved and never written holds nothing to damage.
func flip(name string, rng *rand.Rand) (int64, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	var b [1]byte
	for range 10_000 {
		if info.Size() == 0 {
			break
		}
		at := rng.Int64N(info.Size())
		if _, err := f.ReadAt(b[:], at); err != nil {
			return 0, err
		}
		if b[0] == 0 {
			continue
		}
		b[0] ^= byte(1 + rng.IntN(255))
		_, err := f.WriteAt(b[:], at)
		return at, errors.Join(err, f.Sync())
	}
	return 0, fmt.Errorf("%s holds nothing: %w", name, errNothing)
}

// flipOne damages one of a member's files and says which.
func (n *Nemesis) flipOne(m *wave.Member, dir string, names []string, rng *rand.Rand) error {
	for len(names) > 0 {
		i := rng.IntN(len(names))
		at, err := flip(filepath.Join(m.Node.Data, dir, names[i]), rng)
		if err == nil {
			if dir != blobs { // of which there are many
				n.Say("%s: byte %d of %s is another one now", m.Name(), at, filepath.Join(dir, names[i]))
			}
			return nil
		}
		if !errors.Is(err, errNothing) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		names = slices.Delete(names, i, i+1)
	}
	return errNothing
}

const blobs = "blobs/blobs"

// flips is how many blobs one fault damages. The youngest are: clients still read them.
const flips = 12

// flipBlobs damages blobs of a running server, of which other servers have copies that
// were not damaged: what is the only one cannot be got back by anybody.
func flipBlobs(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	m := n.server(s)
	whole := func(name string) bool { return !strings.Contains(name, ".part") && !strings.Contains(name, ".tmp") }
	copies := make(map[string]int)
	for _, other := range n.others(m) {
		for _, name := range filesOf(other, blobs, whole) {
			copies[name]++
		}
	}
	root := func(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) }
	names := slices.DeleteFunc(filesOf(m, blobs, whole), func(name string) bool { return copies[name] < 2 || n.damaged[root(name)] })
	age := make(map[string]time.Time)
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(m.Node.Data, blobs, name)); err == nil {
			age[name] = info.ModTime()
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return age[b].Compare(age[a]) })
	done := 0
	for _, name := range names {
		if done == flips {
			break
		}
		n.damaged[root(name)] = true
		switch err := n.flipOne(m, blobs, []string{name}, rng); {
		case err == nil:
			done++
		case !errors.Is(err, errNothing):
			return err
		}
	}
	n.Flipped += done
	if done == 0 {
		return errNothing
	}
	return nil
}

// flipStopped damages a file of a server that does not run, which starts again then.
func (n *Nemesis) flipStopped(m *wave.Member, dir string, keep func(string) bool, rng *rand.Rand) error {
	names := filesOf(m, dir, keep)
	if len(names) == 0 {
		return errNothing
	}
	if err := killNow(m); err != nil {
		return err
	}
	n.suspect[m] = true
	return n.flipOne(m, dir, names, rng)
}

func flipLog(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	return n.flipStopped(n.server(s), "raft/wal", func(name string) bool { return strings.HasSuffix(name, ".wal") }, rng)
}

func flipState(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	return n.flipStopped(n.server(s), "state", func(name string) bool { return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".log") }, rng)
}

func flipSnapshot(n *Nemesis, _ context.Context, s Step, rng *rand.Rand) error {
	return n.flipStopped(n.server(s), "raft/snapshots", func(string) bool { return true }, rng)
}

// rejoin does what the server's last words tell an operator to do when its metadata is
// damaged: set that aside, and start it again. It keeps its identity and its blobs.
func (n *Nemesis) rejoin(ctx context.Context, m *wave.Member) error {
	n.Say("%s is damaged: it rejoins", m.Name())
	n.Rejoined++
	out, err := n.Cluster.ShoalOn(ctx, m, "rejoin", "--data", m.Node.Data)
	if err != nil {
		return err
	}
	n.Say("%s", strings.TrimSpace(out))
	if err := n.start(m); err != nil {
		return err
	}
	if err := n.awaitReady(ctx, m); err != nil {
		return err
	}
	aside, err := filepath.Glob(filepath.Join(m.Node.Data, "aside-*"))
	for _, dir := range aside {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return errors.Join(err, AwaitVoters(ctx, n.Cluster))
}
