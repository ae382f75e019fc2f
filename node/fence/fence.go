// Package fence keeps servers of a past epoch from serving.
//
// After a recovery (a lost quorum, a restored backup) the cluster goes on in a new epoch
// with some of its servers. The others may come back any time with the old log, and a
// majority of them would elect a leader of a past that is over. So servers tell one
// another, over HTTPS and outside Raft, which epoch they are of: each asks those that it
// knows before it takes part and then every few seconds, and the servers of a new epoch
// call on those that were left behind. The word is the root's (trust.Epoch), so it does
// not matter who passes it on. A server that learns of an epoch after its own stops with
// a *SupersededError, and keeps the statement, so that it does not start again before it
// has been told to forget.
//
// It is the second fence: the protocol ids of the Raft plane carry the epoch, so not even
// a server that has not heard can speak to one of another epoch. What neither can prevent
// is that servers that were left behind, are a majority of the old voters and reach
// nobody of the new epoch, elect a leader among themselves; see node/DESIGN.md.
//
// Start reading at Fence. Run owns all goroutines.
package fence

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Path is where servers answer, on their gateways.
const Path = "/shoal.epoch.v1/Tell"

const (
	// every is how often the others are asked; a server that was left behind stops this
	// long, and a call, after it can be reached or can reach somebody.
	every = 5 * time.Second
	// callTimeout bounds one call, firstTimeout all those before a server takes part.
	callTimeout  = 3 * time.Second
	firstTimeout = 4 * time.Second
	maxBodyBytes = 4 << 10
	atOnce       = 8
)

// Word is what one server tells another, both ways.
type Word struct {
	Node  meta.NodeID `cbor:"1,keyasint,omitempty"`
	Epoch uint64      `cbor:"2,keyasint,omitempty"`
	// Statement proves the epoch; the first needs no proof.
	Statement []byte `cbor:"3,keyasint,omitempty"`
	// Last and LastTerm are how far the log goes, Leads says that a leader is known.
	// Only nodes of the cluster are told.
	Last     uint64 `cbor:"4,keyasint,omitempty"`
	LastTerm uint64 `cbor:"5,keyasint,omitempty"`
	Leads    bool   `cbor:"6,keyasint,omitempty"`
}

// Peer is a server to tell.
type Peer struct {
	ID      meta.NodeID
	Gateway string // host:port
}

// Root is the cluster's trust: a *trust.Credential, whose roots may be replaced, or a
// *trust.Root.
type Root interface {
	CheckEpoch(statement []byte) (trust.Epoch, error)
	AnonymousTLS() *tls.Config
}

// Config is what a Fence needs; all but Log are required.
type Config struct {
	Self meta.NodeID
	Root Root
	// Epoch is this server's own, with its statement.
	Epoch func() (epoch uint64, statement []byte)
	// Peers are whom to tell: the servers known, and those left behind.
	Peers func() []Peer
	// Position is how far the log goes and whether a leader is known; PeerOf tells which
	// node's certificate a request came with.
	Position func() (last, lastTerm uint64, leads bool)
	PeerOf   func(*http.Request) (trust.Identity, bool)
	Log      *slog.Logger
}

// Fence is one server's. It is safe for concurrent use.
type Fence struct {
	Config
	http *http.Client
	keep func([]byte) error
	// superior holds one epoch that is after the own. Who puts it there has hearing, and
	// has kept the statement: the server stops as soon as it is told.
	superior chan trust.Epoch
	hearing  sync.Mutex
}

// New returns a Fence. keep, which may be nil, is called with the statement of a later
// epoch before anybody is told of it.
func New(c Config, keep func(statement []byte) error) *Fence {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Fence{Config: c, http: caller(c.Root), superior: make(chan trust.Epoch, 1), keep: keep}
}

// caller makes a client that talks only to servers under the root, without showing a
// certificate: one's own may have ended long ago. Each call has a connection of its own:
// one that a cut has left behind leads nowhere for minutes after the servers can reach
// each other again, which is when they have to hear.
func caller(root Root) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: root.AnonymousTLS(), ForceAttemptHTTP2: true,
			DisableKeepAlives: true, TLSHandshakeTimeout: callTimeout,
			// A dial outlives its call, and of HTTP/2 the next call takes what it makes.
			DialContext: (&net.Dialer{Timeout: callTimeout}).DialContext,
		},
		Timeout: callTimeout,
	}
}

