package nuget

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what upstreams say. A registration page of 64 versions of a large package has
// about 1 MiB.
const (
	maxIndexBytes        = 1 << 20
	maxRegistrationBytes = 16 << 20
	maxVersionsBytes     = 4 << 20
	indexTTL             = time.Hour
)

// services are the addresses that an upstream's service index names, each ending in /.
type services struct {
	flat, registration string
}

// file is where a file of a version is.
func (s services) file(id, key, file string) string { return s.flat + id + "/" + key + "/" + file }

// indexPath is where a proxy's upstream has its service index: its URL is that document's,
// or what it lies below.
func indexPath(member *meta.Repository) string {
	if strings.HasSuffix(member.Upstream.URL, ".json") {
		return member.Upstream.URL
	}
	return "v3/index.json"
}

// registrationTypes are the resources that have a hive, the best first.
var registrationTypes = map[hive][]string{
	hiveSemVer2: {"RegistrationsBaseUrl/3.6.0", "RegistrationsBaseUrl/Versioned", "RegistrationsBaseUrl/3.4.0", "RegistrationsBaseUrl/3.0.0-rc", "RegistrationsBaseUrl/3.0.0-beta", "RegistrationsBaseUrl"},
	hivePlain:   {"RegistrationsBaseUrl/3.4.0", "RegistrationsBaseUrl/3.0.0-rc", "RegistrationsBaseUrl/3.0.0-beta", "RegistrationsBaseUrl"},
}

// serviceIndex is a service index as an upstream sends it.
type serviceIndex struct {
	Resources listed[struct {
		ID   string          `json:"@id"`
		Type json.RawMessage `json:"@type"`
	}] `json:"resources"`
}

// services reads the index for who wants a hive.
//
// Errors: protocol.ErrUpstream when it names no package content or registration.
func (x *serviceIndex) services(h hive) (s services, _ error) {
	types := registrationTypes[hivePlain]
	if h == hiveSemVer2 {
		types = registrationTypes[h]
	}
	best := len(types)
	for _, r := range x.Resources {
		u, err := url.Parse(r.ID)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
			continue
		}
		at := strings.TrimSuffix(r.ID, "/") + "/"
		for _, t := range oneOrMore(r.Type) {
			if t == "PackageBaseAddress/3.0.0" && s.flat == "" {
				s.flat = at
			}
			for i := range best {
				if types[i] == t {
					best, s.registration = i, at
					break
				}
			}
		}
	}
	if s.flat == "" || s.registration == "" {
		return s, fmt.Errorf("the service index of the upstream names no PackageBaseAddress/3.0.0 and RegistrationsBaseUrl: is its URL that of a NuGet v3 source? %w", protocol.ErrUpstream)
	}
	return s, nil
}

// oneOrMore reads a JSON-LD value that is a text or a list of them.
func oneOrMore(b json.RawMessage) (out []string) {
	var one string
	if json.Unmarshal(b, &one) == nil {
		return []string{one}
	}
	_ = json.Unmarshal(b, &out) // what is neither names nothing
	return out
}

// discover asks a proxy's upstream for its services.
func (p *Protocol) discover(ctx context.Context, by catalog.Caller, member *meta.Repository, h hive) (services, error) {
	index, _, err := foreign[serviceIndex](ctx, p, by, member, upstream.Want{Path: indexPath(member), TTL: indexTTL, MaxBytes: maxIndexBytes})
	if err != nil {
		return services{}, err
	}
	return index.services(h)
}

// probe is what a group asks a proxy for, to find out whether it has a package: its list
// of versions.
func (p *Protocol) probe(ctx context.Context, by catalog.Caller, member *meta.Repository, id string) (upstream.Want, error) {
	s, err := p.discover(ctx, by, member, hiveSemVer2)
	if err != nil {
		return upstream.Want{}, err
	}
	return upstream.Want{Path: s.flat + id + "/index.json", Package: id, MaxBytes: maxVersionsBytes}, nil
}

// foreignIndex is a registration index of an upstream.
type foreignIndex struct {
	Items listed[foreignPage] `json:"items"`
}

// foreignPage is one of its pages: as it is, or where it is.
type foreignPage struct {
	ID    string `json:"@id"`
	Lower string `json:"lower"`
	Upper string `json:"upper"`
	Count int    `json:"count"`
	Items leaves `json:"items"`

	low, high version
	found     *upstream.Found // of the document that the items are in
}

