package admin

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// rosterPage is how many nodes are read at a time.
const rosterPage = 1000

// roster lists all nodes of a role and region; zero values list all.
func (a *API) roster(c *protocol.Call, role meta.Role, region meta.RegionName) ([]meta.Node, error) {
	var nodes []meta.Node
	for after := ""; ; {
		page, err := ask(a, c, state.ListNodes{Role: role, Region: region, Page: state.Page{After: after, Limit: rosterPage}})
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, page...)
		if len(page) < rosterPage {
			return nodes, nil
		}
		after = string(page[len(page)-1].ID)
	}
}

// status is read where the node is, unless the caller asks otherwise: it must answer
// when nothing else does.
func (a *API) status(c *protocol.Call) error {
	cluster, asOf, err := raftmeta.Ask(c.R.Context(), a.Metadata, c.Fresh(meta.Local), state.GetCluster{})
	if err != nil {
		return err
	}
	s := client.Status{
		Cluster: cluster.ID, Version: a.Version, Node: a.Self.ID, Role: a.Self.Role, Region: a.Self.Region,
		Level: cluster.Level, Epoch: cluster.Epoch,
		Index: asOf.Index, AgeSeconds: -1, Mode: string(asOf.Mode), Stale: asOf.Stale,
		Servers: []client.Server{},
	}
	if asOf.Age != meta.UnknownAge {
		s.AgeSeconds = asOf.Age.Seconds()
	}
	if a.Quorum != nil {
		s.QuorumKnown, s.Leader = true, a.Quorum.Leader()
	}
	nodes, err := a.roster(c, "", "")
	if err != nil {
		return err
	}
	if s.Regions, err = a.regionsOf(c, nodes); err != nil {
		return err
	}
	if s.Unrepairable, err = a.lost(c); err != nil {
		return err
	}
	if s.Quotas, err = a.atQuota(c); err != nil {
		return err
	}
	if s.Elevations, err = ask(a, c, state.ListElevations{Open: true}); err != nil {
		return err
	}
	if a.Audited != nil {
		s.Audit = a.Audited()
	}
	voters := a.voters()
	for _, n := range nodes {
		if n.Role == meta.RoleServer {
			s.Servers = append(s.Servers, client.Server{
				ID: n.ID, Region: n.Region, Zone: n.Zone, Gateway: n.Gateway,
				Voter: slices.Contains(voters, n.ID), Leader: n.ID == s.Leader, Bucket: n.Bucket,
			})
		}
	}
	if a.Reported != nil {
		s.Reported = a.Reported()
	}
	c.AsOf(asOf)
	return protocol.WriteJSON(c.W, http.StatusOK, s)
}

func (a *API) voters() []meta.NodeID {
	if a.Quorum == nil {
		return nil
	}
	return a.Quorum.Voters()
}

func (a *API) regionsOf(c *protocol.Call, nodes []meta.Node) ([]client.Region, error) {
	known, err := ask(a, c, state.ListRegions{})
	if err != nil {
		return nil, err
	}
	fares, err := a.healthByRegion(c)
	if err != nil {
		return nil, err
	}
	voters := a.voters()
	regions := make([]client.Region, 0, len(known))
	for _, r := range known {
		region := client.Region{Region: r, Health: fares[r.Name].State, Why: fares[r.Name].Why}
		for _, n := range nodes {
			switch {
			case n.Region != r.Name:
			case n.Role == meta.RoleServer:
				region.Servers++
				if n.Draining != nil {
					region.Draining++
				}
				if n.Zone != "" && !slices.Contains(region.Zones, n.Zone) {
					region.Zones = append(region.Zones, n.Zone)
				}
				if slices.Contains(voters, n.ID) {
					region.Voters++
				}
			default:
				region.Agents++
			}
		}
		slices.Sort(region.Zones)
		region.SafeToLose = len(voters) > 0 && len(voters)-region.Voters >= len(voters)/2+1
		regions = append(regions, region)
	}
	return regions, nil
}

