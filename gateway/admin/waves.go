package admin

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Waves is what servers know of waves beyond the metadata.
type Waves interface {
	// Matching counts the agents that a wave is for, by region.
	Matching(w *meta.Wave) map[meta.RegionName]int
	// LeftOut lists agents that a wave aims at and that may not hold what it names, by id.
	LeftOut(w *meta.Wave) []meta.NodeID
	// Progress adds up what the servers heard lately of a wave's hosts, by region;
	// unreached are those that did not say.
	Progress(ctx context.Context, wave string) (regions []meta.WaveProgress, unreached []meta.NodeID)
}

const standardPin = 24 * time.Hour

// newWaveID returns an id that sorts by time: seconds, then chance.
func newWaveID(now time.Time) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(now.Unix())<<29) // 35 bits are 7 letters
	return strings.ToLower(base32.HexEncoding.EncodeToString(b[:])[:7] + rand.Text()[:4])
}

// resolve turns a reference into the version that it names now. Who may not push to
// its repository must not learn whether it is there.
func (a *API) resolve(c *protocol.Call, text string) (ref meta.WaveRef, _ error) {
	fail := func(err error) (meta.WaveRef, error) { return ref, fmt.Errorf("reference %s: %w", text, err) }
	tenant, rest, ok := strings.Cut(text, "/")
	if !ok {
		return fail(fmt.Errorf("write tenant/repository/name: %w", meta.ErrInvalid))
	}
	end := strings.IndexAny(rest, "/:@")
	if end < 0 {
		end = len(rest)
	}
	ref.Repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: rest[:end]}
	if err := ref.Repo.Check(); err != nil {
		return fail(err)
	}
	repo, err := a.writable(c, ref.Repo)
	if err != nil {
		return fail(err)
	}
	format := a.Packages[repo.Format]
	if format == nil {
		return fail(fmt.Errorf("format %s has no waves in this build: %w", repo.Format, meta.ErrInvalid))
	}
	name, err := format.ParseReference(rest[end:])
	if err != nil {
		return fail(err)
	}
	ref.Package, ref.Alias, ref.Version = name.Package, name.Alias, name.Version
	if name.Version != "" {
		v, err := confirmed(a, c, state.GetVersion{Repo: ref.Repo, Package: name.Package, Version: name.Version})
		if ref.Digest = v.Digest; err == nil {
			err = spreadable(&v)
		}
		if err != nil {
			return fail(err)
		}
		return ref, nil
	}
	found, err := confirmed(a, c, state.Resolve{Repo: ref.Repo, Package: name.Package, Alias: name.Alias})
	if err == nil {
		err = spreadable(&found.Version)
	}
	if err != nil {
		return fail(err)
	}
	ref.Version, ref.Digest = found.Version.Name, found.Version.Digest
	return ref, nil
}

// spreadable refuses a version that is in quarantine.
func spreadable(v *meta.Version) error {
	if v.Quarantine == nil {
		return nil
	}
	return &meta.QuarantinedError{What: "version " + v.Name, Quarantine: *v.Quarantine}
}

// confirmed is ask that says that nothing is there only after a strong round: what
// was just pushed elsewhere is what waves are for.
func confirmed[A any](a *API, c *protocol.Call, q state.Question[A]) (A, error) {
	answer, err := ask(a, c, q)
	if !errors.Is(err, meta.ErrNotFound) {
		return answer, err
	}
	strong := meta.Strong
	strong.After = c.After
	answer, _, err = raftmeta.Ask(c.R.Context(), a.Metadata, strong, q)
	return answer, err
}

// writable returns a repository that the caller may push to, or any for whom may
// operate the cluster; anybody else gets the answer that the gate gives on its routes.
func (a *API) writable(c *protocol.Call, ref meta.RepoRef) (*meta.Repository, error) {
	var known *meta.Repository
	repo, err := confirmed(a, c, state.GetRepository{Ref: ref})
	switch {
	case err == nil:
		known = &repo
	case !errors.Is(err, meta.ErrNotFound):
		return nil, err
	}
	if !a.operates(c) {
		if err := a.judge(c, access.Push, access.Target{Repo: ref, Record: known}); err != nil {
			return nil, err
		}
	}
	return known, err
}

// operates reports whether the caller may do what all waves need.
func (a *API) operates(c *protocol.Call) bool {
	return a.judge(c, access.Operate, access.Target{}) == nil
}

