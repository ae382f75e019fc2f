// Package scrub looks at the bytes that a server keeps, before anybody needs them.
//
// A Scrubber walks over all blobs in two passes: daily it compares the files with what
// the metadata says this server has verified (Existence), and over 14 days it reads
// every byte from the disk and compares chunks with maps, maps with roots and whole
// blobs with their sha256 (Full). What is wrong it reports as failed (Failer), which
// is where repair begins. Start reading at State.Next in core.go, which decides and has
// no clock, disk or network, then Run.
//
// Full reads at a rate that ends in time, and gives way to clients (Budget). Where the
// passes are is kept in a file: a restart goes on within the blob that was being read.
// An operator's request is a record in the metadata and so survives everything.
//
// What holds: nothing is deleted, but by the store what it cannot check; a copy is
// reported failed only when its bytes are not here as they must be; what a request asked
// for is answered once each blob was looked at after it was made.
//
// Run owns the only goroutine.
package scrub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	pageCopies   = 500
	pollEvery    = time.Second      // for requests and lost directories
	reportEvery  = time.Minute      // while a pass is under way
	saveEvery    = 10 * time.Second // while a pass is under way
	watchEvery   = 2 * time.Second  // for failed copies that are whole again
	watchAtOnce  = 500
	openMost     = 1 << 16
	unheardFor   = 30 * time.Second // until a failed copy that is believed in is reported again
	missedQueue  = 256
	lookPerSec   = 2000 // files that a pass compares in a second
	lookBusy     = 250  // beside clients
	defaultCap   = 100 << 20
	pauseAtLeast = 10 * time.Millisecond // shorter waits are saved up
)

// Store is the part of a *store.Disk that is looked at.
type Store interface {
	List(ctx context.Context, after digest.CID, limit int) ([]store.Info, error)
	Look(ctx context.Context, root digest.CID) (store.Looked, error)
	Scrub(ctx context.Context, root digest.CID, o store.ScrubOptions) (store.Scrubbed, error)
	Present(ctx context.Context) (lost int64, err error)
	Aside() (pieces int, bytes int64)
	// Stored returns the bytes that files take.
	Stored() int64
}

// Records is what the metadata says, as this server knows it.
type Records interface {
	// Copies lists this server's copies with root > after, at most about limit; next is
	// where to go on, zero at the end.
	Copies(ctx context.Context, after digest.CID, limit int) (copies []meta.Replica, next digest.CID, err error)
	// Copy returns this server's copy of root. Errors: meta.ErrNotFound.
	Copy(ctx context.Context, root digest.CID) (meta.Replica, error)
	// Blob returns the record of root. Errors: meta.ErrNotFound.
	Blob(ctx context.Context, root digest.CID) (meta.Blob, error)
	// Wanted returns the last request to this server.
	Wanted(ctx context.Context) (meta.AuditRequest, error)
	// Report tells how far this server is.
	Report(ctx context.Context, r meta.AuditReport) error
}

// Failer is told of copies that are not whole: a *repair.Loop.
type Failer interface {
	Fail(ctx context.Context, root digest.CID, reason string) error
}

// Config is what a Scrubber needs; Self to Repair are required.
type Config struct {
	Self    meta.NodeID
	Store   Store
	Records Records
	Repair  Failer
	// File is where the passes are kept over restarts; Write replaces it.
	File  string
	Write func(name string, b []byte, mode os.FileMode) error
	// Foreign returns how many bytes clients and peers have read and written so far;
	// nil is none.
	Foreign func() int64
	// BytesPerSec is the most that is read in a second; 0 is 100 MiB.
	BytesPerSec int64
	// Lost is told that the store's directories were removed and made again; it must not
	// block. Nil is nobody.
	Lost func()
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Scrubber looks at one server's bytes. New builds it, Run works.
type Scrubber struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	missed  chan digest.CID

	chunks, failed, repaired atomic.Uint64

	mu   sync.Mutex
	open map[digest.CID]time.Time // failed copies that are not whole again, since when
	last meta.AuditReport         // as Status tells it

	// Of the goroutine of Run.
	state              State
	wanted             meta.AuditRequest
	lives              int64
	lost               bool // files may have gone
	missing            bool // one was found missing
	polled             time.Time
	saved, told, watch time.Time
	toldReport         meta.AuditReport
	owed               time.Duration // pauses saved up
	foreign            meter
}

