package admin

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of the work for one page of a search, beside state.Search's own.
const (
	// mostSearched is how many records are looked at before the page is cut.
	mostSearched = 50_000
	// mostRepositories is how many repositories are, up to the next that the caller may list:
	// a page says where to go on by no other's name.
	mostRepositories = 2000
	// searchedAtATime is how many of them are asked for in one question.
	searchedAtATime = 200
)

// wanted is a search as its query says it.
type wanted struct {
	state.Search
	tenant meta.TenantName
	// only is the one repository to look in, zero for all.
	only   meta.RepoRef
	format string
}

// parseWanted reads the query of a search.
//
// Errors: meta.ErrInvalid.
func parseWanted(q url.Values) (w wanted, _ error) {
	for name := range q {
		switch name {
		case "name", "contains", "label", "digest", "publisher", "format", "tenant", "repository", "limit", "after":
		default:
			return w, fmt.Errorf("parameter %q: use name, contains, label, digest, publisher, format, tenant, repository, limit, after: %w", name, meta.ErrInvalid)
		}
	}
	w.Prefix, w.Contains, w.Publisher = q.Get("name"), q.Get("contains"), q.Get("publisher")
	w.Digest, w.format, w.tenant = digest.Digest(q.Get("digest")), q.Get("format"), meta.TenantName(q.Get("tenant"))
	for _, label := range q["label"] {
		name, value, _ := strings.Cut(label, "=")
		if w.Labels == nil {
			w.Labels = meta.Labels{}
		}
		w.Labels[name] = value
	}
	if err := w.Labels.Check(); err != nil {
		return w, err
	}
	if name := q.Get("repository"); name != "" {
		w.only = meta.RepoRef{Tenant: w.tenant, Name: name}
		if err := w.only.Check(); err != nil {
			return w, err
		}
	} else if w.tenant != "" {
		if err := meta.CheckTenant(w.tenant); err != nil {
			return w, err
		}
	}
	return w, w.Check()
}

// place is where a search goes on: inside a repository, behind what state.Search said, or
// with the repository behind it.
type place struct{ repo, after string }

func (p place) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(p.repo + "\n" + p.after))
}

func parsePlace(text string) (p place, _ error) {
	if text == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	repo, after, ok := strings.Cut(string(raw), "\n")
	if err != nil || !ok {
		return p, fmt.Errorf("after=%q is no place of a search: %w", text, meta.ErrInvalid)
	}
	return place{repo, after}, nil
}

// search looks for packages and versions in the repositories that the caller may list. A
// page may come out short, or empty, and not be the last: next says where to go on.
func (a *API) search(c *protocol.Call) error {
	w, err := parseWanted(c.R.URL.Query())
	if err != nil {
		return err
	}
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	at, err := parsePlace(p.After)
	if err != nil {
		return err
	}
	s := searching{api: a, call: c, wanted: w, limit: p.Limit, page: client.Page[client.Match]{Items: []client.Match{}}}
	next, err := s.from(at)
	if err != nil {
		return err
	}
	if next != nil {
		s.page.Next = next.String()
	}
	return protocol.WriteJSON(c.W, http.StatusOK, s.page)
}

// searching is one page that is being filled.
type searching struct {
	api    *API
	call   *protocol.Call
	wanted wanted
	limit  int
	read   int
	page   client.Page[client.Match]
}

// full reports whether the page has what it may have.
func (s *searching) full() bool { return len(s.page.Items) >= s.limit || s.read >= mostSearched }

// from fills the page from a place on; next is nil at the end.
func (s *searching) from(at place) (next *place, err error) {
	if at.after != "" {
		ref, err := meta.ParseRepoRef(at.repo)
		if err != nil {
			return nil, err
		}
		if next, err = s.inside(ref, at.after); next != nil || err != nil {
			return next, err
		}
		at.after = ""
	}
	if s.wanted.only.Name != "" {
		if at.repo != "" {
			return nil, nil
		}
		return s.inside(s.wanted.only, "")
	}
	looked, shown := 0, false
	for {
		repositories, err := ask(s.api, s.call, state.ListRepositories{Tenant: s.wanted.tenant, Page: state.Page{After: at.repo, Limit: searchedAtATime}})
		if err != nil || len(repositories) == 0 {
			return nil, err
		}
		for i := range repositories {
			r := &repositories[i]
			if s.full() || looked >= mostRepositories && shown {
				return &at, nil
			}
			looked++
			shown = access.OfRepository(s.call.Who, access.List, r)
			if next, err := s.in(r, ""); next != nil || err != nil {
				return next, err
			}
			at = place{repo: r.Ref.String()}
		}
	}
}

// inside is in for a repository by its name; one that is not there, or not the caller's to
// list, has nothing.
func (s *searching) inside(ref meta.RepoRef, after string) (*place, error) {
	r, err := ask(s.api, s.call, state.GetRepository{Ref: ref})
	if errors.Is(err, meta.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.in(&r, after)
}

// in looks in one repository; next is where to go on in it.
func (s *searching) in(r *meta.Repository, after string) (next *place, _ error) {
	if s.wanted.format != "" && r.Format != s.wanted.format || !access.OfRepository(s.call.Who, access.List, r) {
		return nil, nil
	}
	for {
		q := s.wanted.Search
		q.Repo, q.After, q.Limit = r.Ref, after, s.limit-len(s.page.Items)
		found, err := ask(s.api, s.call, q)
		if errors.Is(err, meta.ErrNotFound) {
			return nil, nil // it has gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		s.read += found.Read + 1
		for i := range found.Matches {
			s.page.Items = append(s.page.Items, matchOf(r, &found.Matches[i]))
		}
		if found.After == "" {
			return nil, nil
		}
		if s.full() {
			return &place{r.Ref.String(), found.After}, nil
		}
		after = found.After
	}
}

func matchOf(r *meta.Repository, m *state.Match) client.Match {
	out := client.Match{
		Repo: r.Ref, Format: r.Format, Package: m.Package.Name, Spelling: m.Package.Spelling, Labels: m.Package.Labels,
		Versions: m.Package.Versions, Path: m.Path,
	}
	if v := m.Version; v != nil {
		out.Version, out.Digest, out.Publisher = v.Name, v.Digest, v.CreatedBy
		published := v.PublishTime.Std()
		out.Published, out.Quarantined = &published, v.Quarantine != nil
	}
	return out
}
