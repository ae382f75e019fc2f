package pypi

import (
	"context"
	"crypto/md5" //nolint:gosec // what clients send beside the sha256
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	"golang.org/x/crypto/blake2b"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of the form of an upload, without the file in it. Descriptions are long, and
// come in a field of their own.
const (
	maxFormBytes  = 16 << 20
	maxFieldBytes = 4 << 10
	maxParts      = 10_000
	// maxDrained is what is read of an upload that is refused, so that the client gets to
	// read why.
	maxDrained = 64 << 20
)

// form is what an upload says of its file; fields that nothing is done with are not kept.
type form map[string]string

// fields are those that count.
var fields = map[string]bool{
	":action": true, "protocol_version": true, "name": true, "version": true, "filetype": true,
	"md5_digest": true, "sha256_digest": true, "blake2_256_digest": true, "requires_python": true,
}

// received is a file that has come, and what the form says of it.
type received struct {
	form
	name        string // of the file
	md5, blake2 hash.Hash
	stored      catalog.Stored
	upload      *catalog.Upload
}

// upload takes the form that twine sends (the «legacy» upload of PyPI): fields, among them
// digests, and the file as the part named content, in whatever order.
func (p *Protocol) upload(c *protocol.Call) error {
	token, err := p.take(c)
	if err != nil {
		// A client that is cut off while it sends sees no reason.
		_, _ = io.CopyN(io.Discard, c.R.Body, maxDrained)
		return err
	}
	c.Committed(token)
	h := c.W.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	c.W.WriteHeader(http.StatusOK)
	return nil
}

func (p *Protocol) take(c *protocol.Call) (meta.Token, error) {
	ctx, by := c.R.Context(), caller(c)
	repo, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return meta.Token{}, err
	}
	parts, err := c.R.MultipartReader()
	if err != nil {
		return meta.Token{}, fmt.Errorf("an upload is a form of the type multipart/form-data, as twine sends it: %w: %w", meta.ErrInvalid, err)
	}
	r, err := p.receive(ctx, by, repo.Ref, parts)
	if err != nil {
		return meta.Token{}, err
	}
	defer r.upload.Close()
	f, err := r.check()
	if err != nil {
		return meta.Token{}, err
	}
	about, metadata, err := p.inspect(ctx, r, f)
	if err != nil {
		return meta.Token{}, err
	}
	summary, err := json.Marshal(about)
	if err != nil {
		return meta.Token{}, fmt.Errorf("summary of %s: %w", r.name, err)
	}
	draft := catalog.Draft{
		Version:  meta.Version{Package: f.project, Name: f.version, State: meta.StateOpen},
		Spelling: r.form["name"], NewSpelling: true, // what differs is not the name (PEP 503)
		Content: []catalog.StoredFile{{Path: r.name, Stored: r.stored, Summary: summary, Sums: map[string]string{
			"md5": hex.EncodeToString(r.md5.Sum(nil)), "blake2b-256": hex.EncodeToString(r.blake2.Sum(nil)),
		}}},
	}
	if f.kind == wheel {
		draft.Documents = []catalog.Document{{Path: r.name + metadataSuffix, MediaType: "text/plain; charset=utf-8", Body: metadata}}
	}
	published, err := p.catalog.Publish(ctx, by, repo.Ref, draft)
	if errors.Is(err, meta.ErrExists) {
		return meta.Token{}, p.exists(ctx, by, catalog.Package{Repo: repo.Ref, Name: f.project}, f.version, r.name, err)
	}
	return published.Token, err
}

// exists says it in PyPI's own words, which clients look for; cause is why it was refused.
func (p *Protocol) exists(ctx context.Context, by catalog.Caller, pkg catalog.Package, version, name string, cause error) error {
	_, _, err := p.catalog.File(ctx, by, pkg, version, name)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return takenError("This filename has already been used, use a different version: " + name + " was deleted, and its name never takes other bytes.")
	case err == nil:
		return takenError("File already exists: " + name + " is there with other bytes, use a different version.")
	}
	return cause
}

// takenError says that a file name is taken. It is meta.ErrExists.
type takenError string

func (e takenError) Error() string { return string(e) }

// Unwrap returns meta.ErrExists.
func (e takenError) Unwrap() error { return meta.ErrExists }

// receive reads the whole form and stores the file, which nobody sees yet. The upload is to
// be closed.
func (p *Protocol) receive(ctx context.Context, by catalog.Caller, repo meta.RepoRef, parts *multipart.Reader) (r *received, err error) {
	r = &received{form: form{}}
	defer func() {
		if err != nil && r.upload != nil {
			err = errors.Join(err, r.upload.Cancel(context.WithoutCancel(ctx)), r.upload.Close())
		}
	}()
	left := int64(maxFormBytes)
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r, broken(err)
		}
		if n == maxParts {
			return r, fmt.Errorf("the form has more than %d fields: %w", maxParts, meta.ErrInvalid)
		}
		name := part.FormName()
		if name == "content" {
			if err := p.content(ctx, by, repo, r, part); err != nil {
				return r, err
			}
			continue
		}
		used, err := r.form.read(name, part, left)
		if err != nil {
			return r, err
		}
		left -= used
	}
	if r.upload == nil {
		return r, fmt.Errorf("the form has no file: send it as the part content: %w", meta.ErrInvalid)
	}
	want, err := sha256Of(r.form["sha256_digest"])
	if err != nil {
		return r, err
	}
	r.stored, err = r.upload.Store(ctx, want)
	return r, err
}

