package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/node/fence"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Files of a recovery in the data directory. recovery/ is where the new metadata is made;
// it counts once recovery/READY is there, and is then moved into place by whoever comes
// first: the verb, or the next start.
const (
	recoveryDir    = "recovery"
	readyFile      = "READY"
	restoringFile  = "RESTORING" // a restore that is not finished
	supersededFile = "superseded"
	discardedDir   = "before-"
)

// replaced are the files of the data directory that a recovery makes anew.
var replaced = []string{"state", "raft", identityFile}

// fence makes what keeps this server from serving in an epoch that is over, after it was
// asked once.
//
// Errors: *fence.SupersededError.
func (n *Node) fence(ctx context.Context) (*fence.Fence, error) {
	kept := filepath.Join(n.cfg.Data, supersededFile)
	f := fence.New(fence.Config{
		Self: n.ID(), Root: n.cred, Log: n.log,
		Epoch:    n.epoch,
		Peers:    func() []fence.Peer { return n.fencePeers(ctx) },
		Position: n.logPosition,
		PeerOf:   n.peerOf,
	}, func(statement []byte) error { return WriteFileAtomic(kept, statement, 0o600) })
	statement, err := os.ReadFile(kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := f.Heard(statement); err != nil {
		return nil, err
	}
	return f, f.Check(ctx)
}

// fencePeers are the servers known, and those that the recovery left behind.
func (n *Node) fencePeers(ctx context.Context) (peers []fence.Peer) {
	seen := map[meta.NodeID]bool{}
	add := func(id meta.NodeID, gateway string) {
		if !seen[id] {
			seen[id] = true
			peers = append(peers, fence.Peer{ID: id, Gateway: gateway})
		}
	}
	for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
		add(s.ID, s.Gateway)
	}
	for _, s := range n.id.Servers {
		add(s.ID, s.Gateway)
	}
	if n.metadata == nil {
		return peers
	}
	if cluster, _, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.GetCluster{}); err == nil && cluster.Recovery != nil {
		for _, s := range cluster.Recovery.Lost {
			add(s.ID, s.Gateway)
		}
	}
	return peers
}

func (n *Node) logPosition() (last, lastTerm uint64, leads bool) {
	records, ok := n.metadata.(*raftmeta.Store)
	if !ok {
		return 0, 0, false
	}
	s := records.Status()
	return s.Last, s.Term, s.Leader != ""
}

// Survey is what is known of a stopped server and of those that it knew, for an operator
// who has to choose which of several a cluster goes on with.
type Survey struct {
	Node   meta.NodeID     `json:"node"`
	Region meta.RegionName `json:"region"`
	Epoch  uint64          `json:"epoch"`
	raftmeta.Standing
	Peers []SurveyPeer `json:"peers"`
	// Superseded says that the cluster has gone on in a later epoch.
	Superseded string `json:"superseded,omitempty"`
}

// SurveyPeer is another server of the roster.
type SurveyPeer struct {
	ID      meta.NodeID     `json:"id"`
	Region  meta.RegionName `json:"region"`
	Gateway string          `json:"gateway"`
	Voter   bool            `json:"voter"`
	// Reached says that it answers, in Epoch; Last and Term are how far its log goes, 0
	// when it does not say.
	Reached bool   `json:"reached"`
	Epoch   uint64 `json:"epoch"`
	Last    uint64 `json:"last_index"`
	Term    uint64 `json:"term"`
	Leads   bool   `json:"leader_known"`
}

// reached counts the voters that answer in the survey's epoch, this server among them.
func (s *Survey) reached() (n int) {
	if slices.Contains(s.Voters, s.Node) {
		n++
	}
	for _, p := range s.Peers {
		if p.Voter && p.Reached && p.Epoch == s.Epoch {
			n++
		}
	}
	return n
}

// surveyed is an opened data directory.
type surveyed struct {
	Survey
	dir  string
	key  *trust.Key
	id   *identity
	root *trust.Root
	lock *DirLock
}

