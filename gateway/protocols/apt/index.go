package apt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/ulikunitz/xz"

	"github.com/shoal-registry/shoal/gateway/publication"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Indexes makes the indexes of archives. It has no state.
type Indexes struct{}

var _ publication.Format = Indexes{}

// Format implements publication.Format.
func (Indexes) Format() string { return Format }

// Rules implements publication.Format.
func (Indexes) Rules() uint32 { return 1 }

// Signed implements publication.Format.
func (Indexes) Signed() bool { return true }

const (
	// maxXZ is up to what size an index is compressed with xz as well: writing it takes
	// seconds for each 10 MB, and gzip is what all clients read.
	maxXZ = 4 << 20
	// maxIndexes bounds the pairs of component and architecture of a distribution: each is
	// three files of a publication.
	maxIndexes = (meta.MaxSetFiles - 4) / 3
	// perPass is how many distributions are written at a time, each index into a file that
	// is open.
	perPass = 8
)

// index names one Packages.
type index struct{ component, architecture string }

func (i index) path(dist string) string {
	return "dists/" + dist + "/" + i.component + "/binary-" + i.architecture + "/Packages"
}

// all is the architecture of packages for each.
const all = "all"

// Build implements publication.Format: a publication for each distribution. What came out
// the same is told by a sum over the versions of the distribution, so that publishing
// into one of many writes that one alone.
func (Indexes) Build(ctx context.Context, b *publication.Build) error {
	sums, err := sums(ctx, b)
	if err != nil {
		return err
	}
	var changed []string
	for dist, sum := range sums {
		if now, ok := b.Current[dist]; ok && now.Sum == sum {
			b.Keep(dist)
		} else {
			changed = append(changed, dist)
		}
	}
	for dist, now := range b.Current {
		switch {
		case sums[dist] != "":
		case now.Sum == empty: // as it is, with nothing in it
			b.Keep(dist)
		default:
			changed = append(changed, dist)
		}
	}
	slices.Sort(changed)
	for some := range slices.Chunk(changed, perPass) {
		if err := write(ctx, b, some); err != nil {
			return err
		}
	}
	return nil
}

// empty is the sum of a distribution that has nothing any more: its indexes stay, so that
// clients that list it see that.
const empty = "empty"

// adder sums up what a distribution is made of.
type adder struct{ h hash.Hash }

func newAdder() adder { return adder{sha256.New()} }

func (a adder) add(v *meta.Version) {
	fmt.Fprintf(a.h, "%s %s %s %s %d\n", v.Repo, v.Package, v.Name, v.Digest, v.PublishTime)
}

func (a adder) sum() string { return hex.EncodeToString(a.h.Sum(nil)) }

func sums(ctx context.Context, b *publication.Build) (map[string]string, error) {
	adders := map[string]adder{}
	for v, err := range b.Versions(ctx) {
		if err != nil {
			return nil, err
		}
		dist, err := distOf(v)
		if err != nil {
			return nil, err
		}
		a, ok := adders[dist]
		if !ok {
			a = newAdder()
			adders[dist] = a
		}
		a.add(v)
	}
	sums := make(map[string]string, len(adders))
	for dist, a := range adders {
		sums[dist] = a.sum()
	}
	return sums, nil
}

func distOf(v *meta.Version) (string, error) {
	s, err := readSummary(v, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil })
	return s.Dist, err
}

// spool is a file that grows.
type spool struct {
	file *os.File
	w    *bufio.Writer
}

// writing is a distribution whose indexes are being written.
type writing struct {
	dist   string
	sum    adder
	any    bool
	spools map[index]*spool
	// over says that it has more indexes than a publication can hold: then it stays as it
	// is, and no other distribution waits for somebody to tidy it up.
	over error
}

func (d *writing) spool(b *publication.Build, i index) (*spool, error) {
	if s := d.spools[i]; s != nil {
		return s, nil
	}
	if len(d.spools) >= maxIndexes {
		return nil, fmt.Errorf("distribution %s of %s has more than %d pairs of component and architecture: %w", d.dist, b.Repo.Ref, maxIndexes, meta.ErrTooLarge)
	}
	f, err := b.Spool()
	if err != nil {
		return nil, err
	}
	s := &spool{f, bufio.NewWriterSize(f, 32<<10)}
	d.spools[i] = s
	return s, nil
}