func (a *API) createWave(c *protocol.Call) error {
	var body client.NewWave
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if n := len(body.Refs); n == 0 || n > meta.MaxWaveRefs {
		return fmt.Errorf("%d references, use 1 to %d: %w", n, meta.MaxWaveRefs, meta.ErrInvalid)
	}
	now := time.Now()
	w := meta.Wave{
		ID: newWaveID(now), Name: body.Name, Targets: body.Targets, Platform: body.Platform,
		NotBefore: body.NotBefore, MaxParallel: body.MaxParallel, Abort: body.Abort,
	}
	const most = math.MaxInt64 / int64(time.Second)
	if body.InSeconds < 0 || body.PinSeconds < 0 || body.InSeconds > most || body.PinSeconds > most {
		return fmt.Errorf("a wave that begins in %d s and is kept for %d s: %w", body.InSeconds, body.PinSeconds, meta.ErrInvalid)
	}
	if body.InSeconds > 0 {
		w.NotBefore = meta.TimeOf(now.Add(time.Duration(body.InSeconds) * time.Second))
	}
	life := cmp.Or(time.Duration(body.PinSeconds)*time.Second, standardPin)
	for _, text := range body.Refs {
		ref, err := a.resolve(c, text)
		if err != nil {
			return err
		}
		w.Refs = append(w.Refs, ref)
	}
	if a.Waves != nil {
		for _, n := range a.Waves.Matching(&w) {
			w.Expected += uint32(n)
		}
		if left := a.Waves.LeftOut(&w); w.Expected == 0 && len(left) > 0 {
			return fmt.Errorf("a wave for nobody: %s may not hold what belongs to the tenants of its references (shoal node narrow changes that): %w",
				someNodes(left), meta.ErrInvalid)
		}
	}
	value, err := a.do(c, 0, state.CreateWave{Wave: w, Life: life})
	if err != nil {
		return err
	}
	return reply[meta.Wave](c, http.StatusCreated, value)
}

// someNodes names nodes, of many the first ones.
func someNodes(ids []meta.NodeID) string {
	const most = 10
	names := make([]string, 0, most)
	for _, id := range ids[:min(len(ids), most)] {
		names = append(names, string(id))
	}
	text := "node " + strings.Join(names, ", ")
	if more := len(ids) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// waveReadable reports whether the caller may read all that a wave names.
func (a *API) waveReadable(c *protocol.Call, w *meta.Wave) (bool, error) {
	if a.operates(c) {
		return true, nil
	}
	for _, ref := range w.Refs {
		repo, err := ask(a, c, state.GetRepository{Ref: ref.Repo})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return false, err
		}
		if err != nil || !access.Readable(c.Who, &repo) {
			return false, nil
		}
	}
	return true, nil
}

// waves lists those that the caller may read; next says whether to go on.
func (a *API) waves(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	open := c.R.URL.Query().Get("open") == "true"
	page, err := shownPage(p, func(p state.Page) ([]meta.Wave, error) { return ask(a, c, state.ListWaves{Open: open, Page: p}) },
		func(w *meta.Wave) string { return w.ID },
		func(w *meta.Wave) (bool, error) { return a.waveReadable(c, w) })
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, page)
}

// wave returns the wave of the route; to whom may not read it, it is not there.
func (a *API) wave(c *protocol.Call) (w meta.Wave, _ error) {
	id := c.Params.Get("wave")
	if err := meta.CheckWaveID(id); err != nil {
		return w, err
	}
	w, err := confirmed(a, c, state.GetWave{ID: id})
	if err != nil {
		return w, err
	}
	may, err := a.waveReadable(c, &w)
	if err == nil && !may {
		err = fmt.Errorf("wave %s: %w", id, meta.ErrNotFound)
	}
	return w, err
}

func (a *API) waveStatus(c *protocol.Call) error {
	w, err := a.wave(c)
	if err != nil {
		return err
	}
	var (
		matching  map[meta.RegionName]int
		live      []meta.WaveProgress
		unreached []meta.NodeID
		left      []meta.NodeID
	)
	if a.Waves != nil && w.Ended == 0 {
		matching = a.Waves.Matching(&w)
		live, unreached = a.Waves.Progress(c.R.Context(), w.ID)
		left = a.Waves.LeftOut(&w)
	}
	s := statusOf(w, matching, live, time.Now())
	s.Unreached = unreached
	s.LeftOut, s.LeftOutHosts = left[:min(len(left), client.MaxLeftOut)], len(left)
	return protocol.WriteJSON(c.W, http.StatusOK, s)
}

