package catalogtest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// The node of every test.
const (
	Node       = meta.NodeID("12D3KooWtest")
	Region     = meta.RegionName("here")
	AdminToken = "admin-token-of-the-test"
)

// Options of a Stack.
type Options struct {
	// Private turns anonymous callers away; AutoCreate is then off. The standard is
	// dev: everybody may all, and the first push creates.
	Private bool
	// Content replaces the store on disk.
	Content catalog.Content
	Catalog catalog.Config // what is set here is kept
	Log     *slog.Logger
}

// Stack is a node that serves.
type Stack struct {
	Metadata *Metadata
	Content  catalog.Content
	Catalog  *catalog.Catalog
	URL      string // http://127.0.0.1:port
	Client   *http.Client
	Handler  http.Handler // what URL serves
}

// New starts a node with the protocols that build returns and stops it with the
// test.
func New(t testing.TB, o Options, build func(*catalog.Catalog) []protocol.Protocol) *Stack {
	t.Helper()
	return NewWith(t, o, func(s *Stack) []protocol.Protocol { return build(s.Catalog) })
}

// NewWith is New for protocols that need more than the catalog: build gets a Stack with
// its Metadata, Content and Catalog.
func NewWith(t testing.TB, o Options, build func(*Stack) []protocol.Protocol) *Stack {
	t.Helper()
	hash := sha256.Sum256([]byte(AdminToken))
	s := &Stack{Metadata: NewMetadata(t, Node, Region, hash[:]), Content: o.Content}
	if s.Content == nil {
		s.Content = newDisk(t)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	policy := access.Policy{AllowAnonymous: !o.Private}
	key := ed25519.NewKeyFromSeed(hash[:])
	ids, err := uploadid.NewMinter(Node, key.Seed())
	fatal(t, err)
	cfg := o.Catalog
	cfg.Metadata, cfg.Commands, cfg.Content, cfg.IDs = s.Metadata, s.Metadata, s.Content, ids
	cfg.Node, cfg.Region, cfg.AutoCreate, cfg.Log = Node, Region, !o.Private, o.Log
	cfg.May = access.OfRepository
	s.Catalog, err = catalog.New(cfg)
	fatal(t, err)
	records := access.Records{Asker: s.Metadata}
	gate, err := access.New(access.Config{
		Self: Node, Key: key, Metadata: records, Policy: policy,
		KeyOf: func(id meta.NodeID) (ed25519.PublicKey, error) {
			if id != Node {
				return nil, meta.ErrNotFound
			}
			return key.Public().(ed25519.PublicKey), nil
		},
	})
	fatal(t, err)
	g, err := gateway.New(gateway.Config{
		Self: Node, Role: meta.RoleServer, Listen: "127.0.0.1:0", Protocols: build(s), Gate: gate,
		Repositories: records, Log: o.Log, Metrics: prometheus.NewRegistry(),
	})
	fatal(t, err)
	s.Handler = g.Handler()
	s.URL = "http://" + g.Addr().String()
	s.Client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		s.Client.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("gateway: %v", err)
		}
	})
	return s
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Create makes a repository of a format, and its tenant.
func (s *Stack) Create(t testing.TB, r meta.Repository) {
	t.Helper()
	if r.Kind == "" {
		r.Kind = meta.KindHosted
	}
	if r.Class == "" {
		r.Class = meta.ClassStandard
	}
	if r.Home == "" {
		r.Home = Region
	}
	if r.Visibility == "" {
		r.Visibility = meta.VisibilityPrivate
	}
	if _, err := s.Metadata.Do(t.Context(), state.Origin{}, state.CreateRepository{Repository: r, CreateTenant: true}); err != nil {
		t.Fatal(fmt.Errorf("create %s: %w", r.Ref, err))
	}
}
