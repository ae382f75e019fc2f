package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// OpenSets begins to note what changes in a repository, for the documents that are
// built of it as a whole, and keeps the key that they are signed with. One that is open
// stays as it is: the first key holds, until no server is left that it is sealed to. Then
// one that servers have takes its place, and all is built anew. Result: meta.Sets.
//
// Errors: meta.ErrNotFound for the repository.
type OpenSets struct {
	Repo meta.RepoRef     `cbor:"1,keyasint,omitempty"`
	Key  *meta.SigningKey `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (OpenSets) Type() uint16 { return typeOpenSets }

// Check implements Command.
func (c OpenSets) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if c.Key == nil {
		return nil
	}
	if !isArmored(c.Key.Public) || c.Key.Fingerprint == "" || len(c.Key.Fingerprint) > meta.MaxFingerprint {
		return fmt.Errorf("open sets of %s: the key is no armored OpenPGP public key of at most %d bytes: %w", c.Repo, meta.MaxPublicKey, meta.ErrInvalid)
	}
	return checkSealedKey(c.Repo, c.Key.Sealed, c.Key.To)
}

func checkSealedKey(repo meta.RepoRef, sealed []byte, to []meta.NodeID) error {
	if len(sealed) == 0 || len(sealed) > meta.MaxSealedKey || len(to) == 0 || len(to) > meta.MaxSealedTo {
		return fmt.Errorf("signing key of %s: %d bytes sealed to %d servers: %w", repo, len(sealed), len(to), meta.ErrInvalid)
	}
	return nil
}

func (c OpenSets) apply(t *tx) (any, error) {
	if _, err := findRepository(t, c.Repo); err != nil {
		return nil, err
	}
	old, err := load[meta.Sets](t, keySets(c.Repo))
	if err != nil {
		return nil, err
	}
	if old != nil {
		lost, err := c.replaces(t, old)
		if err != nil || !lost {
			return *old, err
		}
		// Of another format, whatever the rules are: nothing of it is the same.
		old.Key, old.Changed, old.Format = c.Key, t.index, 0
		t.putSets(old)
		return *old, nil
	}
	head := meta.Sets{Repo: c.Repo, Opened: t.index, Changed: t.index, Key: c.Key}
	t.putSets(&head)
	return head, nil
}

// replaces reports whether the key that is there is lost and the command has one that
// servers can open.
func (c OpenSets) replaces(r reader, old *meta.Sets) (bool, error) {
	if c.Key == nil || old.Key == nil {
		return false, nil
	}
	servers := func(to []meta.NodeID) (n int, _ error) {
		for _, id := range to {
			node, err := load[meta.Node](r, keyNode(id))
			if err != nil {
				return 0, err
			}
			if node != nil && node.Role == meta.RoleServer {
				n++
			}
		}
		return n, nil
	}
	had, err := servers(old.Key.To)
	if err != nil || had > 0 {
		return false, err
	}
	have, err := servers(c.Key.To)
	return have == len(c.Key.To), err
}

// SealSetsKey seals a repository's signing key to other servers: what Sealed holds must
// be the key that is there, and From says to whom that was sealed when it was opened.
//
// Errors: meta.ErrNotFound without a key; meta.ErrConflict when it was sealed anew
// meanwhile.
type SealSetsKey struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Sealed []byte        `cbor:"2,keyasint,omitempty"`
	To     []meta.NodeID `cbor:"3,keyasint,omitempty"`
	From   []meta.NodeID `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (SealSetsKey) Type() uint16 { return typeSealSetsKey }

// Check implements Command.
func (c SealSetsKey) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	return checkSealedKey(c.Repo, c.Sealed, c.To)
}

func (c SealSetsKey) apply(t *tx) (any, error) {
	head, err := findSets(t, c.Repo)
	switch {
	case err != nil:
		return nil, err
	case head.Key == nil:
		return nil, fmt.Errorf("signing key of %s: %w", c.Repo, meta.ErrNotFound)
	case !slices.Equal(head.Key.To, c.From):
		return nil, fmt.Errorf("signing key of %s was sealed anew meanwhile: %w", c.Repo, meta.ErrConflict)
	}
	head.Key.Sealed, head.Key.To = c.Sealed, c.To
	t.put(keySets(c.Repo), head)
	return nil, nil
}
