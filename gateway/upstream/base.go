package upstream

import (
	"net/url"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// hubRegistry is where docker's hub answers; people know it by other names.
const hubRegistry = "registry-1.docker.io"

// HubHost reports whether a host is docker's hub.
func HubHost(host string) bool {
	switch host {
	case "docker.io", "index.docker.io", "www.docker.io", "registry.hub.docker.com", hubRegistry:
		return true
	}
	return false
}

// baseURL returns where a repository's upstream answers.
func baseURL(repo *meta.Repository) string {
	u, err := url.Parse(repo.Upstream.URL)
	if err != nil || repo.Format != "oci" || !HubHost(u.Host) || u.Host == hubRegistry {
		return repo.Upstream.URL
	}
	return u.Scheme + "://" + hubRegistry
}
