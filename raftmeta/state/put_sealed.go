package state

import (
	"fmt"
	"maps"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// PutSealed keeps a secret of a repository, in the place of the one of its name, sealed
// to servers. Who set it and when come from the origin. Result: meta.Sealed.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrInvalid when a seal is for
// somebody who is no server of the roster; meta.ErrConflict when the one that is there
// is not at Base.
type PutSealed struct {
	Sealed meta.Sealed `cbor:"1,keyasint,omitempty"`
	// Base, when set, must be the version of what is there, 0 for nothing: of several
	// that make a key where there is none, one does.
	Base *uint64 `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (PutSealed) Type() uint16 { return typePutSealed }

// Check implements Command.
func (c PutSealed) Check() error {
	s := c.Sealed
	if err := s.Repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckSealedName(s.Name); err != nil {
		return err
	}
	if len(s.Seals) == 0 || len(s.Public) > meta.MaxSealedPublic {
		return fmt.Errorf("secret %s of %s: %d seals and %d public bytes: %w", s.Name, s.Repo, len(s.Seals), len(s.Public), meta.ErrInvalid)
	}
	for node, seal := range s.Seals {
		if err := checkSeal(node, seal); err != nil {
			return fmt.Errorf("secret %s of %s: %w", s.Name, s.Repo, err)
		}
	}
	return nil
}

func checkSeal(node meta.NodeID, seal []byte) error {
	if node == "" || len(seal) == 0 || len(seal) > meta.MaxSealBytes {
		return fmt.Errorf("the seal for %q has %d bytes, 1 to %d: %w", node, len(seal), meta.MaxSealBytes, meta.ErrInvalid)
	}
	return nil
}

func (c PutSealed) apply(t *tx) (any, error) {
	s := c.Sealed
	if _, err := findRepository(t, s.Repo); err != nil {
		return nil, err
	}
	k := keySealed(s.Repo, s.Name)
	old, err := load[meta.Sealed](t, k)
	if err != nil {
		return nil, err
	}
	s.Version = 0
	if old != nil {
		s.Version = old.Version
	}
	if c.Base != nil && *c.Base != s.Version {
		return nil, fmt.Errorf("secret %s of %s is at version %d, not %d: %w", s.Name, s.Repo, s.Version, *c.Base, meta.ErrConflict)
	}
	for node := range s.Seals {
		if _, err := findServer(t, node); err != nil {
			return nil, fmt.Errorf("secret %s of %s: %w: %w", s.Name, s.Repo, err, meta.ErrInvalid)
		}
	}
	s.Version++
	s.Set, s.SetBy = t.now, t.origin.Principal
	t.putSealed(&s)
	return s, nil
}

func (t *tx) putSealed(s *meta.Sealed) {
	t.put(keySealed(s.Repo, s.Name), s)
	t.emit(feed.Change{Kind: feed.KindRepository, Repo: s.Repo})
}

// SealSecret seals a secret also to a server that joined after it was set, and drops the
// seals of servers that left. Version is that of the secret that was sealed.
//
// Errors: meta.ErrNotFound for the secret, or a node that is no server; meta.ErrConflict
// when the secret was set anew meanwhile.
type SealSecret struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Name    string       `cbor:"2,keyasint,omitempty"`
	Version uint64       `cbor:"3,keyasint,omitempty"`
	Node    meta.NodeID  `cbor:"4,keyasint,omitempty"`
	Seal    []byte       `cbor:"5,keyasint,omitempty"`
}

// Type implements Command.
func (SealSecret) Type() uint16 { return typeSealSecret }

// Check implements Command.
func (c SealSecret) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckSealedName(c.Name); err != nil {
		return err
	}
	return checkSeal(c.Node, c.Seal)
}

func (c SealSecret) apply(t *tx) (any, error) {
	s, err := findSealed(t, c.Repo, c.Name)
	if err != nil {
		return nil, err
	}
	if _, err := findServer(t, c.Node); err != nil {
		return nil, err
	}
	if s.Version != c.Version {
		return nil, fmt.Errorf("secret %s of %s is at version %d, not %d: %w", c.Name, c.Repo, s.Version, c.Version, meta.ErrConflict)
	}
	s.Seals[c.Node] = c.Seal
	var gone error
	maps.DeleteFunc(s.Seals, func(id meta.NodeID, _ []byte) bool {
		node, err := load[meta.Node](t, keyNode(id))
		if err != nil {
			gone = err
		}
		return err == nil && node == nil
	})
	if gone != nil {
		return nil, gone
	}
	t.putSealed(s)
	return nil, nil
}

// RemoveSealed forgets a secret.
//
// Errors: meta.ErrNotFound.
type RemoveSealed struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Name string       `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveSealed) Type() uint16 { return typeRemoveSealed }

// Check implements Command.
func (c RemoveSealed) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	return meta.CheckSealedName(c.Name)
}

func (c RemoveSealed) apply(t *tx) (any, error) {
	if _, err := findSealed(t, c.Repo, c.Name); err != nil {
		return nil, err
	}
	t.del(keySealed(c.Repo, c.Name))
	t.emit(feed.Change{Kind: feed.KindRepository, Repo: c.Repo})
	return nil, nil
}

func keySealed(r meta.RepoRef, name string) key {
	return key{spaceSealed}.part(string(r.Tenant)).part(r.Name).last(name)
}

func findSealed(r reader, repo meta.RepoRef, name string) (*meta.Sealed, error) {
	return find[meta.Sealed](r, keySealed(repo, name), "secret", name+" of "+repo.String())
}

// GetSealed answers a secret of a repository, for servers.
type GetSealed struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Name string       `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetSealed) Answer(v *View) (a meta.Sealed, _ error) {
	s, err := findSealed(v, q.Repo, q.Name)
	if err == nil {
		a = *s
	}
	return a, err
}

func (GetSealed) serversOnly()  {}
func (ListSealed) serversOnly() {}

// ListSealed lists the secrets behind After, at most 100; with Lacks only those that are
// not sealed to that server yet.
type ListSealed struct {
	AfterRepo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	AfterName string       `cbor:"2,keyasint,omitempty"`
	Lacks     meta.NodeID  `cbor:"3,keyasint,omitempty"`
}

// maxSealedListed bounds a ListSealed: a secret has a seal a server.
const maxSealedListed = 100

// Answer implements Question.
func (q ListSealed) Answer(v *View) (a []meta.Sealed, _ error) {
	s := within(key{spaceSealed})
	if q.AfterName != "" {
		s.lower = append(keySealed(q.AfterRepo, q.AfterName), 0)
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		secret, err := decode[meta.Sealed](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if q.Lacks != "" && secret.Seals[q.Lacks] != nil {
			continue
		}
		if a = append(a, *secret); len(a) == maxSealedListed {
			break
		}
	}
	return a, nil
}