// statusOf puts together what the metadata counts, the roster has and the servers
// heard. Of a wave that is over the last two are nil: hosts then are those that took
// part, and those that had not come to their end count as lost.
func statusOf(w meta.Wave, matching map[meta.RegionName]int, live []meta.WaveProgress, now time.Time) client.WaveStatus {
	s := client.WaveStatus{Wave: w, Regions: []client.WaveRegion{}}
	counted := map[meta.RegionName]meta.WaveRegion{}
	heard := map[meta.RegionName]meta.WaveProgress{}
	names := map[meta.RegionName]bool{}
	var done, hostBytes int64
	for _, r := range w.Regions {
		counted[r.Region], names[r.Region] = r, true
		done += int64(r.Done)
	}
	for _, p := range live {
		heard[p.Region], names[p.Region] = p, true
		hostBytes = max(hostBytes, p.HostBytes)
	}
	for region := range matching {
		names[region] = true
	}
	if total := w.Total(); hostBytes == 0 && done > 0 {
		hostBytes = total.Bytes / done
	}
	elapsed := 0.0
	if w.Started != 0 {
		end := now
		if w.Finished != 0 {
			end = w.Finished.Std()
		}
		elapsed = end.Sub(w.Started.Std()).Seconds()
	}
	for _, region := range slices.Sorted(maps.Keys(names)) {
		m, p := counted[region], heard[region]
		h := client.WaveHosts{
			Fetching: int(m.Fetching), Done: int(m.Done), Skipped: int(m.Skipped), Failed: int(m.Failed), Lost: int(m.Lost),
		}
		if w.Ended != 0 {
			h.Lost, h.Fetching = h.Lost+h.Fetching, 0
		}
		took := h.Fetching + h.Done + h.Skipped + h.Failed + h.Lost
		// Hosts that took part may have left the roster since.
		h.Targeted = max(matching[region], took)
		h.Waiting = h.Targeted - took
		h.Silent = max(h.Waiting-int(p.Waiting), 0) + max(h.Fetching-int(p.Fetching), 0)
		if w.Ended != 0 || w.State == meta.WavePlanned {
			h.Silent = 0 // Nobody has anything to say.
		}
		r := client.WaveRegion{Region: region, Hosts: h, Bytes: m.Bytes + p.Bytes}
		r.TotalBytes = max(hostBytes*int64(h.Targeted-h.Skipped-h.Failed), r.Bytes)
		r.BytesPerSec, r.EtaSeconds = rate(r.Bytes, r.TotalBytes, elapsed)
		s.Regions = append(s.Regions, r)
		s.Hosts.Targeted += h.Targeted
		s.Hosts.Waiting += h.Waiting
		s.Hosts.Fetching += h.Fetching
		s.Hosts.Done += h.Done
		s.Hosts.Skipped += h.Skipped
		s.Hosts.Failed += h.Failed
		s.Hosts.Lost += h.Lost
		s.Hosts.Silent += h.Silent
		s.Bytes += r.Bytes
		s.TotalBytes += r.TotalBytes
	}
	s.BytesPerSec, s.EtaSeconds = rate(s.Bytes, s.TotalBytes, elapsed)
	return s
}

// rate returns bytes a second, and how many seconds the rest takes at that; -1 when
// nobody can say.
func rate(bytes, total int64, elapsed float64) (perSec, eta float64) {
	if elapsed <= 0 || bytes == 0 {
		return 0, -1
	}
	perSec = float64(bytes) / elapsed
	return perSec, math.Ceil(float64(total-bytes) / perSec)
}

func (a *API) waveHosts(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	w, err := a.wave(c)
	if err != nil {
		return err
	}
	query := c.R.URL.Query()
	only := meta.HostState(query.Get("state"))
	if only != "" && new(meta.WaveRegion).Count(only) == nil {
		return fmt.Errorf("hosts that are %q are not listed, use fetching, done, skipped, failed or lost: %w", only, meta.ErrInvalid)
	}
	hosts, err := ask(a, c, state.ListWaveHosts{
		Wave: w.ID, State: only, Region: meta.RegionName(query.Get("region")), Page: p,
	})
	if err != nil {
		return err
	}
	return writePage(c, p, hosts, func(h meta.WaveHost) string { return string(h.Node) })
}

func (a *API) cancelWave(c *protocol.Call) error {
	w, err := a.wave(c)
	if err != nil {
		return err
	}
	for _, ref := range w.Refs {
		if a.operates(c) {
			break // also when a repository is gone
		}
		if _, err := a.writable(c, ref.Repo); err != nil {
			return err
		}
	}
	reason := c.R.URL.Query().Get("reason")
	if reason == "" {
		reason = "by " + c.Who.Name
	}
	value, err := a.do(c, 0, state.CancelWave{ID: w.ID, Reason: reason})
	if err != nil {
		return err
	}
	return reply[meta.Wave](c, http.StatusOK, value)
}
