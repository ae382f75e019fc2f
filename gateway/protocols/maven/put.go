package maven

import (
	"bytes"
	"context"
	"crypto/md5"  //nolint:gosec // Maven's checksums, of which each repository has to have this one
	"crypto/sha1" //nolint:gosec // the same
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxSumBytes bounds what a client sends as the checksum of a file.
const maxSumBytes = 4 << 10

func (p *Protocol) put(c *protocol.Call) error {
	t, err := parsePath(c.Params.Get("path"))
	if err != nil {
		return err
	}
	into, err := p.catalog.ForPush(c.R.Context(), caller(c), c.Repo, Format, c.Repository)
	if err != nil {
		return err
	}
	switch {
	case t.metadata() && t.sum != "":
		// That of a document which is not kept either.
		if _, err := protocol.ReadBody(c.R, maxSumBytes); err != nil {
			return err
		}
		c.W.WriteHeader(http.StatusCreated)
		return nil
	case t.metadata():
		return p.putMetadata(c, into.Ref, t)
	case t.gav.version == "":
		return fmt.Errorf("%s: a snapshot is sent as a build with its time and number, %s-20261122.133443-1 for one, as mvn and gradle do: %w",
			t.file, strings.TrimSuffix(t.gav.base, snapshotSuffix), meta.ErrInvalid)
	case t.sum != "":
		return p.putSum(c, into.Ref, t)
	}
	return p.putFile(c, into.Ref, t)
}

// putFile adds a file to its version, which it opens when it is the first.
func (p *Protocol) putFile(c *protocol.Call, into meta.RepoRef, t *target) error {
	ctx, by := c.R.Context(), caller(c)
	pkg := catalog.Package{Repo: into, Name: t.gav.pkg()}
	if err := p.room(ctx, c, pkg, t); err != nil {
		return err
	}
	want, err := wanted(c.R.Header)
	if err != nil {
		return err
	}
	draft := catalog.Draft{Version: meta.Version{Package: pkg.Name, Name: t.gav.version, State: meta.StateOpen, Quiet: Quiet}}
	if t.gav.classifier == "" && t.gav.extension == "pom" {
		sent, err := p.catalog.Arrive(ctx, by, into, c.R.Body, c.R.ContentLength, maxPomBytes)
		if err != nil {
			return err
		}
		defer sent.Close()
		body, release, err := sent.Read(ctx)
		if err != nil {
			return err
		}
		defer release()
		if err := putPom(body, t, want, &draft); err != nil {
			return err
		}
	} else {
		up, err := p.catalog.Begin(ctx, by, into, false)
		if err != nil {
			return err
		}
		defer up.Close()
		s, sums, err := receive(ctx, protocol.Body(c.R), up, want)
		if err != nil {
			return err
		}
		draft.Content = []catalog.StoredFile{{Path: t.file, MediaType: mediaType(t.gav.extension), Stored: s, Sums: sums}}
	}
	published, err := p.catalog.Publish(ctx, by, into, draft)
	if errors.Is(err, meta.ErrExists) {
		return refusal(err, t)
	}
	if err != nil {
		return err
	}
	c.Committed(published.Token)
	c.W.WriteHeader(http.StatusCreated)
	return nil
}

// refusal says what to do about a file that cannot be taken any more.
func refusal(err error, t *target) error {
	if strings.HasSuffix(t.file, ".asc") {
		return fmt.Errorf("%w: signatures come with the deploy that they sign", err)
	}
	return fmt.Errorf("%w: what is deployed stays as it is, deploy another version", err)
}

// room refuses, before the body is asked for, what Publish would refuse behind it: a
// file that a closed version does not have, or one that another is deploying, and one of
// another size than it has. What is known here is enough: Publish judges.
func (p *Protocol) room(ctx context.Context, c *protocol.Call, pkg catalog.Package, t *target) error {
	by := caller(c)
	by.Asked = meta.Local
	v, _, err := p.catalog.Version(ctx, by, pkg, t.gav.version)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	f, _, err := p.catalog.File(ctx, by, pkg, t.gav.version, t.file)
	switch {
	case errors.Is(err, meta.ErrNotFound) && v.State == meta.StateClosed:
		return refusal(fmt.Errorf("version %s of %s is closed and has no file %s: %w", v.Name, pkg.Name, t.file, meta.ErrExists), t)
	case errors.Is(err, meta.ErrNotFound) && v.State == meta.StateOpen && v.CreatedBy != by.Who.Name:
		return refusal(fmt.Errorf("version %s of %s is another's deploy, which is not finished, and has no file %s: %w", v.Name, pkg.Name, t.file, meta.ErrExists), t)
	case errors.Is(err, meta.ErrNotFound):
		return nil
	case err != nil:
		return err
	case c.R.ContentLength >= 0 && c.R.ContentLength != f.Size:
		return refusal(fmt.Errorf("version %s of %s has a file %s with other bytes: %w", v.Name, pkg.Name, t.file, meta.ErrExists), t)
	}
	return nil
}

// summary is what is kept of a POM with its version, to render a group's plugins from.
type summary struct {
	Packaging string `json:"packaging,omitempty"`
	Name      string `json:"name,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
}

// putPom reads a POM, compares it with its path and makes it part of the draft.
func putPom(body []byte, t *target, want map[string]string, draft *catalog.Draft) error {
	parsed, err := parsePom(body)
	if err != nil {
		return fmt.Errorf("%s: %w", t.file, err)
	}
	if err := parsed.check(t.gav); err != nil {
		return fmt.Errorf("%s: %w", t.file, err)
	}
	sums := newSums()
	if _, err := sums.Write(body); err != nil {
		return fmt.Errorf("hash %s: %w", t.file, err)
	}
	document := catalog.Document{Path: t.file, MediaType: mediaType(t.gav.extension), Body: body, Sums: sums.hex()}
	if err := agree(t.file, want, document.Sums, digest.FromBytes(body).Encoded()); err != nil {
		return err
	}
	draft.Documents = []catalog.Document{document}
	draft.Version.Summary, err = json.Marshal(summary{Packaging: parsed.packaging, Name: parsed.name, Prefix: parsed.prefix(t.gav.artifact)})
	return err
}

// receive stores the body and returns its checksums, when they are those that are wanted.
func receive(ctx context.Context, body io.Reader, up *catalog.Upload, want map[string]string) (catalog.Stored, map[string]string, error) {
	cancel := func(err error) (catalog.Stored, map[string]string, error) {
		return catalog.Stored{}, nil, errors.Join(err, up.Cancel(context.WithoutCancel(ctx)))
	}
	sums := newSums()
	if _, err := up.Append(ctx, io.TeeReader(body, sums)); err != nil {
		return cancel(err)
	}
	have := sums.hex()
	s, err := up.Store(ctx, "")
	if err != nil {
		return cancel(err)
	}
	// Stored and published by nobody, it expires.
	return s, have, agree("the body", want, have, s.Blob.Digest.Encoded())
}

// putSum compares a client's checksum with the file; it is not kept, since ours is of
// what is stored. Of a file that is not there it says nothing.
func (p *Protocol) putSum(c *protocol.Call, into meta.RepoRef, t *target) error {
	body, err := protocol.ReadBody(c.R, maxSumBytes)
	if err != nil {
		return err
	}
	sum, err := parseSum(body, t.sum)
	if err != nil {
		return fmt.Errorf("%s.%s: %w", t.file, t.sum, err)
	}
	f, _, err := p.catalog.File(c.R.Context(), caller(c), catalog.Package{Repo: into, Name: t.gav.pkg()}, t.gav.version, t.file)
	switch {
	case errors.Is(err, meta.ErrNotFound):
	case err != nil:
		return err
	default:
		if err := agree(t.file, map[string]string{t.sum: sum}, f.Sums, f.Digest.Encoded()); err != nil {
			return fmt.Errorf("%w; what came stays as it is, deploy another version", err)
		}
	}
	c.W.WriteHeader(http.StatusCreated)
	return nil
}

// putMetadata closes what the client's metadata says is complete. The document itself is
// not kept.
func (p *Protocol) putMetadata(c *protocol.Call, into meta.RepoRef, t *target) error {
	ctx, by := c.R.Context(), caller(c)
	if c.R.ContentLength > maxMetadataBytes {
		return fmt.Errorf("%s of %d bytes: %w", metadataFile, c.R.ContentLength, meta.ErrTooLarge)
	}
	body := &limited{r: protocol.Body(c.R), left: maxMetadataBytes}
	n, err := parseMetadata(body)
	if err != nil {
		return err
	}
	pkg, base, _ := t.snapshotOf()
	if base == "" {
		group, artifact, ok := t.artifactOf()
		if !ok || n.artifact == "" {
			// That of a group of plugins, whose packages say all that it could.
			c.W.WriteHeader(http.StatusCreated)
			return nil
		}
		pkg = packageName(group, artifact)
	}
	if said := packageName(n.group, n.artifact); said != pkg {
		return fmt.Errorf("%s: it is of %s and the path is of %s: %w", metadataFile, said, pkg, meta.ErrInvalid)
	}
	of := catalog.Package{Repo: into, Name: pkg}
	for i, version := range n.deployed(base) {
		v, _, err := p.catalog.Version(ctx, by, of, version)
		// What another deploys is not this client's to finish.
		if errors.Is(err, meta.ErrNotFound) || err == nil && (v.State != meta.StateOpen || v.CreatedBy != by.Who.Name) {
			continue
		}
		if err != nil {
			return err
		}
		step := by
		if step.Origin.RequestID != "" {
			step.Origin.RequestID += fmt.Sprintf(".close%d", i)
		}
		token, err := p.catalog.Close(ctx, step, of, version)
		if err != nil {
			return err
		}
		c.Committed(token)
	}
	c.W.WriteHeader(http.StatusCreated)
	return nil
}

// limited ends a body that is longer than it may be.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("%s is over the limit of %d bytes: %w", metadataFile, maxMetadataBytes, meta.ErrTooLarge)
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// hashes are the checksums that Maven repositories have beside sha256, which is the
// name of what is stored.
type hashes struct {
	md5, sha1, sha512 hash.Hash
	io.Writer
}

func newSums() *hashes {
	h := &hashes{md5: md5.New(), sha1: sha1.New(), sha512: sha512.New()} //nolint:gosec // as above
	h.Writer = io.MultiWriter(h.md5, h.sha1, h.sha512)
	return h
}

func (h *hashes) hex() map[string]string {
	sum := func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
	return map[string]string{"md5": sum(h.md5), "sha1": sum(h.sha1), "sha512": sum(h.sha512)}
}

// sumBytes is how many digits a checksum has.
var sumBytes = map[string]int{"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}

// parseSum reads what a client sends as the checksum of a file: the digits, with the name
// of the file before or behind them or without.
//
// Errors: meta.ErrInvalid.
func parseSum(body []byte, algorithm string) (string, error) {
	for field := range bytes.FieldsSeq(body) {
		s := strings.ToLower(string(field))
		if len(s) == sumBytes[algorithm] && strings.Trim(s, "0123456789abcdef") == "" {
			return s, nil
		}
	}
	return "", fmt.Errorf("it holds no %s in hexadecimal: %w", algorithm, meta.ErrInvalid)
}

// wanted returns the checksums that the client sent along with the file.
func wanted(h http.Header) (map[string]string, error) {
	want := map[string]string{}
	for header, algorithm := range map[string]string{
		"X-Checksum-Md5": "md5", "X-Checksum-Sha1": "sha1", "X-Checksum-Sha256": "sha256", "X-Checksum-Sha512": "sha512",
	} {
		if v := h.Get(header); v != "" {
			sum, err := parseSum([]byte(v), algorithm)
			if err != nil {
				return nil, fmt.Errorf("header %s: %w", header, err)
			}
			want[algorithm] = sum
		}
	}
	return want, nil
}

// agree compares what a client says with what came; sha256 is kept apart from the others.
//
// Errors: meta.ErrInvalid.
func agree(what string, want, have map[string]string, sha256 string) error {
	for algorithm, sum := range want {
		got := have[algorithm]
		if algorithm == "sha256" {
			got = sha256
		}
		if got != "" && got != sum {
			return fmt.Errorf("%s has %s %s and the client says %s: it changed on the way: %w", what, algorithm, got, sum, meta.ErrInvalid)
		}
	}
	return nil
}

// mediaType of a file by its extension. Nothing is served that a browser would run.
func mediaType(extension string) string {
	switch extension {
	case "pom", "xml":
		return "application/xml"
	case "jar", "war", "ear", "aar":
		return "application/java-archive"
	case "module":
		return "application/vnd.org.gradle.module+json"
	}
	if strings.HasSuffix(extension, "asc") {
		return "text/plain"
	}
	return "application/octet-stream"
}