// Inspect surveys the server of a data directory, which must not run.
//
// Errors: meta.ErrNotFound for a directory without a server's metadata; meta.ErrCorrupt.
func Inspect(ctx context.Context, dir string, log *slog.Logger) (Survey, error) {
	s, err := survey(ctx, dir, log)
	if err != nil {
		return Survey{}, err
	}
	return s.Survey, s.lock.Release()
}

func survey(ctx context.Context, dir string, log *slog.Logger) (_ *surveyed, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	s := &surveyed{dir: dir}
	if s.lock, err = LockDir(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lock.Release())
		}
	}()
	if err := settleRecovery(dir); err != nil {
		return nil, err
	}
	if s.id, err = loadIdentity(dir); err != nil {
		return nil, err
	}
	if s.id == nil || s.id.Node.Role != meta.RoleServer {
		return nil, fmt.Errorf("%s is not the data directory of a server of a cluster: %w", dir, meta.ErrNotFound)
	}
	if s.key, err = trust.LoadOrCreateKey(filepath.Join(dir, "node.key")); err != nil {
		return nil, err
	}
	if s.root, err = trust.ParseRoot(s.id.Root); err != nil {
		return nil, err
	}
	s.Node, s.Region, s.Epoch = s.id.Node.ID, s.id.Node.Region, s.id.Epoch
	if s.Standing, err = raftmeta.Inspect(dir, log); err != nil {
		return nil, fmt.Errorf("read the metadata in %s: %w", dir, err)
	}
	// After a kill the state may lag far behind the log, which is not replayed here.
	if s.Cluster.ID == "" {
		s.Cluster.ID, s.Cluster.Epoch = s.id.Cluster, s.id.Epoch
	}
	return s, s.askPeers(ctx)
}