// read reads a field, of at most left bytes, and keeps it if it counts.
func (f form) read(name string, r io.Reader, left int64) (used int64, err error) {
	tooLong := fmt.Errorf("field %.40q of the form is too long: %w", name, meta.ErrInvalid)
	var kept strings.Builder
	into := io.Discard
	if fields[name] {
		into, left = &kept, min(left, maxFieldBytes)
	}
	used, err = io.Copy(into, io.LimitReader(r, left+1))
	switch {
	case err != nil:
		return used, broken(err)
	case used > left:
		return used, tooLong
	}
	if fields[name] {
		if _, twice := f[name]; twice {
			return used, fmt.Errorf("field %s of the form comes twice: %w", name, meta.ErrInvalid)
		}
		f[name] = strings.TrimSpace(kept.String())
	}
	return used, nil
}

// broken tells a form that breaks off, or is none, from a disk that fails.
func broken(err error) error {
	return fmt.Errorf("%w: %w", protocol.ErrBroken, err)
}

// content stores the part that is the file.
func (p *Protocol) content(ctx context.Context, by catalog.Caller, repo meta.RepoRef, r *received, part *multipart.Part) error {
	if r.upload != nil {
		return fmt.Errorf("the form has two files: send each on its own: %w", meta.ErrInvalid)
	}
	// The name is judged before the bytes are taken: FileName would cut a path off it.
	if r.name = fileName(part); r.name == "" {
		return fmt.Errorf("the file of the form has no name: %w", meta.ErrInvalid)
	}
	if _, err := parseFilename(r.name); err != nil {
		return err
	}
	up, err := p.catalog.Begin(ctx, by, repo, false)
	if err != nil {
		return err
	}
	r.upload, r.md5 = up, md5.New() //nolint:gosec // what clients send
	if r.blake2, err = blake2b.New256(nil); err != nil {
		return fmt.Errorf("blake2: %w", err)
	}
	_, err = up.Append(ctx, io.TeeReader(protocol.Part(part), io.MultiWriter(r.md5, r.blake2)))
	return err
}

// fileName is the name that a part gives to its file, as it stands.
func fileName(part *multipart.Part) string {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return params["filename"]
}

func sha256Of(sum string) (digest.Digest, error) {
	if sum == "" {
		return "", nil
	}
	d, err := digest.Parse("sha256:" + strings.ToLower(sum))
	if err != nil {
		return "", fmt.Errorf("sha256_digest %.80q is none: %w", sum, meta.ErrInvalid)
	}
	return d, nil
}

// check compares the form with the file.
func (r *received) check() (filename, error) {
	bad := func(format string, args ...any) (filename, error) {
		return filename{}, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if action := r.form[":action"]; action != "file_upload" {
		return bad("the action is %.40q, use file_upload", action)
	}
	if v := r.form["protocol_version"]; v != "" && v != "1" {
		return bad("protocol_version is %.40q, use 1", v)
	}
	for field, h := range map[string]hash.Hash{"md5_digest": r.md5, "blake2_256_digest": r.blake2} {
		want, got := strings.ToLower(r.form[field]), hex.EncodeToString(h.Sum(nil))
		if want != "" && want != got {
			return bad("the file's %s is %s, not %.80s as the form says", strings.TrimSuffix(field, "_digest"), got, want)
		}
	}
	f, err := parseFilename(r.name)
	if err != nil {
		return f, err
	}
	if project, err := normalize(r.form["name"]); err != nil {
		return f, err
	} else if project != f.project {
		return bad("the form says that the project is %s, the file name %s says %s", project, r.name, f.project)
	}
	if v, err := version(r.form["version"]); err != nil {
		return f, err
	} else if v != f.version {
		return bad("the form says that the version is %s, the file name %s says %s", v, r.name, f.version)
	}
	if kind := r.form["filetype"]; kind != "" && kind != f.kind {
		return bad("the form says that the file is a %.40q, its name %s that it is a %s", kind, r.name, f.kind)
	}
	return f, checkRequires(r.form["requires_python"])
}

// summary is what a file's record keeps for the index.
type summary struct {
	RequiresPython string `json:"requires_python,omitempty"`
	// Metadata is the sha256 of NAME.metadata in hex, "" when there is none.
	Metadata string `json:"metadata,omitempty"`
}

// inspect opens what came, and returns what the index says of it.
func (p *Protocol) inspect(ctx context.Context, r *received, f filename) (summary, []byte, error) {
	size := r.stored.Blob.PlainBytes
	content, err := p.catalog.Open(ctx, r.stored.Blob)
	if err != nil {
		return summary{}, nil, err
	}
	defer content.Close()
	memory := int64(maxMetadata)
	if !strings.HasSuffix(r.name, ".gz") {
		list, err := archive.DirectoryBytes(archive.ReaderAt(content), size, archive.Standard)
		if err != nil {
			return summary{}, nil, fmt.Errorf("%s: %w", r.name, err)
		}
		memory += 3 * list
	}
	release, err := p.catalog.Reserve(ctx, memory)
	if err != nil {
		return summary{}, nil, err
	}
	defer release()
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return summary{}, nil, fmt.Errorf("%s: %w", r.name, err)
	}
	c, metadata, err := inspect(content, size, f, r.name)
	if err != nil {
		return summary{}, nil, err
	}
	s := summary{RequiresPython: c.requiresPython}
	if s.RequiresPython == "" {
		s.RequiresPython = r.form["requires_python"]
	}
	if f.kind == wheel {
		s.Metadata = digest.FromBytes(metadata).Encoded()
	}
	return s, metadata, nil
}
