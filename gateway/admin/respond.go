package admin

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// respondRoutes are those of compromises, quarantine and elevations.
func (a *API) respondRoutes() []protocol.Route {
	route := func(name, method, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		place := protocol.Anywhere
		if method != http.MethodGet {
			place = protocol.AnyServer
		}
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: base + pattern, Action: action, Place: place, Serve: serve}
	}
	const version = "repositories/{tenant}/{repository}/packages/{package}/versions/{version}/"
	return []protocol.Route{
		// About whom somebody may respond is a matter of whose credential it is.
		route("compromise_open", http.MethodPost, "compromises", access.Respond, a.openCompromise),
		route("compromise_list", http.MethodGet, "compromises", access.Respond, a.compromises),
		route("compromise_get", http.MethodGet, "compromises/{compromise}", access.Respond, a.compromise),
		route("compromise_findings", http.MethodGet, "compromises/{compromise}/findings", access.Respond, a.findings),
		route("compromise_close", http.MethodPost, "compromises/{compromise}/close", access.Respond, a.closeCompromise),
		route("version_quarantine", http.MethodPost, version+"quarantine", access.Curate, a.quarantineVersion),
		route("version_release", http.MethodPost, version+"release", access.Curate, a.releaseVersion),
		route("elevation_request", http.MethodPost, "elevations", access.Elevate, a.requestElevation),
		// The holder sees its own, operators see all.
		route("elevation_list", http.MethodGet, "elevations", access.Login, a.elevations),
		route("elevation_decide", http.MethodPost, "elevations/{elevation}/{word}", access.Login, a.decideElevation),
		route("elevation_policy", http.MethodGet, "elevation-policy", access.Observe, a.elevationPolicy),
		route("elevation_policy_set", http.MethodPut, "elevation-policy", access.Admin, a.setElevationPolicy),
	}
}

// mayRespond refuses whom may not respond about a principal: its tenant's, or with none
// the cluster's, to answer for.
func (a *API) mayRespond(c *protocol.Call, principal string) error {
	return a.judge(c, access.Respond, access.Target{Tenant: meta.TenantOf(principal)})
}

// advances is how many pages of a compromise the call that opens it works on at once:
// what one credential did is mostly little, and contained with the answer.
const (
	advances     = 20
	advanceLimit = 200
)

func (a *API) openCompromise(c *protocol.Call) error {
	var body client.NewCompromise
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	principal := body.Principal
	if body.Token != "" {
		// Whose token it is decides who may end it; of one that is forgotten only the
		// cluster's responders may ask.
		k, err := ask(a, c, state.GetCredential{ID: body.Token})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		principal = k.Principal
	}
	if err := a.mayRespond(c, principal); err != nil {
		return err
	}
	id := newWaveID(time.Now())
	value, err := a.do(c, 0, state.OpenCompromise{
		ID: id, Credential: body.Token, Principal: body.Principal, Since: meta.TimeOf(body.Since), Until: meta.TimeOf(body.Until),
		Reason: body.Reason, RestoreAliases: body.RestoreAliases,
	})
	if err != nil {
		return err
	}
	opened, _ := value.(meta.Compromise)
	for n := range advances {
		if opened.State != meta.CompromiseContaining {
			break
		}
		// The leader does the same: whoever comes first.
		value, err := a.do(c, n+1, state.AdvanceCompromise{ID: id, Limit: advanceLimit})
		if err != nil {
			break // It is open and the credential has ended; the leader goes on.
		}
		opened, _ = value.(meta.Compromise)
	}
	return protocol.WriteJSON(c.W, http.StatusCreated, opened)
}

