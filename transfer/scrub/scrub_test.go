package scrub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the store and the metadata of one server, as a Scrubber sees them.
type server struct {
	mu      sync.Mutex
	blobs   map[digest.CID]*fake
	wanted  meta.AuditRequest
	reports []meta.AuditReport
	failed  []string
	lives   int64
	foreign int64
	stored  int64
	bytes   int64 // read by a scrub
	read    []digest.CID
	listErr error
}

// fake is a blob: what the metadata says and what the disk has.
type fake struct {
	state   meta.ReplicaState // "" is no record
	size    int64
	chunks  int
	gone    bool
	bad     int // damaged chunks
	digest  digest.Digest
	content digest.Digest
}

func root(i int) digest.CID { return digest.Sum(fmt.Append(nil, "root ", i)) }

func newServer(blobs int) *server {
	s := &server{blobs: map[digest.CID]*fake{}}
	for i := range blobs {
		d := digest.FromBytes(fmt.Append(nil, i))
		s.blobs[root(i)] = &fake{state: meta.ReplicaVerified, size: 1 << 20, chunks: 4, digest: d, content: d}
		s.stored += 1 << 20
	}
	return s
}

func (s *server) roots(after digest.CID) (all []digest.CID) {
	for r := range s.blobs {
		if bytes.Compare(r[:], after[:]) > 0 {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b digest.CID) int { return bytes.Compare(a[:], b[:]) })
	return all
}

func (s *server) List(_ context.Context, after digest.CID, limit int) (infos []store.Info, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.roots(after) {
		if b := s.blobs[r]; !b.gone && len(infos) < limit {
			infos = append(infos, store.Info{Root: r, StoredBytes: b.size, Complete: b.bad == 0})
		}
	}
	return infos, s.listErr
}

func (s *server) Look(_ context.Context, r digest.CID) (store.Looked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[r]
	if b == nil || b.gone {
		return store.Looked{}, nil
	}
	return store.Looked{Whole: true, StoredBytes: b.size}, nil
}

func (s *server) Scrub(ctx context.Context, r digest.CID, o store.ScrubOptions) (out store.Scrubbed, _ error) {
	s.mu.Lock()
	b := s.blobs[r]
	s.mu.Unlock()
	if b == nil || b.gone {
		return out, meta.ErrNotFound
	}
	for i := o.From; i < b.chunks; i++ {
		if err := o.Pace(ctx, b.size/int64(b.chunks)); err != nil {
			return out, err
		}
		out.Bytes += b.size / int64(b.chunks)
		s.change(func() { s.bytes += b.size / int64(b.chunks) })
		if o.Done != nil {
			o.Done(i + 1)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = append(s.read, r)
	out.Damaged, out.Whole = b.bad, b.bad == 0
	if out.Whole && o.From == 0 {
		out.SHA256 = b.content
	}
	return out, nil
}

func (s *server) Present(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lives, nil
}

func (s *server) Aside() (int, int64) { return 0, 0 }
func (s *server) Stored() int64       { return s.stored }

func (s *server) Copies(_ context.Context, after digest.CID, limit int) (copies []meta.Replica, next digest.CID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.roots(after) {
		if len(copies) == limit {
			return copies, copies[limit-1].Root, s.listErr
		}
		if b := s.blobs[r]; b.state != "" {
			copies = append(copies, meta.Replica{Root: r, State: b.state})
		}
	}
	return copies, next, s.listErr
}

func (s *server) Copy(_ context.Context, r digest.CID) (meta.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[r]; b != nil && b.state != "" {
		return meta.Replica{Root: r, State: b.state}, nil
	}
	return meta.Replica{}, meta.ErrNotFound
}

func (s *server) Blob(_ context.Context, r digest.CID) (meta.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[r]; b != nil {
		return meta.Blob{Root: r, Digest: b.digest}, nil
	}
	return meta.Blob{}, meta.ErrNotFound
}

func (s *server) Wanted(context.Context) (meta.AuditRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted, nil
}

func (s *server) Report(_ context.Context, r meta.AuditReport) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, r)
	return nil
}

func (s *server) Fail(_ context.Context, r digest.CID, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, reason)
	s.blobs[r].state = meta.ReplicaFailed
	return nil
}

func (s *server) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *server) hashed() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

func (s *server) last() meta.AuditReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reports) == 0 {
		return meta.AuditReport{}
	}
	return s.reports[len(s.reports)-1]
}

