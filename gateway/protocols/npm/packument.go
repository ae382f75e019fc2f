package npm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/mod/semver"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// view is how a document is written.
type view struct {
	base  string
	short bool
	// all says that versions are in it that nobody is to choose any more: for clients
	// that send the document back.
	all bool
}

func (v view) String() string { return fmt.Sprintf("short=%t all=%t", v.short, v.all) }

// writer writes a packument: the versions as they come, what is known at their end last.
type writer struct {
	w       *bufio.Writer
	view    view
	name    string
	count   int
	times   bytes.Buffer
	latest  string // the highest version, releases before others
	about   fields // the manifest of the latest, by tag or else by order
	tags    map[string]string
	present map[string]string // tag -> version, of those versions that came
	byTag   map[string][]string
}

func newWriter(w io.Writer, name string, tags map[string]string, v view) (*writer, error) {
	d := &writer{w: bufio.NewWriterSize(w, 64<<10), view: v, name: name, tags: tags, present: map[string]string{}, byTag: map[string][]string{}}
	for tag, version := range tags {
		d.byTag[version] = append(d.byTag[version], tag)
	}
	if err := d.field('{', "_id", name); err != nil {
		return nil, err
	}
	if err := d.field(',', "name", name); err != nil {
		return nil, err
	}
	_, err := d.w.WriteString(`,"versions":{`)
	return d, err
}

func (d *writer) field(before byte, name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	if before != 0 {
		d.w.WriteByte(before) //nolint:errcheck // the last write or Flush says so
	}
	key, err := json.Marshal(name)
	if err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	d.w.Write(key)     //nolint:errcheck // as above
	d.w.WriteByte(':') //nolint:errcheck // as above
	_, err = d.w.Write(raw)
	return err
}

// version adds a version; time is as stamp writes it, "" when nobody knows.
func (d *writer) version(version string, m fields, time string) error {
	before := byte(',')
	if d.count == 0 {
		before = 0
	}
	d.count++
	if higher(version, d.latest) {
		d.latest = version
		if d.tags[latest] == "" {
			d.about = m
		}
	}
	for _, tag := range d.byTag[version] {
		d.present[tag] = version
		if tag == latest {
			d.about = m
		}
	}
	if time != "" {
		d.times.WriteByte(',')
		d.times.Write(quoted(version))
		d.times.WriteByte(':')
		d.times.Write(quoted(time))
	}
	if d.view.short {
		m = m.shorten()
	}
	return d.field(before, version, m)
}

// quoted is a text as JSON has it.
func quoted(text string) []byte {
	raw, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string always has a form
	}
	return raw
}

// higher reports whether a client would rather take a than b: releases before others.
func higher(a, b string) bool {
	if b == "" {
		return true
	}
	av, bv := "v"+a, "v"+b
	if ar, br := semver.Prerelease(av) == "", semver.Prerelease(bv) == ""; ar != br {
		return ar
	}
	return semver.Compare(av, bv) > 0
}

// about are the fields of the latest version that the document repeats.
var about = []string{"description", "keywords", "license", "author", "maintainers", "contributors", "homepage", "repository", "bugs"}

// end writes what the versions said together. rev is the package's revision, "" for none;
// created and modified may be "".
//
// Errors: meta.ErrNotFound when no version came.
func (d *writer) end(rev, created, modified string) error {
	if d.count == 0 {
		return fmt.Errorf("package %s has no version that is to be had: %w", d.name, meta.ErrNotFound)
	}
	if d.present[latest] == "" {
		d.present[latest] = d.latest
	}
	d.w.WriteByte('}') //nolint:errcheck // as above
	fmt.Fprintf(d.w, `,"time":{"created":%s,"modified":%s%s}`, quoted(created), quoted(modified), d.times.String())
	if d.view.short {
		if err := d.field(',', "modified", modified); err != nil {
			return err
		}
	} else {
		if rev != "" {
			if err := d.field(',', "_rev", rev); err != nil {
				return err
			}
		}
		for _, name := range about {
			if raw, ok := d.about[name]; ok {
				if err := d.field(',', name, raw); err != nil {
					return err
				}
			}
		}
	}
	if err := d.field(',', "dist-tags", d.present); err != nil {
		return err
	}
	d.w.WriteByte('}') //nolint:errcheck // as above
	return d.w.Flush()
}

// hidden reports whether nobody is to choose a version any more.
func hidden(v *meta.Version) bool { return v.Marks.Yanked != nil || v.Marks.Unlisted != nil }

// render writes the document of a hosted package.
func (s *source) render(ctx context.Context, by catalog.Caller, w io.Writer, v view) error {
	tags, _, err := s.tags(ctx, by)
	if err != nil {
		return err
	}
	d, err := newWriter(w, s.name, tags, v)
	if err != nil {
		return err
	}
	var modified meta.Time
	for one, err := range s.p.catalog.VersionsOf(ctx, by, s.hosted, keyOf(s.name)) {
		if err != nil {
			return err
		}
		if one.State != meta.StateClosed || !v.all && hidden(&one) {
			continue
		}
		m, err := s.p.shown(ctx, by, s.name, v.base, &one)
		if err != nil {
			return err
		}
		modified = max(modified, one.PublishTime)
		if err := d.version(one.Name, m, stamp(one.PublishTime)); err != nil {
			return err
		}
	}
	return d.end(revisionOf(s.records[0].Revision), stamp(s.records[0].Created), stamp(modified))
}
