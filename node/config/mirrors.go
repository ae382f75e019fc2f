package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Mirrors are the proxy repositories that clients mean who take this node for a mirror of
// another registry, by its host.
type Mirrors map[string]meta.RepoRef

// ParseMirrors reads `docker.io=acme/hub,ghcr.io=acme/ghcr`.
func ParseMirrors(s string) (Mirrors, error) {
	var all Mirrors
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		host, name, ok := strings.Cut(part, "=")
		ref, err := meta.ParseRepoRef(name)
		if !ok || host == "" || strings.ContainsAny(host, "/ ") || err != nil {
			return nil, fmt.Errorf("mirror %q: write it like docker.io=acme/hub", part)
		}
		if all == nil {
			all = Mirrors{}
		}
		all[strings.ToLower(host)] = ref
	}
	return all, nil
}

func (m Mirrors) String() string {
	var texts []string
	for _, host := range slices.Sorted(maps.Keys(m)) {
		texts = append(texts, host+"="+m[host].String())
	}
	return strings.Join(texts, ",")
}

func mirrors(key, usage string, field func(*Config) *Mirrors) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return field(c).String() },
		set: func(c *Config, s string) (err error) { *field(c), err = ParseMirrors(s); return err }}
}
