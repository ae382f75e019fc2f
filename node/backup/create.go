package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// lease is how long garbage collection stays off when a create dies; it is renewed
	// each third of it.
	lease = 3 * time.Minute
	// fetchers is how many blobs are fetched at once.
	fetchers = 8
)

// Source is a running cluster; a *client.Client is one.
type Source interface {
	OpenBackup(ctx context.Context, n client.NewBackup) (client.Backup, error)
	RenewBackup(ctx context.Context, id string, lease time.Duration) error
	CloseBackup(ctx context.Context, id string) error
	BackupState(ctx context.Context, server meta.NodeID) (*client.BackupState, error)
	BackupBlob(ctx context.Context, server meta.NodeID, root digest.CID, from int) (io.ReadCloser, error)
}

// Options of a Create.
type Options struct {
	Which      Which
	Recipients []string
	Version    string // of this build
	Now        time.Time
	// Say is told what is done, in sentences. Nil is silent.
	Say func(format string, args ...any)
}

// Created is what a Create did.
type Created struct {
	Manifest
	// Fetched blobs of FetchedBytes came over the network, the others were there.
	Fetched      int64 `json:"fetched"`
	FetchedBytes int64 `json:"fetched_bytes"`
	// Names of what is missing, at most 100.
	Names []string `json:"missing_names"`
}

// maxNames bounds the names of missing blobs that are gathered.
const maxNames = 100

// Create takes a backup of the cluster behind src into the directory at path. What no
// server has is left out and named; the backup is then Missing some, and otherwise good.
//
// Errors: meta.ErrConflict for a directory of other things, or when the hold on garbage
// collection was lost; meta.ErrUnavailable; of the disk, with meta.ErrNoSpace when it is
// full: then a later Create goes on from what is there.
func Create(ctx context.Context, path string, src Source, o Options) (c Created, err error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	hold, err := src.OpenBackup(ctx, client.NewBackup{LeaseSeconds: int64(lease / time.Second), Recipients: o.Recipients})
	if err != nil {
		return c, fmt.Errorf("begin the backup: %w", err)
	}
	ctx, lose := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { renew(ctx, lose, src, hold.ID) })
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		lose(nil)
		renewing.Wait()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if closeErr := src.CloseBackup(closing, hold.ID); closeErr != nil {
			o.Say("the hold on garbage collection was not given back (%v); it ends by itself in %v", closeErr, lease)
		}
		err = explainSpace(err)
	}()
	d, err := Make(path, hold.Cluster)
	if err != nil {
		return c, err
	}
	if err := d.tidy(); err != nil {
		return c, err
	}
	w := &writer{dir: d, src: src, hold: hold, options: o}
	return w.run(ctx)
}

// renew keeps the hold until ctx ends; without it what is still to be fetched may go.
func renew(ctx context.Context, lose context.CancelCauseFunc, src Source, id string) {
	tick := time.NewTicker(lease / 3)
	defer tick.Stop()
	good := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := src.RenewBackup(ctx, id, lease)
		switch {
		case err == nil:
			good = time.Now()
		case ctx.Err() != nil:
			return
		case errors.Is(err, meta.ErrConflict) || time.Since(good) > lease:
			lose(fmt.Errorf("the hold on garbage collection was lost, create the backup again, it goes on from here: %w", err))
			return
		}
	}
}

// explainSpace gives a full disk its kind.
func explainSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the backup's disk is full; make room and create it again, it goes on from here: %w: %w", err, meta.ErrNoSpace)
	}
	return err
}

