package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	heads         = "/shoal.raftmeta.v1.Heads/"
	headProcedure = heads + "Head"

	// holdHead is how long a server holds a head back while nothing is revoked, and with
	// that how often a node asks: what is revoked meanwhile is told at once.
	holdHead = 2 * time.Second
	// headRound is what a server may take beyond that for a round and what it must catch
	// up with.
	headRound = 2500 * time.Millisecond
)

// Heads knows how far the revocation of rights has come: a raftmeta.Store.
type Heads interface {
	// AccessHead answers as of a moment not before seen, and how long ago that was. It
	// waits up to wait for another revision than that of seen.
	AccessHead(ctx context.Context, seen meta.AccessHead, wait time.Duration) (meta.AccessHead, time.Duration, error)
}

type headRequest struct {
	Seen  meta.AccessHead `cbor:"1,keyasint,omitempty"`
	Nonce []byte          `cbor:"2,keyasint,omitempty"`
	// Now says that the head must not be held back.
	Now bool `cbor:"3,keyasint,omitempty"`
}

type headResponse struct {
	Head    []byte   `cbor:"1,keyasint,omitempty"` // of trust.SignHead
	Failure *failure `cbor:"2,keyasint,omitempty"`
}

// HeadsHandler returns the path prefix and the handler that tells agents heads of h,
// signed for a cluster. Who may call is decided before it.
func HeadsHandler(h Heads, key *trust.Key, cluster string) (path string, _ http.Handler) {
	mux := http.NewServeMux()
	mux.Handle(headProcedure, connect.NewUnaryHandler(headProcedure, func(ctx context.Context, r *connect.Request[headRequest]) (*connect.Response[headResponse], error) {
		if len(r.Msg.Nonce) != trust.HeadNonceBytes {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a nonce of %d bytes: %w", len(r.Msg.Nonce), meta.ErrInvalid))
		}
		hold := holdHead
		if r.Msg.Now {
			hold = 0
		}
		access, age, err := h.AccessHead(ctx, r.Msg.Seen, hold)
		response := &headResponse{}
		if err == nil {
			response.Head, err = key.SignHead(cluster, trust.Head{Access: access, Age: age, Nonce: r.Msg.Nonce})
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, connect.NewError(connect.CodeCanceled, err)
			}
			response.Failure = failureOf(err)
		}
		return connect.NewResponse(response), nil
	}, connect.WithCodec(cborCodec{}), connect.WithReadMaxBytes(4<<10), connect.WithSendMaxBytes(4<<10)))
	return heads, mux
}

// errExpelled says that a server refused this node as one that is not of the cluster.
var errExpelled = errors.New("a server refuses this node")

// errLegacy says that no server that answers knows heads: they are of older builds,
// which revoke nothing but nodes.
var errLegacy = errors.New("no server tells heads yet")

// head asks the servers in turn for a head. begin is called for each: with its nonce it is
// asked, and its answer accept has to take. now spares the hold.
//
// Errors: *meta.UnavailableError, errExpelled, errLegacy; of ctx.
func (c *Client) head(ctx context.Context, seen meta.AccessHead, now bool, begin func() (nonce []byte, accept func([]byte) error)) error {
	request := headRequest{Seen: seen, Now: now}
	var tries []error
	legacy, expelled := false, false
	for _, s := range c.candidates() {
		timeout := headRound
		if !request.Now {
			timeout += holdHead
		}
		var accept func([]byte) error
		request.Nonce, accept = begin()
		response, err := call(ctx, c, s, s.head, &request, timeout)
		request.Now = true // the next has no time to lose
		if err == nil {
			if err = response.Failure.err(); err == nil {
				err = accept(response.Head)
			}
			if err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("ask for the revocation head: %w", context.Cause(ctx))
		}
		switch connect.CodeOf(err) {
		case connect.CodeUnimplemented, connect.CodeNotFound:
			legacy = true
		case connect.CodePermissionDenied, connect.CodeUnauthenticated:
			expelled = true
		}
		tries = append(tries, fmt.Errorf("ask %s: %w", s.url, err))
	}
	switch {
	case expelled:
		return fmt.Errorf("ask for the revocation head: %w: %w", errExpelled, errors.Join(tries...))
	case legacy:
		return errLegacy
	}
	return noServer("ask for the revocation head", tries)
}