// SupersededError says that the cluster has gone on in a later epoch without this server.
type SupersededError struct {
	Own   uint64
	Epoch trust.Epoch
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("the cluster was recovered at %s by server %s and is in epoch %d; this server is of epoch %d and must not serve any more: "+
		"see what only it has with `shoal recover inspect --data DIR`, then give its metadata up with `shoal recover discard --data DIR` and join it with a new token",
		e.Epoch.At.Std().Format(time.RFC3339), e.Epoch.First, e.Epoch.Number, e.Own)
}

// Unwrap returns meta.ErrConflict.
func (e *SupersededError) Unwrap() error { return meta.ErrConflict }

// Heard takes in the statement that an earlier run kept.
//
// Errors: *SupersededError.
func (f *Fence) Heard(statement []byte) error {
	f.hear(statement)
	return f.heard()
}

// heard returns a *SupersededError when a later epoch was heard of.
func (f *Fence) heard() error {
	select {
	case e := <-f.superior:
		own, _ := f.Epoch()
		return &SupersededError{Own: own, Epoch: e}
	default:
		return nil
	}
}

// after reports whether e comes after the own epoch. When two servers were recovered
// apart from one another there are two of one number: the one begun last holds.
func (f *Fence) after(e trust.Epoch, own uint64, statement []byte) bool {
	if e.Number != own {
		return e.Number > own
	}
	mine, err := f.Root.CheckEpoch(statement)
	return err == nil && e.First != mine.First && (e.At > mine.At || e.At == mine.At && e.First > mine.First)
}

// hear takes in a statement that somebody passed on.
func (f *Fence) hear(statement []byte) {
	if len(statement) == 0 {
		return
	}
	own, ownStatement := f.Epoch()
	e, err := f.Root.CheckEpoch(statement)
	if err != nil {
		f.Log.Debug("a statement of an epoch does not hold", "error", err)
		return
	}
	if !f.after(e, own, ownStatement) {
		return
	}
	f.hearing.Lock()
	defer f.hearing.Unlock()
	if len(f.superior) > 0 {
		return // The server is about to be told.
	}
	if f.keep != nil {
		if err := f.keep(statement); err != nil {
			f.Log.Warn("the statement of a later epoch is not kept", "error", err)
		}
	}
	f.superior <- e
}

// ServeHTTP answers Path, to anybody: what it says is public.
func (f *Fence) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	var said Word
	if err == nil {
		err = codec.Unmarshal(raw, &said)
	}
	if err != nil {
		http.Error(w, "not a word of a server", http.StatusBadRequest)
		return
	}
	f.hear(said.Statement)
	word := f.word()
	if _, node := f.PeerOf(r); node {
		word.Last, word.LastTerm, word.Leads = f.Position()
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(codec.Encode(word)) // A server that went away asks again.
}

func (f *Fence) word() Word {
	epoch, statement := f.Epoch()
	return Word{Node: f.Self, Epoch: epoch, Statement: statement}
}

// Tell says word to the server at gateway (host:port) and returns what it says.
//
// Errors: meta.ErrUnavailable when it cannot be reached.
func Tell(ctx context.Context, client *http.Client, gateway string, word Word) (answer Word, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+gateway+Path, bytes.NewReader(codec.Encode(word)))
	if err != nil {
		return answer, fmt.Errorf("server at %s: %w: %w", gateway, err, meta.ErrInvalid)
	}
	r.Header.Set("Content-Type", "application/cbor")
	response, err := client.Do(r)
	if err != nil {
		return answer, fmt.Errorf("server at %s: %w: %w", gateway, err, meta.ErrUnavailable)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxBodyBytes))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if err == nil {
		err = codec.Unmarshal(raw, &answer)
	}
	if err != nil {
		return answer, fmt.Errorf("server at %s: %w: %w", gateway, err, meta.ErrUnavailable)
	}
	return answer, nil
}

// Check asks all peers once, before this server takes part.
//
// Errors: *SupersededError.
func (f *Fence) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	f.round(ctx)
	return f.heard()
}

// Run tells and hears until ctx ends or a later epoch is heard of.
//
// Errors: *SupersededError.
func (f *Fence) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	telling.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			f.round(ctx)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	select {
	case <-ctx.Done():
		return nil
	case e := <-f.superior:
		own, _ := f.Epoch()
		return &SupersededError{Own: own, Epoch: e}
	}
}

// round tells every peer once.
func (f *Fence) round(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, p := range f.Peers() {
		if p.ID == f.Self || p.Gateway == "" {
			continue
		}
		group.Go(func() error {
			if answer, err := Tell(ctx, f.http, p.Gateway, f.word()); err == nil {
				f.hear(answer.Statement)
			}
			return nil
		})
	}
	_ = group.Wait() // Nobody returns an error.
}
