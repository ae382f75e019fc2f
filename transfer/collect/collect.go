// Package collect removes from a server's store what the metadata has given up.
//
// A Loop runs on each server. It lists the orders that the metadata has for the server
// (Orders), removes each blob under the store's lock if the order still stands then
// (Store), and says so in batches. What is in use stays until a later pass. Nothing is
// ever removed for being unlisted: what the loop finds in the store and the metadata
// does not know (Strays) it names to the metadata, which answers with an order, so that
// one entry of the log decides against whoever is about to link it.
//
// Nothing is remembered: a server that was down finds its orders when it returns, and
// one that dies between removal and word removes what is not there. Start reading at
// Loop. Run owns all goroutines.
package collect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Order is a blob that this server is to remove; Index tells it from later ones.
type Order struct {
	Root  digest.CID
	Index uint64
}

// Orders is what the metadata has given up.
type Orders interface {
	// List returns at most limit of this server's orders with root > after, ascending.
	List(ctx context.Context, after digest.CID, limit int) ([]Order, error)
	// Stands reports whether an order still does, as far as this server has seen.
	Stands(ctx context.Context, o Order) (bool, error)
	// Removed says that at most 500 orders are carried out.
	Removed(ctx context.Context, orders []Order) error
}

// Strays is what the metadata knows of a server's blobs.
type Strays interface {
	// Unknown returns those of at most 256 roots that the metadata does not know, and
	// those that it needs no copy of here and has verified elsewhere.
	Unknown(ctx context.Context, roots []digest.CID) (unknown, spare []digest.CID, err error)
	// Order asks for the removal of at most 500 blobs that are still unknown.
	Order(ctx context.Context, blobs []store.Info) error
	// Asked returns when servers were last asked to look for strays at once, zero for
	// never.
	Asked(ctx context.Context) (time.Time, error)
}

// Store is a *store.Disk.
type Store interface {
	Collect(ctx context.Context, root digest.CID, still func() (bool, error)) (freed int64, err error)
	List(ctx context.Context, after digest.CID, limit int) ([]store.Info, error)
}

// Config is what a Loop needs; Orders, Strays and Store are required.
type Config struct {
	Orders Orders
	Strays Strays
	Store  Store
	// PerSecond bounds the removals; 0 is 200.
	PerSecond int
	// Every is how often orders are looked for; 0 is a second.
	Every time.Duration
	// StraysEvery is how often the whole store is looked through; 0 is 24 h, the first
	// time within an hour of the start.
	StraysEvery time.Duration
	// StrayAge is how long a blob has lain untouched before it can be a stray; 0 is 10
	// minutes. SpareAge is the same for a partial copy that is not needed; 0 is 24 h.
	StrayAge, SpareAge time.Duration
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	pageOrders = 500
	pageBlobs  = 256
	// pagePause keeps a pass over a large store from the disk of the clients.
	pagePause = 50 * time.Millisecond
	// idleMost is the longest pause between passes while all orders are held up.
	idleMost = 30 * time.Second
	// askedEvery is how often Strays is asked whether a pass is wanted.
	askedEvery = 2 * time.Second
)

// Loop carries out orders and looks for strays. New builds it, Run works.
type Loop struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
}

// New returns a Loop.
func New(cfg Config) (*Loop, error) {
	if cfg.Orders == nil || cfg.Strays == nil || cfg.Store == nil {
		return nil, fmt.Errorf("collect: Orders, Strays and Store are required: %w", meta.ErrInvalid)
	}
	setDefault(&cfg.PerSecond, 200)
	setDefault(&cfg.Every, time.Second)
	setDefault(&cfg.StraysEvery, 24*time.Hour)
	setDefault(&cfg.StrayAge, 10*time.Minute)
	setDefault(&cfg.SpareAge, 24*time.Hour)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop{cfg: cfg, log: cfg.Log, metrics: newMetrics(cfg.Metrics)}, nil
}

func setDefault[T comparable](v *T, standard T) {
	var zero T
	if *v == zero {
		*v = standard
	}
}

// Run works until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.runStrays(ctx)
	}()
	l.runOrders(ctx)
	<-done
	return nil
}

func (l *Loop) runOrders(ctx context.Context) {
	for pause := l.cfg.Every; wait.For(ctx, pause); {
		removed, held, err := l.carryOut(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("blobs that were given up are not removed, trying again", "error", err)
		}
		if removed == 0 && (held > 0 || err != nil) {
			pause = min(2*pause, max(idleMost, l.cfg.Every))
		} else {
			pause = l.cfg.Every
		}
	}
}