// pass lets time go by, and all that is due be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// in runs a Scrubber over s in virtual time.
func in(t *testing.T, s *server, file string, do func(*Scrubber)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		scrubber, err := New(Config{
			Self: "s1", Store: s, Records: s, Repair: s, File: file, Metrics: prometheus.NewRegistry(),
			Write:   func(name string, b []byte, mode os.FileMode) error { return os.WriteFile(name, b, mode) },
			Foreign: func() int64 { s.mu.Lock(); defer s.mu.Unlock(); return s.foreign },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- scrubber.Run(ctx) }()
		do(scrubber)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestFindsWhatIsWrong(t *testing.T) {
	s := newServer(1200)
	s.blobs[root(3)].gone = true
	s.blobs[root(700)].bad = 2
	s.blobs[root(5)].content = "sha256:other"
	s.blobs[root(8)].state, s.blobs[root(8)].bad = "", 1 // nobody counts on it
	in(t, s, filepath.Join(t.TempDir(), "scrub"), func(scrubber *Scrubber) {
		pass(time.Minute)
		if got := s.failed; !slices.Equal(got, []string{"its file is gone"}) {
			t.Errorf("failed %q", got)
		}
		if r := s.last(); r.Existence.Blobs != 1199 || r.Existence.Damaged != 1 || r.Existence.PerMille != 1000 || r.Open != 1 {
			t.Errorf("it says %+v", r)
		}
		s.change(func() { s.wanted = meta.AuditRequest{ID: 9, Full: true} })
		pass(time.Minute)
		if r := s.last(); r.Answered != 9 || r.Full.Blobs != 1199 || r.Full.Damaged != 3 || r.FailedCopies != 4 {
			t.Errorf("it says %+v, failed %q", r, s.failed)
		}
		s.change(func() {
			for _, i := range []int{3, 5, 8, 700} {
				b := s.blobs[root(i)]
				b.state, b.gone, b.bad, b.content = meta.ReplicaVerified, false, 0, b.digest
			}
		})
		pass(10 * time.Second)
		if r := s.last(); r.Open != 0 || r.Repaired != 3 { // nobody counted on the one
			t.Errorf("it says %+v", r)
		}
	})
}

// A restart goes on within the blob that was being read, and reads nothing twice.
func TestGoesOnAfterARestart(t *testing.T) {
	s := newServer(3)
	for i := range 3 {
		s.blobs[root(i)].size, s.blobs[root(i)].chunks = 40<<20, 10
	}
	file := filepath.Join(t.TempDir(), "scrub")
	var read int64
	for range 30 {
		in(t, s, file, func(scrubber *Scrubber) {
			pass(6 * time.Second)
			read = scrubber.Status().Full.Bytes
		})
		if read > 120<<20 {
			break
		}
	}
	// At 1 MiB/s these are 120 s, in 30 times 6.
	if read != 120<<20 || len(s.read) != 3 {
		t.Errorf("%d bytes and %d blobs were read, of %d and 3", read, len(s.read), 120<<20)
	}
	if len(s.failed) != 0 {
		t.Errorf("failed %q", s.failed)
	}
}

func TestDamagedCursor(t *testing.T) {
	s := newServer(10)
	file := filepath.Join(t.TempDir(), "scrub")
	in(t, s, file, func(*Scrubber) { pass(time.Minute) })
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := range b {
		damaged := bytes.Clone(b)
		damaged[at] ^= 1
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		scrubber, err := New(Config{Self: "s1", Store: s, Records: s, Repair: s, File: file, Write: func(string, []byte, os.FileMode) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		if scrubber.state != (State{}) {
			t.Fatalf("byte %d: the damaged cursor is believed", at)
		}
	}
}

// Clients go first; beside them it reads what ends in time.
func TestGivesWay(t *testing.T) {
	s := newServer(1)
	s.blobs[root(0)].size, s.blobs[root(0)].chunks = 1<<30, 4096
	s.stored = 1 << 30
	in(t, s, filepath.Join(t.TempDir(), "scrub"), func(*Scrubber) {
		pass(2 * time.Minute)
		idle := s.hashed()
		for range 120 {
			s.change(func() { s.foreign += 50 << 20 })
			pass(time.Second)
		}
		busy := s.hashed() - idle
		if perSec := float64(idle) / 120; perSec < 0.9*leastRate || perSec > 1.1*leastRate {
			t.Errorf("%.0f bytes/s while nobody reads", perSec)
		}
		if perSec := float64(busy) / 120; perSec > 1.5*busyLeast {
			t.Errorf("%.0f bytes/s beside clients", perSec)
		}
	})
}

// The directory goes: all is looked at at once, and every copy reported failed.
func TestLostDirectory(t *testing.T) {
	s := newServer(3000)
	told := false
	in(t, s, filepath.Join(t.TempDir(), "scrub"), func(scrubber *Scrubber) {
		scrubber.cfg.Lost = func() { told = true }
		pass(time.Minute)
		s.change(func() {
			for _, b := range s.blobs {
				b.gone = true
			}
			s.lives = 1
		})
		pass(10 * time.Second)
		if len(s.failed) != 3000 || !told {
			t.Errorf("%d copies of 3000 were reported failed, told %v", len(s.failed), told)
		}
	})
}

// A reader misses a blob: it is reported, and the rest is looked at, but not over and
// over.
func TestMissed(t *testing.T) {
	s := newServer(20)
	s.blobs[root(19)].state = "" // need not be here
	in(t, s, filepath.Join(t.TempDir(), "scrub"), func(scrubber *Scrubber) {
		pass(time.Hour)
		s.change(func() { s.blobs[root(1)].gone, s.blobs[root(2)].gone, s.blobs[root(19)].gone = true, true, true })
		scrubber.Missed(root(19))
		pass(time.Second)
		if len(s.failed) != 0 {
			t.Errorf("failed %q", s.failed)
		}
		scrubber.Missed(root(1))
		pass(5 * time.Second)
		if !slices.Equal(s.failed, []string{"a reader found its file missing", "its file is gone"}) {
			t.Errorf("failed %q", s.failed)
		}
	})
}

// What cannot be listed is tried again.
func TestTriesAgain(t *testing.T) {
	s := newServer(5)
	s.listErr = errors.New("not now")
	in(t, s, filepath.Join(t.TempDir(), "scrub"), func(*Scrubber) {
		pass(time.Minute)
		s.change(func() { s.listErr = nil })
		pass(time.Minute)
		if r := s.last(); r.Existence.Blobs != 5 {
			t.Errorf("it says %+v", r)
		}
	})
}