func (a *API) regions(c *protocol.Call) error {
	nodes, err := a.roster(c, "", "")
	if err != nil {
		return err
	}
	regions, err := a.regionsOf(c, nodes)
	if err != nil {
		return err
	}
	copies, err := ask(a, c, state.Replication{})
	if err != nil {
		return err
	}
	for i := range regions {
		r := &regions[i]
		r.Counted = copies.Counted
		for _, class := range copies.Classes {
			if class.Region == r.Name {
				r.Owed.Blobs += class.DemandedBlobs
				r.Owed.Bytes += class.DemandedBytes
				r.Owed.WaitingBlobs += class.WaitingBlobs
				r.Owed.WaitingBytes += class.WaitingBytes
			}
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[client.Region]{Items: regions})
}

func (a *API) putRegion(c *protocol.Call) error {
	var body client.RegionChange
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.PutRegion{Region: meta.Region{Name: meta.RegionName(c.Params.Get("region")), Primary: body.Primary}})
	if err != nil {
		return err
	}
	return reply[meta.Region](c, http.StatusOK, value)
}

func (a *API) nodes(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	query := c.R.URL.Query()
	role := meta.Role(query.Get("role"))
	if role != "" && role != meta.RoleServer && role != meta.RoleAgent {
		return fmt.Errorf("role %q: use server or agent: %w", role, meta.ErrInvalid)
	}
	nodes, err := ask(a, c, state.ListNodes{Role: role, Region: meta.RegionName(query.Get("region")), Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, nodes, func(n meta.Node) string { return string(n.ID) })
}

// root returns the cluster and its root certificate.
func (a *API) root(c *protocol.Call) (meta.Cluster, *trust.Root, error) {
	cluster, err := ask(a, c, state.GetCluster{})
	if err != nil {
		return cluster, nil, err
	}
	root, err := trust.ParseRoot(cluster.Root)
	return cluster, root, err
}

// Bounds of join tokens.
const (
	standardTTL = 10 * time.Minute
	maxTTL      = 30 * 24 * time.Hour
	maxUses     = 100_000
)

// createJoinToken makes the secret here and commits only its hash: the log and
// the metadata never hold what admits a node.
func (a *API) createJoinToken(c *protocol.Call) error {
	var body client.NewJoinToken
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if body.Uses == 0 {
		body.Uses = 1
	}
	// Compared before it is multiplied: the product of a foreign number may wrap.
	if body.TTLSeconds < 0 || body.TTLSeconds > int64(maxTTL/time.Second) || body.Uses > maxUses {
		return fmt.Errorf("a join token lives up to %v and has up to %d uses: %w", maxTTL, maxUses, meta.ErrInvalid)
	}
	ttl := time.Duration(body.TTLSeconds) * time.Second
	if ttl == 0 {
		ttl = standardTTL
	}
	if body.Role == meta.RoleServer && len(body.Read) > 0 {
		return fmt.Errorf("read patterns are for agents: %w", meta.ErrInvalid)
	}
	if body.Role == meta.RoleServer {
		// The root's key is sealed to each server: who lets one in may all.
		if err := a.judge(c, access.Admin, access.Target{}); err != nil {
			return fmt.Errorf("a token for servers: %w", err)
		}
	}
	if err := a.regionFor(c.R.Context(), body.Role, body.Region); err != nil {
		return err
	}
	_, root, err := a.root(c)
	if err != nil {
		return err
	}
	// While the root is being replaced, a token is of the one that stays.
	if succession, err := ask(a, c, state.GetTrust{}); err != nil {
		return err
	} else if len(succession.Next) > 0 {
		if root, err = trust.ParseRoot(succession.Next); err != nil {
			return err
		}
	}
	token := trust.NewJoinToken(root)
	record := meta.JoinToken{
		ID: token.SecretHash(), Role: body.Role, Region: body.Region,
		Expires: meta.TimeOf(time.Now().Add(ttl)), Uses: body.Uses, Read: body.Read, Tenants: body.Tenants,
	}
	if _, err := a.do(c, 0, state.CreateJoinToken{Token: record}); err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusCreated, client.JoinToken{
		Token: token.Text(), ID: record.ID, Role: record.Role, Region: record.Region,
		Uses: record.Uses, Expires: record.Expires.Std(),
	})
}
