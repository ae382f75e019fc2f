package gomod

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	modzip "golang.org/x/mod/zip"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What is asked of an upstream, at most. A list of the most released module has some
// 10,000 versions.
const (
	maxListBytes = 4 << 20
	// maxJudged is how many versions of a list, from the highest, have their age looked at
	// before they are listed. Those behind it are older than they; who asks for one that is
	// not is refused then.
	maxJudged   = 256
	judgeAtOnce = 8
)

// sources returns who answers for a module: hosted repositories, or one proxy. There is
// at least one.
//
// Errors: meta.ErrNotFound.
func (p *Protocol) sources(c *protocol.Call, path string) ([]meta.Repository, error) {
	if c.Repository == nil {
		return nil, fmt.Errorf("repository %s: %w", c.Repo, meta.ErrNotFound)
	}
	if c.Repository.Kind == meta.KindHosted {
		return []meta.Repository{*c.Repository}, nil
	}
	sources, err := p.upstream.Sources(c.R.Context(), caller(c), c.Repository, path, func(*meta.Repository) upstream.Want { return wantList(path) })
	if err == nil && len(sources) == 0 {
		err = fmt.Errorf("module %s: %w", path, meta.ErrNotFound)
	}
	return sources, err
}

// escape returns a module's path as an address has it; paths that are asked for have been
// unescaped from one.
func escape(path string) string {
	escaped, err := module.EscapePath(path)
	if err != nil {
		return path
	}
	return escaped
}

func wantList(path string) upstream.Want {
	return upstream.Want{Path: escape(path) + "/@v/list", Package: path, MaxBytes: maxListBytes}
}

func wantFile(m module.Version, ext string) upstream.Want {
	version, err := module.EscapeVersion(m.Version)
	if err != nil {
		version = m.Version
	}
	w := upstream.Want{Path: escape(m.Path) + "/@v/" + version + ext, Package: m.Path, Version: m.Version, Kind: upstream.File, MaxBytes: maxInfoBytes}
	switch {
	case ext == extMod:
		w.MaxBytes = modzip.MaxGoMod
	case ext == extZip:
		w.MaxBytes = modzip.MaxZipFile
	}
	if !canonical(m.Version) {
		w.Kind = upstream.Document // a branch moves
	}
	return w
}

// fetchFile passes on a file of `@v/` that an upstream has. That it is the right one the go
// command knows from the checksum database, or its go.sum.
func (p *Protocol) fetchFile(c *protocol.Call, repo *meta.Repository, m module.Version, ext string) error {
	ctx, by := c.R.Context(), caller(c)
	if !canonical(m.Version) && ext != extInfo {
		return fmt.Errorf("module %s: %w", m, meta.ErrNotFound)
	}
	if err := p.checkAge(ctx, by, repo, m); err != nil {
		return err
	}
	content := protocol.Content{Public: public(c), MediaType: mediaTypes[ext], Cache: protocol.Immutable}
	if !canonical(m.Version) {
		content.Cache = protocol.Revalidate
	}
	return upstream.ServeFile(c, p.upstream, by, repo, wantFile(m, ext), content)
}

var mediaTypes = map[string]string{extInfo: jsonType, extMod: textType, extZip: zipType}

// youngError says that a version is younger than its proxy's rule wants.
type youngError struct {
	repo   meta.RepoRef
	module module.Version
	since  time.Time
	age    time.Duration
}

func (e *youngError) Error() string {
	return fmt.Sprintf("module %s was released on %s, and proxy repository %s has a minimum release age of %s: take an earlier version, or wait",
		e.module, e.since.UTC().Format(time.RFC3339), e.repo, e.age)
}

// Unwrap returns meta.ErrDenied: with «not found» the go command would look elsewhere.
func (e *youngError) Unwrap() error { return meta.ErrDenied }

// checkAge judges a version, or what a branch stands for, by the time of its .info.
//
// Errors: *youngError; as upstream.Engine.Fetch has them.
func (p *Protocol) checkAge(ctx context.Context, by catalog.Caller, repo *meta.Repository, m module.Version) error {
	age := minAge(repo)
	if age == 0 {
		return nil
	}
	i, err := p.fetchInfo(ctx, by, repo, wantFile(m, extInfo))
	if err != nil {
		return err
	}
	if time.Since(i.Time) < age {
		return &youngError{repo: repo.Ref, module: m, since: i.Time, age: age}
	}
	return nil
}

func minAge(repo *meta.Repository) time.Duration {
	if repo.Upstream == nil {
		return 0
	}
	return repo.Upstream.MinReleaseAge
}

// fetchInfo reads an .info of an upstream.
func (p *Protocol) fetchInfo(ctx context.Context, by catalog.Caller, repo *meta.Repository, w upstream.Want) (info, error) {
	f, err := p.upstream.Fetch(ctx, by, repo, w)
	if err != nil {
		return info{}, err
	}
	b, err := p.upstream.Document(ctx, f, maxInfoBytes)
	if err != nil {
		return info{}, err
	}
	return parseInfo(w.Path, b)
}

