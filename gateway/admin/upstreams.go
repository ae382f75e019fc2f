package admin

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Bounds of a credential for an upstream.
const (
	maxUpstreamUser   = 255
	maxUpstreamSecret = 8 << 10
)

// upstreamRoutes are about what proxies fetch, and with what.
func (a *API) upstreamRoutes() []protocol.Route {
	write := func(name, method, pattern string, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: pattern, Action: access.Manage, Place: protocol.AnyServer, Serve: serve}
	}
	return []protocol.Route{
		write("upstream_credential", http.MethodPut, repo+"/upstream/credential", a.setUpstreamCredential),
		write("upstream_credential_remove", http.MethodDelete, repo+"/upstream/credential", a.removeUpstreamCredential),
		write("upstream_forget", http.MethodPost, repo+"/upstream/forget", a.forgetFetched),
	}
}

func (a *API) setUpstreamCredential(c *protocol.Call) error {
	var body client.UpstreamCredential
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	odd := func(s string) bool { return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) }
	switch {
	case body.Secret == "" || len(body.Secret) > maxUpstreamSecret || odd(body.Secret):
		return fmt.Errorf("give the password or token, one line of up to %d bytes: %w", maxUpstreamSecret, meta.ErrInvalid)
	case len(body.User) > maxUpstreamUser || odd(body.User) || strings.Contains(body.User, ":"):
		return fmt.Errorf("a user has up to %d bytes and no colon: %w", maxUpstreamUser, meta.ErrInvalid)
	}
	r, err := confirmed(a, c, state.GetRepository{Ref: c.Repo})
	if err != nil {
		return err
	}
	if r.Upstream == nil {
		return fmt.Errorf("repository %s is %s, only a proxy has an upstream: %w", c.Repo, r.Kind, meta.ErrConflict)
	}
	seals, err := upstream.SealCredential(c.R.Context(), a.Metadata, r.Upstream, upstream.Credential{User: body.User, Secret: trust.Secret(body.Secret)})
	if err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.PutSealed{Sealed: meta.Sealed{Repo: c.Repo, Name: meta.SealedUpstream, Seals: seals, Public: []byte(body.User)}}); err != nil {
		return err
	}
	name := meta.SealedUpstream
	value, err := a.do(c, 1, state.SetRepository{Ref: c.Repo, Upstream: &state.UpstreamChange{Credential: &name}})
	if err != nil {
		return err
	}
	return reply[meta.Repository](c, http.StatusOK, value)
}

func (a *API) removeUpstreamCredential(c *protocol.Call) error {
	none := ""
	value, err := a.do(c, 0, state.SetRepository{Ref: c.Repo, Upstream: &state.UpstreamChange{Credential: &none}})
	if err != nil {
		return err
	}
	if _, err := a.do(c, 1, state.RemoveSealed{Repo: c.Repo, Name: meta.SealedUpstream}); err != nil {
		return err
	}
	return reply[meta.Repository](c, http.StatusOK, value)
}

// forgetFetched forgets what a proxy has: all of it, or one path, in pages; or where a
// group takes a package from.
func (a *API) forgetFetched(c *protocol.Call) error {
	var body client.Forget
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if body.Package != "" {
		return a.forgetSource(c, body)
	}
	n, err := a.forget(c, state.ForgetFetched{Repo: c.Repo, Path: body.Path, Accept: body.Accept})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Forgotten{Records: n})
}

func (a *API) forgetSource(c *protocol.Call, body client.Forget) error {
	if body.Path != "" || body.Accept != "" {
		return fmt.Errorf("forget a path of a proxy, or a package of a group: %w", meta.ErrInvalid)
	}
	r, err := confirmed(a, c, state.GetRepository{Ref: c.Repo})
	if err != nil {
		return err
	}
	if r.Kind != meta.KindGroup {
		return fmt.Errorf("repository %s is %s, only a group takes packages from proxies: %w", c.Repo, r.Kind, meta.ErrConflict)
	}
	sources, err := confirmed(a, c, state.GetSources{Repo: c.Repo, Package: body.Package})
	if err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.RememberSource{Group: c.Repo, Package: body.Package, Forget: true}); err != nil {
		return err
	}
	var n client.Forgotten
	if sources.Remembered != "" {
		n.Records = 1
	}
	return protocol.WriteJSON(c.W, http.StatusOK, n)
}

func (a *API) forget(c *protocol.Call, command state.ForgetFetched) (n uint64, _ error) {
	const page = 500
	command.Limit = page
	for step := 0; ; step++ {
		value, err := a.do(c, step, command)
		if err != nil {
			return n, err
		}
		f, ok := value.(state.ForgottenFetched)
		n += uint64(f.Forgotten)
		if !ok || !f.More {
			return n, nil
		}
	}
}
