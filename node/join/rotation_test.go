package join_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// member is a node with its credential.
type member struct {
	record meta.Node
	cred   *trust.Credential
}

func (c *cluster) agent() *member {
	c.t.Helper()
	key := c.key()
	m := &member{record: meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}}
	reply, err := join.Enter(c.t.Context(), c.url, c.token(meta.RoleAgent, "eu"), key, join.Request{Node: m.record})
	if err != nil {
		c.t.Fatal(err)
	}
	m.cred = must[*trust.Credential](c.t)(trust.OpenCredential(key, reply.Papers()))
	return m
}

// renew renews m's papers, as a node does, and takes them into use.
func (c *cluster) renew(m *member) {
	c.t.Helper()
	newest := m.cred.Newest().Hash()
	reply, err := join.Renew(c.t.Context(), c.url, m.cred, join.Request{Node: m.record, Holds: newest[:]})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := m.cred.Adopt(reply.Papers()); err != nil {
		c.t.Fatal(err)
	}
}

// reissue is renew of the server itself.
func (c *cluster) reissue() {
	c.t.Helper()
	newest := c.cred.Newest().Hash()
	reply, err := c.server.Reissue(c.t.Context(), join.Request{Node: c.record, Holds: newest[:]})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.cred.Adopt(reply.Papers()); err != nil {
		c.t.Fatal(err)
	}
}

