package admin

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Succession is who makes the cluster's next root: the server's half of joining, which
// holds the key of the present one.
type Succession interface {
	// Begin makes the next root, with its key sealed to every server.
	Begin(ctx context.Context) (state.BeginRotation, error)
	// Finish is the command that drops the old root; the next one signs the epoch.
	Finish(ctx context.Context) (state.FinishRotation, error)
}

// trust shows the roots: the present one, and while it is being replaced the next.
func (a *API) trust(c *protocol.Call) error {
	cluster, root, err := a.root(c)
	if err != nil {
		return err
	}
	succession, err := ask(a, c, state.GetTrust{})
	if err != nil {
		return err
	}
	hash := root.Hash()
	answer := client.Trust{
		Cluster: cluster.ID, Certificate: string(root.PEM()), SHA256: hex.EncodeToString(hash[:]),
		NotAfter: root.NotAfter().UTC(), Holders: []meta.NodeID{},
		Started: succession.Started, Finished: succession.Finished,
	}
	for id := range cluster.RootKey {
		answer.Holders = append(answer.Holders, id)
	}
	slices.Sort(answer.Holders)
	if len(succession.Next) > 0 {
		next, err := trust.ParseRoot(succession.Next)
		if err != nil {
			return err
		}
		hash := next.Hash()
		answer.Next = &client.Root{Certificate: string(next.PEM()), SHA256: hex.EncodeToString(hash[:]), NotAfter: next.NotAfter().UTC()}
	}
	if len(succession.Former) > 0 {
		answer.Former = hex.EncodeToString(meta.RootHash(succession.Former))
	}
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}

// holders lists the nodes and whether each has a certificate of the next root.
func (a *API) holders(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	holders, err := ask(a, c, state.ListHolders{Page: p})
	if err != nil {
		return err
	}
	shown := make([]client.RootHolder, len(holders))
	for i, h := range holders {
		shown[i] = client.RootHolder{ID: h.Node.ID, Role: h.Node.Role, Region: h.Node.Region, Gateway: h.Node.Gateway, Has: h.Has}
	}
	return writePage(c, p, shown, func(h client.RootHolder) string { return string(h.ID) })
}

func (a *API) beginRotation(c *protocol.Call) error {
	command, err := a.Succession.Begin(c.R.Context())
	if err != nil {
		return err
	}
	if _, err := a.do(c, 0, command); err != nil {
		return err
	}
	return a.trust(c)
}

// mostWaiting bounds the nodes that a refusal names.
const mostWaiting = 5

// finishRotation drops the old root when all of the roster have a certificate of the
// next; ?force=true leaves behind who has none.
func (a *API) finishRotation(c *protocol.Call) error {
	force := c.R.URL.Query().Get("force") == "true"
	if !force {
		if err := a.allHold(c.R.Context()); err != nil {
			return err
		}
	}
	command, err := a.Succession.Finish(c.R.Context())
	if err != nil {
		return err
	}
	command.Force = force
	if _, err := a.do(c, 0, command); err != nil {
		return err
	}
	return a.trust(c)
}

// allHold refuses while a node has no certificate of the next root.
func (a *API) allHold(ctx context.Context) error {
	var waiting []string
	count := 0
	for after := ""; ; {
		const atOnce = 1000
		page, _, err := raftmeta.Ask(ctx, a.Metadata, meta.Strong, state.ListHolders{Page: state.Page{After: after, Limit: atOnce}})
		if err != nil {
			return err
		}
		for _, h := range page {
			if h.Has {
				continue
			}
			if count++; len(waiting) < mostWaiting {
				waiting = append(waiting, fmt.Sprintf("%s %s of %s", h.Node.Role, h.Node.ID, h.Node.Region))
			}
		}
		if len(page) < atOnce {
			break
		}
		after = string(page[len(page)-1].Node.ID)
	}
	if count == 0 {
		return nil
	}
	return fmt.Errorf("%d nodes have no certificate of the next root yet (%s): start them, remove those that do not come back (`shoal node remove`), or leave them behind with --force; "+
		"those are led to the new root when they return within %d days: %w", count, strings.Join(waiting, ", "), int(trust.CrossLife/(24*time.Hour)), meta.ErrConflict)
}

// regionFor refuses a token for a region that takes no such node.
func (a *API) regionFor(ctx context.Context, role meta.Role, name meta.RegionName) error {
	if err := meta.CheckRegion(name); err != nil {
		return err
	}
	regions, _, err := raftmeta.Ask(ctx, a.Metadata, meta.Strong, state.ListRegions{})
	if err != nil {
		return err
	}
	var names []string
	for _, r := range regions {
		switch {
		case r.Name == name && r.Leaving != 0:
			return fmt.Errorf("region %s is being removed and takes no new nodes; `shoal region keep %s` takes that back: %w", name, name, meta.ErrConflict)
		case r.Name == name:
			return nil
		case r.Leaving == 0:
			names = append(names, string(r.Name))
		}
	}
	if role == meta.RoleServer {
		return nil // The first server of a region begins it.
	}
	return fmt.Errorf("there is no region %s, so its hosts would have no server: the regions are %s; a new one begins with its first server (`shoal token join --role server --region %s`): %w",
		name, strings.Join(names, ", "), name, meta.ErrNotFound)
}

func (a *API) joinTokens(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	tokens, err := ask(a, c, state.ListJoinTokens{Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, tokens, func(t meta.JoinToken) string { return t.ID })
}

// shortestID is how much of a token's id names it.
const shortestID = 8

// revokeJoinToken ends the one token whose id begins with what the path says.
func (a *API) revokeJoinToken(c *protocol.Call) error {
	prefix := c.Params.Get("token")
	if len(prefix) < shortestID {
		return fmt.Errorf("name the token by at least %d digits of its id: %w", shortestID, meta.ErrInvalid)
	}
	// Ids are in order, so those with the prefix come first behind what is just before it.
	page, _, err := raftmeta.Ask(c.R.Context(), a.Metadata, meta.Strong, state.ListJoinTokens{Page: state.Page{After: before(prefix), Limit: 2}})
	if err != nil {
		return err
	}
	page = slices.DeleteFunc(page, func(t meta.JoinToken) bool { return !strings.HasPrefix(t.ID, prefix) })
	switch {
	case len(page) == 0:
		return fmt.Errorf("there is no join token %s, see `shoal token join --list`: %w", prefix, meta.ErrNotFound)
	case len(page) > 1 && page[0].ID != prefix:
		return fmt.Errorf("%s begins the ids of several join tokens: %w", prefix, meta.ErrInvalid)
	}
	if _, err := a.do(c, 0, state.RevokeJoinToken{ID: page[0].ID}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// before returns a text that sorts before s and all that begin with it, but behind all
// other hexadecimal ids that do.
func before(s string) string {
	last := s[len(s)-1]
	return s[:len(s)-1] + string([]byte{last - 1, '~'})
}
