package npm

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of audits. Each npm install asks for one, so that the usual one takes little of
// the memory that all share.
const (
	maxAskBytes    = 1 << 20  // as it is sent
	maxAuditBytes  = 16 << 20 // unpacked
	minUnpackBytes = 64 << 10
	maxUnpackRatio = 32
	maxAdviceBytes = 2 << 20 // of the answer, some thousands of advisories
)

// unpacked returns a body that may be packed with gzip, of at most maxBytes.
func unpacked(r *http.Request, body []byte, maxBytes int64) ([]byte, error) {
	if !strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") {
		return body, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(z, maxBytes+1))
	}
	if err != nil {
		return nil, fmt.Errorf("the body is no gzip: %v: %w", err, meta.ErrInvalid)
	}
	if int64(len(body)) > maxBytes {
		return nil, fmt.Errorf("the body unpacks to over %d bytes: %w", maxBytes, meta.ErrTooLarge)
	}
	return body, nil
}

// asked returns the proxy that knows of advisories for a repository, nil when there is
// none: a hosted repository has none of its own.
func (p *Protocol) asked(ctx context.Context, by catalog.Caller, repo *meta.Repository) (*meta.Repository, error) {
	if repo.Kind == meta.KindHosted {
		return nil, nil
	}
	members, _, err := p.catalog.Members(ctx, by, repo.Ref)
	for i := range members {
		if members[i].Kind == meta.KindProxy {
			return &members[i], err
		}
	}
	return nil, err
}

// maxAuditNames bounds the packages of one audit, each of which is looked up.
const maxAuditNames = 50_000

// auditedNames reads what an audit asks: versions by the name of their package.
//
// Errors: meta.ErrInvalid, meta.ErrTooLarge.
func auditedNames(body []byte) (map[string]json.RawMessage, error) {
	names := map[string]json.RawMessage{}
	sc := newScanner(bytes.NewReader(body))
	err := sc.object(func(name string) (err error) {
		if len(names) == maxAuditNames {
			return fmt.Errorf("an audit of over %d packages: %w", maxAuditNames, meta.ErrTooLarge)
		}
		names[name], err = sc.value(maxManifestBytes)
		return err
	})
	if err == nil {
		err = sc.end()
	}
	if err != nil {
		return nil, fmt.Errorf("the body is not versions by package name: %w", err)
	}
	return names, nil
}

// advisories answers which versions have known weaknesses: what the proxy's upstream
// says of those names that no hosted repository owns. Internal names stay here.
func (p *Protocol) advisories(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	// A reader may send slowly: the memory that all share is taken when it has come.
	body, err := protocol.ReadBody(c.R, maxAskBytes)
	if err != nil {
		return err
	}
	room := min(maxAuditBytes, max(minUnpackBytes, maxUnpackRatio*int64(len(body))))
	release, err := p.catalog.Reserve(ctx, room+maxAdviceBytes)
	if err != nil {
		return err
	}
	defer release()
	if body, err = unpacked(c.R, body, room); err != nil {
		return err
	}
	names, err := auditedNames(body)
	if err != nil {
		return err
	}
	proxy, err := p.asked(ctx, by, c.Repository)
	if err != nil {
		return err
	}
	if proxy == nil {
		return protocol.WriteJSON(c.W, http.StatusOK, struct{}{})
	}
	for name := range names {
		sources, _, err := p.catalog.Sources(ctx, by, c.Repo, keyOf(name))
		if err != nil {
			return err
		}
		if admitted, _ := proxy.Upstream.Admits(name); len(sources.Owners) > 0 || !admitted {
			delete(names, name)
		}
	}
	if body, err = marshal(names); err != nil {
		return err
	}
	answer, err := p.proxies.Relay(ctx, proxy, upstream.Relayed{
		Method: http.MethodPost, Path: "-/npm/v1/security/advisories/bulk", Accept: fullType, ContentType: fullType, Body: body, MaxBytes: maxAdviceBytes,
	})
	if err != nil {
		return err
	}
	if !json.Valid(answer) {
		return fmt.Errorf("the upstream's advisories are no JSON: %w", protocol.ErrUpstream)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, json.RawMessage(answer))
}

// audit answers the older form of the question, of yarn and older clients, which sends a
// whole tree with internal names in it. It is not passed on: where somebody would have to
// be asked the answer is that this form is not served.
func (p *Protocol) audit(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	// Nothing in it is looked at; a client reads the answer once it has sent.
	_, _ = io.CopyN(io.Discard, c.R.Body, maxAuditBytes)
	proxy, err := p.asked(ctx, by, c.Repository)
	if err != nil {
		return err
	}
	if proxy != nil {
		return fmt.Errorf("audits of whole trees are not passed on to upstreams, use `npm audit` of npm 7 or later: %w", meta.ErrNotFound)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, json.RawMessage(
		`{"actions":[],"advisories":{},"muted":[],"metadata":{"vulnerabilities":{"info":0,"low":0,"moderate":0,"high":0,"critical":0},"dependencies":0,"devDependencies":0,"optionalDependencies":0,"totalDependencies":0}}`))
}

// keys answers the keys that versions are signed with: an upstream's, whose signatures
// stay in its documents. Hosted versions have no such signatures.
func (p *Protocol) keys(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	proxy, err := p.asked(ctx, by, c.Repository)
	if err != nil {
		return err
	}
	if proxy != nil {
		found, err := p.proxies.Fetch(ctx, by, proxy, upstream.Want{Path: "-/npm/v1/keys", Accept: fullType})
		if err != nil {
			return err
		}
		return upstream.Serve(c, p.proxies, found, protocol.Content{MediaType: fullType, Cache: protocol.Revalidate, Public: public(c)})
	}
	_, asOf, err := p.catalog.Repository(ctx, by, c.Repo)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return protocol.ServeBytes(c.W, c.R, []byte(`{"keys":[]}`), protocol.Content{MediaType: fullType, Cache: protocol.Revalidate, Public: public(c)})
}
