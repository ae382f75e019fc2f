package admin

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Trail is this node's chain of denials, failed logins and pulls.
type Trail interface {
	// Head is its end that is safe on the disk.
	Head() audit.Head
	// Read yields its lines from a link on, or from the oldest that is kept; an error of
	// line ends it, trail.ErrEnough without an error.
	Read(from uint64, line func(seq uint64, line []byte) error) error
}

// auditRoutes are those of the audit log. Agents have none of it and send the questions
// on, but for their own chain.
func (a *API) auditRoutes() []protocol.Route {
	route := func(name, method, pattern string, action access.Action, place protocol.Place, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: pattern, Action: action, Place: place, Serve: serve}
	}
	return []protocol.Route{
		route("audit_status", http.MethodGet, base+"audit", access.Audit, protocol.AnyServer, a.auditStatus),
		route("audit_entries", http.MethodGet, base+"audit/entries", access.Audit, protocol.AnyServer, a.auditEntries),
		route("audit_proof", http.MethodGet, base+"audit/entries/{seq}/proof", access.Audit, protocol.AnyServer, a.auditProof),
		route("audit_checkpoints", http.MethodGet, base+"audit/checkpoints", access.Audit, protocol.AnyServer, a.auditCheckpoints),
		route("audit_chains", http.MethodGet, base+"audit/chains", access.Audit, protocol.AnyServer, a.auditChains),
		route("audit_access", http.MethodGet, base+"audit/access", access.Audit, protocol.Anywhere, a.auditAccess),
		route("audit_retention", http.MethodPut, base+"audit/retention", access.Operate, protocol.AnyServer, a.setAuditRetention),
	}
}

// wholeAudit refuses who may not read the log of the whole cluster.
func (a *API) wholeAudit(c *protocol.Call) error {
	if access.May(c.Who, access.Audit, access.Target{}) {
		return nil
	}
	return fmt.Errorf("%s may not audit the cluster; of a tenant ask for its entries: %w", c.Who.Name, meta.ErrDenied)
}

func (a *API) auditStatus(c *protocol.Call) error {
	log, err := ask(a, c, state.GetAuditLog{})
	if err != nil {
		return err
	}
	s := client.AuditStatus{
		Cluster: log.Cluster, Epoch: log.Epoch, Size: log.Size, Root: base64.StdEncoding.EncodeToString(log.Root),
		Checkpoint: log.Checked, Retention: log.Kept,
	}
	return protocol.WriteJSON(c.W, http.StatusOK, s)
}

// numberOf reads a number of the query, 0 when it is not there.
func numberOf(v url.Values, name string) (uint64, error) {
	text := v.Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%s=%q is no number: %w", name, text, meta.ErrInvalid)
	}
	return n, nil
}

func timeOf(v url.Values, name string) (meta.Time, error) {
	text := v.Get(name)
	if text == "" {
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, fmt.Errorf("%s=%q: write a time as 2026-01-31T12:00:00Z: %w", name, text, meta.ErrInvalid)
	}
	return meta.TimeOf(t), nil
}

// auditQuery reads which entries are asked for. Whom the cluster's log is not for gets
// those of a tenant that it names and may audit.
func (a *API) auditQuery(c *protocol.Call) (q state.ListEntries, err error) {
	v := c.R.URL.Query()
	q.Filter = state.AuditFilter{
		Principal: v.Get("principal"), Credential: v.Get("credential"), Tenant: meta.TenantName(v.Get("tenant")), Repository: v.Get("repository"),
		Action: v.Get("action"), Request: v.Get("request"), Outcome: v.Get("outcome"), Elevation: v.Get("elevation"),
	}
	if q.From, err = numberOf(v, "from"); err != nil {
		return q, err
	}
	limit, err := numberOf(v, "limit")
	if err != nil {
		return q, err
	}
	q.Limit, q.Last = int(min(limit, 1<<20)), v.Get("last") != ""
	if q.Filter.Since, err = timeOf(v, "since"); err != nil {
		return q, err
	}
	if q.Filter.Until, err = timeOf(v, "until"); err != nil {
		return q, err
	}
	if whole := a.wholeAudit(c); whole != nil {
		if q.Filter.Tenant == "" || !access.May(c.Who, access.Audit, access.Target{Tenant: q.Filter.Tenant}) {
			return q, fmt.Errorf("name a tenant that you may audit: %w", whole)
		}
	}
	return q, nil
}

