package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

const (
	// maxWatches bounds the open Watch calls of a server; more are told to come back.
	maxWatches = 16_384
	// frameChanges bounds the changes of a frame.
	frameChanges = 256
)

// Handler returns the path prefix and, for who calls, the handler that answers from a and
// w. That who is a node of the roster was found out before it. A Watch ends when its
// request's context does: a server that stops cancels its base context.
func Handler(a raftmeta.Asker, w raftmeta.Watcher) (path string, _ func(who meta.Node) http.Handler) {
	h := handler{asker: a, watcher: w, watches: make(chan struct{}, maxWatches)}
	all := h.mux()
	return service, func(who meta.Node) http.Handler {
		if !who.Narrowed() {
			return all
		}
		narrow := h
		narrow.node = &who
		return narrow.mux()
	}
}

func (h *handler) mux() http.Handler {
	options := []connect.HandlerOption{
		connect.WithCodec(cborCodec{}),
		connect.WithReadMaxBytes(maxQuestionBytes),
		connect.WithSendMaxBytes(maxAnswerBytes),
		connect.WithCompressMinBytes(4 << 10),
	}
	mux := http.NewServeMux()
	mux.Handle(askProcedure, connect.NewUnaryHandler(askProcedure, h.ask, options...))
	mux.Handle(watchProcedure, connect.NewServerStreamHandler(watchProcedure, h.watch, options...))
	return mux
}

type handler struct {
	asker   raftmeta.Asker
	watcher raftmeta.Watcher
	watches chan struct{} // one token an open Watch
	node    *meta.Node    // who calls, when it is narrowed
}

func (h *handler) ask(ctx context.Context, r *connect.Request[askRequest]) (*connect.Response[askResponse], error) {
	q, err := state.DecodeQuestion(r.Msg.Name, r.Msg.Args)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	_, forServers := q.Args().(state.ServersOnly)
	if caller, ok := q.Args().(state.GetCaller); ok && !caller.OfCredential() {
		forServers = true // An agent judges who came to it, and asks after nobody else.
	}
	if forServers {
		return connect.NewResponse(&askResponse{Failure: failureOf(fmt.Errorf("%s is for servers: %w", q.Name(), meta.ErrDenied))}), nil
	}
	if h.node != nil {
		if err := mayAsk(ctx, h.asker, *h.node, q); err != nil {
			return connect.NewResponse(&askResponse{Failure: failureOf(err)}), nil
		}
	}
	asOf, err := h.asker.Answer(ctx, r.Msg.Freshness, q)
	response := &askResponse{AsOf: asOf}
	if err != nil {
		if ctx.Err() != nil {
			return nil, connect.NewError(connect.CodeCanceled, err)
		}
		response.Failure = failureOf(err)
		return connect.NewResponse(response), nil
	}
	switch into := q.Into().(type) {
	case *meta.Cluster:
		// The sealed keys are the servers' own. The admin token's hash goes along: an
		// agent's gateway judges the token too, and 256 random bits are not guessed.
		into.RootKey = nil
	case *meta.Trust:
		into.Keys = nil
	}
	if response.Answer, err = codec.Marshal(q.Into()); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(response), nil
}

func (h *handler) watch(ctx context.Context, r *connect.Request[watchRequest], stream *connect.ServerStream[watchFrame]) error {
	select {
	case h.watches <- struct{}{}:
		defer func() { <-h.watches }()
	default:
		return stream.Send(&watchFrame{Failure: failureOf(&meta.UnavailableError{Reason: "busy", RetryAfter: 5 * heartbeat})})
	}
	ctx, cancel := context.WithCancel(ctx)
	type event struct {
		change feed.Change
		err    error
	}
	events := make(chan event, frameChanges)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(events)
		for c, err := range h.watcher.Watch(ctx, r.Msg.After) {
			select {
			case events <- event{c, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	defer reading.Wait()
	defer cancel()

	// The first frame says at once that the stream stands.
	frame := watchFrame{Index: r.Msg.After}
	if err := stream.Send(&frame); err != nil {
		return err
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case e, ok := <-events:
			switch {
			case !ok:
				return context.Cause(ctx)
			case e.err != nil && ctx.Err() != nil:
				return context.Cause(ctx)
			case e.err != nil:
				frame.Failure = failureOf(e.err)
				return errors.Join(stream.Send(&frame), context.Cause(ctx))
			case e.change.Kind == feed.KindProgress:
				frame.Index = e.change.Index
			case h.node != nil && !mayHear(*h.node, e.change):
			case r.Msg.Filter.Match(e.change):
				frame.Changes = append(frame.Changes, e.change)
			}
			// Send when nothing more is waiting, so that a burst makes few frames.
			if len(frame.Changes) == 0 || (len(events) > 0 && len(frame.Changes) < frameChanges) {
				continue
			}
		case <-beat.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := stream.Send(&frame); err != nil {
			return err
		}
		frame.Changes = nil
	}
}