// foreignPages returns the pages of a package's registration at an upstream, those with
// good bounds; not inlined ones are without items.
func (p *Protocol) foreignPages(ctx context.Context, by catalog.Caller, member *meta.Repository, h hive, id string) ([]foreignPage, *upstream.Found, error) {
	s, err := p.discover(ctx, by, member, h)
	if err != nil {
		return nil, nil, err
	}
	w := upstream.Want{Path: s.registration + id + "/index.json", Package: id, MaxBytes: maxRegistrationBytes}
	index, f, err := foreign[foreignIndex](ctx, p, by, member, w)
	if err != nil {
		return nil, nil, err
	}
	pages := make([]foreignPage, 0, len(index.Items)) // theirs are shared
	for _, page := range index.Items {
		low, okLow := scanVersion(page.Lower)
		high, okHigh := scanVersion(page.Upper)
		if okLow && okHigh {
			page.low, page.high, page.found = low, high, f
			pages = append(pages, page)
		}
	}
	return pages, f, nil
}

// load fetches the items of a page that is not inlined.
func (p *Protocol) load(ctx context.Context, by catalog.Caller, member *meta.Repository, id string, page *foreignPage) error {
	if page.Items != nil {
		return nil
	}
	loaded, f, err := foreign[foreignPage](ctx, p, by, member, upstream.Want{Path: page.ID, Package: id, MaxBytes: maxRegistrationBytes})
	if err != nil {
		return err
	}
	page.Items, page.found = loaded.Items, f
	return nil
}

// young is until when a proxy holds back what was released; the zero time holds back
// nothing.
func young(member *meta.Repository) time.Time {
	if member.Upstream.MinReleaseAge <= 0 {
		return time.Time{}
	}
	return time.Now().Add(-member.Upstream.MinReleaseAge)
}

// unlistedYear is that of what is unlisted: galleries say 1900-01-01 of it.
const unlistedYear = 1900

// released reports whether an entry's version is old enough. Of one that is unlisted the
// gallery does not say when it was released, but when it last changed.
func released(entry map[string]any, until time.Time) bool {
	if until.IsZero() {
		return true
	}
	text, _ := entry["published"].(string)
	at, err := time.Parse(time.RFC3339, text)
	if err == nil && at.Year() <= unlistedYear {
		text, _ = entry[changedField].(string)
		at, err = time.Parse(time.RFC3339, text)
	}
	return err == nil && !at.After(until)
}

// changedField is when a leaf, or an entry, was last changed.
const changedField = "commitTimeStamp"

// rewrite turns the leaves of a page into ours: every address that clients follow leads
// to this repository. Leaves that are not of the package, or too young, are left out.
func rewrite(all leaves, h hive, id string, to links, until time.Time) ([]json.RawMessage, error) {
	out := []json.RawMessage{}
	for leaf := range all.all() {
		entry, key := entryVersion(leaf, id)
		if entry == nil || !released(entry, until) {
			continue
		}
		content, at := to.packageContent(id, key), to.leaf(h, id, key)
		entry["@id"], entry["packageContent"] = at, content
		groups, _ := entry["dependencyGroups"].([]any)
		for _, g := range groups {
			group, _ := g.(map[string]any)
			delete(group, "@id")
			list, _ := group["dependencies"].([]any)
			for _, d := range list {
				dependency, _ := d.(map[string]any)
				delete(dependency, "@id")
				name, _ := dependency["id"].(string)
				if key, err := parseID(name); err == nil {
					dependency["registration"] = to.registration(h, key)
				}
			}
		}
		var text bytes.Buffer
		err := writeJSON(&text, map[string]any{"@id": at, "@type": "Package", "catalogEntry": entry, "packageContent": content, "registration": to.registration(h, id)})
		if err != nil {
			return nil, err
		}
		out = append(out, bytes.Clone(text.Bytes()))
	}
	return out, nil
}

// entryVersion returns a leaf's entry and the key of its version; nil when it is not of
// the package.
func entryVersion(leaf map[string]any, id string) (map[string]any, string) {
	entry, _ := leaf["catalogEntry"].(map[string]any)
	name, _ := entry["id"].(string)
	text, _ := entry["version"].(string)
	v, ok := scanVersion(text)
	if key, err := parseID(name); err != nil || key != id || !ok {
		return nil, ""
	}
	if at, ok := leaf[changedField]; ok && entry[changedField] == nil {
		entry[changedField] = at
	}
	return entry, v.key()
}