func (a *API) auditEntries(c *protocol.Call) error {
	q, err := a.auditQuery(c)
	if err != nil {
		return err
	}
	found, err := ask(a, c, q)
	if err != nil {
		return err
	}
	page := client.AuditPage{Lines: make([]string, len(found.Lines)), Next: found.Next, Size: found.Size, First: found.First}
	for i, line := range found.Lines {
		page.Lines[i] = string(line)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) auditProof(c *protocol.Call) error {
	seq, err := strconv.ParseUint(c.Params.Get("seq"), 10, 62)
	if err != nil {
		return fmt.Errorf("entry %q is no number: %w", c.Params.Get("seq"), meta.ErrInvalid)
	}
	found, err := ask(a, c, state.ProveEntry{Seq: seq})
	if err != nil {
		return err
	}
	if whole := a.wholeAudit(c); whole != nil {
		e, err := audit.ParseLine(found.Line)
		if err != nil || e.Tenant == "" || !access.May(c.Who, access.Audit, access.Target{Tenant: e.Tenant}) {
			return whole
		}
	}
	p := audit.Proof{Entry: string(found.Line), Checkpoint: found.Checkpoint, Path: make([]tlog.Hash, len(found.Path))}
	for i, h := range found.Path {
		if copy(p.Path[i][:], h) != tlog.HashSize {
			return errors.New("the proof has a hash of another size")
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, p)
}

func (a *API) auditCheckpoints(c *protocol.Call) error {
	after, err := numberOf(c.R.URL.Query(), "after")
	if err != nil {
		return err
	}
	found, err := ask(a, c, state.ListCheckpoints{After: after})
	if err != nil {
		return err
	}
	if found == nil {
		found = []audit.Signed{}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[audit.Signed]{Items: found})
}

func (a *API) auditChains(c *protocol.Call) error {
	if err := a.wholeAudit(c); err != nil {
		return err
	}
	found, err := ask(a, c, state.ListChains{Page: state.Page{After: c.R.URL.Query().Get("after"), Limit: client.MaxPage}})
	if err != nil {
		return err
	}
	if found == nil {
		found = []audit.Chain{}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[audit.Chain]{Items: found})
}

const (
	accessLines = 1000
	accessBytes = 2 << 20
)

func (a *API) auditAccess(c *protocol.Call) error {
	if err := a.wholeAudit(c); err != nil {
		return err
	}
	if a.Trail == nil {
		return fmt.Errorf("this node keeps no access log: %w", meta.ErrNotFound)
	}
	from, err := numberOf(c.R.URL.Query(), "from")
	if err != nil {
		return err
	}
	limit, err := numberOf(c.R.URL.Query(), "limit")
	if err != nil {
		return err
	}
	if limit == 0 || limit > accessLines {
		limit = accessLines
	}
	page := client.AccessPage{Node: a.Self.ID, Lines: []string{}, Next: from, Head: a.Trail.Head()}
	size := 0
	enough := errors.New("enough")
	err = a.Trail.Read(from, func(seq uint64, line []byte) error {
		if uint64(len(page.Lines)) >= limit || size >= accessBytes {
			return enough
		}
		page.Lines, page.Next = append(page.Lines, string(line)), seq+1
		size += len(line)
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) setAuditRetention(c *protocol.Call) error {
	var body client.NewAuditRetention
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.SetAuditRetention{Keep: body.Keep, Exported: body.Exported})
	if err != nil {
		return err
	}
	return reply[audit.Retention](c, http.StatusOK, value)
}
