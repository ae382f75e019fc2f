package protocoltest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// AdminToken is the admin token of a Records.
const AdminToken = "the-admin-token-of-the-tests"

// Records is an access.Metadata in memory. It is safe for concurrent use; the
// zero value is empty.
type Records struct {
	mu           sync.Mutex
	repositories map[meta.RepoRef]meta.Repository
	nodes        map[meta.NodeID]meta.Node
	strong       int
}

// PutRepository adds or replaces a repository.
func (m *Records) PutRepository(r meta.Repository) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.repositories == nil {
		m.repositories = map[meta.RepoRef]meta.Repository{}
	}
	m.repositories[r.Ref] = r
}

// RemoveRepository drops a repository's record.
func (m *Records) RemoveRepository(ref meta.RepoRef) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.repositories, ref)
}

// PutNode adds or replaces a node.
func (m *Records) PutNode(n meta.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes == nil {
		m.nodes = map[meta.NodeID]meta.Node{}
	}
	m.nodes[n.ID] = n
}

// RemoveNode takes a node away.
func (m *Records) RemoveNode(id meta.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.nodes, id)
}

// StrongReads counts the strong reads of repositories.
func (m *Records) StrongReads() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.strong
}

// Caller implements access.Metadata: it knows nobody.
func (m *Records) Caller(_ context.Context, q state.GetCaller, _ meta.Freshness) (state.Caller, error) {
	return state.Caller{}, fmt.Errorf("%+v: %w", q, meta.ErrNotFound)
}

// Epoch implements access.Metadata.
func (m *Records) Epoch(context.Context) (uint64, error) { return 0, nil }

// AdminTokenHash implements access.Metadata.
func (m *Records) AdminTokenHash(context.Context) ([]byte, error) {
	sum := sha256.Sum256([]byte(AdminToken))
	return sum[:], nil
}

// Node implements access.Metadata and forward.Roster.
func (m *Records) Node(_ context.Context, id meta.NodeID) (meta.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.nodes[id]
	if !ok {
		return n, fmt.Errorf("node %s: %w", id, meta.ErrNotFound)
	}
	return n, nil
}

// Servers implements forward.Roster.
func (m *Records) Servers(context.Context) ([]meta.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var servers []meta.Node
	for _, n := range m.nodes {
		if n.Role == meta.RoleServer {
			servers = append(servers, n)
		}
	}
	return servers, nil
}

// Repository implements access.Metadata.
func (m *Records) Repository(_ context.Context, ref meta.RepoRef, f meta.Freshness) (meta.Repository, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Mode == meta.ModeStrong {
		m.strong++
	}
	r, ok := m.repositories[ref]
	if !ok {
		return r, fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
	}
	return r, nil
}