// rewritten renders a document made of what an upstream has, once for its bytes and
// gateway, and answers with it. length is that of the leaves.
func (p *Protocol) rewritten(c *protocol.Call, member *meta.Repository, f *upstream.Found, length int64, h hive, id, name string, v func() (any, error)) error {
	variant := strings.Join([]string{"proxied", string(h), name, string(f.Record.Digest)}, " ")
	if age := member.Upstream.MinReleaseAge; age > 0 {
		// What is too young an hour ago may not be now.
		variant += fmt.Sprintf(" %s %d", age, time.Now().Unix()/3600)
	}
	upstream.Describe(c, f)
	key := rendered.Key{Repo: member.Ref, Package: id, Revisions: []uint64{f.Record.Revision}}
	return p.serveVariant(c, key, h, variant, func(w io.Writer) error {
		release, err := p.catalog.Reserve(c.R.Context(), decodedCost*length)
		if err != nil {
			return err
		}
		defer release()
		doc, err := v()
		if err != nil {
			return err
		}
		return writeJSON(w, doc)
	})
}

func (p *Protocol) proxiedRegistration(c *protocol.Call, member *meta.Repository, h hive, id string) error {
	pages, f, err := p.foreignPages(c.R.Context(), caller(c), member, h, id)
	if err != nil {
		return err
	}
	to, until := linksOf(c), young(member)
	var length int64
	for i := range pages {
		length += int64(len(pages[i].Items))
	}
	return p.rewritten(c, member, f, length, h, id, "index", func() (any, error) {
		items := []map[string]any{}
		parent := to.registration(h, id)
		for _, page := range pages {
			item := map[string]any{
				"@id": to.page(h, id, page.low.key(), page.high.key()), "lower": page.Lower, "upper": page.Upper, "count": page.Count, "parent": parent,
			}
			if page.Items != nil {
				ours, err := rewrite(page.Items, h, id, to, until)
				if err != nil {
					return nil, err
				}
				if len(ours) == 0 {
					continue
				}
				item["items"], item["count"] = ours, len(ours)
			}
			items = append(items, item)
		}
		if len(items) == 0 {
			return nil, fmt.Errorf("package %s of %s: %w", id, member.Ref, meta.ErrNotFound)
		}
		return map[string]any{"@id": parent, "count": len(items), "items": items}, nil
	})
}

// pageOf returns the page whose bounds those are, or, when exact is false, that holds them.
func pageOf(pages []foreignPage, low, high version, exact bool) *foreignPage {
	for i := range pages {
		page := &pages[i]
		l, h := page.low.compare(low), page.high.compare(high)
		if exact && l == 0 && h == 0 || !exact && l <= 0 && h >= 0 {
			return page
		}
	}
	return nil
}

func (p *Protocol) proxiedPage(c *protocol.Call, member *meta.Repository, h hive, id string, low, high version) error {
	pages, _, err := p.foreignPages(c.R.Context(), caller(c), member, h, id)
	if err != nil {
		return err
	}
	page := pageOf(pages, low, high, true)
	if page == nil {
		return fmt.Errorf("page %s to %s of %s: %w", low.key(), high.key(), id, meta.ErrNotFound)
	}
	if err := p.load(c.R.Context(), caller(c), member, id, page); err != nil {
		return err
	}
	to, until := linksOf(c), young(member)
	return p.rewritten(c, member, page.found, int64(len(page.Items)), h, id, "page/"+low.key()+"/"+high.key(), func() (any, error) {
		ours, err := rewrite(page.Items, h, id, to, until)
		return map[string]any{
			"@id": to.page(h, id, low.key(), high.key()), "parent": to.registration(h, id),
			"lower": page.Lower, "upper": page.Upper, "count": len(ours), "items": ours,
		}, err
	})
}

// foreignEntry returns what an upstream's registration says of a version.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) foreignEntry(ctx context.Context, by catalog.Caller, member *meta.Repository, h hive, id, key string) (map[string]any, *upstream.Found, error) {
	v, ok := scanVersion(key)
	missing := fmt.Errorf("version %s of %s in %s: %w", key, id, member.Ref, meta.ErrNotFound)
	if !ok {
		return nil, nil, missing
	}
	pages, _, err := p.foreignPages(ctx, by, member, h, id)
	if err != nil {
		return nil, nil, err
	}
	page := pageOf(pages, v, v, false)
	if page == nil {
		return nil, nil, missing
	}
	if err := p.load(ctx, by, member, id, page); err != nil {
		return nil, nil, err
	}
	for leaf := range page.Items.all() {
		if entry, have := entryVersion(leaf, id); entry != nil && have == key {
			return entry, page.found, nil
		}
	}
	return nil, nil, missing
}