// takes says whether a package client that has these roots takes the server's certificate.
func (c *cluster) takes(roots ...[]byte) bool {
	c.t.Helper()
	pool := x509.NewCertPool()
	for _, der := range roots {
		pool.AddCert(must[*x509.Certificate](c.t)(x509.ParseCertificate(der)))
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	res, err := client.Get(c.url)
	if err == nil {
		res.Body.Close()
	}
	return err == nil
}

// begins begins the replacement of the root, and returns the next.
func (c *cluster) begins() *trust.Authority {
	c.t.Helper()
	next, cross, err := c.authority.Succeed(time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	recipient := must[[]byte](c.t)(next.KeyDER())
	sealed := must[[]byte](c.t)(trust.Seal(recipient, c.server.Key.Public()))
	hash := c.authority.Root().Hash()
	c.do(state.BeginRotation{Root: hash[:], Next: next.Root().DER(), Cross: cross, Keys: map[meta.NodeID][]byte{c.record.ID: sealed}})
	return next
}

func (c *cluster) waits(t *testing.T) (ids []meta.NodeID) {
	t.Helper()
	holders, _, err := raftmeta.Ask(t.Context(), c.metadata, meta.Strong, state.ListHolders{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range holders {
		if !h.Has {
			ids = append(ids, h.Node.ID)
		}
	}
	return ids
}

// The whole of it: nodes that follow, one that sleeps through all of it, one that sleeps
// through the end, join tokens of before, and package clients with either root.
func TestTheRootIsReplaced(t *testing.T) {
	c := begin(t, time.Now())
	c.do(state.SetLevel{Level: 5})
	follows, sleeps, halfway := c.agent(), c.agent(), c.agent()
	tokenBefore := c.token(meta.RoleAgent, "eu")
	old := c.authority.Root()

	next := c.begins()
	// A node that renews before any server has new papers of its own.
	c.renew(follows)
	if follows.cred.Newest().Hash() != next.Root().Hash() || follows.cred.Root().Hash() != old.Hash() {
		t.Fatal("the node does not hold both roots")
	}
	c.reissue()
	c.renew(halfway)
	for _, roots := range [][][]byte{{old.DER()}, {old.DER(), next.Root().DER()}} {
		if !c.takes(roots...) {
			t.Fatalf("in the overlap a client with %d roots is refused", len(roots))
		}
	}
	if waits := c.waits(t); len(waits) != 4 {
		t.Fatalf("%d nodes wait", len(waits))
	}
	c.reissue()
	c.renew(follows)
	c.renew(halfway)
	if waits := c.waits(t); len(waits) != 1 || waits[0] != sleeps.record.ID {
		t.Fatalf("waiting: %v", waits)
	}
	// A node that joins in the overlap, by a token of either root, holds both.
	tokenNext := c.token(meta.RoleAgent, "eu")
	tokenNext.RootHash = next.Root().Hash()
	key := c.key()
	reply, err := join.Enter(t.Context(), c.url, tokenNext, key, join.Request{Node: meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}})
	if err != nil || len(reply.Next) == 0 {
		t.Fatalf("joining in the overlap: %v", err)
	}

	hash := next.Root().Hash()
	c.do(state.FinishRotation{Root: hash[:]})
	c.authority = next
	c.reissue()
	if c.takes(old.DER()) || !c.takes(next.Root().DER()) || !c.takes(old.DER(), next.Root().DER()) {
		t.Fatal("after the overlap clients need the new root, and only it")
	}
	for name, m := range map[string]*member{"follows": follows, "halfway": halfway, "sleeps": sleeps} {
		c.renew(m)
		if m.cred.Newest().Hash() != hash || m.cred.Root().Hash() != hash {
			t.Errorf("%s is not led to the new root", name)
		}
		c.renew(m) // by its new certificate
	}
	if member, err := join.Standing(t.Context(), c.url, old.Hash(), sleeps.cred.Key()); err != nil || !member {
		t.Errorf("standing by the old root: %v %v", member, err)
	}
	key = c.key()
	if _, err := join.Enter(t.Context(), c.url, tokenBefore, key, join.Request{Node: meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}}); err != nil {
		t.Errorf("a join token of before: %v", err)
	}
	// What the old root signs counts no more.
	stolen := must[*trust.Authority](t)(trust.NewAuthority("test", time.Now()))
	forged := &member{record: sleeps.record}
	forged.cred = must[*trust.Credential](t)(trust.NewCredential(sleeps.cred.Key(), stolen.Root(), must[[][]byte](t)(stolen.Issue(sleeps.record, nil, time.Now()))))
	if _, err := join.Renew(t.Context(), c.url, forged.cred, join.Request{Node: forged.record}); err == nil {
		t.Error("a node of a foreign root was renewed")
	}
}

// A server that holds the old root only is refused once it was dropped, however it asks.
func TestTheOldRootIsDropped(t *testing.T) {
	c := begin(t, time.Now())
	c.do(state.SetLevel{Level: 5})
	m := c.agent()
	oldAuthority := c.authority
	next := c.begins()
	c.reissue()
	c.renew(m)
	hash := next.Root().Hash()
	c.do(state.FinishRotation{Root: hash[:], Force: true})
	c.reissue()
	c.renew(m)
	// Somebody with the old root's key certifies himself as a server.
	key := c.key()
	liar := meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu"}
	cred := must[*trust.Credential](t)(trust.NewCredential(key, oldAuthority.Root(), must[[][]byte](t)(oldAuthority.Issue(liar, nil, time.Now()))))
	state := tls.ConnectionState{Version: tls.VersionTLS13}
	for _, der := range cred.Chain() {
		state.PeerCertificates = append(state.PeerCertificates, must[*x509.Certificate](t)(x509.ParseCertificate(der)))
	}
	if _, ok, err := m.cred.PeerOf(&state); ok || !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a certificate of the dropped root counts: %v", err)
	}
}

// Papers under a root that nobody known vouches for are not taken.
func TestAStrangersRootIsNotAdopted(t *testing.T) {
	c := begin(t, time.Now())
	m := c.agent()
	stranger := must[*trust.Authority](t)(trust.NewAuthority("test", time.Now()))
	chain := must[[][]byte](t)(stranger.Issue(m.record, nil, time.Now()))
	_, cross, err := stranger.Succeed(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, papers := range map[string]trust.Papers{
		"as root":      {Root: stranger.Root().DER(), Chain: chain},
		"with a cross": {Root: stranger.Root().DER(), Chain: chain, Cross: cross},
		"as next":      {Root: c.authority.Root().DER(), Chain: m.cred.Chain(), Next: stranger.Root().DER(), NextChain: chain, Cross: cross},
	} {
		if err := m.cred.Adopt(papers); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if m.cred.Newest().Hash() != c.authority.Root().Hash() {
		t.Error("the root has changed")
	}
}
