package nuget

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// hive is one of the trees of registrations: which versions it has, and whether it is
// compressed (learn.microsoft.com/nuget/api/registration-base-url-resource).
type hive string

// Hives. Clients before SemVer 2.0.0 cannot read its versions, so the first two leave
// them out.
const (
	hivePlain   hive = "plain"
	hiveGzip    hive = "gz"
	hiveSemVer2 hive = "gz-semver2"
)

func (h hive) valid() bool { return h == hivePlain || h == hiveGzip || h == hiveSemVer2 }

// has reports whether a version belongs into the hive.
func (h hive) has(l line) bool { return h == hiveSemVer2 || !l.semVer2 }

// pageVersions is how many versions a page has. An index of one page holds the page.
const pageVersions = 64

// The documents. Their order of fields is fixed, so they are the same on every node.
type (
	registrationIndex struct {
		ID    string             `json:"@id"`
		Count int                `json:"count"`
		Items []registrationPage `json:"items"`
	}
	registrationPage struct {
		ID     string             `json:"@id"`
		Count  int                `json:"count"`
		Lower  string             `json:"lower"`
		Upper  string             `json:"upper"`
		Parent string             `json:"parent,omitempty"`
		Items  []registrationLeaf `json:"items,omitempty"`
	}
	registrationLeaf struct {
		ID             string        `json:"@id"`
		Entry          *catalogEntry `json:"catalogEntry,omitempty"`
		PackageContent string        `json:"packageContent"`
		Registration   string        `json:"registration"`
		Listed         *bool         `json:"listed,omitempty"`
		Published      *time.Time    `json:"published,omitempty"`
		packageHash
	}
	catalogEntry struct {
		ID             string            `json:"@id"`
		Type           string            `json:"@type"`
		Authors        string            `json:"authors"`
		Groups         []dependencyGroup `json:"dependencyGroups,omitempty"`
		Deprecation    *deprecation      `json:"deprecation,omitempty"`
		Description    string            `json:"description"`
		IconURL        string            `json:"iconUrl"`
		PackageID      string            `json:"id"`
		Language       string            `json:"language"`
		License        string            `json:"licenseExpression"`
		LicenseURL     string            `json:"licenseUrl"`
		Listed         bool              `json:"listed"`
		MinClient      string            `json:"minClientVersion"`
		PackageContent string            `json:"packageContent"`
		ProjectURL     string            `json:"projectUrl"`
		Published      time.Time         `json:"published"`
		Accept         bool              `json:"requireLicenseAcceptance"`
		Summary        string            `json:"summary"`
		Tags           []string          `json:"tags"`
		Title          string            `json:"title"`
		Version        string            `json:"version"`
		packageHash
	}
	dependencyGroup struct {
		ID           string              `json:"@id"`
		Type         string              `json:"@type"`
		Framework    string              `json:"targetFramework,omitempty"`
		Dependencies []packageDependency `json:"dependencies,omitempty"`
	}
	packageDependency struct {
		ID           string `json:"@id"`
		Type         string `json:"@type"`
		PackageID    string `json:"id"`
		Range        string `json:"range"`
		Registration string `json:"registration"`
	}
	deprecation struct {
		ID      string   `json:"@id"`
		Type    string   `json:"@type"`
		Message string   `json:"message,omitempty"`
		Reasons []string `json:"reasons"`
	}
	// packageHash is what nuget.org's catalog says of a package's bytes; a proxy of this
	// registry checks it.
	packageHash struct {
		Hash      string `json:"packageHash,omitempty"` // base64
		Algorithm string `json:"packageHashAlgorithm,omitempty"`
		Size      int64  `json:"packageSize,omitempty"`
	}
)

// hiveOf reads {hive} and {id}.
func hiveOf(c *protocol.Call) (hive, string, error) {
	h := hive(c.Params.Get("hive"))
	if !h.valid() {
		return h, "", fmt.Errorf("registrations %s: %w", h, meta.ErrNotFound)
	}
	id, err := idOf(c)
	return h, id, err
}

// registration answers the index of a package's registrations.
func (p *Protocol) registration(c *protocol.Call) error {
	h, id, err := hiveOf(c)
	if err != nil {
		return err
	}
	from, err := p.sources(c, id)
	if err != nil {
		return err
	}
	if from.proxy != nil {
		return p.proxiedRegistration(c, from.proxy, h, id)
	}
	s, err := p.takeCensus(c, caller(c), from.hosted, id)
	if err != nil {
		return err
	}
	to := linksOf(c)
	return p.serveHive(c, s, h, "index", func(w io.Writer) error { return p.renderIndex(c.R.Context(), w, s, h, to) })
}

