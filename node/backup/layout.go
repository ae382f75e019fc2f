// Package backup keeps backups of a cluster in a directory, checks them and reads them.
//
// A directory holds blobs by their roots, each once however many backups use it, and one
// folder a backup (a point): the metadata as a snapshot, a list of the blobs that its
// versions use, and a manifest with the digests of both, written last. Create takes
// another point from a running cluster (Source); what an interrupted one had fetched is
// not fetched again. Verify reads everything and says what is not right; Point gives a
// restore its metadata and blobs. Files are described in node/DESIGN.md.
//
// Start reading at Create. The caller holds the directory's lock. Goroutines end before
// the function that started them returns.
package backup

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Names in the directory.
const (
	formatName   = "shoal backup 1"
	markFile     = "shoal-backup"
	blobsDir     = "blobs"
	pointsDir    = "points"
	partPrefix   = ".part-" // a point that is not finished
	stateFile    = "metadata.tar"
	listFile     = "blobs.list"
	keyFile      = "root-key.age"
	manifestFile = "manifest.json"
	manifestSum  = "manifest.sha256"
	mapSuffix    = ".map"
	partSuffix   = ".part"
)

// maxManifestBytes bounds what is read as a manifest.
const maxManifestBytes = 1 << 20

// Which says which blobs a backup keeps.
type Which string

// All blobs, none, or those that a critical repository uses.
const (
	All      Which = "all"
	None     Which = "none"
	Critical Which = "critical"
)

// keeps reports whether blobs of the class are kept.
func (w Which) keeps(c meta.Class) bool { return w == All || w == Critical && c == meta.ClassCritical }

// File names a file of a point, its length and digest.
type File struct {
	Name   string        `json:"name"`
	Bytes  int64         `json:"bytes"`
	SHA256 digest.Digest `json:"sha256"`
}

