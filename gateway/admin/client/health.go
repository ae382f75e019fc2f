package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Health returns how regions fare: all, or the one named.
//
// Errors: meta.ErrNotFound for a region that there is not.
func (c *Client) Health(ctx context.Context, region meta.RegionName) ([]meta.RegionHealth, error) {
	path := "health"
	if region != "" {
		path = join("regions", string(region), "health")
	}
	var page Page[meta.RegionHealth]
	return page.Items, c.call(ctx, http.MethodGet, path, nil, nil, &page)
}

// Incidents lists the times in which regions were not healthy, the newest first, of
// one region when it is named.
func (c *Client) Incidents(ctx context.Context, region meta.RegionName) iter.Seq2[meta.Incident, error] {
	query := url.Values{}
	if region != "" {
		query.Set("region", string(region))
	}
	return all[meta.Incident](ctx, c, "incidents", query)
}
