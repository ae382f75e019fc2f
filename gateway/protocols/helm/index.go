package helm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// wantIndex is the index of the upstream of a proxy.
func wantIndex() upstream.Want {
	return upstream.Want{Path: "index.yaml", Kind: upstream.Document, MaxBytes: maxIndexBytes}
}

// charts walks charts, those of a name one after another. It can be walked more than once;
// the walk ends with the first error.
type charts = iter.Seq2[chart, error]

// contents are what the charts of a repository come from.
type contents struct {
	repo    meta.RepoRef
	hosted  []meta.Repository
	proxies []foreign
	// revision names all that they are a function of, revisions what of it is hosted.
	revision, revisions string
	asOf                meta.AsOf
}

// foreign is the index of an upstream.
type foreign struct {
	repo  meta.Repository
	found *upstream.Found
	// before is when a chart must have been made, by the minimum release age of the proxy;
	// zero for any.
	before time.Time
}

// ageStep is how exactly a minimum release age is kept: indexes are made once for each.
const ageStep = time.Minute

// contentsOf looks up what a repository's charts come from. A proxy that cannot be asked is
// not passed over: a name in the next might be its own.
func (p *Protocol) contentsOf(ctx context.Context, by catalog.Caller, repo *meta.Repository, ref meta.RepoRef) (c contents, err error) {
	if repo == nil {
		return c, fmt.Errorf("repository %s: %w", ref, meta.ErrNotFound)
	}
	members, asOf, err := p.catalog.Members(ctx, by, ref)
	if err != nil {
		return c, err
	}
	c.repo, c.asOf = ref, asOf
	sum := sha256.New()
	for _, m := range members {
		if m.Kind == meta.KindHosted {
			c.hosted = append(c.hosted, m)
			continue
		}
		f, err := p.foreignOf(ctx, by, m)
		if repo.Kind == meta.KindGroup && isAbsent(err) { // it has no index
			fmt.Fprintf(sum, "without %s\n", m.Ref)
			continue
		}
		if err != nil {
			return c, err
		}
		c.proxies = append(c.proxies, f)
		fmt.Fprintf(sum, "%s %s %s %q %q\n", m.Ref, f.found.Record.Digest, f.before, m.Upstream.Allow, m.Upstream.Block)
	}
	c.revisions, err = p.hostedRevisions(ctx, by, c)
	fmt.Fprintf(sum, "%s", c.revisions)
	c.revision = hex.EncodeToString(sum.Sum(nil))
	return c, err
}

