package rpm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Metadata makes the metadata of repositories. It has no state.
type Metadata struct{}

var _ publication.Format = Metadata{}

// Format implements publication.Format.
func (Metadata) Format() string { return Format }

// Rules implements publication.Format.
func (Metadata) Rules() uint32 { return 1 }

// Signed implements publication.Format.
func (Metadata) Signed() bool { return true }

// document is one of the three, with its element around those of the packages.
type document struct {
	kind, element, namespaces string
	part                      func(*fragments) []byte
}

var documents = []document{
	{"primary", "metadata", ` xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm"`, func(f *fragments) []byte { return f.Primary }},
	{"filelists", "filelists", ` xmlns="http://linux.duke.edu/metadata/filelists"`, func(f *fragments) []byte { return f.Filelists }},
	{"other", "otherdata", ` xmlns="http://linux.duke.edu/metadata/other"`, func(f *fragments) []byte { return f.Other }},
}

// Build implements publication.Format: one publication of all metadata.
func (Metadata) Build(ctx context.Context, b *publication.Build) (err error) {
	spools := make([]*os.File, len(documents))
	writers := make([]*bufio.Writer, len(documents))
	for i := range documents {
		if spools[i], err = b.Spool(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, spools[i].Close()) }()
		writers[i] = bufio.NewWriterSize(spools[i], 64<<10)
	}
	count, sum := 0, sha256.New()
	for v, err := range b.Versions(ctx) {
		if err != nil {
			return err
		}
		f, err := fragmentsOf(ctx, b, v)
		if err != nil {
			return fmt.Errorf("%s/%s %s: %w", v.Repo, v.Package, v.Name, err)
		}
		count++
		fmt.Fprintf(sum, "%s %s %s %s %d\n", v.Repo, v.Package, v.Name, v.Digest, v.PublishTime)
		for i, d := range documents {
			if _, err := writers[i].Write(d.part(&f)); err != nil {
				return fmt.Errorf("spool %s: %w", d.kind, err)
			}
		}
	}
	p := meta.Publication{Name: set, Sum: hex.EncodeToString(sum.Sum(nil))}
	if now, ok := b.Current[set]; ok && now.Sum == p.Sum {
		b.Keep(set)
		return nil
	}
	now := time.Now()
	var index bytes.Buffer
	fmt.Fprintf(&index, `<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm">
  <revision>%d</revision>
`, b.At)
	for i, d := range documents {
		if err := writers[i].Flush(); err != nil {
			return fmt.Errorf("spool %s: %w", d.kind, err)
		}
		f, open, err := d.write(ctx, b, spools[i], count)
		if err != nil {
			return err
		}
		p.Files = append(p.Files, f)
		fmt.Fprintf(&index, `  <data type="%s">
    <checksum type="sha256">%s</checksum>
    <open-checksum type="sha256">%s</open-checksum>
    <location href="%s"/>
    <timestamp>%d</timestamp>
    <size>%d</size>
    <open-size>%d</open-size>
  </data>
`, d.kind, f.Digest.Encoded(), open.sum, f.Path, now.Unix(), f.Size, open.size)
	}
	index.WriteString("</repomd>\n")
	for _, doc := range []struct {
		name, mediaType string
		render          func(io.Writer) error
	}{
		{"repomd.xml", "text/xml", func(w io.Writer) error {
			_, err := w.Write(index.Bytes())
			return err
		}},
		{"repomd.xml.asc", "application/pgp-signature", func(w io.Writer) error { return b.Signer.Detached(w, bytes.NewReader(index.Bytes())) }},
		{"repomd.xml.key", "application/pgp-keys", func(w io.Writer) error {
			_, err := io.WriteString(w, b.Signer.Public())
			return err
		}},
	} {
		f, err := b.Render(ctx, set+"/"+doc.name, doc.mediaType, doc.render)
		if err != nil {
			return err
		}
		p.Files = append(p.Files, f)
	}
	return b.Commit(ctx, p)
}

// fragmentsOf reads what a version's documents show of it.
func fragmentsOf(ctx context.Context, b *publication.Build, v *meta.Version) (f fragments, err error) {
	if len(v.Summary) > 0 {
		return unpack(bytes.NewReader(v.Summary))
	}
	r, err := b.Open(ctx, v, longSummary)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return unpack(r)
}

// plain is what a document is unpacked.
type plain struct {
	sum  string
	size int64
}

// write stores a document of count packages, whose elements body has, under a name that
// holds its sha256.
func (d document) write(ctx context.Context, b *publication.Build, body io.ReadSeeker, count int) (meta.File, plain, error) {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return meta.File{}, plain{}, fmt.Errorf("spool %s: %w", d.kind, err)
	}
	var open plain
	f, err := b.Render(ctx, set+"/"+d.kind, "application/gzip", func(w io.Writer) error {
		z := gzip.NewWriter(w)
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(z, h), io.MultiReader(
			strings.NewReader(fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<%s%s packages=\"%d\">\n", d.element, d.namespaces, count)),
			body,
			strings.NewReader("</"+d.element+">\n"),
		))
		if err != nil {
			return err
		}
		open = plain{hex.EncodeToString(h.Sum(nil)), n}
		return z.Close()
	})
	f.Path = set + "/" + f.Digest.Encoded() + "-" + d.kind + ".xml.gz"
	return f, open, err
}
