// Package trail keeps a node's own chain of what it saw and nobody has to agree on:
// denials, failed logins, minted tokens and pulls (the access log), one line of JSON
// each, every line with the hash of the one before (audit.Link).
//
// Start at Trail. The gateway tells it (gateway.Trail) and never waits: what does not
// fit in the queue is counted. One goroutine, Run, writes: to DATA/trail, in files of
// bounded size of which the oldest go. It writes within a second and syncs every five,
// and only what is on the disk is the head that others anchor: so the chain on the
// disk always has what the log says of it, and a host that dies loses five seconds at
// most. What a killed process may have lost is marked where the next one goes on.
package trail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Config is what a Trail needs. Zero sizes and times take the standard beside them.
type Config struct {
	Dir  string // of its own; created
	Node meta.NodeID
	// FileBytes is when a file is full (16 MiB), Files how many are kept (16).
	FileBytes int64
	Files     int
	// Flush is how long a line may stay in memory (1 s), Sync how long before it is safe
	// (5 s).
	Flush, Sync time.Duration
	// Each is how many links of one kind a caller gets in a minute (100); more are counted.
	Each    int
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	queued     = 8192
	maxCallers = 10_000
	filePrefix = "chain-"
	fileSuffix = ".jsonl"
)

// Trail is a node's chain. It implements gateway.Trail. Run must run.
type Trail struct {
	cfg   Config
	queue chan audit.Link
	lost  atomic.Uint64 // that did not fit in the queue or could not be written
	links *prometheus.CounterVec
	miss  prometheus.Counter

	// of Run
	file    *os.File
	out     *bufio.Writer
	written int64 // of file
	seq     uint64
	prev    string
	closed  bool // what is on disk ends with LinkClosed
	dirty   bool // behind the last sync
	failed  bool // the last write was; the file is opened anew
	callers map[caller]*tally

	mu   sync.Mutex
	head audit.Head // synced
}

// caller is who is counted, of a kind of link.
type caller struct{ kind, who string }

type tally struct {
	links, bytes, counted int64
	first                 audit.Link
}

var _ gateway.Trail = (*Trail)(nil)

// Open finds the end of the chain in the directory and takes a line that a crash left
// half away.
//
// Errors: of the disk; meta.ErrCorrupt for a last file that is no chain.
func Open(c Config) (*Trail, error) {
	set := func(d *time.Duration, standard time.Duration) {
		if *d == 0 {
			*d = standard
		}
	}
	set(&c.Flush, time.Second)
	set(&c.Sync, 5*time.Second)
	if c.FileBytes == 0 {
		c.FileBytes = 16 << 20
	}
	if c.Files == 0 {
		c.Files = 16
	}
	if c.Each == 0 {
		c.Each = 100
	}
	t := &Trail{cfg: c, queue: make(chan audit.Link, queued), callers: map[caller]*tally{}, closed: true}
	t.links = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_trail_links_total", Help: "Lines of this node's chain of denials, failed logins and pulls."}, []string{"kind"})
	t.miss = prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_trail_lost_total", Help: "What this node's chain could not take: the queue was full or the disk failed. The chain says how many where it goes on."})
	for _, m := range []prometheus.Collector{t.links, t.miss} {
		if err := c.Metrics.Register(m); err != nil {
			return nil, fmt.Errorf("trail: %w", err)
		}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("trail: %w", err)
	}
	if err := t.resume(); err != nil {
		return nil, fmt.Errorf("trail: %w", err)
	}
	return t, nil
}