func parseInfo(path string, b []byte) (i info, _ error) {
	if err := json.Unmarshal(b, &i); err != nil || i.Version == "" {
		return i, fmt.Errorf("%s of the upstream is not what the go command knows: %w", path, protocol.ErrUpstream)
	}
	return i, nil
}

// fetchList passes on a list, without what is too young.
func (p *Protocol) fetchList(c *protocol.Call, repo *meta.Repository, path string) error {
	ctx, by := c.R.Context(), caller(c)
	f, err := p.upstream.Fetch(ctx, by, repo, wantList(path))
	if err != nil {
		return err
	}
	content := protocol.Content{Public: public(c), MediaType: textType, Cache: protocol.Revalidate}
	age := minAge(repo)
	if age == 0 {
		return upstream.Serve(c, p.upstream, f, content)
	}
	release, err := p.catalog.Reserve(ctx, f.Record.Size)
	if err != nil {
		return err
	}
	defer release()
	b, err := p.upstream.Document(ctx, f, maxListBytes)
	if err != nil {
		return err
	}
	versions := parseList(b)
	young, err := p.young(ctx, by, repo, path, versions, age)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, v := range versions {
		if !young[v] {
			out.WriteString(v)
			out.WriteByte('\n')
		}
	}
	upstream.Describe(c, f)
	return protocol.ServeBytes(c.W, c.R, out.Bytes(), content)
}

// parseList reads the versions of a list, highest first.
func parseList(b []byte) []string {
	var versions []string
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		// The go command knows lists with a time behind each version, too.
		if v, _, _ := strings.Cut(strings.TrimSpace(lines.Text()), " "); canonical(v) {
			versions = append(versions, v)
		}
	}
	slices.SortFunc(versions, func(a, b string) int { return semver.Compare(b, a) })
	return slices.Compact(versions)
}

// young finds those of the highest versions that are younger than age. An .info never
// changes, so that only new versions are asked for.
func (p *Protocol) young(ctx context.Context, by catalog.Caller, repo *meta.Repository, path string, versions []string, age time.Duration) (map[string]bool, error) {
	versions = versions[:min(len(versions), maxJudged)]
	is := make([]bool, len(versions))
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(judgeAtOnce)
	for i, v := range versions {
		g.Go(func() error {
			said, err := p.fetchInfo(inner, by, repo, wantFile(module.Version{Path: path, Version: v}, extInfo))
			if errors.Is(err, meta.ErrNotFound) {
				is[i] = true // Of unknown age; it cannot be installed either.
				return nil
			}
			is[i] = err == nil && time.Since(said.Time) < age
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for i, v := range versions {
		found[v] = is[i]
	}
	return found, nil
}

// fetchLatest passes on `@latest`. When that is too young, the highest version of the list
// that is not takes its place.
func (p *Protocol) fetchLatest(c *protocol.Call, repo *meta.Repository, path string) error {
	ctx, by := c.R.Context(), caller(c)
	w := upstream.Want{Path: escape(path) + "/@latest", Package: path, MaxBytes: maxInfoBytes}
	f, err := p.upstream.Fetch(ctx, by, repo, w)
	if err != nil {
		return err
	}
	content := protocol.Content{Public: public(c), MediaType: jsonType, Cache: protocol.Revalidate}
	age := minAge(repo)
	if age == 0 {
		return upstream.Serve(c, p.upstream, f, content)
	}
	b, err := p.upstream.Document(ctx, f, maxInfoBytes)
	if err != nil {
		return err
	}
	best, err := parseInfo(w.Path, b)
	if err != nil {
		return err
	}
	if time.Since(best.Time) < age {
		if best, err = p.oldEnough(ctx, by, repo, path, age); err != nil {
			return err
		}
	}
	upstream.Describe(c, f)
	return serveJSON(c, best, content)
}

// oldEnough returns the version to choose of those that are not too young.
//
// Errors: meta.ErrDenied when there is none.
func (p *Protocol) oldEnough(ctx context.Context, by catalog.Caller, repo *meta.Repository, path string, age time.Duration) (best info, _ error) {
	f, err := p.upstream.Fetch(ctx, by, repo, wantList(path))
	if err != nil {
		return best, err
	}
	release, err := p.catalog.Reserve(ctx, f.Record.Size)
	if err != nil {
		return best, err
	}
	defer release()
	b, err := p.upstream.Document(ctx, f, maxListBytes)
	if err != nil {
		return best, err
	}
	versions := parseList(b)
	young, err := p.young(ctx, by, repo, path, versions, age)
	if err != nil {
		return best, err
	}
	for _, v := range versions {
		if !young[v] && later(v, best.Version) {
			best.Version = v
		}
	}
	if best.Version == "" {
		return best, fmt.Errorf("all of module %s is younger than the minimum release age of proxy repository %s: %w", path, repo.Ref, meta.ErrDenied)
	}
	return p.fetchInfo(ctx, by, repo, wantFile(module.Version{Path: path, Version: best.Version}, extInfo))
}
