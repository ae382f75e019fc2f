// Package uploadid names upload sessions so that any gateway can route them and
// only who opened one can use it.
//
// An id is `<node>~<session>~<hmac>`: the server that holds the session, the
// session's name in that server's store, and an HMAC-SHA256 of both with the
// principal and the repository, by a key that only that server has. Anybody can
// read the owner (Owner) to forward a request; only the owner can tell whether
// the id is for this caller here (Minter.Session). Start reading at Minter.
//
// The package starts no goroutines.
package uploadid

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const maxBytes = 512

// Minter makes and checks the ids of one node. It is safe for concurrent use.
type Minter struct {
	node meta.NodeID
	key  []byte
}

// NewMinter returns the minter of a node; its key is derived from secret, which
// must be the node's own and stay the same over restarts (the seed of its key).
//
// Errors: meta.ErrInvalid for a secret under 32 bytes or an empty node.
func NewMinter(node meta.NodeID, secret []byte) (*Minter, error) {
	if node == "" || strings.Contains(string(node), "~") || len(secret) < 32 {
		return nil, fmt.Errorf("upload ids need a node and a secret of at least 32 bytes: %w", meta.ErrInvalid)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "shoal upload id 1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of upload ids: %w", err)
	}
	return &Minter{node: node, key: key}, nil
}

// New returns the id of a session (URL-safe, without `~`) that principal opened
// in repo. It is safe as one path segment.
func (m *Minter) New(session, principal string, repo meta.RepoRef) string {
	return string(m.node) + "~" + session + "~" + m.sum(session, principal, repo)
}

// Session returns the session of an id, for the principal and repository that it
// was made for.
//
// Errors: meta.ErrNotFound for every other id, whatever is wrong with it: who
// guesses learns nothing.
func (m *Minter) Session(id, principal string, repo meta.RepoRef) (string, error) {
	unknown := fmt.Errorf("upload: %w", meta.ErrNotFound)
	node, session, sum, err := parse(id)
	if err != nil || node != m.node {
		return "", unknown
	}
	if !hmac.Equal([]byte(sum), []byte(m.sum(session, principal, repo))) {
		return "", unknown
	}
	return session, nil
}

// sum is over length-prefixed fields, so that no two lists of fields are one text.
func (m *Minter) sum(session, principal string, repo meta.RepoRef) string {
	mac := hmac.New(sha256.New, m.key)
	for _, field := range []string{string(m.node), session, principal, repo.String()} {
		fmt.Fprintf(mac, "%d:%s", len(field), field)
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// Owner returns the node that an id names, unchecked: only the owner can check.
//
// Errors: meta.ErrNotFound when it is no id.
func Owner(id string) (meta.NodeID, error) {
	node, _, _, err := parse(id)
	return node, err
}

func parse(id string) (node meta.NodeID, session, sum string, err error) {
	parts := strings.Split(id, "~")
	if len(id) > maxBytes || len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", "", "", fmt.Errorf("upload: %w", meta.ErrNotFound)
	}
	return meta.NodeID(parts[0]), parts[1], parts[2], nil
}
