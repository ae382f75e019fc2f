package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Path is where a server takes the questions of other nodes: the body is a Question, the
// answer a stream of frames, each a length (u32, big-endian) and an encoded frame. Frames
// come at least every few seconds, so that who asks can tell a long download from a
// server that is gone; the last one has the answer or the error.
const Path = "/shoal.upstream.v1/Fetch"

const (
	maxQuestionBytes = 64 << 10
	maxFrameBytes    = 1 << 20
	// maxTold bounds the segments of a frame, far within its bytes.
	maxTold    = 1000
	frameEvery = 2 * time.Second
	// silence is how long no frame comes before a server counts as gone.
	silence = 15 * time.Second
)

type frame struct {
	Found *Found          `cbor:"1,keyasint,omitempty"`
	Err   *meta.WireError `cbor:"2,keyasint,omitempty"`
	// Upstream says that Err is about what the upstream answered (protocol.ErrUpstream),
	// Retry after how many seconds it may be another.
	Upstream bool          `cbor:"3,keyasint,omitempty"`
	Retry    time.Duration `cbor:"4,keyasint,omitempty"`
	// Blocked is the rule that keeps the package out.
	Blocked *BlockedError `cbor:"5,keyasint,omitempty"`
	// Progress is what is new of a file that arrives, to who asked for a stream.
	Progress *Progress `cbor:"6,keyasint,omitempty"`
	// Unconfirmed says that Err is an absence that may be over.
	Unconfirmed bool `cbor:"7,keyasint,omitempty"`
}

// Handler answers the questions of nodes. may says whether a node may have what a
// repository holds; to others it looks absent.
func (e *Engine) Handler(may func(node meta.NodeID, repo *meta.Repository) bool) func(*protocol.Call) error {
	return func(c *protocol.Call) error {
		body, err := protocol.ReadBody(c.R, maxQuestionBytes)
		if err != nil {
			return err
		}
		var q Question
		if err := codec.Unmarshal(body, &q); err != nil {
			return fmt.Errorf("question to the proxy engine: %w: %w", err, meta.ErrInvalid)
		}
		ctx := c.R.Context()
		type result struct {
			found *Found
			err   error
		}
		done := make(chan result, 1)
		var watch func(*arrival)
		arrivals := make(chan *arrival, 1) // this server's own is one
		if q.Stream {
			watch = func(a *arrival) {
				select {
				case arrivals <- a:
				default:
				}
			}
		}
		go func() { // It ends with the call, as its context does.
			f, err := e.answer(ctx, c.Who, &q, may, watch)
			done <- result{f, err}
		}()
		c.W.Header().Set("Content-Type", "application/octet-stream")
		tick := time.NewTicker(frameEvery)
		defer tick.Stop()
		control := http.NewResponseController(c.W)
		var from *arrival
		var changed <-chan struct{}
		more := make(chan struct{}) // stands for changed when there is more than one frame takes
		close(more)
		var segments int // told
		for {
			var next frame
			select {
			case r := <-done:
				if r.err != nil && ctx.Err() != nil {
					// This server stops, or the node may not go on: no word about what was asked.
					// It finds no answer, or one that broke off, and asks the next server.
					return fmt.Errorf("the call was ended: %w: %w", meta.ErrUnavailable, r.err)
				}
				return writeFrame(c.W, frameOf(r.found, r.err))
			case <-tick.C:
			case from = <-arrivals:
			case <-changed:
			}
			if from != nil {
				var p Progress
				if p, changed = from.after(segments); len(p.Segments) > maxTold {
					p.Segments, changed = p.Segments[:maxTold], more
				}
				if len(p.Segments) > 0 {
					segments += len(p.Segments)
					next.Progress = &p
				}
			}
			if err := errors.Join(writeFrame(c.W, next), control.Flush()); err != nil {
				<-done
				return err
			}
		}
	}
}

