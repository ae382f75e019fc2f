package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxInlineBytes is how long an encoded reference list may be within a publish;
// a longer one is staged in parts of that size (design.md, invariant 4). A
// command has 64 KiB, so 16 stay for the rest.
const maxInlineBytes = 48 << 10

// Draft is what a protocol wants to publish.
type Draft struct {
	// Version as the protocol sees it: Package, Name, MediaType, State, Subject,
	// ArtifactType, Annotations, Labels, Summary and References. Publish fills in the
	// rest. An empty Name becomes the digest of the version's own document, an empty
	// State closed. An open version has no digest: each Publish of it adds files. A
	// reference that occurs twice is kept once.
	Version meta.Version
	// Documents are stored and published together; the first one, or else the first
	// of Content, is what the version's Digest, Size and SHA512 are of.
	Documents []Document
	// Content is what uploads have brought and nobody has linked.
	Content []StoredFile
	// Files are bound to content that the repository holds already.
	Files []meta.File
	// Optional are references that are kept if the repository holds them, and
	// otherwise none of ours: layers that live elsewhere.
	Optional []meta.Reference
	// Aliases move to the version.
	Aliases []string
	// Base, when set, must be the package's revision, else meta.ErrConflict.
	Base *uint64
	// Spelling is the package's name as its publisher wrote it, where Version.Package is a
	// normalized form; it is kept with the package at its first publish. A later publish
	// under another one is meta.ErrExists, unless NewSpelling says that they are the same.
	Spelling    string
	NewSpelling bool
}

// Document is a small file that a publish brings with it.
type Document struct {
	Path, MediaType string
	Name            digest.Digest // sha256 or sha512; "" is its sha256
	Body            []byte
	// Summary and Sums are kept with the file.
	Summary []byte
	Sums    map[string]string
}

// StoredFile is stored content at its path.
type StoredFile struct {
	Path, MediaType string
	Stored          Stored
	// Summary and Sums are kept with the file.
	Summary []byte
	Sums    map[string]string
}

// Published is what came of a Draft.
type Published struct {
	Version meta.Version
	// Created is false when the very same version was there already.
	Created bool
	Token   meta.Token
}

// RefusedError says that a draft was not admitted.
type RefusedError struct {
	Verdict  meta.Verdict
	Findings []verify.Finding
}

func (e *RefusedError) Error() string {
	return "refused: " + strings.Join(e.Verdict.Reasons, "; ")
}

// Unwrap returns meta.ErrInvalid.
func (e *RefusedError) Unwrap() error { return meta.ErrInvalid }

// Publish makes a version visible, with its files, aliases, attachment and
// verdict, in one log entry. Documents are durable here before that.
//
// Errors: *RefusedError when it is not admitted; meta.ErrExists when the name has
// other content or had it; meta.ErrDenied for an alias that may not move;
// meta.ErrConflict when Base is not the revision; meta.ErrTooLarge for an open version
// with state.MaxVersionFiles; meta.ErrNoSpace;
// *meta.BacklogError when the tenant's copies lag too far behind; meta.ErrUnavailable,
// also when the repository wants two copies first and they do not come in time.
func (c *Catalog) Publish(ctx context.Context, by Caller, repo meta.RepoRef, d Draft) (Published, error) {
	p, err := c.publish(ctx, by, repo, d)
	c.metrics.published(err)
	if err != nil {
		return p, fmt.Errorf("publish into %s/%s: %w", repo, d.Version.Package, err)
	}
	return p, nil
}