func (p *Protocol) proxiedLeaf(c *protocol.Call, member *meta.Repository, h hive, id, key string) error {
	entry, f, err := p.foreignEntry(c.R.Context(), caller(c), member, h, id, key)
	if err != nil {
		return err
	}
	if !released(entry, young(member)) {
		return tooYoung(member, id, key)
	}
	upstream.Describe(c, f)
	to := linksOf(c)
	leaf := map[string]any{
		"@id": to.leaf(h, id, key), "packageContent": to.packageContent(id, key), "registration": to.registration(h, id),
	}
	for _, name := range []string{"listed", "published", "packageHash", "packageHashAlgorithm", "packageSize"} {
		if v, ok := entry[name]; ok {
			leaf[name] = v
		}
	}
	return writeDocument(c, leaf)
}

func tooYoung(member *meta.Repository, id, key string) error {
	return fmt.Errorf("%s %s was released less than %s ago, before which %s serves nothing: %w", id, key, member.Upstream.MinReleaseAge, member.Ref, meta.ErrDenied)
}

// proxiedVersions answers the versions of a package that an upstream has.
func (p *Protocol) proxiedVersions(c *protocol.Call, member *meta.Repository, id string) error {
	versions, f, err := p.foreignVersions(c, member, id)
	if err != nil {
		return err
	}
	upstream.Describe(c, f)
	return writeDocument(c, map[string]any{"versions": versions})
}

// foreignVersions lists the versions of a package, as keys, in the upstream's order.
func (p *Protocol) foreignVersions(c *protocol.Call, member *meta.Repository, id string) ([]string, *upstream.Found, error) {
	versions := []string{}
	until := young(member)
	if until.IsZero() {
		w, err := p.probe(c.R.Context(), caller(c), member, id)
		if err != nil {
			return nil, nil, err
		}
		list, f, err := foreign[versionList](c.R.Context(), p, caller(c), member, w)
		if err != nil {
			return nil, nil, err
		}
		for _, text := range list.Versions {
			if v, ok := scanVersion(text); ok {
				versions = append(versions, v.key())
			}
		}
		return versions, f, nil
	}
	// The list has no times; the registration has.
	pages, f, err := p.foreignPages(c.R.Context(), caller(c), member, hiveSemVer2, id)
	if err != nil {
		return nil, nil, err
	}
	for i := range pages {
		if err := p.load(c.R.Context(), caller(c), member, id, &pages[i]); err != nil {
			return nil, nil, err
		}
		for leaf := range pages[i].Items.all() {
			if entry, key := entryVersion(leaf, id); entry != nil && released(entry, until) {
				versions = append(versions, key)
			}
		}
		pages[i].Items = nil
	}
	if len(versions) == 0 {
		return nil, nil, fmt.Errorf("package %s of %s: nothing is old enough: %w", id, member.Ref, meta.ErrNotFound)
	}
	return versions, f, nil
}

// proxiedFile answers a version's .nupkg or .nuspec. The package must hash to what the
// upstream's catalog says, where it says it.
func (p *Protocol) proxiedFile(c *protocol.Call, member *meta.Repository, id, key, file string) error {
	s, err := p.discover(c.R.Context(), caller(c), member, hiveSemVer2)
	if err != nil {
		return err
	}
	w := upstream.Want{Path: s.file(id, key, file), Kind: upstream.File, Package: id, Version: key}
	content := protocol.Content{MediaType: packageType, Cache: protocol.Immutable, Public: public(c)}
	until := young(member)
	if file == manifestFile(id) {
		w.MaxBytes, content.MediaType = maxManifestBytes, manifestType
	}
	if file != manifestFile(id) || !until.IsZero() {
		entry, _, err := p.foreignEntry(c.R.Context(), caller(c), member, hiveSemVer2, id, key)
		switch {
		case errors.Is(err, meta.ErrNotFound) && until.IsZero():
			// It may be there all the same: some sources register only what is listed.
		case err != nil:
			return err
		case !released(entry, until):
			return tooYoung(member, id, key)
		case file != manifestFile(id):
			if w.Sums, err = p.sums(c.R.Context(), caller(c), member, id, key, entry); err != nil {
				return err
			}
		}
	}
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	return upstream.ServeFile(c, p.proxies, caller(c), member, w, content)
}

// sums returns the checksum of a package from its catalog entry: what the registration
// has of it, or else the entry's own document.
func (p *Protocol) sums(ctx context.Context, by catalog.Caller, member *meta.Repository, id, key string, entry map[string]any) (map[string]string, error) {
	hash, _ := entry["packageHash"].(string)
	algorithm, _ := entry["packageHashAlgorithm"].(string)
	if sums := (&hashed{perhaps(hash), perhaps(algorithm)}).sums(); sums != nil {
		return sums, nil
	}
	at := entryURL(entry)
	if at == "" {
		return nil, nil
	}
	doc, _, err := foreign[hashed](ctx, p, by, member, upstream.Want{Path: at, Kind: upstream.File, Package: id, Version: key, MaxBytes: maxRegistrationBytes})
	if errors.Is(err, meta.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return doc.sums(), nil
}

// entryURL is where the document of a catalog entry is, "" for nowhere.
func entryURL(entry map[string]any) string {
	at, _ := entry["@id"].(string)
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return ""
	}
	u.Fragment = ""
	return u.String()
}

