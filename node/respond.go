package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Compromises and elevations: the leader goes through what was done, has the bytes of
// what is in quarantine read again, and writes down that an elevation is over. All of
// it is in the metadata, so a new leader goes on where the last one was. Every server
// says in its log who has broken the glass.

const (
	// respondEvery is how often work is looked for, advanceLimit how many acts one
	// command goes through, advancePause the time for others' commands in between.
	respondEvery = 500 * time.Millisecond
	advanceLimit = 200
	advancePause = 20 * time.Millisecond
	// recheckTime bounds the reading of one file; a copy that nobody can deliver is
	// written down as that.
	recheckTime = 10 * time.Minute
	// maxRecheckNotes bounds the bad files that a finding names.
	maxRecheckNotes = 16
)

// responder is what a server does about compromises and elevations.
type responder struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	leads    func() bool
	// open returns verified plain bytes of a blob, from here or whoever has them.
	open  func(context.Context, meta.Blob) (io.ReadCloser, error)
	every time.Duration
	log   *slog.Logger

	active, working prometheus.Gauge
	broken          map[string]meta.Elevation // that were active when last looked
}

func (r *responder) measure(registry prometheus.Registerer) {
	f := promauto.With(registry)
	r.active = f.NewGauge(prometheus.GaugeOpts{
		Name: "shoal_elevations_active", Help: "Break-glass elevations that are active, as this server sees it.",
	})
	r.working = f.NewGauge(prometheus.GaugeOpts{
		Name: "shoal_compromises_working", Help: "Compromises whose acts or bytes are still being gone through, as this server sees it.",
	})
}

// run ends elevations and goes through acts; check reads bytes, which takes as long as it
// takes, and so has a loop of its own.
func (r *responder) run(ctx context.Context) error { return r.loop(ctx, r.look) }

func (r *responder) check(ctx context.Context) error { return r.loop(ctx, r.recheckAll) }

func (r *responder) loop(ctx context.Context, look func(context.Context) error) error {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		if err := look(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, meta.ErrUnavailable) {
			r.log.Warn("compromises and elevations are not worked on, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (r *responder) look(ctx context.Context) error {
	if err := r.tell(ctx); err != nil {
		return err
	}
	work, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetRespondWork{})
	if err != nil {
		return err
	}
	r.working.Set(float64(len(work.Compromises)))
	if !r.leads() {
		return nil
	}
	if work.Due != 0 && !work.Due.Std().After(time.Now()) {
		if err := r.do(ctx, state.ExpireElevations{}); err != nil {
			return err
		}
	}
	return r.each(ctx, work, meta.CompromiseContaining, func(c meta.Compromise) error {
		return r.do(ctx, state.AdvanceCompromise{ID: c.ID, Limit: advanceLimit})
	})
}

func (r *responder) recheckAll(ctx context.Context) error {
	if !r.leads() {
		return nil
	}
	work, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetRespondWork{})
	if err != nil {
		return err
	}
	return r.each(ctx, work, meta.CompromiseChecking, func(c meta.Compromise) error { return r.recheck(ctx, c) })
}

// tell logs whose elevations began and ended since it looked last.
func (r *responder) tell(ctx context.Context) error {
	open, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.ListElevations{Open: true})
	if err != nil {
		return err
	}
	now := map[string]meta.Elevation{}
	for _, e := range open {
		if e.State != meta.ElevationActive {
			continue
		}
		now[e.ID] = e
		if _, known := r.broken[e.ID]; !known {
			r.log.Warn("break-glass: an elevation is active", "elevation", e.ID, "principal", e.Principal, "role", e.Role,
				"scope", e.Scope, "reason", e.Reason, "until", e.Expires.Std())
		}
	}
	for id, e := range r.broken {
		if _, still := now[id]; !still {
			r.log.Warn("break-glass: an elevation is over, review what was done under it", "elevation", id, "principal", e.Principal)
		}
	}
	r.broken = now
	r.active.Set(float64(len(now)))
	return nil
}

func (r *responder) do(ctx context.Context, c state.Command) error {
	_, err := r.doer.Do(ctx, state.Origin{Principal: "node:" + string(r.self), Node: r.self}, c)
	return err
}