// askPeers finds out who of the roster answers.
func (s *surveyed) askPeers(ctx context.Context) error {
	f := fence.New(fence.Config{
		Self: s.Node, Root: s.root,
		Epoch:    func() (uint64, []byte) { return s.id.Epoch, s.id.Statement },
		Peers:    func() []fence.Peer { return nil },
		Position: func() (uint64, uint64, bool) { return 0, 0, false },
		PeerOf:   func(*http.Request) (trust.Identity, bool) { return trust.Identity{}, false },
	}, nil)
	config := trust.JoinTLS(s.root.Hash())
	if credential, err := trust.OpenCredential(s.key, s.id.papers()); err == nil && !credential.Expired(time.Now()) {
		config = trust.ClientTLS(credential) // Nodes are told more.
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	known := append(slices.Clone(s.Servers), s.id.Servers...)
	for _, id := range s.Voters {
		known = append(known, meta.Node{ID: id}) // Its address is not known.
	}
	for _, n := range known {
		if n.ID != s.Node && !slices.ContainsFunc(s.Peers, func(p SurveyPeer) bool { return p.ID == n.ID }) {
			s.Peers = append(s.Peers, SurveyPeer{ID: n.ID, Region: n.Region, Gateway: n.Gateway, Voter: slices.Contains(s.Voters, n.ID)})
		}
	}
	var group sync.WaitGroup
	statements := make([][]byte, len(s.Peers))
	for i := range s.Peers {
		group.Go(func() {
			p := &s.Peers[i]
			if p.Gateway == "" {
				return
			}
			word, err := fence.Tell(ctx, client, p.Gateway, fence.Word{Node: s.Node, Epoch: s.id.Epoch, Statement: s.id.Statement})
			if err == nil && word.Node == p.ID {
				p.Reached, p.Epoch, p.Last, p.Term, p.Leads = true, word.Epoch, word.Last, word.LastTerm, word.Leads
				statements[i] = word.Statement
			}
		})
	}
	group.Wait()
	if kept, err := os.ReadFile(filepath.Join(s.dir, supersededFile)); err == nil {
		statements = append(statements, kept)
	}
	for _, statement := range statements {
		if err := f.Heard(statement); err != nil {
			s.Superseded = err.Error()
		}
	}
	return ctx.Err()
}

// Recovered is what a Recover did.
type Recovered struct {
	Survey
	Epoch uint64 `json:"new_epoch"`
	// Replayed entries of the log were not in the state on disk, and are part of the new
	// epoch. Uncertain are the last of them, at most 1,000: nothing on this server says
	// up to which they were committed, and acknowledged.
	Replayed  int              `json:"replayed"`
	Uncertain []UncertainEntry `json:"uncertain"`
	// Kept is the directory with what was there before.
	Kept string            `json:"kept"`
	Lost []meta.LostServer `json:"lost"`
}

// UncertainEntry is one of them.
type UncertainEntry struct {
	Index uint64    `json:"index"`
	Time  time.Time `json:"time"`
	What  string    `json:"what"`
}

// maxUncertain bounds the entries that are named.
const maxUncertain = 1000

// Recover makes the stopped server of a data directory the only one of a new epoch of
// its cluster, which has lost the majority of its voters for good. It asks confirm, which
// sees the survey, before it changes anything; what it makes takes the place of the old
// in one step.
//
// Errors: meta.ErrConflict while a quorum can be reached, when a server that answers has
// more of the log (unless force), when the cluster has gone on in a later epoch, or when
// the clock is behind the log; meta.ErrCorrupt; of confirm.
func Recover(ctx context.Context, dir string, force bool, log *slog.Logger, confirm func(Survey) error) (r Recovered, err error) {
	s, err := survey(ctx, dir, log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.lock.Release()) }()
	r.Survey = s.Survey
	now := time.Now()
	if err := errors.Join(movable(dir, replaced), s.mayRecover(now, force)); err != nil {
		return r, err
	}
	if err := confirm(s.Survey); err != nil {
		return r, err
	}
	next := filepath.Join(dir, recoveryDir)
	if err := os.RemoveAll(next); err != nil {
		return r, err
	}
	metadata, err := raftmeta.OpenRefounding(next, log)
	if err != nil {
		return r, err
	}
	defer func() {
		if metadata != nil {
			err = errors.Join(err, metadata.Close())
		}
	}()
	if err := metadata.LoadFrom(dir, func(index uint64, at meta.Time, c state.Command) {
		r.Replayed++
		if _, tick := c.(state.Tick); tick {
			return
		}
		if len(r.Uncertain) == maxUncertain {
			r.Uncertain = r.Uncertain[1:]
		}
		r.Uncertain = append(r.Uncertain, UncertainEntry{Index: index, Time: at.Std(), What: nameCommand(c)})
	}); err != nil {
		return r, fmt.Errorf("read the metadata: %w", err)
	}
	id, err := s.begin(ctx, metadata, now)
	if err != nil {
		return r, err
	}
	if err := errors.Join(id.save(next), metadata.Close()); err != nil {
		return r, err
	}
	metadata = nil
	r.Epoch = id.Epoch
	for _, p := range s.Peers {
		r.Lost = append(r.Lost, meta.LostServer{ID: p.ID, Region: p.Region, Gateway: p.Gateway})
	}
	r.Kept = filepath.Join(dir, fmt.Sprintf("%sepoch-%d", discardedDir, id.Epoch))
	return r, commitRecovery(dir)
}

// mayRecover refuses what would make things worse.
func (s *surveyed) mayRecover(now time.Time, force bool) error {
	if s.Superseded != "" {
		return fmt.Errorf("%s: %w", s.Superseded, meta.ErrConflict)
	}
	if s.Damage != "" {
		return fmt.Errorf("the log of this server is damaged (%s), recover another: %w", s.Damage, meta.ErrCorrupt)
	}
	for _, p := range s.Peers {
		if p.Voter && p.Gateway == "" && !force {
			return fmt.Errorf("this server does not know the address of voter %s, so it cannot ask whether that is there; make sure that it is not and say --force: %w", p.ID, meta.ErrConflict)
		}
	}
	if quorum := len(s.Voters)/2 + 1; s.reached() >= quorum {
		return fmt.Errorf("%d of %d voters can be reached, this server among them, and %d are a quorum: nothing is lost, start this server: %w",
			s.reached(), len(s.Voters), quorum, meta.ErrConflict)
	}
	for _, p := range s.Peers {
		if p.Reached && p.Epoch == s.Epoch && p.Last > s.Last && p.Term >= s.LastTerm && !force {
			return fmt.Errorf("server %s of region %s answers and its log goes to %d, this one's only to %d: stop it and recover it instead, or say --force and lose the difference: %w",
				p.ID, p.Region, p.Last, s.Last, meta.ErrConflict)
		}
	}
	if behind := s.Stamp.Std().Sub(now); s.Stamp != 0 && behind > time.Second {
		return fmt.Errorf("this host's clock is %v behind the last entry of the log, set it first: %w", behind.Round(time.Second), meta.ErrConflict)
	}
	return nil
}