func (e *Engine) answer(ctx context.Context, who meta.Principal, q *Question, may func(meta.NodeID, *meta.Repository) bool, watch func(*arrival)) (*Found, error) {
	by := catalog.Caller{Who: e.principal()}
	repo, _, err := e.cfg.Catalog.Repository(ctx, by, q.Repo)
	if err != nil {
		return nil, err
	}
	if !may(who.Node, &repo) {
		return nil, fmt.Errorf("repository %s: %w", q.Repo, meta.ErrNotFound)
	}
	f, err := e.fetch(ctx, by, &repo, &q.Want, func(ctx context.Context, repo *meta.Repository, w *Want) (*Found, error) {
		// Another server writes the log itself; nobody else's word is taken.
		if who.Role != meta.RoleServer {
			if err := e.named(ctx, who.Node, repo, w); err != nil {
				return nil, err
			}
		}
		return e.own(ctx, repo, w, watch)
	})
	if err != nil || q.Group == "" {
		return f, err
	}
	// Who may ask for a proxy has no say yet in the groups that it is in.
	group, _, err := e.cfg.Catalog.Repository(ctx, by, meta.RepoRef{Tenant: q.Repo.Tenant, Name: q.Group})
	if err != nil {
		return nil, err
	}
	if !may(who.Node, &group) {
		return nil, fmt.Errorf("repository %s: %w", group.Ref, meta.ErrNotFound)
	}
	f.Source, err = e.rememberHere(ctx, group.Ref, q.Repo.Name, cmp.Or(q.Package, q.Want.Package))
	return f, err
}

func frameOf(f *Found, err error) frame {
	if err == nil {
		return frame{Found: f}
	}
	out := frame{Err: meta.ToWire(err), Upstream: errors.Is(err, protocol.ErrUpstream)}
	var later interface{ RetryIn() time.Duration }
	if errors.As(err, &later) {
		out.Retry = later.RetryIn()
	}
	var blocked *BlockedError
	if errors.As(err, &blocked) {
		out.Blocked = blocked
	}
	var unconfirmed *unconfirmedError
	out.Unconfirmed = errors.As(err, &unconfirmed)
	return out
}

func writeFrame(w io.Writer, f frame) error {
	b := codec.Encode(f)
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readFrame reads one frame.
//
// Errors: of r; meta.ErrTooLarge, meta.ErrInvalid.
func readFrame(r io.Reader) (f frame, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return f, fmt.Errorf("read a frame: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrameBytes {
		return f, fmt.Errorf("a frame of %d bytes: %w", n, meta.ErrTooLarge)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return f, fmt.Errorf("read a frame: %w", err)
	}
	if err := codec.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read a frame: %w: %w", err, meta.ErrInvalid)
	}
	return f, nil
}

// toldError is what another node said.
type toldError struct {
	*meta.WireError
	upstream bool
	retry    time.Duration
}

// Unwrap returns the kinds of what was said.
func (e *toldError) Unwrap() []error {
	errs := []error{e.WireError}
	if e.upstream {
		errs = append(errs, protocol.ErrUpstream)
	}
	return errs
}

// laterTold is a toldError that says when to come again.
type laterTold struct{ *toldError }

// RetryIn is what a client is told to wait.
func (e laterTold) RetryIn() time.Duration { return e.retry }

func (f *frame) err() error {
	if f.Blocked != nil {
		return f.Blocked
	}
	told := &toldError{WireError: f.Err, upstream: f.Upstream, retry: f.Retry}
	if f.Unconfirmed {
		return &unconfirmedError{absence: told, cause: fmt.Errorf("the upstream cannot be asked: %w", &meta.UnavailableError{Reason: "upstream_down", RetryAfter: downFor})}
	}
	if f.Retry > 0 {
		return laterTold{told}
	}
	return told
}

// AskServer asks a server at url, `https://host:port`, over a client of this node.
//
// Errors: as Peers.Ask has them.
func AskServer(ctx context.Context, client *http.Client, url string, q Question, told func(Progress)) (*Found, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+Path, bytes.NewReader(codec.Encode(q)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: it answers %d", ErrUnreachable, response.StatusCode)
	}
	for {
		f, err := readFrame(response.Body)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		case f.Found != nil:
			return f.Found, nil
		case f.Err != nil:
			return nil, f.err()
		}
		if f.Progress != nil && told != nil {
			told(*f.Progress)
		}
		quiet.Reset(silence)
	}
}
