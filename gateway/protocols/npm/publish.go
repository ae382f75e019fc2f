package npm

import (
	"context"
	"crypto/sha1" //nolint:gosec // npm's shasum; the integrity is sha512
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// manifestFile is where the manifest is that is too large for a summary.
const manifestFile = "shoal-manifest.json"

// maxStrayBytes is how much of a refused body is still read: a client that is cut off
// while it sends does not read why.
const maxStrayBytes = 64 << 20

// put takes the document of a package: with a tarball in it that is a publish, without
// one a change of what is there (npm deprecate).
func (p *Protocol) put(c *protocol.Call) error {
	name := c.Params.Get("path")
	if err := checkName(name); err != nil {
		return refuse(c, err)
	}
	by := caller(c)
	repo, err := p.catalog.ForPush(c.R.Context(), by, c.Repo, Format, c.Repository)
	if err != nil {
		return refuse(c, err)
	}
	in := &incoming{p: p, ctx: c.R.Context(), by: by, repo: repo.Ref, name: name, bodyBytes: c.R.ContentLength}
	defer in.close()
	d, err := readDocument(&body{c.R.Body}, receiver{version: in.version, attachment: in.attachment})
	if err != nil {
		return refuse(c, err)
	}
	if err := in.checkNames(d); err != nil {
		return err
	}
	if d.Attachments == 0 {
		return p.change(c, in, d, "")
	}
	token, err := in.publish(d)
	if err != nil {
		return err
	}
	return written(c, token, http.StatusCreated, name)
}

// refuse reads on a while, so that the client gets to read err.
func refuse(c *protocol.Call, err error) error {
	_, _ = io.CopyN(io.Discard, c.R.Body, maxStrayBytes) // the refusal stands whatever comes
	return err
}

// written answers a write as couchdb did.
func written(c *protocol.Call, token meta.Token, status int, name string) error {
	c.Committed(token)
	return protocol.WriteJSON(c.W, status, struct {
		OK  bool   `json:"ok"`
		ID  string `json:"id"`
		Rev string `json:"rev"`
	}{true, name, revisionOf(token.Index)})
}

// body tells a request's body that breaks off from a disk that does.
type body struct{ io.Reader }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the body broke off: %w: %w", meta.ErrInvalid, err)
	}
	return n, err
}

// incoming is a document on its way in, and what came of its parts.
type incoming struct {
	p         *Protocol
	ctx       context.Context
	by        catalog.Caller
	repo      meta.RepoRef
	name      string
	bodyBytes int64 // of the request, -1 when unknown

	claims claims
	// manifest is the first one of the document.
	manifest []byte

	file    string
	up      *catalog.Upload
	stored  catalog.Stored
	sums    sums
	content contents
}

func (in *incoming) close() {
	if in.up != nil {
		// What was not published is forgotten; a session that has ended stays ended.
		_ = in.up.Cancel(context.WithoutCancel(in.ctx))
		_ = in.up.Close()
	}
}

func (in *incoming) version(version string, manifest []byte) error {
	if in.manifest == nil {
		in.manifest = manifest
	}
	return in.claims.add(version, manifest)
}

// attachment takes the tarball: decoded, hashed, looked into and stored as it comes.
func (in *incoming) attachment(name string, data io.Reader) error {
	if strings.HasSuffix(name, ".sigstore") {
		return fmt.Errorf("attachment %q: provenance is not taken here, publish with --provenance=false: %w", name, meta.ErrInvalid)
	}
	if in.up != nil {
		return fmt.Errorf("the document has several tarballs, publish one at a time: %w", meta.ErrInvalid)
	}
	up, err := in.p.catalog.Begin(in.ctx, in.by, in.repo, true)
	if err != nil {
		return err
	}
	in.file, in.up = name, up

	pipe, into := io.Pipe()
	scanned := make(chan error, 1)
	go func() {
		size := int64(-1)
		if in.bodyBytes > 0 {
			size = in.bodyBytes/4*3 + 3
		}
		c, err := scanTarball(pipe, size)
		in.content = c
		_ = pipe.CloseWithError(err) // never fails
		scanned <- err
	}()
	hash := sha1.New() //nolint:gosec // as above
	decoded := &limited{r: base64.NewDecoder(base64.StdEncoding, data), left: maxTarballBytes}
	_, err = up.Append(in.ctx, io.TeeReader(io.TeeReader(decoded, hash), into))
	_ = into.CloseWithError(err) // never fails; nil is the end
	if broken := <-scanned; broken != nil && (err == nil || errors.Is(err, broken)) {
		err = broken
	}
	var corrupt base64.CorruptInputError
	if errors.As(err, &corrupt) {
		err = malformed("the tarball is not in base64 (byte %d)", int64(corrupt))
	}
	if err != nil {
		return err
	}
	if in.stored, err = up.Store(in.ctx, ""); err != nil {
		return err
	}
	in.sums = sums{sha1: hex.EncodeToString(hash.Sum(nil)), sha512: in.stored.Blob.SHA512}
	return nil
}

