package upstream

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Relayed is a question to an upstream whose answer is for one caller and kept by nobody:
// a search, or an audit.
type Relayed struct {
	Method string
	Path   string // as Want has it, below the upstream's base URL
	Accept string
	// ContentType and Body are what is sent, none for a GET.
	ContentType string
	Body        []byte
	MaxBytes    int64 // of the answer
}

// relayFor bounds a Relay.
const relayFor = 20 * time.Second

// Relay asks the upstream of a proxy repository once and returns its answer, which stays
// in memory: the caller bounds how many there are at a time. Only servers ask upstreams.
//
// Errors: meta.ErrNotFound when the upstream has no such thing; meta.ErrUnavailable;
// meta.ErrTooLarge; an error that is protocol.ErrUpstream when the answer cannot be used.
func (e *Engine) Relay(ctx context.Context, repo *meta.Repository, q Relayed) ([]byte, error) {
	want := &Want{Path: q.Path, Accept: q.Accept}
	if err := admits(repo, want); err != nil {
		return nil, err
	}
	if e.cfg.Commands == nil {
		return nil, fmt.Errorf("ask the upstream of %s on an agent: %w", repo.Ref, &meta.UnavailableError{Reason: "no_server"})
	}
	target, own, err := address(repo.Upstream.URL, q.Path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, relayFor)
	defer cancel()
	d := &download{engine: e, repo: repo, want: want, target: target, own: own, by: catalog.Caller{Who: e.principal()}}
	if own && repo.Upstream.Credential != "" && e.cfg.Secrets != nil {
		if d.credential, err = e.cfg.Secrets(ctx, repo); err != nil {
			return nil, fmt.Errorf("credentials for the upstream of %s: %w", repo.Ref, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, q.Method, target.String(), bytes.NewReader(q.Body))
	if err != nil {
		return nil, fmt.Errorf("request to upstream %s: %w", target.Host, meta.ErrInvalid)
	}
	request.Header.Set("User-Agent", userAgent)
	request.Header.Set("Accept", cmp.Or(q.Accept, "*/*"))
	if q.ContentType != "" {
		request.Header.Set("Content-Type", q.ContentType)
	}
	d.authorize(request)
	response, err := e.client.Do(request)
	if err != nil {
		return nil, d.unanswered(err)
	}
	defer response.Body.Close()
	switch meaning(response.StatusCode, false, false) {
	case hasBytes:
	case hasNone:
		return nil, absent(repo.Ref, want)
	case failing:
		return nil, d.later(fmt.Sprintf("it answers %d", response.StatusCode), retryAfter(response.Header, e.cfg.Now()), nil)
	default:
		return nil, fmt.Errorf("upstream %s answers %d to %s %.200q: %w", target.Host, response.StatusCode, q.Method, q.Path, protocol.ErrUpstream)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, q.MaxBytes+1))
	if err != nil {
		return nil, d.unanswered(err)
	}
	if int64(len(body)) > q.MaxBytes {
		return nil, fmt.Errorf("the answer of upstream %s is over %d bytes: %w: %w", target.Host, q.MaxBytes, protocol.ErrUpstream, meta.ErrTooLarge)
	}
	return body, nil
}
