package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	waves             = "/shoal.raftmeta.v1.Waves/"
	syncProcedure     = waves + "Sync"
	progressProcedure = waves + "Progress"

	// maxParts bounds the waves that a host may speak of, maxWait how long it may wait.
	maxParts = 1024
	maxWait  = 30 * time.Second
)

// Desk is where a server takes hosts in for waves: a *wave.Desk.
type Desk interface {
	// Sync takes what a host says of its part in waves and returns what it is to do,
	// as of a log index or later; after wait at the latest when there is nothing new.
	Sync(ctx context.Context, node meta.NodeID, said meta.WaveWord, wait time.Duration) (meta.WaveOrders, error)
	// Progress returns what this server heard lately of a wave, by region.
	Progress(wave string) []meta.WaveProgress
}

type syncRequest struct {
	Word meta.WaveWord `cbor:"1,keyasint,omitempty"`
	Wait time.Duration `cbor:"2,keyasint,omitempty"`
}

type syncResponse struct {
	Orders  meta.WaveOrders `cbor:"1,keyasint,omitempty"`
	Failure *failure        `cbor:"2,keyasint,omitempty"`
}

type progressRequest struct {
	Wave string `cbor:"1,keyasint,omitempty"`
}

type progressResponse struct {
	Regions []meta.WaveProgress `cbor:"1,keyasint,omitempty"`
}

// WavesHandler returns the path prefix and, for who calls, the handler of d. That
// who is a node of the roster was found out before it.
func WavesHandler(d Desk) (path string, _ func(who meta.Principal) http.Handler) {
	options := []connect.HandlerOption{
		connect.WithCodec(cborCodec{}),
		connect.WithReadMaxBytes(maxQuestionBytes),
		connect.WithSendMaxBytes(maxAnswerBytes),
		connect.WithCompressMinBytes(4 << 10),
	}
	return waves, func(who meta.Principal) http.Handler {
		mux := http.NewServeMux()
		mux.Handle(syncProcedure, connect.NewUnaryHandler(syncProcedure, func(ctx context.Context, r *connect.Request[syncRequest]) (*connect.Response[syncResponse], error) {
			if len(r.Msg.Word.Parts) > maxParts || r.Msg.Wait < 0 {
				return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d waves and %v to wait: %w", len(r.Msg.Word.Parts), r.Msg.Wait, meta.ErrInvalid))
			}
			orders, err := d.Sync(ctx, who.Node, r.Msg.Word, min(r.Msg.Wait, maxWait))
			if err != nil && ctx.Err() != nil {
				return nil, connect.NewError(connect.CodeCanceled, err)
			}
			response := &syncResponse{Orders: orders}
			if err != nil {
				response.Failure = failureOf(err)
			}
			return connect.NewResponse(response), nil
		}, options...))
		mux.Handle(progressProcedure, connect.NewUnaryHandler(progressProcedure, func(_ context.Context, r *connect.Request[progressRequest]) (*connect.Response[progressResponse], error) {
			if who.Role != meta.RoleServer {
				return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("progress is told to servers: %w", meta.ErrDenied))
			}
			return connect.NewResponse(&progressResponse{Regions: d.Progress(r.Msg.Wave)}), nil
		}, options...))
		return mux
	}
}

// Sync tells a server of this host's part in waves and returns what to do; the
// server may hold the answer back for wait, up to 30 s. Any server will do, and the
// next is asked when one does not answer.
//
// Errors: *meta.UnavailableError; meta.ErrNotFound when the cluster does not know
// this node; of ctx.
func (c *Client) Sync(ctx context.Context, said meta.WaveWord, wait time.Duration) (meta.WaveOrders, error) {
	request := syncRequest{Word: said, Wait: min(wait, maxWait)}
	var tries []error
	var unable error
	for _, s := range c.candidates() {
		response, err := call(ctx, c, s, s.sync, &request, c.config.Timeout+commitTime+request.Wait)
		if err != nil {
			if ctx.Err() != nil {
				return meta.WaveOrders{}, fmt.Errorf("take part in waves: %w", context.Cause(ctx))
			}
			tries = append(tries, fmt.Errorf("ask %s: %w", s.url, err))
			continue
		}
		if err := response.Failure.err(); err != nil {
			if errors.Is(err, meta.ErrUnavailable) {
				unable = err
				continue
			}
			return meta.WaveOrders{}, err
		}
		return response.Orders, nil
	}
	if unable != nil {
		return meta.WaveOrders{}, unable
	}
	return meta.WaveOrders{}, noServer("take part in waves", tries)
}

// commitTime is what a server may take to commit what a host reports.
const commitTime = 5 * time.Second

// Progress asks the server at a base URL what it heard lately of a wave, by region.
//
// Errors: meta.ErrUnavailable; of ctx.
func (c *Client) Progress(ctx context.Context, url, wave string) ([]meta.WaveProgress, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	ask := connect.NewClient[progressRequest, progressResponse](c.config.HTTP, url+progressProcedure, clientOptions()...)
	response, err := ask.CallUnary(ctx, connect.NewRequest(&progressRequest{Wave: wave}))
	if err != nil {
		return nil, fmt.Errorf("ask %s for the progress of wave %s: %w: %w", url, wave, err, meta.ErrUnavailable)
	}
	return response.Msg.Regions, nil
}