// versionList is a package's list of versions.
type versionList struct {
	Versions []string `json:"versions"`
}

// hashed is what a catalog entry says of a package's bytes.
type hashed struct {
	Hash      perhaps `json:"packageHash"`
	Algorithm perhaps `json:"packageHashAlgorithm"`
}

// sums reads it; nil when there is no checksum that is known.
func (h *hashed) sums() map[string]string {
	raw, err := base64.StdEncoding.DecodeString(string(h.Hash))
	if err != nil || len(raw) == 0 {
		return nil
	}
	switch algorithm := strings.ToLower(string(h.Algorithm)); {
	case algorithm == "sha512" && len(raw) == 64, algorithm == "sha256" && len(raw) == 32:
		return map[string]string{algorithm: hex.EncodeToString(raw)}
	}
	return nil
}

// proxiedQuery answers a search for an id.
func (p *Protocol) proxiedQuery(c *protocol.Call, a *asked, id string) error {
	versions, err := p.proxiedComplete(c, c.Repository, a, id)
	if err != nil {
		return err
	}
	data := []hit{}
	total := 0
	if n := len(versions); n > 0 {
		newest, _ := scanVersion(versions[n-1])
		total = 1
		to := linksOf(c)
		at := to.registration(a.hive, id)
		h := hit{
			ID: at, Type: "Package", Registration: at, PackageID: id, Version: versions[n-1], Tags: []string{}, Authors: []string{},
			Types: []typeName{{"Dependency"}},
		}
		entry, f, err := p.foreignEntry(c.R.Context(), caller(c), c.Repository, hiveSemVer2, id, newest.key())
		switch {
		case err == nil:
			upstream.Describe(c, f)
			text := func(name string) string { s, _ := entry[name].(string); return s }
			h.PackageID, h.Description, h.Summary, h.Title = text("id"), text("description"), text("summary"), text("title")
			h.ProjectURL, h.LicenseURL, h.IconURL = link(text("projectUrl")), link(text("licenseUrl")), link(text("iconUrl"))
			if authors := text("authors"); authors != "" {
				h.Authors = append(h.Authors, authors)
			}
		case !errors.Is(err, meta.ErrNotFound):
			return err
		}
		for _, v := range versions[max(0, n-maxFoundVersions):] {
			h.Versions = append(h.Versions, hitVersion{ID: to.leaf(a.hive, id, v), Version: v})
		}
		if a.skip == 0 && a.take > 0 {
			data = append(data, h)
		}
	}
	return writeDocument(c, map[string]any{"totalHits": total, "data": data})
}

// proxiedComplete lists versions that may be shown, ascending; none is no error. Of a list
// of versions alone nobody can tell which are unlisted.
func (p *Protocol) proxiedComplete(c *protocol.Call, member *meta.Repository, a *asked, id string) ([]string, error) {
	versions, f, err := p.foreignVersions(c, member, id)
	if errors.Is(err, meta.ErrNotFound) || errors.Is(err, meta.ErrDenied) {
		return []string{}, nil
	}
	if err != nil {
		return nil, err
	}
	upstream.Describe(c, f)
	shown := []string{}
	for _, key := range versions {
		if v, ok := scanVersion(key); ok && a.shows(line{key: key, listed: true, semVer2: v.semVer2()}) {
			shown = append(shown, key)
		}
	}
	return shown, nil
}

// sourcesOf is upstream.Engine.Sources for probes that have to ask for the upstream's
// services first: one that cannot be asked ends the search, as no package of another proxy
// may take the place of its own.
func (p *Protocol) sourcesOf(c *protocol.Call, id string) ([]meta.Repository, error) {
	ctx, cancel := context.WithCancelCause(c.R.Context())
	defer cancel(nil)
	members, err := p.proxies.Sources(ctx, caller(c), c.Repository, id, func(member *meta.Repository) upstream.Want {
		w, err := p.probe(c.R.Context(), caller(c), member, id)
		if err != nil {
			cancel(err)
		}
		return w
	})
	if cause := context.Cause(ctx); cause != nil && c.R.Context().Err() == nil {
		return nil, cause
	}
	return members, err
}