// renderIndex writes the index: its pages in reference, or the one page itself.
func (p *Protocol) renderIndex(ctx context.Context, w io.Writer, s *census, h hive, to links) error {
	index := registrationIndex{ID: to.registration(h, s.id), Items: []registrationPage{}}
	var first []line
	var page *registrationPage
	for l, err := range s.lines() {
		if err != nil {
			return err
		}
		if !h.has(l) {
			continue
		}
		if page == nil || page.Count == pageVersions {
			index.Items = append(index.Items, registrationPage{Lower: l.key})
			page = &index.Items[len(index.Items)-1]
		}
		if len(index.Items) == 1 {
			first = append(first, l)
		}
		page.Count++
		page.Upper = l.key
	}
	index.Count = len(index.Items)
	for i := range index.Items {
		page := &index.Items[i]
		page.ID = to.page(h, s.id, page.Lower, page.Upper)
	}
	switch len(index.Items) {
	case 0:
		return fmt.Errorf("package %s: %w", s.id, meta.ErrNotFound)
	case 1:
		filled, err := p.fill(ctx, s, h, to, first)
		if err != nil {
			return err
		}
		index.Items[0] = filled
		index.Items[0].Parent = index.ID
	}
	return writeJSON(w, index)
}

// fill makes the page of some versions.
func (p *Protocol) fill(ctx context.Context, s *census, h hive, to links, versions []line) (registrationPage, error) {
	page := registrationPage{
		ID: to.page(h, s.id, versions[0].key, versions[len(versions)-1].key), Parent: to.registration(h, s.id),
		Lower: versions[0].key, Upper: versions[len(versions)-1].key,
	}
	for _, l := range versions {
		d, ok, err := p.describe(ctx, s, l)
		if err != nil {
			return page, err
		}
		if !ok {
			continue
		}
		entry := entryOf(&d, h, to)
		page.Items = append(page.Items, registrationLeaf{
			ID: entry.ID, Entry: &entry, PackageContent: entry.PackageContent, Registration: to.registration(h, s.id),
		})
	}
	page.Count = len(page.Items)
	return page, nil
}

// entryOf describes a version.
func entryOf(d *described, h hive, to links) catalogEntry {
	m := &d.manifest
	e := catalogEntry{
		ID: to.leaf(h, d.Package, d.Name), Type: "PackageDetails",
		Authors: m.Authors, Description: m.Description, IconURL: m.IconURL, PackageID: m.ID, Language: m.Language,
		License: m.License, LicenseURL: m.LicenseURL, Listed: d.listed, MinClient: m.MinClient,
		PackageContent: to.packageContent(d.Package, d.Name), ProjectURL: m.ProjectURL, Published: d.PublishTime.Std().UTC(),
		Accept: m.Accept, Summary: m.Summary, Tags: m.Tags, Title: m.Title, Version: m.Version, packageHash: hashOf(&d.Version),
	}
	if e.Tags == nil {
		e.Tags = []string{}
	}
	for _, g := range m.Groups {
		at := e.ID + "#dependencygroup"
		if g.Framework != "" {
			at += "/" + strings.ToLower(url.PathEscape(g.Framework))
		}
		group := dependencyGroup{ID: at, Type: "PackageDependencyGroup", Framework: g.Framework}
		for _, d := range g.Dependencies {
			key := strings.ToLower(d.ID)
			group.Dependencies = append(group.Dependencies, packageDependency{
				ID: at + "/" + key, Type: "PackageDependency", PackageID: d.ID, Range: d.Range, Registration: to.registration(h, key),
			})
		}
		e.Groups = append(e.Groups, group)
	}
	if mark := d.Marks.Deprecated; mark != nil {
		e.Deprecation = &deprecation{ID: e.ID + "#deprecation", Type: "deprecation", Message: mark.Reason, Reasons: []string{"Other"}}
	}
	return e
}

// hashOf returns the sha512 of a version's package, as catalogs write it.
func hashOf(v *meta.Version) packageHash {
	raw, err := hex.DecodeString(v.SHA512.Encoded())
	if v.SHA512 == "" || err != nil {
		return packageHash{Size: v.Size}
	}
	return packageHash{Hash: base64.StdEncoding.EncodeToString(raw), Algorithm: "SHA512", Size: v.Size}
}