// tidy removes what interrupted creates left but for blobs.
func (d *Dir) tidy() error {
	entries, err := os.ReadDir(d.at(pointsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partPrefix) {
			if err := os.RemoveAll(d.at(pointsDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// writer makes one point.
type writer struct {
	dir     *Dir
	src     Source
	hold    client.Backup
	options Options

	part           string // the folder it is made in
	fetched, bytes atomic.Int64
}

func (w *writer) run(ctx context.Context) (c Created, err error) {
	now := w.options.Now.UTC()
	m := &c.Manifest
	*m = Manifest{
		Format: formatName, Created: now, Version: w.options.Version, Which: w.options.Which,
		Cluster: w.hold.Cluster, Level: w.hold.Level,
	}
	w.part = w.dir.at(pointsDir, partPrefix+w.hold.ID)
	if err := os.Mkdir(w.part, 0o700); err != nil {
		return c, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(w.part))
		}
	}()
	if err := w.takeState(ctx, m); err != nil {
		return c, err
	}
	machine, err := state.Open(filepath.Join(w.part, "state"), state.Options{})
	if err != nil {
		return c, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, machine.Close())
		}
	}()
	view, err := w.load(ctx, machine, m)
	if err != nil {
		return c, err
	}
	err = w.takeBlobs(ctx, view, &c)
	if err = errors.Join(err, view.Close(), machine.Close()); err != nil {
		closed = true
		return c, err
	}
	closed = true
	if err := os.RemoveAll(filepath.Join(w.part, "state")); err != nil {
		return c, err
	}
	if len(w.hold.RootKey) > 0 {
		if err := writeFile(filepath.Join(w.part, keyFile), w.hold.RootKey); err != nil {
			return c, err
		}
		m.Key = &File{Name: keyFile, Bytes: int64(len(w.hold.RootKey)), SHA256: digest.FromBytes(w.hold.RootKey)}
	}
	c.Fetched, c.FetchedBytes = w.fetched.Load(), w.bytes.Load()
	return c, w.finish(m)
}

// finish writes the manifest, and makes the point one.
func (w *writer) finish(m *Manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if err := writeFile(filepath.Join(w.part, manifestSum), []byte(digest.FromBytes(text)+"\n")); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(w.part, manifestFile), text); err != nil {
		return err
	}
	if err := os.Rename(w.part, w.dir.at(pointsDir, m.ID)); err != nil {
		return err
	}
	return syncDir(w.dir.at(pointsDir))
}

// takeState fetches the metadata from the first server that gives it.
func (w *writer) takeState(ctx context.Context, m *Manifest) error {
	var failed error
	for _, s := range w.hold.Sources {
		w.options.Say("taking the metadata from server %s of region %s, a %s", s.ID, s.Region, s.Kind)
		guarded, moving, cancel := guard(ctx)
		stream, err := w.src.BackupState(guarded, s.ID)
		if err == nil {
			m.State, err = w.keep(stateFile, moving(stream))
			err = errors.Join(err, stream.Close())
			m.Epoch, m.Index, m.StateHash, m.From, m.Kind = stream.Epoch, stream.Index, stream.Hash, s.ID, s.Kind
		}
		cancel()
		if err == nil {
			m.ID = fmt.Sprintf("%s-%d-%d", m.Created.Format("20060102T150405.000Z"), m.Epoch, m.Index)
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, syscall.ENOSPC) {
			return err
		}
		w.options.Say("that failed: %v", err)
		failed = errors.Join(failed, err)
	}
	return fmt.Errorf("no server gave its metadata: %w: %w", failed, meta.ErrUnavailable)
}

// keep writes a file of the point.
func (w *writer) keep(name string, r io.Reader) (f File, err error) {
	out, err := os.OpenFile(filepath.Join(w.part, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return f, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, sum), r)
	f = File{Name: name, Bytes: n, SHA256: digest.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))}
	return f, errors.Join(err, out.Sync(), out.Close())
}

