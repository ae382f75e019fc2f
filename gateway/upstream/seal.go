package upstream

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// sealedCredential is how a Credential lies in a sealed secret, as JSON. It is for one
// host only: who may change a proxy's URL does not learn what it was asked with before.
type sealedCredential struct {
	User   string `json:"user,omitempty"`
	Secret string `json:"secret"`
	For    string `json:"for"` // scheme://host
}

// originOf returns scheme and host of an upstream's URL.
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// SealCredential seals what the upstream of u is asked with to all servers.
//
// Errors: meta.ErrInvalid; meta.ErrConflict when a server cannot be sealed to.
func SealCredential(ctx context.Context, metadata raftmeta.Asker, u *meta.Upstream, c Credential) (map[meta.NodeID][]byte, error) {
	b, err := json.Marshal(sealedCredential{User: c.User, Secret: c.Secret.Reveal(), For: originOf(u.URL)})
	if err != nil {
		return nil, fmt.Errorf("credential of an upstream: %w", meta.ErrInvalid)
	}
	return Seal(ctx, metadata, b)
}

// OpenCredential reads what SealCredential sealed, for the upstream of a repository.
//
// Errors: meta.ErrCorrupt; meta.ErrDenied when it is for another host.
func OpenCredential(repo *meta.Repository, secret []byte, version uint64) (Credential, error) {
	var doc sealedCredential
	if err := json.Unmarshal(secret, &doc); err != nil {
		return Credential{}, fmt.Errorf("secret %s of %s is no credential: %w", repo.Upstream.Credential, repo.Ref, meta.ErrCorrupt)
	}
	if doc.For != originOf(repo.Upstream.URL) {
		return Credential{}, fmt.Errorf("the credential of %s is for %s, set one for its upstream with `shoal repo set %s --upstream-token-file`: %w", repo.Ref, doc.For, repo.Ref, meta.ErrDenied)
	}
	return Credential{User: doc.User, Secret: trust.Secret(doc.Secret), Version: version}, nil
}

// Seal seals a secret to each server.
//
// Errors: meta.ErrConflict without a server that can be sealed to.
func Seal(ctx context.Context, metadata raftmeta.Asker, secret []byte) (map[meta.NodeID][]byte, error) {
	servers, err := Sealable(ctx, metadata)
	if err != nil {
		return nil, err
	}
	seals := make(map[meta.NodeID][]byte, len(servers))
	for _, n := range servers {
		if seals[n.ID], err = SealFor(n, secret); err != nil {
			return nil, err
		}
	}
	if len(seals) == 0 {
		return nil, fmt.Errorf("no server takes sealed secrets: %w", meta.ErrConflict)
	}
	return seals, nil
}

// SealFor seals a secret to one server.
func SealFor(server meta.Node, secret []byte) ([]byte, error) {
	recipient, err := trust.ParseRecipient(server.Seal)
	if err != nil {
		return nil, fmt.Errorf("seal to %s: %w", server.ID, err)
	}
	return trust.Seal(secret, recipient)
}

// Sealable lists the servers that secrets can be sealed to, by their ids.
func Sealable(ctx context.Context, metadata raftmeta.Asker) (servers []meta.Node, _ error) {
	const page = 1000
	for after := ""; ; {
		nodes, _, err := raftmeta.Ask(ctx, metadata, meta.Local, state.ListNodes{Role: meta.RoleServer, Page: state.Page{After: after, Limit: page}})
		if err != nil {
			return nil, fmt.Errorf("list the servers to seal to: %w", err)
		}
		for _, n := range nodes {
			if after = string(n.ID); n.Seal != "" {
				servers = append(servers, n)
			}
		}
		if len(nodes) < page {
			slices.SortFunc(servers, func(a, b meta.Node) int { return cmp.Compare(a.ID, b.ID) })
			return servers, nil
		}
	}
}
