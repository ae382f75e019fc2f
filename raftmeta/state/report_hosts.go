package state

import (
	"fmt"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReportHosts is the word of hosts that were admitted to a wave; of each it reads
// Node, State, Bytes and Reason. Fetching renews a lease; done, skipped and failed
// are final, what comes later or of hosts that were never admitted is passed over.
// When more hosts have failed than the wave allows it is aborted.
//
// Errors: meta.ErrNotFound.
type ReportHosts struct {
	Wave  string          `cbor:"1,keyasint,omitempty"`
	Hosts []meta.WaveHost `cbor:"2,keyasint,omitempty"` // 1 to 500
}

// maxWaveFailures is how many failures a wave's record names.
const maxWaveFailures = 10

// Type implements Command.
func (ReportHosts) Type() uint16 { return typeReportHosts }

// Check implements Command.
func (c ReportHosts) Check() error {
	if n := len(c.Hosts); n == 0 || n > MaxWaveHosts {
		return fmt.Errorf("report of %d hosts, use 1 to %d: %w", n, MaxWaveHosts, meta.ErrInvalid)
	}
	for _, h := range c.Hosts {
		switch {
		case h.Node == "" || len(h.Node) > maxNodeBytes:
			return fmt.Errorf("reported host %q: an id has 1 to %d bytes: %w", h.Node, maxNodeBytes, meta.ErrInvalid)
		case h.State != meta.HostFetching && !h.State.Settled():
			return fmt.Errorf("reported host %s: state %q: %w", h.Node, h.State, meta.ErrInvalid)
		case h.Bytes < 0:
			return fmt.Errorf("reported host %s: %d bytes: %w", h.Node, h.Bytes, meta.ErrInvalid)
		case len(h.Reason) > meta.MaxWaveReason || !utf8.ValidString(h.Reason):
			return fmt.Errorf("reported host %s: a reason is UTF-8 of at most %d bytes: %w", h.Node, meta.MaxWaveReason, meta.ErrInvalid)
		}
	}
	return meta.CheckWaveID(c.Wave)
}

func (c ReportHosts) apply(t *tx) (any, error) {
	w, err := findWave(t, c.Wave)
	if err != nil {
		return nil, err
	}
	for _, report := range c.Hosts {
		if err := t.reportHost(w, report); err != nil {
			return nil, err
		}
	}
	if w.State == meta.WaveRunning && tooManyFailed(w) {
		total := w.Total()
		reason := fmt.Sprintf("%d of %d hosts failed, it was to stop above %s; first: %s",
			total.Failed, max(w.Expected, total.Took()), w.Abort, w.Failures[0].Reason)
		t.endWave(w, meta.WaveAborted, cut(reason, meta.MaxWaveReason))
	}
	t.putWave(w)
	return nil, nil
}

func (t *tx) reportHost(w *meta.Wave, report meta.WaveHost) error {
	h, err := load[meta.WaveHost](t, keyWaveHosts(w.ID).last(string(report.Node)))
	if err != nil || h == nil {
		return err
	}
	switch h.State {
	case meta.HostFetching:
	case meta.HostLost:
		if report.State == meta.HostFetching {
			return nil // Its slot is another's: it has to be admitted again.
		}
	default:
		return nil
	}
	if report.State.Settled() {
		h.Bytes, h.Reason = report.Bytes, report.Reason
	}
	t.moveHost(w, h, report.State)
	if report.State == meta.HostFailed && len(w.Failures) < maxWaveFailures {
		w.Failures = append(w.Failures, *h)
	}
	return nil
}

// tooManyFailed compares the failed hosts with the threshold: a share is of the
// hosts that were expected, or of those that came if they are more.
func tooManyFailed(w *meta.Wave) bool {
	if w.Abort == nil {
		return false
	}
	total := w.Total()
	if !w.Abort.Percent {
		return total.Failed > w.Abort.Above
	}
	return uint64(total.Failed)*100 > uint64(w.Abort.Above)*uint64(max(w.Expected, total.Took()))
}

// cut shortens s to at most n bytes, at a letter.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
