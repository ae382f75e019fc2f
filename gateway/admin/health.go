package admin

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// health answers how all regions fare, or with {region} the one.
func (a *API) health(c *protocol.Call) error {
	all, err := ask(a, c, state.RegionHealth{Region: meta.RegionName(c.Params.Get("region"))})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[meta.RegionHealth]{Items: all})
}

// incidents lists incidents, the newest first.
func (a *API) incidents(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	all, err := ask(a, c, state.ListIncidents{Region: meta.RegionName(c.R.URL.Query().Get("region")), Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, all, func(i meta.Incident) string { return strconv.FormatUint(i.ID, 10) })
}

// healthByRegion is for listings that have more to say of regions. A server of an older build
// does not know the question: then nothing is known.
func (a *API) healthByRegion(c *protocol.Call) (map[meta.RegionName]meta.RegionHealth, error) {
	all, err := ask(a, c, state.RegionHealth{})
	if errors.Is(err, meta.ErrInvalid) {
		return nil, nil
	}
	by := make(map[meta.RegionName]meta.RegionHealth, len(all))
	for _, h := range all {
		by[h.Region] = h
	}
	return by, err
}