// begin begins the new epoch in the copy of the metadata, and returns the identity that
// belongs to it.
func (s *surveyed) begin(ctx context.Context, metadata *raftmeta.Refounding, now time.Time) (*identity, error) {
	v, err := metadata.View()
	if err != nil {
		return nil, err
	}
	cluster, err := state.GetCluster{}.Answer(v)
	var node meta.Node
	if err == nil {
		node, err = state.GetNode{ID: s.Node}.Answer(v)
	}
	if err := errors.Join(err, v.Close()); err != nil {
		return nil, fmt.Errorf("this server's metadata does not know it, recover another: %w", err)
	}
	sealed, ok := cluster.RootKey[s.Node]
	if !ok {
		return nil, fmt.Errorf("the cluster's root key was not yet sealed to this server, recover another: %w", meta.ErrConflict)
	}
	der, err := s.key.Open(sealed)
	if err != nil {
		return nil, fmt.Errorf("open the root key: %w", err)
	}
	authority, err := trust.LoadAuthority(cluster.Root, der)
	if err != nil {
		return nil, err
	}
	epoch := cluster.Epoch + 1
	statement := authority.SignEpoch(trust.Epoch{Number: epoch, First: s.Node, At: meta.TimeOf(now)})
	node.Draining = nil
	if err := metadata.Begin(ctx, s.Node, now, false, state.BeginEpoch{
		Epoch: epoch, Node: node, Sealed: sealed,
		Recovery: meta.Recovery{At: meta.TimeOf(now), First: s.Node, Index: s.Last, Time: s.Stamp, Statement: statement},
	}); err != nil {
		return nil, fmt.Errorf("begin epoch %d: %w", epoch, err)
	}
	return &identity{
		Cluster: cluster.ID, Root: cluster.Root, Chain: s.id.Chain, Node: node, Servers: []meta.Node{node},
		Epoch: epoch, Statement: statement,
	}, nil
}

// nameCommand says what a command is about, for people.
func nameCommand(c state.Command) string {
	name := state.Name(c)
	switch c := c.(type) {
	case state.Publish:
		return fmt.Sprintf("%s %s %s %s", name, c.Version.Repo, c.Version.Package, c.Version.Name)
	case state.DeleteVersion:
		return fmt.Sprintf("%s %s %s %s", name, c.Repo, c.Package, c.Version)
	case state.MoveAlias:
		return fmt.Sprintf("%s %s %s", name, c.Repo, c.Package)
	case state.CreateRepository:
		return fmt.Sprintf("%s %s", name, c.Repository.Ref)
	case state.LinkBlob:
		return fmt.Sprintf("%s %s in %s", name, c.Digest, c.Repo)
	}
	return name
}

// commitRecovery says that what lies in recovery/ is complete, and moves it into place.
func commitRecovery(dir string) error {
	next := filepath.Join(dir, recoveryDir)
	for _, name := range []string{"state", "raft"} {
		if err := syncTree(filepath.Join(next, name)); err != nil {
			return err
		}
	}
	if err := WriteFileAtomic(filepath.Join(next, readyFile), nil, 0o600); err != nil {
		return err
	}
	return settleRecovery(dir)
}

