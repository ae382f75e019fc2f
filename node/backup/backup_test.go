package backup_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/backup"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// source is a running cluster of one server, which a test can break.
type source struct {
	*metatest.Store
	t *testing.T

	mu     sync.Mutex
	blobs  map[digest.CID][]byte
	cut    int64         // bytes of a blob after which its stream breaks off; 0 is never
	lie    digest.CID    // a blob of which wrong bytes are sent
	begun  map[int]int   // how many streams began at a chunk
	lost   error         // what renewing says
	opened []meta.NodeID // servers asked for the state
	held   string
}

var (
	critical = meta.RepoRef{Tenant: "acme", Name: "critical"}
	standard = meta.RepoRef{Tenant: "acme", Name: "standard"}
)

func newSource(t *testing.T) *source {
	t.Helper()
	s := &source{Store: metatest.New(t), t: t, blobs: map[digest.CID][]byte{}, begun: map[int]int{}}
	s.Must(state.CreateTenant{Name: "acme"})
	for ref, class := range map[meta.RepoRef]meta.Class{critical: meta.ClassCritical, standard: meta.ClassStandard} {
		s.Must(state.CreateRepository{Repository: meta.Repository{
			Ref: ref, Format: "generic", Kind: meta.KindHosted, Class: class, Home: "eu", Visibility: meta.VisibilityPrivate,
		}})
	}
	return s
}

// publish adds a version of one file.
func (s *source) publish(ref meta.RepoRef, name string, content []byte) meta.Blob {
	s.t.Helper()
	m := chunk.Of(content)
	b := meta.Blob{
		Context: string(ref.Tenant), Digest: digest.FromBytes(content), Root: m.Root(),
		PlainBytes: int64(len(content)), StoredBytes: m.StoredBytes,
	}
	s.mu.Lock()
	s.blobs[b.Root] = content
	s.mu.Unlock()
	s.Must(state.LinkBlob{Repo: ref, Digest: b.Digest, Blob: b, Server: "s1"})
	s.Must(state.Publish{
		Version: meta.Version{
			Repo: ref, Package: name, Name: string(b.Digest), Digest: b.Digest, Size: b.PlainBytes, State: meta.StateClosed,
			Verdict: meta.Verdict{Decision: "passed"},
		},
		Files:   []meta.File{{Path: "file", Digest: b.Digest, Size: b.PlainBytes}},
		Aliases: []string{"current"},
	})
	return b
}

// content is long enough for several chunks when n is.
func content(seed, n int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%06d ", seed), n/7+1)[:n]
}

func (s *source) OpenBackup(_ context.Context, n client.NewBackup) (client.Backup, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != "" {
		return client.Backup{}, fmt.Errorf("%s is open: %w", s.held, meta.ErrConflict)
	}
	s.held = fmt.Sprint("hold", len(s.opened))
	b := client.Backup{Cluster: "test", Epoch: 1, Level: state.Level, Sources: []client.BackupSource{
		{ID: "away", Region: "us", Kind: "non-voter"}, {ID: "s1", Region: "eu", Kind: "leader"},
	}}
	b.ID = s.held
	if len(n.Recipients) > 0 {
		b.RootKey = []byte("sealed")
	}
	return b, nil
}

func (s *source) RenewBackup(context.Context, string, time.Duration) error { return s.lost }

func (s *source) CloseBackup(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != id {
		s.t.Errorf("%q is closed, %q is held", id, s.held)
	}
	s.held = ""
	return nil
}

func (s *source) BackupState(_ context.Context, server meta.NodeID) (*client.BackupState, error) {
	s.mu.Lock()
	s.opened = append(s.opened, server)
	s.mu.Unlock()
	if server != "s1" {
		return nil, fmt.Errorf("it is away: %w", meta.ErrUnavailable)
	}
	c, v, err := s.SnapshotView()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = c.WriteTo(&out)
	sum, hashErr := v.Hash(context.Background())
	b := &client.BackupState{ReadCloser: io.NopCloser(&out), Index: v.Index(), Epoch: 1, Hash: hex.EncodeToString(sum[:])}
	return b, errors.Join(err, hashErr, v.Close(), c.Close())
}

