package admin

import (
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	lostMost = 1000 // counted for a status
	usesMost = 100  // named of one blob
	usesAsks = 20   // questions for them, each over some 50,000 records
	listAsks = 20   // questions for a page of copies
)

// lost counts the blobs that are lost, up to lostMost.
func (a *API) lost(c *protocol.Call) (int, error) {
	lost, err := ask(a, c, state.ListLost{Page: state.Page{Limit: lostMost}})
	return len(lost), err
}

func (a *API) scrub(c *protocol.Call) error {
	audits, err := ask(a, c, state.ListAudits{})
	if err != nil {
		return err
	}
	s := client.ScrubStatus{Servers: audits}
	if s.Servers == nil {
		s.Servers = []meta.Audit{}
	}
	if s.Unrepairable, err = a.lost(c); err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, s)
}

func (a *API) runScrub(c *protocol.Call) error {
	var body client.NewScrub
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.RequestAudit{
		Request: meta.AuditRequest{Full: body.Full, Roots: body.Roots}, Servers: body.Servers,
	})
	if err != nil {
		return err
	}
	return reply[meta.AuditRequest](c, http.StatusAccepted, value)
}

// rootAfter reads the `after` of a page that goes by roots.
func rootAfter(p state.Page) (root digest.CID, err error) {
	if p.After != "" {
		if root, err = digest.ParseCID(p.After); err != nil {
			err = fmt.Errorf("after=%q is no root: %w: %w", p.After, err, meta.ErrInvalid)
		}
	}
	return root, err
}

// failedCopies ends a page early, with where to go on, when failed copies are few among
// many.
func (a *API) failedCopies(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	q := state.ListCopies{State: meta.ReplicaFailed, Limit: p.Limit}
	if q.After, err = rootAfter(p); err != nil {
		return err
	}
	page := client.Page[meta.Replica]{Items: []meta.Replica{}}
	for range listAsks {
		found, err := ask(a, c, q)
		if err != nil {
			return err
		}
		page.Items = append(page.Items, found.Copies...)
		page.Next = ""
		if q.After = found.After; q.After.IsZero() {
			break
		}
		if page.Next = q.After.String(); len(page.Items) >= p.Limit {
			break
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

func (a *API) unrepairable(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	if _, err := rootAfter(p); err != nil {
		return err
	}
	lost, err := ask(a, c, state.ListLost{Page: p})
	if err != nil {
		return err
	}
	items := make([]client.Unrepairable, 0, len(lost))
	for _, l := range lost {
		item := client.Unrepairable{LostBlob: l, Uses: []meta.Use{}}
		q := state.UsesOf{Root: l.Root, Limit: usesMost}
		for range usesAsks {
			found, err := ask(a, c, q)
			if err != nil {
				return err
			}
			item.Uses = append(item.Uses, found.Uses...)
			q.After = found.After
			if item.More = q.After != ""; !item.More || len(item.Uses) >= usesMost {
				break
			}
		}
		items = append(items, item)
	}
	return writePage(c, p, items, func(u client.Unrepairable) string { return u.Root.String() })
}