func (c *Catalog) publish(ctx context.Context, by Caller, repo meta.RepoRef, d Draft) (Published, error) {
	if err := c.keepsUp(ctx, repo.Tenant); err != nil {
		return Published{}, err
	}
	v := d.Version
	v.Repo, v.CreatedBy = repo, by.Who.Name
	if v.State == "" {
		v.State = meta.StateClosed
	}
	draft := verify.Draft{Aliases: d.Aliases}
	files := make([]meta.File, 0, len(d.Documents)+len(d.Content)+len(d.Files))
	for i := range d.Documents {
		doc := &d.Documents[i]
		canonical := digest.FromBytes(doc.Body)
		if doc.Name == "" {
			doc.Name = canonical
		}
		files = append(files, meta.File{Path: doc.Path, Digest: canonical, Size: int64(len(doc.Body)), MediaType: doc.MediaType, Summary: doc.Summary, Sums: doc.Sums})
		draft.Documents = append(draft.Documents, verify.Document{Path: doc.Path, Digest: doc.Name, Body: doc.Body})
		if isSHA512(doc.Name) && i == 0 {
			v.SHA512 = doc.Name
		}
	}
	for i, f := range d.Content {
		files = append(files, meta.File{Path: f.Path, Digest: f.Stored.Blob.Digest, Size: f.Stored.Blob.PlainBytes, MediaType: f.MediaType, Summary: f.Summary, Sums: f.Sums})
		if i == 0 && len(d.Documents) == 0 {
			v.SHA512 = f.Stored.Blob.SHA512
		}
	}
	if files = append(files, d.Files...); len(files) == 0 {
		return Published{}, fmt.Errorf("a version without files: %w", meta.ErrInvalid)
	}
	if v.State == meta.StateOpen {
		v.Digest, v.Size, v.SHA512 = "", 0, ""
	} else {
		v.Digest, v.Size = files[0].Digest, files[0].Size
	}
	if v.Name == "" {
		v.Name = string(v.Digest)
	}

	held, err := c.gather(ctx, by, Package{repo, v.Package}, d)
	if err != nil {
		return Published{}, err
	}
	v.References = references(d, held)
	draft.Version, draft.Files, draft.Held = v, files, held.get
	verdict, findings := verify.Admit(draft)
	if len(findings) > 0 {
		return Published{}, &RefusedError{Verdict: verdict, Findings: findings}
	}
	v.Verdict = verdict
	if err := c.fits(ctx, by, &v, len(files)); err != nil {
		return Published{}, err
	}

	var stored []*Stored
	for _, doc := range d.Documents {
		s, up, err := c.document(ctx, by, repo, doc.Body, doc.Name)
		if err != nil {
			return Published{}, err
		}
		defer up.Close()
		stored = append(stored, &s)
	}
	for i := range d.Content {
		s := d.Content[i].Stored
		stored = append(stored, &s)
	}
	for _, s := range stored {
		s.Name = s.Blob.Digest // files are bound by sha256
	}
	if err := c.secure(ctx, by, repo, stored, files, v.References); err != nil {
		return Published{}, err
	}
	if v, err = c.stage(ctx, by, v); err != nil {
		return Published{}, err
	}
	receipt, err := c.again(ctx, by, stored, func(by Caller) (raftmeta.Receipt, error) {
		blobs := make([]state.LinkBlob, len(stored))
		for i, s := range stored {
			blobs[i] = c.link(repo, *s)
		}
		return c.do(ctx, by, stepPublish, state.Publish{
			Version: v, Files: files, Blobs: blobs, Aliases: d.Aliases, Base: d.Base,
			Spelling: d.Spelling, NewSpelling: d.Spelling != "" && d.NewSpelling,
		})
	})
	if err != nil {
		return Published{}, err
	}
	c.settled(repo, stored...)
	for _, doc := range d.Documents {
		// What was just pushed is what will be asked for; the bytes were checked.
		c.documents.put(documentKey{string(repo.Tenant), digest.FromBytes(doc.Body)}, doc.Body)
	}
	result, _ := receipt.Value.(state.PublishResult)
	return Published{Version: v, Created: result.Created, Token: receipt.Token}, nil
}

// fits refuses files to an open version that has as many as it may. Several publishes at
// once may pass it by what they bring.
//
// Errors: meta.ErrTooLarge.
func (c *Catalog) fits(ctx context.Context, by Caller, v *meta.Version, more int) error {
	if v.State != meta.StateOpen {
		return nil
	}
	fresh := meta.Local
	fresh.After = by.After
	have, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, fresh, state.CountFiles{Repo: v.Repo, Package: v.Package, Version: v.Name})
	if err == nil && have+more > state.MaxVersionFiles {
		err = fmt.Errorf("version %s has %d files, with these it would have over %d: publish another version: %w", v.Name, have, state.MaxVersionFiles, meta.ErrTooLarge)
	}
	return err
}