// hostedRevisions is a sum over the revisions of all charts of the hosted repositories.
func (p *Protocol) hostedRevisions(ctx context.Context, by catalog.Caller, c contents) (string, error) {
	sum := sha256.New()
	for i := range c.hosted {
		fmt.Fprintf(sum, "%s\n", c.hosted[i].Ref)
		for pkg, err := range p.catalog.PackagesOf(ctx, c.after(by), c.hosted[i:i+1]) {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(sum, "%s %d\n", pkg.Name, pkg.Revision)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// after is by for what must not be older than the contents, read from what this node
// knows, since an answer of another one might be.
func (c contents) after(by catalog.Caller) catalog.Caller {
	by.Asked, by.After, by.Absent = meta.Local, meta.Token{Epoch: c.asOf.Epoch, Index: c.asOf.Index}, nil
	return by
}

func (p *Protocol) foreignOf(ctx context.Context, by catalog.Caller, repo meta.Repository) (foreign, error) {
	f := foreign{repo: repo}
	if repo.Upstream == nil {
		return f, fmt.Errorf("proxy %s has no upstream: %w", repo.Ref, meta.ErrNotFound)
	}
	if age := repo.Upstream.MinReleaseAge; age > 0 {
		f.before = time.Now().Add(-age).Truncate(ageStep)
	}
	var err error
	f.found, err = p.engine.Fetch(ctx, by, &repo, wantIndex())
	return f, err
}

// walk reads the charts of an upstream's index that may be shown, of the names that want
// takes.
func (p *Protocol) walk(ctx context.Context, f *foreign, want func(string) bool, yield func(chart) bool) error {
	r, err := p.engine.Open(ctx, f.found)
	if err != nil {
		return err
	}
	defer r.Close()
	admitted := func(name string) bool {
		ok, _ := f.repo.Upstream.Admits(name)
		return ok && want(name)
	}
	return readIndex(r, admitted, func(ch chart) bool {
		if !f.before.IsZero() {
			at, err := time.Parse(time.RFC3339Nano, ch.Created)
			if err != nil || at.After(f.before) {
				return true // too young, or nobody says how old
			}
		}
		return yield(ch)
	})
}

func every(string) bool { return true }

// named takes one name, and notes that it is there.
func named(name string, found *bool) func(string) bool {
	return func(n string) bool {
		*found = *found || n == name
		return n == name
	}
}

// all walks the charts: the hosted ones, and of the upstreams those whose names no hosted
// repository owns and no earlier upstream has.
func (p *Protocol) all(ctx context.Context, by catalog.Caller, c contents) charts {
	by = c.after(by)
	return func(yield func(chart, error) bool) {
		for pkg, err := range p.catalog.PackagesOf(ctx, by, c.hosted) {
			if err != nil {
				yield(chart{}, err)
				return
			}
			for ch, err := range p.hostedCharts(ctx, by, c.hosted, pkg.Name) {
				if !yield(ch, err) || err != nil {
					return
				}
			}
		}
		taken := map[string]bool{} // names of upstreams, of indexes of bounded size
		for i := range c.proxies {
			var failed error
			more := true
			mine := map[string]bool{}
			err := p.walk(ctx, &c.proxies[i], func(name string) bool {
				if taken[name] || failed != nil {
					return false
				}
				owned, from, err := p.source(ctx, by, c.repo, name)
				if failed = err; err != nil || owned || from != "" && from != c.proxies[i].repo.Ref.Name {
					return false
				}
				mine[name] = true
				return true
			}, func(ch chart) bool {
				more = yield(ch.here(), nil)
				return more
			})
			if err = errors.Join(err, failed); err != nil && more {
				yield(chart{}, err)
				return
			}
			if !more {
				return
			}
			for name := range mine {
				taken[name] = true
			}
		}
	}
}

// here is a chart with the address that we serve it at.
func (ch chart) here() chart {
	ch.URLs = []string{"charts/" + url.PathEscape(fileName(ch.Name, ch.Version))}
	return ch
}

// hostedCharts walks the versions of a chart in hosted repositories, but for those that are
// not to be chosen any more.
func (p *Protocol) hostedCharts(ctx context.Context, by catalog.Caller, hosted []meta.Repository, name string) charts {
	return func(yield func(chart, error) bool) {
		for v, err := range p.catalog.VersionsOf(ctx, by, hosted, name) {
			if err != nil {
				yield(chart{}, err)
				return
			}
			if v.Marks.Yanked != nil || v.Marks.Unlisted != nil {
				continue
			}
			if !yield(chartOf(&v), nil) {
				return
			}
		}
	}
}

// chartOf is a version as the index shows it.
func chartOf(v *meta.Version) chart {
	var ch chart
	// A record that does not parse says nothing of the chart, which is there all the same.
	_ = json.Unmarshal(v.Summary, &ch)
	ch.Name, ch.Version, ch.Digest = v.Package, v.Name, v.Digest.Encoded()
	ch.Created = v.PublishTime.Std().UTC().Format(time.RFC3339Nano)
	ch.Deprecated = ch.Deprecated || v.Marks.Deprecated != nil
	return ch.here()
}

// index answers the index of the whole repository.
func (p *Protocol) index(c *protocol.Call) error {
	return p.page(c, "yaml", "text/yaml; charset=utf-8", writeIndex)
}

// list answers all charts as JSON.
func (p *Protocol) list(c *protocol.Call) error {
	return p.page(c, "json", "application/json", writeList)
}

// attempts bounds how often a page is begun anew because a chart changed meanwhile.
const attempts = 8

var errMoved = errors.New("a chart changed")

func (p *Protocol) page(c *protocol.Call, variant, media string, write func(io.Writer, charts) error) error {
	ctx, by := c.R.Context(), caller(c)
	for range attempts {
		of, err := p.contentsOf(ctx, by, c.Repository, c.Repo)
		if err != nil {
			return err
		}
		doc, err := p.pages.Get(ctx, rendered.Key{Repo: c.Repo, Revision: of.revision, Variant: variant}, func(w io.Writer) error {
			if err := write(w, p.all(ctx, by, of)); err != nil {
				return err
			}
			now, err := p.hostedRevisions(ctx, by, of)
			if err == nil && now != of.revisions {
				err = errMoved
			}
			return err
		})
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return fmt.Errorf("index of %s: %w", c.Repo, err)
		}
		c.AsOf(of.asOf)
		for i := range of.proxies {
			upstream.Describe(c, of.proxies[i].found)
		}
		c.W.Header().Set("Content-Security-Policy", "default-src 'none'")
		return protocol.Serve(c.W, c.R, protocol.Content{
			Size: doc.Size, MediaType: media, ETag: doc.ETag, Cache: protocol.Revalidate, Public: public(c),
			Open: func(context.Context) (io.ReadSeekCloser, error) { return doc.Open() },
		})
	}
	return fmt.Errorf("the charts of %s change while their index is made: %w", c.Repo, &meta.UnavailableError{Reason: "changing"})
}

// writeIndex renders an index. When it was generated is when its youngest chart was made.
func writeIndex(w io.Writer, all charts) error {
	b := bufio.NewWriter(w)
	text := func(s string) { _, _ = b.WriteString(s) } // Flush says what failed
	text("apiVersion: v1\nentries:")
	name, youngest := "", ""
	for ch, err := range all {
		if err != nil {
			return err
		}
		if ch.Name != name {
			key, err := json.Marshal(ch.Name)
			if err != nil {
				return err
			}
			name = ch.Name
			text("\n  " + string(key) + ":")
		}
		raw, err := json.Marshal(ch)
		if err != nil {
			return err
		}
		text("\n  - ")
		_, _ = b.Write(raw)
		youngest = later(youngest, ch.Created)
	}
	if name == "" {
		text(" {}")
	}
	if youngest == "" {
		youngest = time.Unix(0, 0).UTC().Format(time.RFC3339)
	}
	text("\ngenerated: \"" + youngest + "\"\n")
	return b.Flush()
}

// later returns the later of two times as an index has them; what is none is the earlier.
func later(a, b string) string {
	tb, err := time.Parse(time.RFC3339Nano, b)
	if err != nil {
		return a
	}
	if ta, err := time.Parse(time.RFC3339Nano, a); err == nil && !ta.Before(tb) {
		return a
	}
	return b
}

// writeList renders the charts by their names, as ChartMuseum lists them.
func writeList(w io.Writer, all charts) error {
	b := bufio.NewWriter(w)
	text := func(s string) { _, _ = b.WriteString(s) } // Flush says what failed
	text("{")
	name := ""
	for ch, err := range all {
		if err != nil {
			return err
		}
		key, err := json.Marshal(ch.Name)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(ch)
		if err != nil {
			return err
		}
		switch name {
		case ch.Name:
			text(",\n")
		case "":
			text(string(key) + ":[")
		default:
			text("],\n" + string(key) + ":[")
		}
		name = ch.Name
		_, _ = b.Write(raw)
	}
	if name != "" {
		text("]")
	}
	text("}\n")
	return b.Flush()
}

// chartsOf walks the versions of one chart, from who answers for its name.
func (p *Protocol) chartsOf(ctx context.Context, by catalog.Caller, of contents, name string) charts {
	owned, from, err := p.source(ctx, of.after(by), of.repo, name)
	switch {
	case err != nil:
		return func(yield func(chart, error) bool) { yield(chart{}, err) }
	case owned || len(of.proxies) == 0:
		return p.hostedCharts(ctx, of.after(by), of.hosted, name)
	}
	return func(yield func(chart, error) bool) {
		for i := range of.proxies {
			f := &of.proxies[i]
			if from != "" && from != f.repo.Ref.Name {
				continue
			}
			found, more := false, true
			err := p.walk(ctx, f, named(name, &found), func(ch chart) bool {
				more = yield(ch.here(), nil)
				return more
			})
			if err != nil && more {
				yield(chart{}, err)
			}
			if err != nil || found {
				return
			}
		}
	}
}

// versions answers the versions of a chart as JSON.
func (p *Protocol) versions(c *protocol.Call) error {
	return p.some(c, c.Params.Get("chart"), func(w io.Writer, all charts) (bool, error) {
		b := bufio.NewWriter(w)
		before := "["
		for ch, err := range all {
			if err != nil {
				return false, err
			}
			raw, err := json.Marshal(ch)
			if err != nil {
				return false, err
			}
			_, _ = b.WriteString(before) // Flush says what failed
			_, _ = b.Write(raw)
			before = ",\n"
		}
		_, _ = b.WriteString("]\n")
		return before != "[", b.Flush()
	}, "versions")
}

// version answers one version of a chart as JSON.
func (p *Protocol) version(c *protocol.Call) error {
	want := c.Params.Get("version")
	return p.some(c, c.Params.Get("chart"), func(w io.Writer, all charts) (bool, error) {
		for ch, err := range all {
			if err != nil {
				return false, err
			}
			if ch.Version != want {
				continue
			}
			raw, err := json.Marshal(ch)
			if err == nil {
				_, err = w.Write(append(raw, '\n'))
			}
			return true, err
		}
		return false, nil
	}, "version "+want)
}

// some answers what write makes of the charts of a name; nothing is not found.
func (p *Protocol) some(c *protocol.Call, name string, write func(io.Writer, charts) (bool, error), variant string) error {
	ctx, by := c.R.Context(), caller(c)
	of, err := p.contentsOf(ctx, by, c.Repository, c.Repo)
	if err != nil {
		return err
	}
	absent := fmt.Errorf("chart %.100q of %s: %w", name, c.Repo, meta.ErrNotFound)
	doc, err := p.pages.Get(ctx, rendered.Key{Repo: c.Repo, Package: name, Revision: of.revision, Variant: variant}, func(w io.Writer) error {
		found, err := write(w, p.chartsOf(ctx, by, of, name))
		if err == nil && !found {
			err = absent
		}
		return err
	})
	if err != nil {
		return err
	}
	c.AsOf(of.asOf)
	return protocol.Serve(c.W, c.R, protocol.Content{
		Size: doc.Size, MediaType: "application/json", ETag: doc.ETag, Cache: protocol.Revalidate, Public: public(c),
		Open: func(context.Context) (io.ReadSeekCloser, error) { return doc.Open() },
	})
}

// find looks a chart up in an upstream's index; found says that its name is there, also
// when the version, and so the chart, is not.
func (p *Protocol) find(ctx context.Context, f *foreign, at coordinate) (of chart, found bool, err error) {
	err = p.walk(ctx, f, named(at.name, &found), func(ch chart) bool {
		if ch.Version == at.version {
			of = ch
		}
		return of.Name == ""
	})
	return of, found, err
}

// fetched answers a chart of an upstream, or its provenance. The index says where it is
// and what its bytes are: a chart that it does not show is not served.
func (p *Protocol) fetched(c *protocol.Call, f *foreign, of chart, file string) error {
	ctx := c.R.Context()
	provenance := strings.HasSuffix(file, provenanceSuffix)
	at, err := f.address(of, provenance)
	if err != nil {
		return err
	}
	want := upstream.Want{Path: at, Kind: upstream.File, Package: of.Name, Version: of.Version}
	content := protocol.Content{MediaType: mediaChart, Cache: protocol.Immutable, Public: public(c)}
	if provenance {
		want.MaxBytes, content.MediaType = maxProvenance, mediaProvenance
	} else if of.Digest != "" {
		want.Digest = digest.Digest("sha256:" + of.Digest)
	}
	got, err := p.engine.Fetch(ctx, caller(c), &f.repo, want)
	if err != nil {
		return err
	}
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	return upstream.Serve(c, p.engine, got, content)
}