func (s *source) BackupBlob(_ context.Context, server meta.NodeID, root digest.CID, from int) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok := s.blobs[root]
	if server != "s1" || !ok {
		return nil, fmt.Errorf("blob %s: %w", root, meta.ErrNotFound)
	}
	s.begun[from]++
	m := chunk.Of(content)
	rest := bytes.Clone(content)
	if from < m.Len() {
		rest = rest[m.StoredOffset(from):]
	} else {
		rest = nil
	}
	if root == s.lie && len(rest) > 0 {
		rest[len(rest)/2] ^= 1
	}
	var body io.Reader = bytes.NewReader(rest)
	if s.cut > 0 && int64(len(rest)) > s.cut {
		body = io.LimitReader(body, s.cut)
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(codec.AppendFrame(nil, m.Encode())), body)), nil
}

func create(t *testing.T, dir string, s *source, which backup.Which) (backup.Created, error) {
	t.Helper()
	return backup.Create(t.Context(), dir, s, backup.Options{Which: which, Version: "test", Now: time.Now()})
}

func mustCreate(t *testing.T, dir string, s *source) backup.Created {
	t.Helper()
	c, err := create(t, dir, s, backup.All)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func verify(t *testing.T, dir string) (backup.Verified, error) {
	t.Helper()
	d, err := backup.Open(dir)
	if err != nil {
		return backup.Verified{}, err
	}
	p, err := d.Point("")
	if err != nil {
		return backup.Verified{}, err
	}
	return backup.Verify(t.Context(), p, t.TempDir())
}

// TestIncrements: each blob is fetched once, what is not wanted is counted and named,
// and a server that is away is passed over.
func TestIncrements(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	s.publish(critical, "one", content(1, 3000))
	s.publish(standard, "two", content(2, 700_000))
	s.publish(standard, "same", content(1, 3000)) // Equal bytes are one blob.
	first := mustCreate(t, dir, s)
	if first.Blobs != 2 || first.Fetched != 2 || first.StoredBytes != 703_000 || first.From != "s1" || first.Missing != 0 {
		t.Errorf("the first is %+v", first)
	}
	s.publish(critical, "three", content(3, 10))
	s.publish(critical, "empty", nil)
	second := mustCreate(t, dir, s)
	if second.Blobs != 4 || second.Fetched != 2 || second.Index <= first.Index {
		t.Errorf("the second is %+v", second)
	}
	some, err := create(t, filepath.Join(t.TempDir(), "c"), s, backup.Critical)
	if err != nil || some.Blobs != 3 || some.Left != 1 {
		t.Errorf("of critical ones only: %+v, %v", some, err)
	}
	other := filepath.Join(t.TempDir(), "n")
	none, err := create(t, other, s, backup.None)
	if err != nil || none.Blobs != 0 || none.Left != 4 {
		t.Errorf("of none: %+v, %v", none, err)
	}
	v, err := verify(t, other)
	if err != nil || v.Read != 0 || len(v.Names) != 5 || !slices.ContainsFunc(v.Names, func(n string) bool { return strings.HasPrefix(n, "acme/standard two") }) {
		t.Errorf("verified: %+v, %v", v, err)
	}
	if v, err = verify(t, dir); err != nil || v.Read != 4 || v.Damaged != 0 || len(v.Names) != 0 {
		t.Errorf("verified: %+v, %v", v, err)
	}
	d, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := d.Points(); err != nil || len(ids) != 2 {
		t.Errorf("points are %v, %v", ids, err)
	}
	if s.held != "" {
		t.Errorf("%s is still held", s.held)
	}
}

// TestAnInterruptedCreateGoesOn: nothing of it passes for a backup, and no chunk that
// came is fetched again.
func TestAnInterruptedCreateGoesOn(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	big := content(1, 3<<20) // 12 chunks
	s.publish(critical, "big", big)
	s.cut = 1 << 20
	c, err := create(t, dir, s, backup.All)
	if err != nil || c.Missing != 1 {
		t.Fatalf("with streams that break off: %+v, %v", c, err)
	}
	s.cut = 0
	if c = mustCreate(t, dir, s); c.Missing != 0 || c.FetchedBytes != 2<<20 || s.begun[4] == 0 {
		t.Errorf("gone on: %+v from chunks %v", c, s.begun)
	}
	if v, err := verify(t, dir); err != nil || v.Read != 1 {
		t.Errorf("verified: %+v, %v", v, err)
	}

	// A create that dies leaves no point.
	ctx, cancel := context.WithCancelCause(t.Context())
	died := errors.New("killed")
	s.publish(critical, "more", content(2, 100))
	_, err = backup.Create(ctx, dir, s, backup.Options{Which: backup.All, Now: time.Now(), Say: func(string, ...any) { cancel(died) }})
	if !errors.Is(err, died) {
		t.Fatalf("a create that was killed: %v", err)
	}
	if v, err := verify(t, dir); err != nil || v.ID != c.ID {
		t.Errorf("the latest is %s, %v, want %s", v.ID, err, c.ID)
	}
	mustCreate(t, dir, s)
	left, err := filepath.Glob(filepath.Join(dir, "points", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

// TestWrongBytesAreNotKept: a server that lies is found out, and what nobody has is named.
func TestWrongBytesAreNotKept(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	b := s.publish(standard, "lied", content(1, 600_000))
	s.lie = b.Root
	c, err := create(t, dir, s, backup.All)
	if err != nil || c.Missing != 1 || len(c.Names) != 1 || !strings.Contains(c.Names[0], "acme/standard lied") {
		t.Fatalf("%+v, %v", c, err)
	}
	if v, err := verify(t, dir); err != nil || v.Read != 0 || len(v.Names) != 1 {
		t.Errorf("verified: %+v, %v", v, err)
	}
	s.lie = digest.CID{}
	if c := mustCreate(t, dir, s); c.Missing != 0 || c.Blobs != 1 {
		t.Errorf("told the truth: %+v", c)
	}
}

// TestEveryFlippedByteIsFound flips bytes all over each file of a backup: whatever it
// is, Verify says so and never that all is well.
func TestEveryFlippedByteIsFound(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	s.publish(critical, "one", content(1, 3000))
	s.publish(critical, "two", content(2, 300_000))
	if _, err := backup.Create(t.Context(), dir, s, backup.Options{Which: backup.All, Now: time.Now(), Recipients: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	flips := 0
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := 0; i < len(whole); i += 1 + len(whole)/12 {
			bad := bytes.Clone(whole)
			bad[i] ^= 0x10
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				return err
			}
			v, err := verify(t, dir)
			if err == nil && v.Damaged == 0 {
				t.Errorf("byte %d of %s is flipped and nobody sees it", i, path)
			}
			if err != nil && meta.KindOf(err) == "" {
				t.Errorf("byte %d of %s: %v has no kind", i, path, err)
			}
			flips++
		}
		for _, cut := range []int{0, len(whole) / 2, len(whole) - 1} {
			if err := os.WriteFile(path, whole[:max(cut, 0)], 0o600); err != nil {
				return err
			}
			if v, err := verify(t, dir); len(whole) > 0 && err == nil && v.Damaged == 0 {
				t.Errorf("%s is cut to %d bytes and nobody sees it", path, cut)
			}
		}
		return os.WriteFile(path, whole, 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	if v, err := verify(t, dir); err != nil || v.Damaged != 0 {
		t.Errorf("with everything put right: %+v, %v", v, err)
	}
	t.Logf("%d flipped bytes", flips)
}

// TestDirectoriesOfOtherThings: a backup goes neither among other files nor among another
// cluster's, and of another format or level says so.
func TestDirectoriesOfOtherThings(t *testing.T) {
	s := newSource(t)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := create(t, full, s, backup.All); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "precious") {
		t.Errorf("among other files: %v", err)
	}
	if _, err := backup.Open(full); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a directory without backups: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "b")
	if _, err := backup.Make(dir, "another"); err != nil {
		t.Fatal(err)
	}
	if _, err := create(t, dir, s, backup.All); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("among another cluster's: %v", err)
	}
	d, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Point(""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("no backup in it: %v", err)
	}
	dir = filepath.Join(t.TempDir(), "c")
	c := mustCreate(t, dir, s)
	d, err = backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(change func(*backup.Manifest)) error {
		m := c.Manifest
		change(&m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		point := filepath.Join(dir, "points", c.ID)
		if err := errors.Join(os.WriteFile(filepath.Join(point, "manifest.json"), text, 0o600),
			os.WriteFile(filepath.Join(point, "manifest.sha256"), []byte(digest.FromBytes(text)+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		_, err = d.Point("")
		return err
	}
	if err := rewrite(func(m *backup.Manifest) { m.Format = "shoal backup 2" }); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("of a later format: %v", err)
	}
	if err := rewrite(func(m *backup.Manifest) { m.Level = state.Level + 1 }); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "level") {
		t.Errorf("of a later level: %v", err)
	}
	if err := rewrite(func(m *backup.Manifest) { m.State.Name = "../../secret" }); err != nil {
		t.Error(err)
	}
	if _, err := verify(t, dir); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a manifest that names another file: %v", err)
	}
}

// TestAFullDisk: a create on a full disk says so, and goes on when there is room.
func TestAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root mounts a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("SKIPPED: no small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := newSource(t)
	s.publish(critical, "one", content(1, 100_000))
	s.publish(critical, "two", content(2, 4<<20))
	path := filepath.Join(dir, "b")
	if _, err := create(t, path, s, backup.All); !errors.Is(err, meta.ErrNoSpace) || !strings.Contains(err.Error(), "goes on from here") {
		t.Fatalf("on a full disk: %v", err)
	}
	if s.held != "" {
		t.Error("the hold was not given back")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	if c := mustCreate(t, path, s); c.Blobs != 2 || c.Missing != 0 {
		t.Errorf("with room: %+v", c)
	}
	if v, err := verify(t, path); err != nil || v.Read != 2 {
		t.Errorf("verified: %+v, %v", v, err)
	}
}

func restore(t *testing.T, dir string, o node.RestoreOptions) (node.Restored, error) {
	t.Helper()
	d, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Point("")
	if err != nil {
		t.Fatal(err)
	}
	o.Region, o.Log = "eu", slog.New(slog.DiscardHandler)
	return node.Restore(t.Context(), p, o)
}

// TestRestore: what may have been used up does not survive, blobs are checked on the
// way, and what cannot be had is named.
func TestRestore(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	good := s.publish(critical, "good", content(1, 700_000))
	bad := s.publish(critical, "bad", content(2, 3000))
	s.publish(standard, "empty", nil)
	s.Admit(meta.Node{ID: "s2", Role: meta.RoleServer, Region: "us", Gateway: "127.0.0.2:5000"})
	s.Admit(meta.Node{ID: "agent", Role: meta.RoleAgent, Region: "eu", Gateway: "127.0.0.3:5000"})
	s.Must(state.CreateJoinToken{Token: meta.JoinToken{ID: "unused", Role: meta.RoleAgent, Region: "eu", Uses: 9, Expires: meta.TimeOf(time.Now().Add(time.Hour))}})
	m := chunk.Of([]byte("unclaimed"))
	s.Must(state.LinkBlob{Repo: standard, Digest: digest.FromBytes([]byte("unclaimed")), Server: "s1", Blob: meta.Blob{
		Context: "acme", Digest: digest.FromBytes([]byte("unclaimed")), Root: m.Root(), PlainBytes: 9, StoredBytes: 9,
	}})
	c := mustCreate(t, dir, s)
	name := bad.Root.Hex()
	if err := os.WriteFile(filepath.Join(dir, "blobs", name[:2], name), content(3, 3000), 0o600); err != nil {
		t.Fatal(err)
	}

	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t, dir, node.RestoreOptions{Data: full}); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "precious") {
		t.Errorf("into a directory with files: %v", err)
	}
	if _, err := restore(t, dir, node.RestoreOptions{Data: filepath.Join(t.TempDir(), "d"), Identity: []byte("x")}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("with an identity for a backup without a key: %v", err)
	}

	data := filepath.Join(t.TempDir(), "d")
	r, err := restore(t, dir, node.RestoreOptions{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if r.Blobs != 2 || r.Needed != 1 || len(r.Findings) != 1 || len(r.Names) != 1 || !strings.Contains(r.Names[0], "acme/critical bad") || r.Same || r.Cluster == c.Cluster {
		t.Errorf("restored: %+v", r)
	}
	disk, err := store.OpenDisk(store.DiskConfig{Dir: filepath.Join(data, "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	b, err := disk.Open(t.Context(), good.Root)
	if err != nil || !b.Complete() {
		t.Fatalf("the good blob: %v", err)
	}
	if err := errors.Join(b.Close()); err != nil {
		t.Error(err)
	}
	if _, err := disk.Open(t.Context(), bad.Root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the damaged blob: %v", err)
	}
	if err := disk.Close(); err != nil {
		t.Error(err)
	}
	standing, err := raftmeta.Inspect(data, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got := standing.Cluster; got.Epoch != 2 || got.ID != r.Cluster || got.Recovery == nil || got.Recovery.Backup != c.ID || len(got.AdminToken) == 0 {
		t.Errorf("the cluster is %+v", got)
	}
	if len(standing.Servers) != 1 || standing.Servers[0].ID != r.Node || !slices.Equal(standing.Voters, []meta.NodeID{r.Node}) || standing.Last <= c.Index {
		t.Errorf("it stands at %+v", standing)
	}
	machine, err := state.Open(filepath.Join(data, "state"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	v, err := machine.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := (state.GetNode{ID: "agent"}).Answer(v); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an agent of the other cluster: %v", err)
	}
	if _, err := (state.GetJoinToken{ID: "unused"}).Answer(v); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a join token: %v", err)
	}
	if _, err := (state.GetBlob{Repo: standard, Digest: digest.FromBytes([]byte("unclaimed"))}).Answer(v); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an upload that nothing used: %v", err)
	}
	if _, err := (state.GetBlob{Repo: critical, Digest: bad.Digest}).Answer(v); err != nil {
		t.Errorf("a blob that peers have to give: %v", err)
	}
	if _, err := restore(t, dir, node.RestoreOptions{Data: data}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("once more into the same: %v", err)
	}
}

// TestAnInterruptedRestoreGoesOn: until it is through the directory does not pass for a
// server's, and the same backup is taken up where it was.
func TestAnInterruptedRestoreGoesOn(t *testing.T) {
	s, dir := newSource(t), filepath.Join(t.TempDir(), "b")
	s.publish(critical, "one", content(1, 700_000))
	mustCreate(t, dir, s)
	d, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Point("")
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "d")
	ctx, cancel := context.WithCancel(t.Context())
	_, err = node.Restore(ctx, p, node.RestoreOptions{Data: data, Region: "eu", Log: slog.New(slog.DiscardHandler), Say: func(string, ...any) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if _, err := node.Inspect(t.Context(), data, slog.New(slog.DiscardHandler)); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "run `shoal backup restore` again") {
		t.Errorf("half restored: %v", err)
	}
	s.publish(critical, "two", content(2, 10))
	mustCreate(t, dir, s)
	if _, err := restore(t, dir, node.RestoreOptions{Data: data}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("from another backup: %v", err)
	}
	if r, err := node.Restore(t.Context(), p, node.RestoreOptions{Data: data, Region: "eu", Log: slog.New(slog.DiscardHandler)}); err != nil || r.Blobs != 1 {
		t.Errorf("gone on: %+v, %v", r, err)
	}
	if s, err := node.Inspect(t.Context(), data, slog.New(slog.DiscardHandler)); err != nil || s.Epoch != 2 {
		t.Errorf("restored: %+v, %v", s, err)
	}
}

// TestALostHoldEndsACreate: what might be collected meanwhile is not called a backup.
func TestALostHoldEndsACreate(t *testing.T) {
	s := newSource(t)
	s.publish(critical, "one", content(1, 10))
	ctx, lose := context.WithCancelCause(t.Context())
	lose(fmt.Errorf("the hold was lost: %w", meta.ErrConflict))
	if _, err := backup.Create(ctx, filepath.Join(t.TempDir(), "b"), s, backup.Options{Which: backup.All, Now: time.Now()}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("without a hold: %v", err)
	}
}
