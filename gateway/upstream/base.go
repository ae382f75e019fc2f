package upstream

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"

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

// upstreamOf names the upstream that a path of a repository is of, "" for an address that
// says so itself: by its URL, of which records need to know no more.
func upstreamOf(repo *meta.Repository, path string) string {
	if absolute(path) {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(baseURL(repo), "/")))
	return hex.EncodeToString(sum[:8])
}

// absolute reports whether a path is an address of its own.
func absolute(path string) bool {
	return strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://")
}

// baseURL returns where a repository's upstream answers.
func baseURL(repo *meta.Repository) string {
	u, err := url.Parse(repo.Upstream.URL)
	if err != nil || repo.Format != "oci" || !HubHost(u.Host) || u.Host == hubRegistry {
		return repo.Upstream.URL
	}
	return u.Scheme + "://" + hubRegistry
}