// registrationPage answers one page of an index. Its bounds name it; they may be those of
// an older index.
func (p *Protocol) registrationPage(c *protocol.Call) error {
	h, id, err := hiveOf(c)
	if err != nil {
		return err
	}
	upper, json := strings.CutSuffix(c.Params.Get("upper"), ".json")
	low, okLow := scanVersion(c.Params.Get("lower"))
	high, okHigh := scanVersion(upper)
	if !json || !okLow || !okHigh {
		return fmt.Errorf("page %s of %s: %w", c.Params.Get("upper"), id, meta.ErrNotFound)
	}
	from, err := p.sources(c, id)
	if err != nil {
		return err
	}
	if from.proxy != nil {
		return p.proxiedPage(c, from.proxy, h, id, low, high)
	}
	s, err := p.takeCensus(c, caller(c), from.hosted, id)
	if err != nil {
		return err
	}
	to := linksOf(c)
	return p.serveHive(c, s, h, "page/"+low.key()+"/"+high.key(), func(w io.Writer) error {
		var versions []line
		for l, err := range s.lines() {
			if err != nil {
				return err
			}
			v, ok := scanVersion(l.key)
			if !ok || !h.has(l) || v.compare(low) < 0 || v.compare(high) > 0 {
				continue
			}
			if len(versions) == 4*pageVersions {
				// No index of ours, however old, had so many between two bounds.
				return fmt.Errorf("page %s to %s of %s is none of its index: %w", low.key(), high.key(), id, meta.ErrNotFound)
			}
			versions = append(versions, l)
		}
		if len(versions) == 0 {
			return fmt.Errorf("page %s to %s of %s: %w", low.key(), high.key(), id, meta.ErrNotFound)
		}
		page, err := p.fill(c.R.Context(), s, h, to, versions)
		if err != nil {
			return err
		}
		return writeJSON(w, page)
	})
}

// registrationLeaf answers what one version is.
func (p *Protocol) registrationLeaf(c *protocol.Call) error {
	h, id, err := hiveOf(c)
	if err != nil {
		return err
	}
	text, json := strings.CutSuffix(c.Params.Get("leaf"), ".json")
	version, err := versionOf(text)
	if err != nil || !json {
		return errors.Join(meta.ErrNotFound, err)
	}
	from, err := p.sources(c, id)
	if err != nil {
		return err
	}
	if from.proxy != nil {
		return p.proxiedLeaf(c, from.proxy, h, id, version)
	}
	v, asOf, err := p.hostedVersion(c, caller(c), from.hosted, id, version)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	to := linksOf(c)
	listed, published := v.Marks.Unlisted == nil && v.Marks.Yanked == nil, v.PublishTime.Std().UTC()
	return writeDocument(c, registrationLeaf{
		ID: to.leaf(h, id, version), PackageContent: to.packageContent(id, version), Registration: to.registration(h, id),
		Listed: &listed, Published: &published, packageHash: hashOf(&v),
	})
}

// serveHive renders a document of a hive once for a revision and gateway, and answers
// with it.
func (p *Protocol) serveHive(c *protocol.Call, s *census, h hive, name string, render func(io.Writer) error) error {
	c.AsOf(s.asOf)
	return p.serveVariant(c, s.key, h, strings.Join([]string{"registration", string(h), name}, " "), render)
}

// serveVariant answers with a document of a hive: compressed where the hive is, unless the
// client does not take that.
func (p *Protocol) serveVariant(c *protocol.Call, key rendered.Key, h hive, variant string, render func(io.Writer) error) error {
	key.Variant, key.Base = variant, linksOf(c).base
	squeeze := h != hivePlain && takesGzip(c.R.Header)
	if h != hivePlain {
		c.W.Header().Set("Vary", "Accept-Encoding")
	}
	if squeeze {
		key.Variant += " gzip"
		plain := render
		render = func(w io.Writer) error { return compressed(w, plain) }
	}
	doc, err := p.rendered.Get(c.R.Context(), key, render)
	if err != nil {
		return err
	}
	if squeeze {
		c.W.Header().Set("Content-Encoding", "gzip")
	}
	return serveRendered(c, doc)
}

// takesGzip reports whether a client says that it takes gzip (RFC 9110, 12.5.3).
func takesGzip(h http.Header) bool {
	for _, line := range h.Values("Accept-Encoding") {
		for part := range strings.SplitSeq(line, ",") {
			coding, params, _ := strings.Cut(part, ";")
			if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
				continue
			}
			q, isQ := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
			return !isQ || strings.Trim(q, "0.") != ""
		}
	}
	return false
}

// compressed writes what render writes, in the same bytes every time.
func compressed(w io.Writer, render func(io.Writer) error) error {
	z := gzip.NewWriter(w)
	if err := render(z); err != nil {
		return err
	}
	return z.Close()
}

func writeJSON(w io.Writer, v any) error {
	out := bufio.NewWriter(w)
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("render %T: %w", v, err)
	}
	return out.Flush()
}