// carryOut goes once through all orders. held counts those of blobs that are in use.
func (l *Loop) carryOut(ctx context.Context) (removed, held int, err error) {
	var after digest.CID
	var failed error // of one that the others do not wait for
	for {
		orders, err := l.cfg.Orders.List(ctx, after, pageOrders)
		if err != nil || len(orders) == 0 {
			if err == nil && after.IsZero() {
				l.metrics.orders.Set(0)
			}
			return removed, held, cmp.Or(err, failed)
		}
		after = orders[len(orders)-1].Root
		l.metrics.orders.Set(float64(len(orders)))
		done, err := l.remove(ctx, orders)
		if len(done) > 0 {
			// What is removed is said also when another one failed.
			if sayErr := l.cfg.Orders.Removed(ctx, done); sayErr != nil {
				return removed, held, errors.Join(err, sayErr)
			}
		}
		removed += len(done)
		held += len(orders) - len(done)
		if general(ctx, err) {
			return removed, held, err
		}
		failed = cmp.Or(failed, err)
	}
}

// general says that what failed for one blob fails for all: the metadata or the bucket is
// out of reach, or the loop ends.
func general(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || errors.Is(err, meta.ErrUnavailable))
}

// remove carries out a page of orders, as fast as it may, and returns those that are, and
// why the first of those that failed did.
func (l *Loop) remove(ctx context.Context, orders []Order) (done []Order, failed error) {
	pace := time.NewTicker(time.Second / time.Duration(l.cfg.PerSecond))
	defer pace.Stop()
	for _, o := range orders {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return done, ctx.Err()
		}
		freed, err := l.cfg.Store.Collect(ctx, o.Root, func() (bool, error) { return l.cfg.Orders.Stands(ctx, o) })
		switch {
		case errors.Is(err, meta.ErrConflict):
			l.log.Debug("a blob that was given up is in use", "root", o.Root.String(), "error", err)
		case general(ctx, err):
			return done, err
		case err != nil:
			failed = cmp.Or(failed, err)
		default:
			done = append(done, o)
			if freed > 0 {
				l.metrics.removed.Inc()
				l.metrics.bytes.Add(float64(freed))
			}
		}
	}
	return done, failed
}

func (l *Loop) runStrays(ctx context.Context) {
	due := time.Now().Add(rand.N(min(time.Hour, l.cfg.StraysEvery)))
	var heard *time.Time // what Asked said last; what was asked before the start is over
	for wait.For(ctx, min(askedEvery, l.cfg.Every)) {
		asked, err := l.cfg.Strays.Asked(ctx)
		if err != nil {
			continue // it has no more to say of the blobs
		}
		wanted := heard != nil && !asked.Equal(*heard)
		heard = &asked
		if !wanted && time.Now().Before(due) {
			continue
		}
		began := time.Now()
		err = l.lookForStrays(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("the store was not looked through for blobs that nobody knows, trying again", "error", err)
			due = time.Now().Add(time.Minute)
			continue
		}
		due = began.Add(l.cfg.StraysEvery/10*9 + rand.N(l.cfg.StraysEvery/5))
	}
}

// lookForStrays goes once through the store.
func (l *Loop) lookForStrays(ctx context.Context) error {
	var after digest.CID
	for {
		blobs, err := l.cfg.Store.List(ctx, after, pageBlobs)
		if err != nil || len(blobs) == 0 {
			return err
		}
		after = blobs[len(blobs)-1].Root
		if err := l.judge(ctx, blobs); err != nil {
			return err
		}
		if !wait.For(ctx, pagePause) {
			return ctx.Err()
		}
	}
}

// judge asks about a page of the store's blobs.
func (l *Loop) judge(ctx context.Context, blobs []store.Info) error {
	old := make(map[digest.CID]store.Info, len(blobs))
	var roots []digest.CID
	for _, b := range blobs {
		if time.Since(b.LastUse) >= l.cfg.StrayAge && !b.Pinned {
			old[b.Root] = b
			roots = append(roots, b.Root)
		}
	}
	if len(roots) == 0 {
		return nil
	}
	unknown, spare, err := l.cfg.Strays.Unknown(ctx, roots)
	if err != nil {
		return err
	}
	var strays []store.Info
	for _, root := range unknown {
		strays = append(strays, old[root])
	}
	if len(strays) > 0 {
		l.log.Info("the store has blobs that nobody knows, they are to go", "count", len(strays))
		l.metrics.strays.Add(float64(len(strays)))
		if err := l.cfg.Strays.Order(ctx, strays); err != nil {
			return err
		}
	}
	for _, root := range spare {
		// A part of a blob that was fetched for somebody who left: no copy counts it.
		if b := old[root]; b.Complete || time.Since(b.LastUse) < l.cfg.SpareAge {
			continue
		}
		if err := l.dropPart(ctx, root); general(ctx, err) {
			return err
		} else if err != nil {
			l.log.Warn("a part of a blob that is not needed is not removed", "root", root.String(), "error", err)
		}
	}
	return nil
}

// dropPart removes a partial blob that is not needed here.
func (l *Loop) dropPart(ctx context.Context, root digest.CID) error {
	freed, err := l.cfg.Store.Collect(ctx, root, func() (bool, error) {
		_, spare, err := l.cfg.Strays.Unknown(ctx, []digest.CID{root})
		return len(spare) > 0, err
	})
	if err != nil && !errors.Is(err, meta.ErrConflict) {
		return err
	}
	if freed > 0 {
		l.metrics.removed.Inc()
		l.metrics.bytes.Add(float64(freed))
	}
	return nil
}