// limited fails behind a number of bytes.
type limited struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("the tarball is over the limit of %d bytes: %w", int64(maxTarballBytes), meta.ErrTooLarge)
	}
	return n, err
}

// checkNames compares the document's names with the path's.
func (in *incoming) checkNames(d document) error {
	for _, said := range []string{d.ID, d.Name} {
		if said != "" && said != in.name {
			return fmt.Errorf("the document is of package %q, the path of %q: %w", said, in.name, meta.ErrInvalid)
		}
	}
	for tag := range d.Tags {
		if err := checkTag(tag); err != nil {
			return err
		}
	}
	return nil
}

// publish makes the version of the document visible.
func (in *incoming) publish(d document) (meta.Token, error) {
	var none meta.Token
	switch {
	case d.Attachments != 1 || in.up == nil || d.Versions != 1:
		return none, fmt.Errorf("a publish has one version with one tarball, not %d with %d: %w", d.Versions, d.Attachments, meta.ErrInvalid)
	case len(d.Tags) > maxPublishTags:
		return none, fmt.Errorf("a publish with %d tags, at most %d: %w", len(d.Tags), maxPublishTags, meta.ErrInvalid)
	}
	version := in.claims.list[0].version
	if err := checkVersion(version); err != nil {
		return none, err
	}
	if _, file, ok := strings.Cut(in.file, "/"); ok {
		in.file = file // older clients write the scope before it
	}
	if in.file != fileOf(in.name, version) {
		return none, fmt.Errorf("the tarball of %s@%s is named %q, not %q: %w", in.name, version, in.file, fileOf(in.name, version), meta.ErrInvalid)
	}
	manifest, err := compose(in.name, version, in.manifest, in.content, in.sums)
	if err != nil {
		return none, err
	}
	pkg := catalog.Package{Repo: in.repo, Name: keyOf(in.name)}
	aliases := []string{}
	for tag, of := range d.Tags {
		if of != version {
			return none, fmt.Errorf("tag %s is given to version %q, and %q is published: %w", tag, of, version, meta.ErrInvalid)
		}
		aliases = append(aliases, tag)
	}
	if there, _, err := in.p.catalog.Version(in.ctx, in.by, pkg, version); err == nil && there.Digest == in.stored.Blob.Digest {
		aliases = nil // a repetition: where the tags have gone meanwhile, they stay
	} else if d.Tags[latest] == "" {
		// The first version of a package is its latest, whatever it is tagged.
		if _, _, found, err := in.p.catalog.Head(in.ctx, in.by, pkg, latest); err != nil {
			return none, err
		} else if !found {
			aliases = append(aliases, latest)
		}
	}
	draft := catalog.Draft{
		Version:  meta.Version{Package: pkg.Name, Name: version, MediaType: tarballType, State: meta.StateClosed, Summary: manifest},
		Content:  []catalog.StoredFile{{Path: fileOf(in.name, version), MediaType: tarballType, Stored: in.stored, Sums: map[string]string{"sha1": in.sums.sha1}}},
		Aliases:  aliases,
		Spelling: in.name,
	}
	if len(manifest) > meta.MaxSummaryBytes {
		draft.Version.Summary = nil
		stored, up, err := in.p.catalog.Ingest(in.ctx, in.by, in.repo, strings.NewReader(string(manifest)), "")
		if err != nil {
			return none, err
		}
		defer up.Close()
		draft.Content = append(draft.Content, catalog.StoredFile{Path: manifestFile, MediaType: "application/json", Stored: stored})
	}
	published, err := in.p.catalog.Publish(in.ctx, in.by, in.repo, draft)
	if errors.Is(err, meta.ErrExists) {
		err = in.taken(pkg, version, err)
	}
	return published.Token, err
}

// maxPublishTags leaves room for latest among the aliases of a publish.
const maxPublishTags = 60

// tarballType is what tarballs are served as, as npm's own registry does.
const tarballType = "application/octet-stream"

// taken says in npm's words that a version is there with other bytes, or was. That it is
// the name of the package, or a tag that may not move, the error says itself.
func (in *incoming) taken(pkg catalog.Package, version string, err error) error {
	known, _, e := in.p.catalog.Package(in.ctx, in.by, pkg)
	if e == nil && spelled(known) != in.name {
		return fmt.Errorf("package name %q is too similar to that of the package %q: %w", in.name, spelled(known), meta.ErrExists)
	}
	if v, _, e := in.p.catalog.Version(in.ctx, in.by, pkg, version); e == nil && v.Digest == in.stored.Blob.Digest {
		return err // these very bytes: it was not the version
	}
	return &takenError{version, err}
}

// spelled returns a package's name as people write it.
func spelled(p meta.Package) string {
	if p.Spelling != "" {
		return p.Spelling
	}
	return p.Name
}