// references returns what the version closes over: each once, optional ones if held.
func references(d Draft, held holdings) []meta.Reference {
	seen := make(map[digest.Digest]bool, len(d.Version.References))
	var out []meta.Reference
	for _, r := range d.Version.References {
		if !seen[r.Digest] {
			seen[r.Digest] = true
			out = append(out, r)
		}
	}
	for _, r := range d.Optional {
		if size, ok := held.get(r.Digest, r.Version); ok && size == r.Size && !seen[r.Digest] {
			seen[r.Digest] = true
			out = append(out, r)
		}
	}
	return out
}

// holdings is what a repository was found to hold, in plain bytes.
type holdings map[holding]int64

type holding struct {
	digest  digest.Digest
	version bool
}

func (h holdings) get(d digest.Digest, version bool) (int64, bool) {
	size, ok := h[holding{d, version}]
	return size, ok
}

// gather asks what of the draft's content is held. It asks locally; the first
// that is missing is asked by a strong round, and the state that this brings
// answers for all others.
func (c *Catalog) gather(ctx context.Context, by Caller, pkg Package, d Draft) (holdings, error) {
	held := make(holdings, len(d.Version.References))
	for _, f := range d.Content {
		held[holding{f.Stored.Blob.Digest, false}] = f.Stored.Blob.PlainBytes
	}
	fresh := meta.Local
	fresh.After = by.After
	confirmed := false
	look := func(h holding) error {
		if _, ok := held[h]; ok {
			return nil
		}
		size, asOf, err := c.size(ctx, fresh, pkg, h)
		if errors.Is(err, meta.ErrNotFound) && !confirmed {
			strong := meta.Strong
			strong.After = by.After
			if size, asOf, err = c.size(ctx, strong, pkg, h); err == nil || errors.Is(err, meta.ErrNotFound) {
				confirmed = true
				fresh.After = meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
			}
		}
		switch {
		case err == nil:
			held[h] = size
			return nil
		case errors.Is(err, meta.ErrNotFound):
			return nil
		}
		return err
	}
	for _, list := range [][]meta.Reference{d.Version.References, d.Optional} {
		if len(list) > verify.MaxReferences {
			continue // Admit refuses it
		}
		for _, r := range list {
			if err := look(holding{r.Digest, r.Version}); err != nil {
				return nil, err
			}
		}
	}
	for _, f := range d.Files {
		if err := look(holding{f.Digest, false}); err != nil {
			return nil, err
		}
	}
	return held, nil
}

func (c *Catalog) size(ctx context.Context, f meta.Freshness, pkg Package, h holding) (int64, meta.AsOf, error) {
	if h.version {
		v, asOf, err := raftmeta.Ask(ctx, c.cfg.Metadata, f, state.GetVersion{Repo: pkg.Repo, Package: pkg.Name, Version: string(h.digest)})
		return v.Size, asOf, err
	}
	b, asOf, err := raftmeta.Ask(ctx, c.cfg.Metadata, f, state.GetBlob{Repo: pkg.Repo, Digest: h.digest})
	return b.Blob.PlainBytes, asOf, err
}

// stage writes a long reference list ahead and leaves its name in the version.
func (c *Catalog) stage(ctx context.Context, by Caller, v meta.Version) (meta.Version, error) {
	if len(codec.Encode(v.References)) <= maxInlineBytes {
		return v, nil
	}
	v.Draft = rand.Text()
	step, size, from := 0, 0, 0
	send := func(to int) error {
		_, err := c.do(ctx, by, stepStage+step, state.StageReferences{
			Repo: v.Repo, Draft: v.Draft, Part: uint32(step), References: v.References[from:to],
		})
		if err != nil {
			return fmt.Errorf("stage references %d to %d: %w", from, to, err)
		}
		step, size, from = step+1, 0, to
		return nil
	}
	for i, r := range v.References {
		n := len(codec.Encode(r))
		if size+n > maxInlineBytes {
			if err := send(i); err != nil {
				return v, err
			}
		}
		size += n
	}
	if err := send(len(v.References)); err != nil {
		return v, err
	}
	v.References = nil
	return v, nil
}