// files lists the chain's files, oldest first.
func (t *Trail) files() ([]string, error) {
	entries, err := os.ReadDir(t.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, ok := firstOf(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// firstOf reads the number of a file's first link from its name.
func firstOf(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, filePrefix)
	digits, ok2 := strings.CutSuffix(digits, fileSuffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && ok2 && err == nil && len(digits) == 20
}

// resume reads the last file and opens it to go on.
func (t *Trail) resume() error {
	names, err := t.files()
	if err != nil || len(names) == 0 {
		return err
	}
	path := filepath.Join(t.cfg.Dir, names[len(names)-1])
	first, _ := firstOf(names[len(names)-1])
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	// What a killed process wrote may be in memory only.
	err = f.Sync()
	var whole int64
	if err == nil {
		whole, err = wholeLines(f)
	}
	if err == nil {
		err = f.Truncate(whole)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	var last audit.Link
	report, err := audit.ReadChain(f, nil, func(l audit.Link, _ []byte) error {
		last = l
		return nil
	})
	if err == nil && len(report.Broken) > 0 {
		t.cfg.Log.Error("the chain of this node was changed: it goes on behind the last line", "file", path, "found", report.Broken[0])
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if report.Links == 0 {
		// The file was begun and nothing of it reached the disk.
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			return err
		}
		if len(names) > 1 {
			return t.resume()
		}
		t.seq = first - 1
		return nil
	}
	t.seq, t.prev, t.closed = report.Head.Seq, report.Head.Sum, last.Kind == audit.LinkClosed
	t.file, t.out, t.written = f, bufio.NewWriterSize(f, 64<<10), whole
	t.mu.Lock()
	t.head = report.Head
	t.head.Node = t.cfg.Node
	t.mu.Unlock()
	return nil
}

// wholeLines returns the length of f up to its last newline.
func wholeLines(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end := info.Size()
	buffer := make([]byte, 4<<10)
	for end > 0 {
		n := min(int64(len(buffer)), end)
		if _, err := f.ReadAt(buffer[:n], end-n); err != nil {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if buffer[i] == '\n' {
				return end - n + i + 1, nil
			}
		}
		end -= n
	}
	return 0, nil
}

// Denied implements gateway.Trail.
func (t *Trail) Denied(f gateway.CallFacts, reason string) { t.add(audit.LinkDenied, f, reason, 0) }

// LoginFailed implements gateway.Trail.
func (t *Trail) LoginFailed(f gateway.CallFacts, reason string) {
	t.add(audit.LinkLogin, f, reason, 0)
}

// Pulled implements gateway.Trail.
func (t *Trail) Pulled(f gateway.CallFacts, bytes int64) { t.add(audit.LinkPulled, f, "", bytes) }

// Minted implements gateway.Trail.
func (t *Trail) Minted(f gateway.CallFacts) { t.add(audit.LinkMinted, f, "", 0) }

func (t *Trail) add(kind string, f gateway.CallFacts, reason string, bytes int64) {
	l := audit.Link{
		Node: t.cfg.Node, Time: f.Time.UTC(), Kind: kind, Principal: f.Principal, Credential: f.Credential, Elevation: f.Elevation,
		Source: f.Source, Agent: f.Agent, Request: f.Request, Trace: f.Trace, Action: f.Action, Route: f.Route,
		Method: f.Method, Path: f.Path, Tenant: f.Tenant, Repository: f.Repository, Status: f.Status, Bytes: bytes,
		Took: f.Took.Round(time.Microsecond).String(), Reason: reason,
	}
	select {
	case t.queue <- l:
	default:
		t.drop(1)
	}
}

func (t *Trail) drop(n uint64) {
	t.lost.Add(n)
	t.miss.Add(float64(n))
}

// Head returns the end of the chain that is safe on the disk; Seq is 0 before the first.
func (t *Trail) Head() audit.Head {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head
}

// Run writes the chain until ctx ends and what the gateway told by then is on disk.
func (t *Trail) Run(ctx context.Context) error {
	opened := audit.Link{Node: t.cfg.Node, Time: time.Now().UTC(), Kind: audit.LinkOpened}
	if !t.closed {
		opened.Reason = "the process before was ended without warning: what it saw in its last seconds may be missing"
	}
	t.write(opened)
	t.sync()
	flush, sync, minute := time.NewTicker(t.cfg.Flush), time.NewTicker(t.cfg.Sync), time.NewTicker(time.Minute)
	defer flush.Stop()
	defer sync.Stop()
	defer minute.Stop()
	for {
		select {
		case l := <-t.queue:
			t.take(l)
		case <-flush.C:
			t.flush()
		case <-sync.C:
			t.sync()
		case <-minute.C:
			t.count()
		case <-ctx.Done():
			return t.end()
		}
	}
}

// end writes what is left and that it is all.
func (t *Trail) end() error {
	for len(t.queue) > 0 {
		t.take(<-t.queue)
	}
	t.count()
	t.write(audit.Link{Node: t.cfg.Node, Time: time.Now().UTC(), Kind: audit.LinkClosed})
	t.sync()
	if t.file == nil {
		return nil
	}
	if err := t.file.Close(); err != nil {
		return fmt.Errorf("trail: %w", err)
	}
	return nil
}

// take writes a link, or counts it when its caller has had enough this minute.
func (t *Trail) take(l audit.Link) {
	who := caller{l.Kind, l.Principal}
	if who.who == "" || who.who == meta.Anonymous.Name {
		who.who = addressOf(l.Source)
	}
	n := t.callers[who]
	if n == nil {
		if len(t.callers) >= maxCallers {
			who = caller{kind: l.Kind} // All others are one.
			n = t.callers[who]
		}
		if n == nil {
			n = &tally{}
			t.callers[who] = n
		}
	}
	if n.links++; n.links <= int64(t.cfg.Each) {
		t.write(l)
		return
	}
	if n.counted == 0 {
		n.first = l
	}
	n.counted++
	n.bytes += l.Bytes
}

// addressOf returns the address without its port.
func addressOf(source string) string {
	if ap, err := netip.ParseAddrPort(source); err == nil {
		return ap.Addr().Unmap().String()
	}
	if host, _, err := net.SplitHostPort(source); err == nil {
		return host
	}
	return source
}

// count ends a minute.
func (t *Trail) count() {
	for who, n := range t.callers {
		if n.counted > 0 {
			l := audit.Link{
				Node: t.cfg.Node, Time: time.Now().UTC(), Kind: audit.LinkCounted, Of: who.kind, Count: uint64(n.counted), Bytes: n.bytes,
				Principal: n.first.Principal, Source: n.first.Source, Tenant: n.first.Tenant, Repository: n.first.Repository,
				Reason: "more of this caller in this minute; the repository is that of the first",
			}
			if who.who == "" {
				l.Principal, l.Source, l.Reason = "", "", "of callers that were too many to tell apart"
			}
			t.write(l)
		}
	}
	clear(t.callers)
}

// write appends a link to the file's buffer, behind what was lost before it.
func (t *Trail) write(l audit.Link) {
	if n := t.lost.Swap(0); n > 0 {
		if !t.append(audit.Link{Node: t.cfg.Node, Time: time.Now().UTC(), Kind: audit.LinkCounted, Of: "lost", Count: n, Reason: "the queue was full or the disk failed"}) {
			t.lost.Add(n)
		}
	}
	if !t.append(l) {
		t.drop(1)
	}
}

func (t *Trail) append(l audit.Link) bool {
	l.Seq, l.Prev = t.seq+1, t.prev
	line, err := l.Line()
	if err != nil {
		t.cfg.Log.Warn("a line of the chain could not be written", "error", err)
		return false
	}
	if err := t.room(int64(len(line) + 1)); err != nil {
		t.fail(err)
		return false
	}
	if _, err := t.out.Write(append(line, '\n')); err != nil {
		t.fail(err)
		return false
	}
	t.written += int64(len(line) + 1)
	t.seq, t.prev, t.dirty = l.Seq, audit.LinkHash(line), true
	t.links.WithLabelValues(l.Kind).Inc()
	return true
}

// room begins a new file when there is none, or the last is full.
func (t *Trail) room(need int64) error {
	if t.failed {
		// What reached the disk is known from the disk.
		if err := t.reopen(); err != nil {
			return err
		}
	}
	if t.file != nil && t.written+need <= t.cfg.FileBytes {
		return nil
	}
	if t.file != nil {
		t.sync()
		if t.failed {
			return errors.New("the last file is not on the disk")
		}
		if err := t.file.Close(); err != nil {
			return err
		}
		t.file = nil
	}
	name := fmt.Sprintf("%s%020d%s", filePrefix, t.seq+1, fileSuffix)
	f, err := os.OpenFile(filepath.Join(t.cfg.Dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	t.file, t.out, t.written = f, bufio.NewWriterSize(f, 64<<10), 0
	names, err := t.files()
	if err != nil {
		return err
	}
	for len(names) > t.cfg.Files {
		if err := os.Remove(filepath.Join(t.cfg.Dir, names[0])); err != nil {
			return err
		}
		names = names[1:]
	}
	return nil
}

// reopen goes on behind what the disk has, after a write that failed.
func (t *Trail) reopen() error {
	was := t.seq
	if t.file != nil {
		_ = t.file.Close() // It has failed already.
		t.file = nil
	}
	if err := t.resume(); err != nil {
		return err
	}
	t.failed = false
	if was > t.seq {
		t.drop(was - t.seq)
	}
	return nil
}

func (t *Trail) fail(err error) {
	if !t.failed {
		t.cfg.Log.Error("the chain of denials and pulls cannot be written: what is seen meanwhile is only counted", "error", err)
	}
	t.failed = true
}

// flush hands to the system what is buffered.
func (t *Trail) flush() {
	if t.file == nil || t.failed || !t.dirty {
		return
	}
	if err := t.out.Flush(); err != nil {
		t.fail(err)
	}
}

// sync makes what is written safe, which moves the head.
func (t *Trail) sync() {
	if !t.dirty || t.file == nil {
		return
	}
	t.flush()
	if t.failed {
		return
	}
	if err := t.file.Sync(); err != nil {
		t.fail(err)
		return
	}
	t.dirty = false
	t.mu.Lock()
	t.head = audit.Head{Node: t.cfg.Node, Seq: t.seq, Sum: t.prev, Time: meta.TimeOf(time.Now())}
	t.mu.Unlock()
}

// ErrEnough ends Read without an error.
var ErrEnough = errors.New("enough")

// Read yields lines of the chain that are safe on the disk, from a link on, or from the
// oldest that is kept. Lines hold until the next one. ErrEnough from line ends it.
//
// Errors: of the disk; of line.
func (t *Trail) Read(from uint64, line func(seq uint64, line []byte) error) error {
	head := t.Head()
	names, err := t.files()
	if err != nil {
		return fmt.Errorf("read the chain: %w", err)
	}
	for i, name := range names {
		if i+1 < len(names) {
			if next, _ := firstOf(names[i+1]); next <= from {
				continue
			}
		}
		seq, _ := firstOf(name)
		err := readLines(filepath.Join(t.cfg.Dir, name), func(b []byte) error {
			n := seq
			seq++
			switch {
			case n > head.Seq:
				return ErrEnough
			case n < from:
				return nil
			}
			return line(n, b)
		})
		switch {
		case errors.Is(err, ErrEnough):
			return nil
		case errors.Is(err, os.ErrNotExist): // It went meanwhile.
		case err != nil:
			return fmt.Errorf("read the chain: %w", err)
		}
	}
	return nil
}

func readLines(path string, line func([]byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // It was only read.
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, audit.MaxLinkBytes+1)
	for lines.Scan() {
		if err := line(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}