// syncTree makes directories durable; their files are already.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return syncDirectory(path)
	})
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// settleRecovery finishes a recovery or restore that was decided and not carried out to
// the end; it may be repeated after a crash at any step. A restore that was not decided
// is refused, a recovery that was not is forgotten: the old metadata still holds then.
func settleRecovery(dir string) error {
	next := filepath.Join(dir, recoveryDir)
	if _, err := os.Stat(filepath.Join(next, readyFile)); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, restoringFile)); err == nil {
			return fmt.Errorf("%s is being restored and not finished: run `shoal backup restore` again, it goes on: %w", dir, meta.ErrConflict)
		}
		return os.RemoveAll(next)
	} else if err != nil {
		return err
	}
	// The epoch names where the old metadata goes; before the identity is moved it is in
	// the new one.
	id, err := loadIdentity(next)
	if err != nil {
		return err
	}
	if id == nil {
		if id, err = loadIdentity(dir); err != nil || id == nil {
			return errors.Join(err, fmt.Errorf("the recovery in %s has no identity: %w", next, meta.ErrCorrupt))
		}
	}
	if err := moveAside(dir, fmt.Sprintf("epoch-%d", id.Epoch), func(name string) bool {
		_, err := os.Stat(filepath.Join(next, name))
		return err == nil
	}); err != nil {
		return err
	}
	for _, name := range replaced {
		err := os.Rename(filepath.Join(next, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncDirectory(dir); err != nil {
		return err
	}
	for _, name := range []string{restoringFile, supersededFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// READY goes last of all that the next start looks at.
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	return syncDirectory(dir)
}

// movable refuses a data directory some of whose parts are mounts of their own: they
// cannot be renamed, and what was decided could not be carried out.
//
// Errors: meta.ErrConflict.
func movable(dir string, parts []string) error {
	var whole, part unix.Stat_t
	if err := unix.Stat(dir, &whole); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	for _, name := range parts {
		path := filepath.Join(dir, name)
		err := unix.Lstat(path, &part)
		if err == nil && part.Dev != whole.Dev {
			return fmt.Errorf("%s is a mount of its own and cannot be moved aside: unmount it, put what it holds into a directory of that name, and do this again: %w", path, meta.ErrConflict)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look at %s: %w", path, err)
		}
	}
	return nil
}

// moveAside moves the metadata of a data directory into before-NAME, those files of
// which which is true.
func moveAside(dir, name string, which func(string) bool) error {
	aside := filepath.Join(dir, discardedDir+name)
	for _, file := range replaced {
		from := filepath.Join(dir, file)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) || !which(file) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return err
		}
		if err := os.Rename(from, filepath.Join(aside, file)); err != nil {
			return err
		}
	}
	if _, err := os.Stat(aside); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(syncDirectory(aside), syncDirectory(dir))
}

// Discard gives up the metadata of a stopped server, which keeps its key and its blobs,
// so that it can join a cluster as a new one. It returns where the old metadata is now.
//
// Errors: meta.ErrNotFound for a directory that belongs to no cluster.
func Discard(dir string) (kept string, err error) {
	lock, err := LockDir(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	id, err := loadIdentity(dir)
	if err != nil {
		return "", err
	}
	if id == nil {
		return "", fmt.Errorf("%s belongs to no cluster, there is nothing to discard: %w", dir, meta.ErrNotFound)
	}
	if err := movable(dir, replaced); err != nil {
		return "", err
	}
	name := fmt.Sprintf("discard-%d", time.Now().Unix())
	// The identity goes first: without it the directory is of a node that has to join.
	order := slices.Clone(replaced)
	slices.Reverse(order)
	for _, file := range order {
		if err := moveAside(dir, name, func(f string) bool { return f == file }); err != nil {
			return "", err
		}
	}
	for _, file := range []string{supersededFile, AdminTokenFile} {
		err := os.Remove(filepath.Join(dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return filepath.Join(dir, discardedDir+name), errors.Join(os.RemoveAll(filepath.Join(dir, recoveryDir)), syncDirectory(dir))
}

// isRestorable refuses a directory that a restore must not touch. again says that an
// earlier restore of the same backup goes on.
func isRestorable(dir, backup string) (again bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(dir, restoringFile))
	if err == nil {
		if got := strings.TrimSpace(string(text)); got != backup {
			return false, fmt.Errorf("%s is being restored from backup %s, not %s: finish that or use another directory: %w", dir, got, backup, meta.ErrConflict)
		}
		return true, nil
	}
	for _, e := range entries {
		if e.Name() != "LOCK" {
			return false, fmt.Errorf("%s is not empty (%s): restore into a new directory: %w", dir, e.Name(), meta.ErrConflict)
		}
	}
	return false, nil
}