// load opens the metadata that was fetched and compares it with what its server says.
func (w *writer) load(ctx context.Context, machine *state.Machine, m *Manifest) (*state.View, error) {
	f, err := os.Open(filepath.Join(w.part, stateFile))
	if err != nil {
		return nil, err
	}
	err = machine.Restore(bufio.NewReaderSize(f, 256<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("the metadata of server %s: %w", m.From, err)
	}
	return viewOf(ctx, machine, m)
}

// viewOf returns a view of the state when it is what the manifest says.
func viewOf(ctx context.Context, machine *state.Machine, m *Manifest) (*state.View, error) {
	view, err := machine.View()
	if err != nil {
		return nil, err
	}
	sum, err := view.Hash(ctx)
	if got := hex.EncodeToString(sum[:]); err == nil && (got != m.StateHash || view.Index() != m.Index) {
		err = fmt.Errorf("the metadata is of index %d with the hash %s, its server said %d and %s: %w", view.Index(), got, m.Index, m.StateHash, meta.ErrCorrupt)
	}
	if err != nil {
		return nil, errors.Join(err, view.Close())
	}
	return view, nil
}

// used yields, page by page, the blobs that versions use.
func used(ctx context.Context, view *state.View, visit func([]state.UsedBlob) error) error {
	for q := (state.UsedBlobs{}); ; {
		page, err := q.Answer(view)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && len(page.Blobs) > 0 {
			err = visit(page.Blobs)
		}
		if err != nil {
			return err
		}
		if q.After = page.After; q.After.IsZero() {
			return nil
		}
	}
}

// takeBlobs fetches what is wanted and not there, and writes the list.
func (w *writer) takeBlobs(ctx context.Context, view *state.View, c *Created) error {
	list, err := os.OpenFile(filepath.Join(w.part, listFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(list, sum), 64<<10)
	written := int64(0)
	var last digest.CID
	err = used(ctx, view, func(page []state.UsedBlob) error {
		here, err := w.takePage(ctx, page)
		if err != nil {
			return err
		}
		for i, u := range page {
			e := Entry{Blob: u.Blob, Here: here[i], Class: u.Class, Repo: u.Repo}
			n, err := out.WriteString(e.line())
			if err != nil {
				return err
			}
			written += int64(n)
			switch {
			case e.Here == '-':
				c.Left++
			case e.Here == '!':
				c.Missing++
				if len(c.Names) < maxNames {
					c.Names = append(c.Names, NamesOf(view, u)...)
				}
			case u.Blob.Root != last: // Of several contexts, once.
				c.Blobs++
				c.StoredBytes += u.Blob.StoredBytes
			}
			last = u.Blob.Root
		}
		w.options.Say("%d blobs of %d bytes are in the backup, %d of them fetched", c.Blobs, c.StoredBytes, w.fetched.Load())
		return nil
	})
	if err = errors.Join(err, out.Flush(), list.Sync(), list.Close()); err != nil {
		return err
	}
	c.List = File{Name: listFile, Bytes: written, SHA256: digest.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))}
	return nil
}

// NamesOf names what uses a blob, at most a few.
func NamesOf(view *state.View, u state.UsedBlob) []string {
	uses, err := state.UsesOf{Root: u.Blob.Root, Limit: 5}.Answer(view)
	var names []string
	for _, use := range uses.Uses {
		names = append(names, use.String()+" ("+string(u.Blob.Digest)+")")
	}
	if err != nil || len(names) == 0 {
		names = []string{u.Repo.String() + " (" + string(u.Blob.Digest) + ")"}
	}
	return names
}

// takePage fetches the blobs of a page and says what became of each.
func (w *writer) takePage(ctx context.Context, page []state.UsedBlob) ([]byte, error) {
	here := make([]byte, len(page))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchers)
	for i, u := range page {
		here[i] = '-'
		if !w.options.Which.keeps(u.Class) {
			continue
		}
		if i > 0 && page[i-1].Blob.Root == u.Blob.Root && w.options.Which.keeps(page[i-1].Class) {
			here[i] = '=' // As the one before.
			continue
		}
		group.Go(func() error {
			ok, err := w.takeBlob(ctx, u)
			here[i] = '+'
			if !ok {
				here[i] = '!'
			}
			return err
		})
	}
	err := group.Wait()
	for i := range here {
		if here[i] == '=' {
			here[i] = here[i-1]
		}
	}
	return here, err
}

// takeBlob makes sure that a blob is in the directory; false when no server has it. An
// error is one that the next blob would meet too.
func (w *writer) takeBlob(ctx context.Context, u state.UsedBlob) (bool, error) {
	there, err := w.dir.has(u.Blob)
	if there || err != nil {
		return there, err
	}
	log := slog.Default().With("root", u.Blob.Root.String())
	for _, server := range w.order(u.Copies) {
		n, err := w.dir.fetch(ctx, w.src, server, u.Blob)
		if err == nil {
			w.fetched.Add(1)
			w.bytes.Add(n)
			return true, nil
		}
		if ctx.Err() != nil || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EIO) {
			return false, err
		}
		log.Debug("a server does not give a blob", "node", server, "error", err)
	}
	return false, nil
}

// order puts the servers with a copy in the order of the sources; the others come last,
// for a copy may be there that nobody has reported yet.
func (w *writer) order(copies []meta.NodeID) []meta.NodeID {
	var with, without []meta.NodeID
	for _, s := range w.hold.Sources {
		if slices.Contains(copies, s.ID) {
			with = append(with, s.ID)
		} else {
			without = append(without, s.ID)
		}
	}
	return append(with, without...)
}