// each takes a step with the compromises that are in a state until they leave it, or this
// server leads no more.
func (r *responder) each(ctx context.Context, work state.RespondWork, in meta.CompromiseState, step func(meta.Compromise) error) error {
	for _, c := range work.Compromises {
		if err := r.until(ctx, c, in, step); err != nil {
			return fmt.Errorf("compromise %s: %w", c.ID, err)
		}
	}
	return nil
}

func (r *responder) until(ctx context.Context, c meta.Compromise, in meta.CompromiseState, step func(meta.Compromise) error) error {
	worked := false
	for r.leads() && c.State == in {
		if err := step(c); err != nil {
			return err
		}
		worked = true
		if in == meta.CompromiseContaining {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(advancePause):
			}
		}
		var err error
		if c, _, err = raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetCompromise{ID: c.ID}); err != nil {
			return err
		}
	}
	if worked && c.State == meta.CompromiseContained {
		r.log.Warn("a compromise is contained", "compromise", c.ID, "principal", c.Principal,
			"findings", c.Findings, "quarantined", c.Quarantined, "revoked", c.Revoked, "bad", c.Bad)
	}
	return nil
}

// recheck reads all files of the next version in quarantine again.
func (r *responder) recheck(ctx context.Context, c meta.Compromise) error {
	f, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetFinding{ID: c.ID, Number: c.Next})
	if err != nil {
		return err
	}
	result := meta.Recheck{Node: r.self}
	note := func(what digest.Digest, err error) {
		if len(result.Bad) < maxRecheckNotes {
			result.Bad = append(result.Bad, noteOf(what, err))
		}
	}
	err = r.blobs(ctx, f.Act, func(d digest.Digest) error {
		result.Files++
		n, err := r.read(ctx, f.Act.Repo, d)
		result.Bytes += n
		if err != nil && ctx.Err() == nil {
			note(d, err)
		}
		return ctx.Err()
	})
	switch {
	case errors.Is(err, meta.ErrNotFound):
		note(digest.Digest(f.Act.Name), errors.New("it is not there any more"))
	case err != nil:
		return err
	}
	return r.do(ctx, state.ReportRecheck{ID: c.ID, Number: f.Number, Result: result})
}

// noteOf is a line of a Recheck, within what it may have.
func noteOf(what digest.Digest, err error) string {
	s := strconv.QuoteToGraphic(fmt.Sprintf("%s: %v", what, err))
	s = s[1 : len(s)-1]
	return strings.ToValidUTF8(s[:min(len(s), meta.MaxReasonBytes)], "")
}

// blobs calls read with each blob that a version uses.
func (r *responder) blobs(ctx context.Context, a meta.Act, read func(digest.Digest) error) error {
	const page = 1000
	for after := ""; ; {
		files, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.ListFiles{Repo: a.Repo, Package: a.Package, Version: a.Name, Page: state.Page{After: after, Limit: page}})
		if err != nil {
			return err
		}
		if len(files) == 0 {
			break
		}
		for _, f := range files {
			if err := read(f.Digest); err != nil {
				return err
			}
		}
		after = files[len(files)-1].Path
	}
	for seen := 0; ; {
		references, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.ListReferences{Repo: a.Repo, Package: a.Package, Version: a.Name, Page: state.Page{After: strconv.Itoa(seen), Limit: page}})
		if err != nil || len(references) == 0 {
			return err
		}
		for _, ref := range references {
			if ref.Version {
				continue // It has a finding of its own, or is another's.
			}
			if err := read(ref.Digest); err != nil {
				return err
			}
		}
		seen += len(references)
	}
}

// read reads one blob to its end and compares its digest.
func (r *responder) read(ctx context.Context, repo meta.RepoRef, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, recheckTime)
	defer cancel()
	b, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetBlob{Repo: repo, Digest: d})
	if err != nil {
		return 0, err
	}
	body, err := r.open(ctx, b.Blob)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	h := digest.NewHasher(d.Algorithm() == "sha512")
	n, err := io.Copy(h, body)
	if err != nil {
		return n, err
	}
	return n, h.Check(d)
}
