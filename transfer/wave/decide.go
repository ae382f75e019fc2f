package wave

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Timing of hosts and desks.
const (
	// hold is how long a server holds the answer to a host that waits.
	hold = 20 * time.Second
	// paceFirst and paceMost bound how often a host that fetches is heard; between
	// them it is so that a server hears pacePerSec hosts a second.
	paceFirst  = 2 * time.Second
	paceMost   = 15 * time.Second
	pacePerSec = 300
	// renewAfter is how old a lease gets before it is renewed: a host is heard three
	// times before it ends.
	renewAfter = meta.WaveLease / 4
	// probeEvery is how often hosts are brought before the arbiter of a wave that is
	// full: it takes back leases that have ended.
	probeEvery = 5 * time.Second
	// quiet is how long a host is counted that was not heard from.
	quiet = 30 * time.Second
	// commandHosts and commandBytes bound what one command carries.
	commandHosts = 500
	commandBytes = 40 << 10
)

// room returns how many of the hosts that wait to bring before the arbiter now. probe
// says that it is time to ask though the wave is full.
func room(w *meta.Wave, waiting int, now meta.Time, probe bool) int {
	if !w.Admits(now) {
		return 0
	}
	n := min(waiting, commandHosts)
	if w.MaxParallel == 0 {
		return n
	}
	total := w.Total()
	if total.Fetching < w.MaxParallel {
		return min(n, int(w.MaxParallel-total.Fetching))
	}
	if probe {
		return min(n, 1)
	}
	return 0
}

// fits returns how many of the words go into one command.
func fits(words []meta.WaveHost) int {
	bytes := 0
	for i, h := range words {
		if bytes += len(h.Node) + len(h.Reason) + 32; i == commandHosts || bytes > commandBytes {
			return i
		}
	}
	return len(words)
}

// maxHostBytes bounds what a host may say that it holds, so that sums stay sums.
const maxHostBytes = 1 << 44

// check checks what a host says of its part in a wave: it goes into one command with
// the word of others, which would be refused with it.
func check(p meta.WavePart) error {
	known := p.State == "" || p.State == meta.HostWaiting || p.State == meta.HostFetching || p.State.Settled()
	sizes := p.Bytes >= 0 && p.Bytes <= maxHostBytes && p.TotalBytes >= 0 && p.TotalBytes <= maxHostBytes
	if !known || !sizes || len(p.Reason) > meta.MaxWaveReason || !utf8.ValidString(p.Reason) {
		return fmt.Errorf("wave %q: state %.32q, %d of %d bytes and a reason of %d bytes are no word of a host: %w",
			p.Wave, p.State, p.Bytes, p.TotalBytes, len(p.Reason), meta.ErrInvalid)
	}
	return nil
}

// pace returns after how long a host that fetches is to be heard again, when a server
// hears so many.
func pace(hosts int) time.Duration {
	return min(max(time.Duration(hosts)*time.Second/pacePerSec, paceFirst), paceMost)
}

// allSettled reports whether all of the hosts that are due have settled, of which
// took are those that have.
func allSettled(due map[meta.NodeID]bool, took []meta.WaveHost) bool {
	left := len(due)
	for _, h := range took {
		if due[h.Node] && h.State.Settled() {
			left--
		}
	}
	return left == 0
}

// action is what a host does about a wave.
type action uint8

const (
	rest  action = iota // nothing
	begin               // fetch
	renew               // go on fetching, with the lease of the order
	stop                // what it fetches; it has to wait
	take                // over the state that the metadata has: it is final
)

// next says what a host does whose state is mine when the metadata says recorded. A
// host without a state of its own has just heard of the wave, or was restarted.
func next(mine, recorded meta.HostState) action {
	switch {
	case recorded.Settled():
		return take
	case mine.Settled():
		return rest // its word is on its way
	case recorded == meta.HostFetching && mine == meta.HostFetching:
		return renew
	case recorded == meta.HostFetching:
		return begin
	case mine == meta.HostFetching:
		return stop
	}
	return rest
}

// transient reports whether trying again may help.
func transient(err error) bool {
	return errors.Is(err, meta.ErrUnavailable) && !errors.Is(err, meta.ErrNoSpace)
}
