package admin

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// maxReferenceBytes bounds what names a version behind `tenant/repository`.
const maxReferenceBytes = 2 * (meta.MaxPackageBytes + meta.MaxVersionBytes)

// resolveReference answers what a reference names, as the repository's format writes it,
// or as `/PACKAGE@VERSION`.
func (a *API) resolveReference(c *protocol.Call) error {
	text := c.R.URL.Query().Get("reference")
	if text == "" || len(text) > maxReferenceBytes {
		return fmt.Errorf("reference of %d bytes, give what follows %s, up to %d: %w", len(text), c.Repo, maxReferenceBytes, meta.ErrInvalid)
	}
	v, alias, err := a.named(c, *c.Repository, text)
	if err != nil {
		return fmt.Errorf("reference %s%s: %w", c.Repo, text, err)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Resolved{Package: v.Package, Alias: alias, Version: v})
}

// named returns the version that a reference behind a repository's name stands for, and
// the alias that leads there, "" for none. What the format does not understand is tried as
// `/PACKAGE@VERSION`, with the names that the metadata has.
func (a *API) named(c *protocol.Call, repo meta.Repository, text string) (v meta.Version, alias string, err error) {
	format := a.Packages[repo.Format]
	if format != nil {
		r, err := format.ParseReference(text)
		if err == nil {
			v, alias, err = a.find(c, repo.Ref, r)
		}
		if err == nil || !errors.Is(err, meta.ErrInvalid) && !errors.Is(err, meta.ErrNotFound) {
			return v, alias, err
		}
		if r, ok := rawReference(text); ok {
			if v, alias, rawErr := a.find(c, repo.Ref, r); rawErr == nil {
				return v, alias, nil
			}
		}
		return v, "", err
	}
	r, ok := rawReference(text)
	if !ok {
		return v, "", fmt.Errorf("write %s/PACKAGE@VERSION: %w", repo.Ref, meta.ErrInvalid)
	}
	return a.find(c, repo.Ref, r)
}

func rawReference(text string) (r protocol.Reference, ok bool) {
	name, ok := strings.CutPrefix(text, "/")
	at := strings.LastIndexByte(name, '@')
	if !ok || at <= 0 || at == len(name)-1 {
		return r, false
	}
	return protocol.Reference{Package: name[:at], Version: name[at+1:]}, true
}

func (a *API) find(c *protocol.Call, repo meta.RepoRef, r protocol.Reference) (meta.Version, string, error) {
	if err := meta.CheckPackage(r.Package); err != nil {
		return meta.Version{}, "", err
	}
	if r.Version != "" {
		v, err := confirmed(a, c, state.GetVersion{Repo: repo, Package: r.Package, Version: r.Version})
		return v, "", err
	}
	found, err := confirmed(a, c, state.Resolve{Repo: repo, Package: r.Package, Alias: r.Alias})
	return found.Version, found.Alias.Name, err
}

func (a *API) deleteVersion(c *protocol.Call) error {
	pkg, version, err := versionOf(c)
	if err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.DeleteVersion{Repo: c.Repo, Package: pkg, Version: version}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// markVersion yanks, unlists, deprecates, or takes such marks away.
func (a *API) markVersion(c *protocol.Call) error {
	pkg, version, err := versionOf(c)
	if err != nil {
		return err
	}
	on := access.Target{Repo: c.Repo, Record: c.Repository}
	if a.judge(c, access.Curate, on) != nil {
		if err := a.judge(c, access.Push, on); err != nil {
			return err
		}
	}
	var marking meta.Marking
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &marking); err != nil {
		return err
	}
	value, err := a.do(c, 0, state.MarkVersions{Repo: c.Repo, Package: pkg, Versions: []string{version}, Marking: marking})
	if err != nil {
		return err
	}
	return reply[state.Marked](c, http.StatusOK, value)
}