func (a *API) compromises(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	listed, err := ask(a, c, state.ListCompromises{Page: p})
	if err != nil {
		return err
	}
	page := client.Page[meta.Compromise]{Items: []meta.Compromise{}}
	if len(listed) == p.Limit {
		page.Next = listed[len(listed)-1].ID
	}
	for _, m := range listed {
		if access.May(c.Who, access.Respond, access.Target{Tenant: meta.TenantOf(m.Principal)}) {
			page.Items = append(page.Items, m)
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

// compromiseOf returns the compromise of the call, which looks absent to whom may not
// see it.
func (a *API) compromiseOf(c *protocol.Call) (meta.Compromise, error) {
	m, err := ask(a, c, state.GetCompromise{ID: c.Params.Get("compromise")})
	if err == nil && a.mayRespond(c, m.Principal) != nil {
		m, err = meta.Compromise{}, fmt.Errorf("compromise %s: %w", c.Params.Get("compromise"), meta.ErrNotFound)
	}
	return m, err
}

func (a *API) compromise(c *protocol.Call) error {
	m, err := a.compromiseOf(c)
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, m)
}

func (a *API) findings(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	m, err := a.compromiseOf(c)
	if err != nil {
		return err
	}
	listed, err := ask(a, c, state.ListFindings{ID: m.ID, Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, listed, func(f meta.Finding) string { return strconv.FormatUint(f.Number, 10) })
}

func (a *API) closeCompromise(c *protocol.Call) error {
	var body client.Reasoned
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	m, err := a.compromiseOf(c)
	if err != nil {
		return err
	}
	value, err := a.do(c, 0, state.CloseCompromise{ID: m.ID, Note: body.Reason})
	if err != nil {
		return err
	}
	return reply[meta.Compromise](c, http.StatusOK, value)
}

func (a *API) quarantineVersion(c *protocol.Call) error {
	return a.quarantine(c, func(pkg, version, reason string) state.Command {
		return state.QuarantineVersion{Repo: c.Repo, Package: pkg, Version: version, Reason: reason}
	})
}

func (a *API) releaseVersion(c *protocol.Call) error {
	return a.quarantine(c, func(pkg, version, reason string) state.Command {
		return state.ReleaseVersion{Repo: c.Repo, Package: pkg, Version: version, Reason: reason}
	})
}

func (a *API) quarantine(c *protocol.Call, command func(pkg, version, reason string) state.Command) error {
	var body client.Reasoned
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, command(c.Params.Get("package"), c.Params.Get("version"), body.Reason))
	if err != nil {
		return err
	}
	return reply[meta.Version](c, http.StatusOK, value)
}

// onScope is what an elevation reaches, for judging who may have to do with it: all of a
// tenant, one of its repositories, or the cluster.
func onScope(scope string) access.Target {
	if ref, err := meta.ParseRepoRef(scope); err == nil {
		return access.Target{Repo: ref, Record: &meta.Repository{Ref: ref, Visibility: meta.VisibilityPrivate}}
	}
	return access.Target{Tenant: meta.PatternTenant(scope)}
}

func (a *API) mayElevate(c *protocol.Call, scope string) error {
	return a.judge(c, access.Elevate, onScope(scope))
}

func (a *API) requestElevation(c *protocol.Call) error {
	var body client.NewElevation
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if err := a.mayElevate(c, body.Scope); err != nil {
		return err
	}
	if c.Who.Elevation != "" {
		return fmt.Errorf("an elevation gives no right to ask for another: %w", meta.ErrDenied)
	}
	if body.TTLSeconds < 0 || body.TTLSeconds > int64(meta.MaxElevation/time.Second) {
		return fmt.Errorf("an elevation of %d seconds, use up to %d: %w", body.TTLSeconds, int64(meta.MaxElevation/time.Second), meta.ErrInvalid)
	}
	value, err := a.do(c, 0, state.RequestElevation{
		ID: newWaveID(time.Now()), Role: body.Role, Scope: body.Scope, Environment: body.Environment,
		Reason: body.Reason, TTL: time.Duration(body.TTLSeconds) * time.Second,
	})
	if err != nil {
		return err
	}
	return reply[meta.Elevation](c, http.StatusCreated, value)
}

// sees reports whether the caller is shown an elevation: its holder, operators and
// auditors, and who may approve it.
func sees(c *protocol.Call, e *meta.Elevation) bool {
	return c.Who.Name == e.Principal || access.May(c.Who, access.Observe, access.Target{}) || access.May(c.Who, access.Elevate, onScope(e.Scope))
}

func (a *API) elevations(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	which := c.R.URL.Query().Get("which")
	if !slices.Contains([]string{"", "open", "unreviewed"}, which) {
		return fmt.Errorf("which=%s: use open or unreviewed: %w", which, meta.ErrInvalid)
	}
	listed, err := ask(a, c, state.ListElevations{Open: which == "open", Unreviewed: which == "unreviewed", Page: p})
	if err != nil {
		return err
	}
	page := client.Page[meta.Elevation]{Items: []meta.Elevation{}}
	if len(listed) == p.Limit && which != "open" { // those that are open come at once
		page.Next = listed[len(listed)-1].ID
	}
	for i := range listed {
		if sees(c, &listed[i]) {
			page.Items = append(page.Items, listed[i])
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) decideElevation(c *protocol.Call) error {
	var body client.Reasoned
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	id, word := c.Params.Get("elevation"), state.ElevationWord(c.Params.Get("word"))
	e, err := ask(a, c, state.GetElevation{ID: id})
	if err == nil && !sees(c, &e) {
		err = fmt.Errorf("elevation %s: %w", id, meta.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if word != state.ElevationEnd || e.Principal != c.Who.Name {
		if err := a.mayDecide(c, &e, word); err != nil {
			return err
		}
	}
	value, err := a.do(c, 0, state.DecideElevation{ID: id, Word: word, Note: body.Reason})
	if err != nil {
		return err
	}
	return reply[meta.Elevation](c, http.StatusOK, value)
}

// mayDecide refuses whom may not say a word on an elevation. What only an administrator
// may, only one can let another have.
func (a *API) mayDecide(c *protocol.Call, e *meta.Elevation, word state.ElevationWord) error {
	if err := a.mayElevate(c, e.Scope); err != nil {
		return err
	}
	if word != state.ElevationApprove {
		return nil
	}
	role, err := ask(a, c, state.GetRole{Name: e.Role})
	if err != nil || !slices.Contains(role.Actions, access.Admin) {
		return err
	}
	return a.judge(c, access.Admin, access.Target{})
}

func (a *API) elevationPolicy(c *protocol.Call) error {
	p, err := ask(a, c, state.GetElevationPolicy{})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, policyOf(p))
}

func policyOf(p meta.ElevationPolicy) client.ElevationPolicy {
	return client.ElevationPolicy{Approvers: p.Approvers, MaxTTLSeconds: int64(p.MaxTTL / time.Second)}
}

func (a *API) setElevationPolicy(c *protocol.Call) error {
	var body client.ElevationPolicy
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if body.MaxTTLSeconds < 0 || body.MaxTTLSeconds > int64(meta.MaxElevation/time.Second) {
		return fmt.Errorf("elevations of up to %d seconds, use up to %d: %w", body.MaxTTLSeconds, int64(meta.MaxElevation/time.Second), meta.ErrInvalid)
	}
	value, err := a.do(c, 0, state.SetElevationPolicy{Policy: meta.ElevationPolicy{
		Approvers: body.Approvers, MaxTTL: time.Duration(body.MaxTTLSeconds) * time.Second,
	}})
	if err != nil {
		return err
	}
	set, _ := value.(meta.ElevationPolicy)
	return protocol.WriteJSON(c.W, http.StatusOK, policyOf(set))
}
