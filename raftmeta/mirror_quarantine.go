package raftmeta

import (
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// quarantined notes that a version went into quarantine or came out: what was answered
// about the repository's blobs is to be asked again, and an answer that leads to a
// version in quarantine is forgotten, so that it is not served when no server is left.
// It holds mu.
func (m *Mirror) quarantined(c feed.Change) {
	blobs := scope{Repo: c.Repo}
	if before, _ := m.touched.Peek(blobs); c.Index > before {
		m.touched.Add(blobs, c.Index)
	}
	if !c.Deleted {
		return
	}
	at := scope{Repo: c.Repo, Package: c.Package}
	for _, key := range m.answers.Keys() {
		a, _ := m.answers.Peek(key)
		if a.about.scope != at || a.asOf.Index >= c.Index || !strings.HasPrefix(key, "Resolve\x00") {
			continue
		}
		var found state.ResolveAnswer
		if err := codec.Unmarshal(a.value, &found); err != nil || found.Version.Name == c.Name {
			m.answers.Remove(key)
		}
	}
}

// ofQuarantine reports whether c says so of a version.
func ofQuarantine(c feed.Change) bool {
	return c.Kind == feed.KindRespond && c.Repo != (meta.RepoRef{})
}
