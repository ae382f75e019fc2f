package quota

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Path is where servers take reports, from nodes only: POST of a Report, answered by an
// Answer, both in codec's encoding.
const Path = "/shoal.quota.v1/Report"

// maxBodyBytes bounds a report and its answer.
const maxBodyBytes = 1 << 20

// Serve takes the report of the node that calls. leads says whether this server leads,
// which is what servers look for.
//
// Errors: meta.ErrInvalid; meta.ErrDenied for the report of another node;
// meta.ErrUnavailable for that of a server when this one does not lead.
func (q *Quota) Serve(c *protocol.Call, leads bool) error {
	body, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, maxBodyBytes))
	if err != nil {
		return fmt.Errorf("read a report: %w: %w", err, meta.ErrInvalid)
	}
	var r Report
	if err := codec.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read a report: %w: %w", err, meta.ErrInvalid)
	}
	if r.Node != c.Who.Node {
		return fmt.Errorf("node %s brings the report of %s: %w", c.Who.Node, r.Node, meta.ErrDenied)
	}
	server := c.Who.Role == meta.RoleServer
	if server && !leads {
		return &meta.UnavailableError{Reason: "not_leader", RetryAfter: exchangeTime}
	}
	answer, err := q.Below(&r, server)
	if err != nil {
		return err
	}
	c.W.Header().Set("Content-Type", "application/cbor")
	_, err = c.W.Write(codec.Encode(answer))
	return err
}

// Tell brings a report to the server at url.
//
// Errors: *UnsentError when it surely was not taken; others when it may have been.
func Tell(ctx context.Context, client *http.Client, url string, r *Report) (*Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+Path, bytes.NewReader(codec.Encode(r)))
	if err != nil {
		return nil, &UnsentError{err}
	}
	request.Header.Set("Content-Type", "application/cbor")
	response, err := client.Do(request)
	if err != nil {
		if refused(err) {
			return nil, &UnsentError{err}
		}
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBodyBytes))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, &UnsentError{fmt.Errorf("%s answers a report with %s", url, response.Status)}
	}
	var answer Answer
	if err := codec.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("the answer of %s to a report: %w", url, err)
	}
	return &answer, nil
}