// write makes and commits the publications of some distributions.
func write(ctx context.Context, b *publication.Build, dists []string) (err error) {
	of := map[string]*writing{}
	for _, dist := range dists {
		of[dist] = &writing{dist: dist, sum: newAdder(), spools: map[index]*spool{}}
	}
	defer func() {
		for _, d := range of {
			for _, s := range d.spools {
				err = errors.Join(err, s.file.Close())
			}
		}
	}()
	for v, err := range b.Versions(ctx) {
		if err != nil {
			return err
		}
		s, err := readSummary(v, func(path string) (io.ReadCloser, error) { return b.Open(ctx, v, path) })
		if err != nil {
			return err
		}
		d := of[s.Dist]
		if d == nil || d.over != nil {
			continue
		}
		d.sum.add(v)
		d.any = true
		out, err := d.spool(b, index{s.Component, s.Architecture})
		if errors.Is(err, meta.ErrTooLarge) {
			d.over = err
			continue
		}
		if err != nil {
			return err
		}
		file := place{s.Dist, s.Component}.pool(v.Package + "_" + v.Name + ".deb")
		// An empty line ends a paragraph.
		if _, err := fmt.Fprintf(out.w, "%sFilename: %s\nSize: %d\nSHA256: %s\n\n", s.Control, file, v.Size, v.Digest.Encoded()); err != nil {
			return fmt.Errorf("spool an index: %w", err)
		}
	}
	for _, dist := range dists {
		if over := of[dist].over; over != nil {
			b.Warn(dist, over)
			b.Keep(dist)
			continue
		}
		if err := of[dist].commit(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// commit stores the indexes of a distribution and its Release, and commits them.
func (d *writing) commit(ctx context.Context, b *publication.Build) error {
	for i := range d.kept(b) {
		if _, err := d.spool(b, i); err != nil {
			return err
		}
	}
	set := meta.Publication{Name: d.dist, Sum: d.sum.sum()}
	if !d.any {
		set.Sum = empty
	}
	order := slices.SortedFunc(maps.Keys(d.spools), func(x, y index) int { return strings.Compare(x.path(""), y.path("")) })
	// An index of an architecture shows the packages of all of them, too.
	for _, i := range order {
		if err := d.spools[i].w.Flush(); err != nil {
			return fmt.Errorf("spool an index: %w", err)
		}
	}
	for _, i := range order {
		parts := []*os.File{d.spools[i].file}
		if s := d.spools[index{i.component, all}]; s != nil && i.architecture != all {
			parts = append(parts, s.file)
		}
		files, err := compress(ctx, b, i.path(d.dist), parts)
		if err != nil {
			return err
		}
		set.Files = append(set.Files, files...)
	}
	release := d.release(b, order, set.Files, time.Now())
	for _, doc := range []struct {
		name, mediaType string
		render          func(io.Writer) error
	}{
		{"Release", "text/plain; charset=utf-8", func(w io.Writer) error {
			_, err := w.Write(release)
			return err
		}},
		{"Release.gpg", "application/pgp-signature", func(w io.Writer) error { return b.Signer.Detached(w, bytes.NewReader(release)) }},
		{"InRelease", "text/plain; charset=utf-8", func(w io.Writer) error { return b.Signer.Clear(w, release) }},
	} {
		f, err := b.Render(ctx, "dists/"+d.dist+"/"+doc.name, doc.mediaType, doc.render)
		if err != nil {
			return err
		}
		set.Files = append(set.Files, f)
	}
	return b.Commit(ctx, set)
}

// kept lists the indexes that the distribution had and that stay while it has nothing.
func (d *writing) kept(b *publication.Build) map[index]bool {
	kept := map[index]bool{}
	if d.any {
		return kept
	}
	for _, f := range b.Current[d.dist].Files {
		parts := strings.Split(f.Path, "/")
		if len(parts) == 5 && parts[4] == "Packages" {
			kept[index{parts[2], strings.TrimPrefix(parts[3], "binary-")}] = true
		}
	}
	return kept
}

// compress stores an index, which is the parts one after another, in each form.
func compress(ctx context.Context, b *publication.Build, path string, parts []*os.File) ([]meta.File, error) {
	whole := func(w io.Writer) error {
		for _, f := range parts {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.Copy(w, f); err != nil {
				return err
			}
		}
		return nil
	}
	plain, err := b.Render(ctx, path, "text/plain; charset=utf-8", whole)
	if err != nil {
		return nil, err
	}
	zipped, err := b.Render(ctx, path+".gz", "application/gzip", func(w io.Writer) error {
		z := gzip.NewWriter(w)
		if err := whole(z); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil || plain.Size > maxXZ {
		return []meta.File{plain, zipped}, err
	}
	small, err := b.Render(ctx, path+".xz", "application/x-xz", func(w io.Writer) error {
		z, err := xz.WriterConfig{DictCap: maxXZ}.NewWriter(w)
		if err != nil {
			return err
		}
		if err := whole(z); err != nil {
			return err
		}
		return z.Close()
	})
	return []meta.File{plain, zipped, small}, err
}

// release renders the Release of a distribution with those indexes.
func (d *writing) release(b *publication.Build, order []index, files []meta.File, now time.Time) []byte {
	components, architectures := map[string]bool{}, map[string]bool{}
	for _, i := range order {
		components[i.component], architectures[i.architecture] = true, true
	}
	join := func(set map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(set)), " ") }
	var out bytes.Buffer
	// No Valid-Until: a repository in which nothing changes would go stale.
	fmt.Fprintf(&out, "Origin: %s\nLabel: %s\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: %s\nComponents: %s\nAcquire-By-Hash: yes\nSHA256:\n",
		b.Repo.Ref, b.Repo.Ref, d.dist, d.dist, now.UTC().Format(time.RFC1123), join(architectures), join(components))
	prefix := "dists/" + d.dist + "/"
	for _, f := range files {
		fmt.Fprintf(&out, " %s %d %s\n", f.Digest.Encoded(), f.Size, strings.TrimPrefix(f.Path, prefix))
	}
	return out.Bytes()
}
