package credential

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Throttle slows who fails to log in: after a few failures of one source, or at one
// account, the next attempt has to wait, twice as long each time. Who has logged in to
// an account from a source lately does not wait for what others do at that account, so
// that nobody can lock people out of their own.
//
// It counts at one server. A source is an address as the gateway believes it, with the
// node that forwarded. All methods take the time; it is safe for concurrent use.
type Throttle struct {
	mu       sync.Mutex
	sources  *lru.Cache[string, *failures]
	accounts *lru.Cache[string, *failures]
	good     *lru.Cache[[2]string, time.Time] // until when it is
}

// failures of one source or account.
type failures struct {
	count int
	last  time.Time
	next  time.Time // not to be tried before
}

const (
	maxThrottled = 8192
	// So many failures are people's mistakes; sources may hide many people.
	freeOfAccount = 5
	freeOfSource  = 20
	// The wait doubles from firstWait to longestWait, and failures are forgotten
	// forgetAfter after the last.
	firstWait   = time.Second
	longestWait = time.Minute
	forgetAfter = 15 * time.Minute
	// A source that logged in is known at the account for so long.
	knownFor = 24 * time.Hour
)

// NewThrottle makes a Throttle.
func NewThrottle() *Throttle {
	must := func(err error) {
		if err != nil {
			panic(err) // only for a size that is not positive
		}
	}
	sources, err := lru.New[string, *failures](maxThrottled)
	must(err)
	accounts, err := lru.New[string, *failures](maxThrottled)
	must(err)
	good, err := lru.New[[2]string, time.Time](maxThrottled)
	must(err)
	return &Throttle{sources: sources, accounts: accounts, good: good}
}

// SlowError says that a login has to wait.
type SlowError struct {
	// RetryAfter is how long.
	RetryAfter time.Duration
}

func (e *SlowError) Error() string {
	return fmt.Sprintf("too many failed logins, try again in %v", e.RetryAfter.Round(time.Second))
}

// RetryIn tells clients when, see protocol.Fail.
func (e *SlowError) RetryIn() time.Duration { return e.RetryAfter }

// Unwrap returns meta.ErrOverQuota, which clients are told as too many requests.
func (e *SlowError) Unwrap() error { return meta.ErrOverQuota }

// Begin counts an attempt as failed, until Succeed says otherwise, and refuses it when
// it comes too soon: attempts that run side by side do not pass for one.
//
// Errors: *SlowError.
func (t *Throttle) Begin(now time.Time, source, account string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	of, at := entry(t.sources, source, now), entry(t.accounts, account, now)
	wait := of.next.Sub(now)
	until, known := t.good.Get([2]string{source, account})
	known = known && now.Before(until)
	if !known {
		wait = max(wait, at.next.Sub(now))
	}
	if wait > 0 {
		return &SlowError{RetryAfter: wait}
	}
	of.fail(now, freeOfSource)
	if !known {
		at.fail(now, freeOfAccount)
	}
	return nil
}

// Succeed takes back what Begin counted for an attempt that was right.
func (t *Throttle) Succeed(now time.Time, source, account string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accounts.Remove(account)
	// The source keeps its other failures: one right password buys no guesses at others'.
	if of, ok := t.sources.Get(source); ok {
		of.count, of.next = of.count-1, time.Time{}
		if of.count <= 0 {
			t.sources.Remove(source)
		}
	}
	t.good.Add([2]string{source, account}, now.Add(knownFor))
}

func entry(c *lru.Cache[string, *failures], name string, now time.Time) *failures {
	if f, ok := c.Get(name); ok && now.Sub(f.last) < forgetAfter {
		return f
	}
	f := &failures{last: now}
	c.Add(name, f)
	return f
}

func (f *failures) fail(now time.Time, free int) {
	f.count++
	f.last = now
	if over := f.count - free; over >= 0 {
		f.next = now.Add(min(firstWait<<min(over, 10), longestWait))
	}
}
