package access

import (
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ErrChallenge says that the call needs credentials, or other ones; the gateway
// answers with the protocol's challenge.
var ErrChallenge = errors.New("credentials are needed")

// Policy is what a node's role and configuration say about callers without
// credentials. The zero value challenges them all, but for public repositories.
type Policy struct {
	// AllowAnonymous lets everybody who calls this machine by a name of loopback
	// read and write all repositories (dev).
	AllowAnonymous bool
	// Host, when set, is who a client on this node's loopback is that shows no
	// credentials: `host:<node>` with the node's read patterns (agents).
	Host *meta.Principal
}

// HostPrincipal is who the loopback clients of an agent act as: it reads public
// repositories and those that the node's patterns match.
func HostPrincipal(n meta.Node) meta.Principal {
	return meta.Principal{Name: hostPrefix + string(n.ID), Role: n.Role, Read: n.Read}
}

const (
	hostPrefix = "host:"
	nodePrefix = "node:"
)

// Credentialed reports whether who showed something: an anonymous caller and a
// host's loopback client did not, and may be asked to.
func Credentialed(who meta.Principal) bool {
	return who.Name != "" && who.Name != meta.Anonymous.Name && !strings.HasPrefix(who.Name, hostPrefix)
}

// Readable reports whether who may read a repository: what a listing over
// repositories may show.
func Readable(who meta.Principal, repo *meta.Repository) bool {
	return who.Admin || meta.Match(who.Read, repo.Ref) || repo.Visibility == meta.VisibilityPublic
}

// Authorize judges a call. ref names the route's repository, zero when it has
// none; repo is its record, nil when it is absent, deleted or of another format.
//
// To whom may not read it, a repository looks the same whether it is absent or
// forbidden: without credentials the answer is a challenge, with them not found.
// Only whom may read learns that writing is denied. Push passes with a nil
// record: whether the first push creates it is for the catalog to say.
//
// The result is nil or wraps ErrChallenge, meta.ErrNotFound or meta.ErrDenied.
func Authorize(policy Policy, who meta.Principal, action Action, ref meta.RepoRef, repo *meta.Repository) error {
	challengeOr := func(err error) error {
		if Credentialed(who) {
			return err
		}
		return ErrChallenge
	}
	switch action {
	case Public:
		return nil
	case NodeOnly:
		if who.Node != "" {
			return nil
		}
		return fmt.Errorf("only nodes of the cluster, with their certificate: %w", meta.ErrDenied)
	case Login:
		if policy.AllowAnonymous {
			return nil
		}
		return challengeOr(nil)
	case Admin:
		if who.Admin {
			return nil
		}
		return challengeOr(fmt.Errorf("%s is no administrator: %w", who.Name, meta.ErrDenied))
	case List:
		if ref == (meta.RepoRef{}) {
			if policy.AllowAnonymous || who.Name != meta.Anonymous.Name {
				return nil // the listing shows what the caller may read
			}
			return ErrChallenge
		}
	case Pull, Push, Delete:
	default:
		// A route's action was checked when it was registered.
		return fmt.Errorf("action %q is unknown: %w", action, meta.ErrDenied)
	}

	read := who.Admin || meta.Match(who.Read, ref) || repo != nil && Readable(who, repo)
	write := who.Admin || meta.Match(who.Write, ref)
	absent := fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
	if action == Pull || action == List {
		switch {
		case read && repo != nil:
			return nil
		case read:
			return absent
		}
		return challengeOr(absent)
	}
	switch {
	case write && (repo != nil || action == Push):
		return nil
	case write:
		return absent
	case read && repo != nil:
		return challengeOr(fmt.Errorf("%s may not %s in repository %s: %w", who.Name, action, ref, meta.ErrDenied))
	}
	return challengeOr(absent)
}
