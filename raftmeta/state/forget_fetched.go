package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ForgetFetched removes records of what a repository's upstream had, up to Limit of
// them, with a Path those of that one address only: the next reader asks the upstream
// again. Result: ForgottenFetched.
//
// Errors: meta.ErrNotFound for the repository.
type ForgetFetched struct {
	Repo  meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Limit uint32       `cbor:"2,keyasint,omitempty"` // 1 to 1,000
	// Path and Accept name one record when Path is not empty.
	Path   string `cbor:"3,keyasint,omitempty"`
	Accept string `cbor:"4,keyasint,omitempty"`
}

// ForgottenFetched counts what went; More says that there are others.
type ForgottenFetched struct {
	Forgotten uint32 `cbor:"1,keyasint,omitempty"`
	More      bool   `cbor:"2,keyasint,omitempty"`
}

// maxForgotten bounds the records of one ForgetFetched.
const maxForgotten = 1000

// Type implements Command.
func (ForgetFetched) Type() uint16 { return typeForgetFetched }

// Check implements Command.
func (c ForgetFetched) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if c.Limit == 0 || c.Limit > maxForgotten {
		return fmt.Errorf("forget what %s fetched: limit %d, use 1 to %d: %w", c.Repo, c.Limit, maxForgotten, meta.ErrInvalid)
	}
	return meta.CheckFetchedPath(c.Path)
}

func (c ForgetFetched) apply(t *tx) (any, error) {
	if _, err := findRepository(t, c.Repo); err != nil {
		return nil, err
	}
	forget := func(f *meta.Fetched) error {
		t.emit(feed.Change{Kind: feed.KindFetched, Repo: f.Repo, Name: FetchedKey(f.Path, f.Accept), Deleted: true})
		return t.dropFetched(f)
	}
	if c.Path != "" {
		f, err := load[meta.Fetched](t, keyFetched(c.Repo, c.Path, c.Accept))
		if err != nil || f == nil {
			return ForgottenFetched{}, err
		}
		return ForgottenFetched{Forgotten: 1}, forget(f)
	}
	var result ForgottenFetched
	for p, err := range t.scan(within(inFetchedOf(c.Repo, fetchedRecords))) {
		if err != nil {
			return nil, err
		}
		if result.Forgotten == c.Limit {
			result.More = true
			break
		}
		f, err := decode[meta.Fetched](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if err := forget(f); err != nil {
			return nil, err
		}
		result.Forgotten++
	}
	return result, nil
}