// meter turns a growing sum into a rate.
type meter struct {
	at   time.Time
	sum  int64
	rate float64
}

func (m *meter) look(now time.Time, sum int64) float64 {
	if d := now.Sub(m.at); d >= time.Second {
		if !m.at.IsZero() {
			m.rate = float64(sum-m.sum) / d.Seconds()
		}
		m.at, m.sum = now, sum
	}
	return m.rate
}

// errYield ends the read of a blob because something else is more urgent.
var errYield = errors.New("something else goes first")

// New returns a Scrubber that goes on where the file says.
func New(cfg Config) (*Scrubber, error) {
	if cfg.Self == "" || cfg.Store == nil || cfg.Records == nil || cfg.Repair == nil || cfg.Write == nil {
		return nil, fmt.Errorf("scrub: Self, Store, Records, Repair and Write are required: %w", meta.ErrInvalid)
	}
	if cfg.BytesPerSec == 0 {
		cfg.BytesPerSec = defaultCap
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Scrubber{cfg: cfg, log: log, missed: make(chan digest.CID, missedQueue), open: map[digest.CID]time.Time{}}
	s.load()
	s.metrics = newMetrics(cfg.Metrics, s)
	s.publish()
	return s, nil
}

// load reads the file; a damaged one costs the passes to begin anew.
func (s *Scrubber) load() {
	b, err := os.ReadFile(s.cfg.File)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	n := len(b) - len(digest.CID{})
	if err != nil || n < 0 || digest.Sum(b[:n]) != digest.CID(b[n:]) || codec.Unmarshal(b[:n], &s.state) != nil {
		s.log.Warn("where the scrub was is not known any more, it begins anew", "file", s.cfg.File, "error", err)
		s.state = State{}
	}
}

func (s *Scrubber) save(now time.Time) {
	b := codec.Encode(s.state)
	sum := digest.Sum(b)
	if err := s.cfg.Write(s.cfg.File, append(b, sum[:]...), 0o600); err != nil {
		s.log.Warn("cannot note where the scrub is", "error", err)
	}
	s.saved = now
}

// Missed says that a blob was asked for that is not here, or not whole. If it should
// be, it is reported failed, and what else is missing is looked for. It does not block;
// beyond a bound the news is dropped.
func (s *Scrubber) Missed(root digest.CID) {
	select {
	case s.missed <- root:
	default:
	}
}

// Damaged says that a chunk was found damaged by whoever read it.
func (s *Scrubber) Damaged(root digest.CID) {
	s.chunks.Add(1)
	s.count(root)
}

// track watches a failed copy; it returns false when it is watched already.
func (s *Scrubber) track(root digest.CID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.open[root]
	if !known && len(s.open) < openMost {
		s.open[root] = time.Now()
	}
	return !known
}

// count tracks a copy that the scrub found failed; one is counted once until it is whole.
func (s *Scrubber) count(root digest.CID) {
	if s.track(root) {
		s.failed.Add(1)
	}
}

// Status returns how far it is and what it has found.
func (s *Scrubber) Status() meta.AuditReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// publish makes the state visible to Status.
func (s *Scrubber) publish() meta.AuditReport {
	pieces, bytes := s.cfg.Store.Aside()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = meta.AuditReport{
		Answered: s.state.Answered, At: meta.TimeOf(time.Now()),
		Existence: s.state.Existence.report(), Full: s.state.Full.report(),
		DamagedChunks: s.chunks.Load(), FailedCopies: s.failed.Load(), Repaired: s.repaired.Load(), Open: uint64(len(s.open)),
		SetAside: uint64(pieces), SetAsideBytes: bytes,
	}
	return s.last
}

// Run looks until ctx ends.
func (s *Scrubber) Run(ctx context.Context) error {
	defer func() { s.save(time.Now()) }()
	for ctx.Err() == nil {
		s.poll(ctx)
		step := s.next()
		var err error
		switch step.Task {
		case Named:
			err = s.named(ctx)
		case Existence:
			err = s.existence(ctx, step.Asked)
		case Full:
			err = s.full(ctx, step.Asked)
		case Rest:
			err = s.rest(ctx, step.Until)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errYield) {
			s.log.Warn("the scrub does not get on, trying again", "error", err)
			wait.For(ctx, 5*time.Second)
		}
		if s.state.Answer(s.wanted) {
			s.log.Info("a scrub that was asked for is done", "request", s.wanted.ID)
			s.save(time.Now())
			s.tell(ctx, true)
		}
		s.tell(ctx, false)
	}
	return nil
}

// next asks the core.
func (s *Scrubber) next() Step {
	before := s.state.Existence.Number + s.state.Full.Number
	step := s.state.Next(Input{Now: time.Now(), Self: s.cfg.Self, Wanted: s.wanted, Lost: s.lost, Missing: s.missing})
	s.lost, s.missing = false, false
	if s.state.Existence.Number+s.state.Full.Number != before {
		s.save(time.Now())
	}
	return step
}

// poll learns of what would change the decision.
func (s *Scrubber) poll(ctx context.Context) {
	for more := true; more; {
		select {
		case root := <-s.missed:
			s.miss(ctx, root)
		default:
			more = false
		}
	}
	now := time.Now()
	if now.Sub(s.watch) >= watchEvery {
		s.watch = now
		s.look(ctx)
	}
	if now.Sub(s.polled) < pollEvery {
		return
	}
	s.polled = now
	if wanted, err := s.cfg.Records.Wanted(ctx); err == nil {
		s.wanted = wanted
	}
	lives, err := s.cfg.Store.Present(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Error("the directory of the blobs is gone and cannot be made again", "error", err)
	}
	if lives != s.lives {
		s.lives, s.lost = lives, true
		if s.cfg.Lost != nil {
			s.cfg.Lost()
		}
	}
}

// urgent says that the read of a blob should end for something else.
func (s *Scrubber) urgent() bool {
	state := s.state
	step := state.Next(Input{Now: time.Now(), Self: s.cfg.Self, Wanted: s.wanted, Lost: s.lost, Missing: s.missing})
	return step.Task != Full || state.Full.Number != s.state.Full.Number
}

// miss looks at a blob that was asked for and not here.
func (s *Scrubber) miss(ctx context.Context, root digest.CID) {
	if r, err := s.cfg.Records.Copy(ctx, root); err != nil || r.State != meta.ReplicaVerified {
		return // it need not be here
	}
	if l, err := s.cfg.Store.Look(ctx, root); err != nil || l.Whole {
		return
	}
	s.missing = true
	_ = s.fail(ctx, root, "a reader found its file missing")
}

// fail reports a copy.
func (s *Scrubber) fail(ctx context.Context, root digest.CID, reason string) error {
	s.log.Warn("a copy is damaged or gone", "root", root.String(), "reason", reason)
	s.count(root)
	return s.cfg.Repair.Fail(ctx, root, reason)
}

// look sees which failed copies are whole again.
func (s *Scrubber) look(ctx context.Context) {
	s.mu.Lock()
	some := make([]digest.CID, 0, watchAtOnce)
	for root := range s.open {
		if some = append(some, root); len(some) == watchAtOnce {
			break
		}
	}
	s.mu.Unlock()
	for _, root := range some {
		r, err := s.cfg.Records.Copy(ctx, root)
		switch {
		case errors.Is(err, meta.ErrNotFound): // not owed any more
		case err != nil || r.State != meta.ReplicaVerified:
			continue
		default:
			l, err := s.cfg.Store.Look(ctx, root)
			if err != nil {
				continue
			}
			if !l.Whole {
				s.unheard(ctx, root)
				continue
			}
			s.repaired.Add(1)
		}
		s.mu.Lock()
		delete(s.open, root)
		s.mu.Unlock()
	}
}

// unheard sees to a copy that is not whole and that the metadata still believes in: the
// news is under way, or was dropped.
func (s *Scrubber) unheard(ctx context.Context, root digest.CID) {
	s.mu.Lock()
	late := time.Since(s.open[root]) > unheardFor
	if late {
		s.open[root] = time.Now()
	}
	s.mu.Unlock()
	if late {
		_ = s.cfg.Repair.Fail(ctx, root, "a part of its file is gone or wrong") // ctx's error: we are being stopped
	}
}

// existence compares a page of copies with their files.
func (s *Scrubber) existence(ctx context.Context, asked bool) error {
	w := &s.state.Existence
	copies, next, err := s.cfg.Records.Copies(ctx, w.After, pageCopies)
	if err != nil {
		return err
	}
	for _, r := range copies {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.State == meta.ReplicaFailed {
			s.track(r.Root) // of before a restart
		}
		if r.State != meta.ReplicaVerified {
			continue
		}
		l, err := s.cfg.Store.Look(ctx, r.Root)
		if err != nil {
			return err
		}
		w.Blobs++
		s.metrics.looked.Inc()
		if !l.Whole {
			w.Damaged++
			reason := "its file is gone"
			if l.Partial {
				reason = "a part of its file is gone or wrong"
			}
			if err := s.fail(ctx, r.Root, reason); err != nil {
				return err
			}
		}
		w.Bytes += l.StoredBytes
		if err := s.pause(ctx, 1, s.looks(asked)); err != nil {
			return err
		}
	}
	now := time.Now()
	if w.After = next; next.IsZero() {
		w.finish(now)
		s.log.Info("all copies were compared with their files", "blobs", w.Blobs, "damaged", w.Damaged)
		s.save(now)
	} else if now.Sub(s.saved) > saveEvery {
		s.save(now)
	}
	return nil
}

func (s *Scrubber) looks(asked bool) float64 {
	if !asked && s.busy() {
		return lookBusy
	}
	return lookPerSec
}

// full reads the next blob.
func (s *Scrubber) full(ctx context.Context, asked bool) error {
	w := &s.state.Full
	infos, err := s.cfg.Store.List(ctx, w.After, 1)
	if err != nil {
		return err
	}
	now := time.Now()
	if len(infos) == 0 {
		w.finish(now)
		s.log.Info("every byte was read", "blobs", w.Blobs, "bytes", w.Bytes, "damaged", w.Damaged)
		s.save(now)
		return nil
	}
	root := infos[0].Root
	if w.Within != root {
		w.Within, w.Chunk = root, 0
	}
	bad, read, err := s.read(ctx, root, asked, w)
	w.Bytes += read
	if err != nil {
		if errors.Is(err, errYield) || ctx.Err() != nil {
			s.save(time.Now())
		}
		return err
	}
	w.Blobs++
	if bad {
		w.Damaged++
	}
	w.After, w.Within, w.Chunk = root, digest.CID{}, 0
	if now := time.Now(); now.Sub(s.saved) > saveEvery {
		s.save(now)
	}
	return nil
}

// read reads a blob, from where w is if it is given, and reports what is wrong.
func (s *Scrubber) read(ctx context.Context, root digest.CID, asked bool, w *Walk) (bad bool, read int64, _ error) {
	o := store.ScrubOptions{Pace: func(ctx context.Context, bytes int64) error {
		s.poll(ctx)
		if w != nil && s.urgent() {
			return errYield
		}
		s.tell(ctx, false)
		return s.pause(ctx, float64(bytes), s.rate(asked))
	}}
	if w != nil {
		o.From = int(w.Chunk)
		o.Done = func(next int) { w.Chunk = uint32(next) }
	}
	found, err := s.cfg.Store.Scrub(ctx, root, o)
	s.metrics.read.Add(float64(found.Bytes))
	reason := ""
	switch {
	case errors.Is(err, meta.ErrCorrupt):
		reason = "nothing of it can be checked"
	case errors.Is(err, meta.ErrNotFound):
		reason = "its file is gone"
	case err != nil:
		return found.Damaged > 0, found.Bytes, err
	case found.Damaged > 0:
		// The store has told of each; its repair may have begun.
		s.count(root)
		return true, found.Bytes, nil
	case !found.Whole:
		reason = "chunks of it are missing"
	case found.SHA256 != "":
		if blob, err := s.cfg.Records.Blob(ctx, root); err == nil && blob.Seal == "" && blob.Digest != found.SHA256 {
			reason = fmt.Sprintf("its content has the digest %s, the metadata says %s", found.SHA256, blob.Digest)
		}
	}
	if reason == "" {
		return false, found.Bytes, nil
	}
	// What is here beyond what this server owes is no copy that anybody counts on.
	if r, err := s.cfg.Records.Copy(ctx, root); err == nil && r.State == meta.ReplicaVerified {
		return true, found.Bytes, s.fail(ctx, root, reason)
	}
	return false, found.Bytes, nil
}

// named reads the blobs of a request.
func (s *Scrubber) named(ctx context.Context) error {
	for _, root := range s.wanted.Roots {
		if _, err := s.cfg.Store.Look(ctx, root); err != nil {
			return err
		}
		if _, _, err := s.read(ctx, root, true, nil); err != nil {
			return err
		}
	}
	return nil
}

// rest waits until something is due, or asked for.
func (s *Scrubber) rest(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(min(pollEvery, max(time.Until(until), 0)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case root := <-s.missed:
		s.miss(ctx, root)
	}
	return nil
}

func (s *Scrubber) busy() bool {
	return s.cfg.Foreign != nil && s.foreign.look(time.Now(), s.cfg.Foreign()) >= busyFrom
}

func (s *Scrubber) rate(asked bool) float64 {
	foreign := 0.0
	if s.cfg.Foreign != nil {
		foreign = s.foreign.look(time.Now(), s.cfg.Foreign())
	}
	return Budget{Cap: s.cfg.BytesPerSec, Stored: s.cfg.Store.Stored()}.Rate(asked, foreign)
}

// pause waits as long as n takes at a rate. Short waits are saved up.
func (s *Scrubber) pause(ctx context.Context, n, perSec float64) error {
	s.owed += time.Duration(n / perSec * float64(time.Second))
	for s.owed >= pauseAtLeast {
		// In steps, so that what is more urgent is seen.
		step := min(s.owed, pollEvery)
		s.owed -= step
		if !wait.For(ctx, step) {
			return ctx.Err()
		}
		if s.owed >= pauseAtLeast {
			s.poll(ctx)
			if s.lost || s.wanted.ID > s.state.Answered && s.wanted.ID > max(s.state.Existence.Request, s.state.Full.Request) {
				s.owed = 0
			}
		}
	}
	return ctx.Err()
}

// tell reports to the metadata: now, or when it is time and something has changed.
func (s *Scrubber) tell(ctx context.Context, now bool) {
	at := time.Now()
	if !now && at.Sub(s.told) < watchEvery {
		return
	}
	r := s.publish()
	before := s.toldReport
	same := r
	same.At = before.At
	found := r.FailedCopies != before.FailedCopies || r.DamagedChunks != before.DamagedChunks || r.Open != before.Open ||
		r.Existence.Last != before.Existence.Last || r.Full.Last != before.Full.Last
	news := now || found || s.state.Answered < s.wanted.ID
	if same == before || !news && at.Sub(s.told) < reportEvery {
		return
	}
	s.told = at
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.cfg.Records.Report(limited, r); err != nil {
		s.log.Debug("the metadata was not told of the scrub, trying again", "error", err)
		return
	}
	s.toldReport = r
}