// Manifest says what a point is. It is the last thing that is written.
type Manifest struct {
	Format  string    `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Version string    `json:"version"` // of the build that made it
	// Cluster to StateHash are of the metadata; RootHash is the sha256 of the trust root.
	Cluster   string `json:"cluster"`
	Epoch     uint64 `json:"epoch"`
	Index     uint64 `json:"index"`
	Level     uint32 `json:"level"`
	StateHash string `json:"state_hash"`
	// From is the server that the metadata came from and Kind what it was.
	From meta.NodeID `json:"from"`
	Kind string      `json:"kind"`
	// State, List and, when the root's key is part of it, Key are the files.
	State File  `json:"state"`
	List  File  `json:"list"`
	Key   *File `json:"key,omitempty"`
	// Which blobs were wanted; Blobs of StoredBytes are in the directory, Left were not
	// wanted and Missing not to be had.
	Which       Which `json:"which"`
	Blobs       int64 `json:"blobs"`
	StoredBytes int64 `json:"stored_bytes"`
	Left        int64 `json:"left"`
	Missing     int64 `json:"missing"`
}

// Entry is a blob of a point's list.
type Entry struct {
	Blob meta.Blob
	// Here is '+' when it is in the directory, '-' when it was not wanted, '!' when it
	// was not to be had.
	Here  byte
	Class meta.Class
	Repo  meta.RepoRef
}

// A list has a line a blob, in the order of roots:
// here root sha256 stored-bytes plain-bytes class context repository seal
// with tabs between, names quoted as Go does.
func (e Entry) line() string {
	return strings.Join([]string{
		string(e.Here), e.Blob.Root.Hex(), string(e.Blob.Digest),
		strconv.FormatInt(e.Blob.StoredBytes, 10), strconv.FormatInt(e.Blob.PlainBytes, 10),
		strconv.Quote(string(e.Class)), strconv.Quote(e.Blob.Context), strconv.Quote(e.Repo.String()), strconv.Quote(e.Blob.Seal),
	}, "\t") + "\n"
}

func parseEntry(line string) (e Entry, err error) {
	fail := fmt.Errorf("line %.100q is no blob of a list: %w", line, meta.ErrCorrupt)
	words := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	if len(words) != 9 || len(words[0]) != 1 || !strings.Contains("+-!", words[0]) {
		return e, fail
	}
	e.Here, e.Blob.Digest = words[0][0], digest.Digest(words[2])
	var errs [7]error
	e.Blob.Root, errs[0] = digest.ParseHex(words[1])
	e.Blob.StoredBytes, errs[1] = strconv.ParseInt(words[3], 10, 64)
	e.Blob.PlainBytes, errs[2] = strconv.ParseInt(words[4], 10, 64)
	var class, repo string
	class, errs[3] = strconv.Unquote(words[5])
	e.Blob.Context, errs[4] = strconv.Unquote(words[6])
	repo, errs[5] = strconv.Unquote(words[7])
	e.Blob.Seal, errs[6] = strconv.Unquote(words[8])
	if errors.Join(errs[:]...) != nil {
		return e, fail
	}
	e.Class = meta.Class(class)
	tenant, name, _ := strings.Cut(repo, "/")
	e.Repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name}
	return e, nil
}

// Dir is a directory of backups.
type Dir struct{ path, cluster string }

// mark is what makes a directory one of backups.
type mark struct {
	Format  string `json:"format"`
	Cluster string `json:"cluster"`
}

// Make opens the directory for another backup of a cluster; an empty or missing one
// becomes that cluster's.
//
// Errors: meta.ErrConflict for a directory of another cluster or with other things in it.
func Make(path, cluster string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	d, err := Open(path)
	if err == nil {
		if d.cluster != cluster {
			err = fmt.Errorf("%s holds backups of cluster %s, not %s: use another directory: %w", path, d.cluster, cluster, meta.ErrConflict)
		}
		return d, err
	} else if !errors.Is(err, meta.ErrNotFound) {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() != "LOCK" {
			return nil, fmt.Errorf("%s is not empty and holds no backups (%s): use another directory: %w", path, e.Name(), meta.ErrConflict)
		}
	}
	d = &Dir{path: path, cluster: cluster}
	for _, name := range []string{blobsDir, pointsDir} {
		if err := os.MkdirAll(d.at(name), 0o700); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(mark{Format: formatName, Cluster: cluster})
	if err != nil {
		return nil, err
	}
	return d, writeFile(d.at(markFile), text)
}

// Open opens a directory of backups.
//
// Errors: meta.ErrNotFound for one that is none, meta.ErrInvalid for one of another format.
func Open(path string) (*Dir, error) {
	d := &Dir{path: path}
	m, err := d.mark()
	if err != nil {
		return nil, err
	}
	if m.Format != formatName {
		return nil, fmt.Errorf("%s has format %q, this build reads %q: %w", path, m.Format, formatName, meta.ErrInvalid)
	}
	d.cluster = m.Cluster
	return d, nil
}

func (d *Dir) mark() (m mark, err error) {
	text, err := os.ReadFile(d.at(markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%s is no directory of backups, it has no file %s: %w", d.path, markFile, meta.ErrNotFound)
	}
	if err == nil {
		if jsonErr := json.Unmarshal(text, &m); jsonErr != nil {
			err = fmt.Errorf("%s: %w: %w", d.at(markFile), jsonErr, meta.ErrCorrupt)
		}
	}
	return m, err
}

func (d *Dir) at(elem ...string) string { return filepath.Join(append([]string{d.path}, elem...)...) }

// blob is where the blob of a root lies, without suffix.
func (d *Dir) blob(root digest.CID) string {
	name := root.Hex()
	return d.at(blobsDir, name[:2], name)
}

// Points lists the finished backups, the oldest first.
func (d *Dir) Points() ([]string, error) {
	entries, err := os.ReadDir(d.at(pointsDir))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), partPrefix) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Point is one backup.
type Point struct {
	Manifest
	dir  *Dir
	path string
}

// Point opens a backup by its id, the latest when it is "", and checks its manifest.
//
// Errors: meta.ErrNotFound; meta.ErrCorrupt; meta.ErrInvalid for one of another format.
func (d *Dir) Point(id string) (*Point, error) {
	ids, err := d.Points()
	if err != nil {
		return nil, err
	}
	switch {
	case id == "" && len(ids) == 0:
		return nil, fmt.Errorf("%s holds no finished backup; one that was interrupted goes on with `shoal backup create`: %w", d.path, meta.ErrNotFound)
	case id == "":
		id = ids[len(ids)-1]
	case !slices.Contains(ids, id):
		return nil, fmt.Errorf("%s holds no backup %q, it has %s: %w", d.path, id, strings.Join(ids, ", "), meta.ErrNotFound)
	}
	p := &Point{dir: d, path: d.at(pointsDir, id)}
	text, err := readSmall(filepath.Join(p.path, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", id, err)
	}
	sum, err := readSmall(filepath.Join(p.path, manifestSum))
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", id, err)
	}
	if got := digest.FromBytes(text); string(got)+"\n" != string(sum) {
		return nil, fmt.Errorf("backup %s: its manifest has the digest %s, not %.80s: %w", id, got, strings.TrimSpace(string(sum)), meta.ErrCorrupt)
	}
	if err := json.Unmarshal(text, &p.Manifest); err != nil {
		return nil, fmt.Errorf("backup %s: its manifest: %w: %w", id, err, meta.ErrCorrupt)
	}
	switch {
	case p.Format != formatName:
		return nil, fmt.Errorf("backup %s has format %q, this build reads %q: %w", id, p.Format, formatName, meta.ErrInvalid)
	case p.ID != id:
		return nil, fmt.Errorf("backup %s: its manifest is of %s: %w", id, p.ID, meta.ErrCorrupt)
	case p.Cluster != d.cluster:
		return nil, fmt.Errorf("backup %s is of cluster %s in a directory of cluster %s: %w", id, p.Cluster, d.cluster, meta.ErrCorrupt)
	case p.Level > state.Level:
		return nil, fmt.Errorf("backup %s is of cluster level %d, this build knows levels up to %d: use the build that made it (%s): %w",
			id, p.Level, state.Level, p.Version, meta.ErrInvalid)
	}
	return p, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, meta.ErrCorrupt)
	}
	defer func() { _ = f.Close() }() // It was only read.
	b, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err == nil && len(b) > maxManifestBytes {
		err = fmt.Errorf("%s is over %d bytes: %w", path, maxManifestBytes, meta.ErrCorrupt)
	}
	return b, err
}

// checked reads a file of the point. Its last Read is an error when the file is not what
// the manifest says.
type checked struct {
	file *os.File
	in   *bufio.Reader
	sum  hash.Hash
	read int64
	want File
}

func (p *Point) open(f File) (*checked, error) {
	if f.Name != filepath.Base(f.Name) || !filepath.IsLocal(f.Name) {
		return nil, fmt.Errorf("backup %s: its manifest names the file %q: %w", p.ID, f.Name, meta.ErrCorrupt)
	}
	file, err := os.Open(filepath.Join(p.path, f.Name))
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w: %w", p.ID, err, meta.ErrCorrupt)
	}
	return &checked{file: file, in: bufio.NewReaderSize(file, 256<<10), sum: sha256.New(), want: f}, nil
}

func (c *checked) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.sum.Write(b[:n])
	c.read += int64(n)
	if err == io.EOF {
		if got := digest.Digest("sha256:" + hex.EncodeToString(c.sum.Sum(nil))); c.read != c.want.Bytes || got != c.want.SHA256 {
			return n, fmt.Errorf("%s has %d bytes and the digest %s, the manifest says %d and %s: %w",
				c.file.Name(), c.read, got, c.want.Bytes, c.want.SHA256, meta.ErrCorrupt)
		}
	}
	return n, err
}

func (c *checked) Close() error { return c.file.Close() }

// check reads a file of the point to its end.
func (p *Point) check(f File) error {
	c, err := p.open(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return errors.Join(err, c.Close())
}

// State opens the metadata, a stream for raftmeta.Refounding.Load, after it was read
// once and found whole.
func (p *Point) State() (io.ReadCloser, error) {
	if err := p.check(p.Manifest.State); err != nil {
		return nil, err
	}
	return p.open(p.Manifest.State)
}

// Key returns the sealed key of the root, nil when the backup has none.
func (p *Point) Key() ([]byte, error) {
	if p.Manifest.Key == nil {
		return nil, nil
	}
	c, err := p.open(*p.Manifest.Key)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c, maxManifestBytes))
	return b, errors.Join(err, c.Close())
}

// Entries yields the list of blobs. The error may come last: what was read before is
// then not to be relied on.
func (p *Point) Entries(visit func(Entry) error) error {
	c, err := p.open(p.List)
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(c, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF && line == "" {
			return c.Close()
		}
		var e Entry
		if err == nil {
			e, err = parseEntry(line)
		} else if err == io.EOF {
			err = fmt.Errorf("the list of backup %s is cut off: %w", p.ID, meta.ErrCorrupt)
		}
		if err == nil {
			err = visit(e)
		}
		if err != nil {
			return errors.Join(err, c.Close())
		}
	}
}

// writeFile replaces path atomically.
func writeFile(path string, text []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
