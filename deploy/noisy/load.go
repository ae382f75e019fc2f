package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	publishBytes = 64 << 10
	pullBytes    = 256 << 10
	// maxUnderWay bounds the calls of each kind that wait for an answer; what comes due
	// beyond is given up, as real clients have an end.
	maxUnderWay = 128
	// callTimeout is longer than any call is kept waiting.
	callTimeout = 30 * time.Second
)

// kindsOfCalls are the kinds of calls, in the order of the table.
var kindsOfCalls = []string{"publish at the server", "pull at the server", "pull at the agent"}

// rates are calls a second; pulls are at the server and at the agent each.
type rates struct{ Publishes, Pulls float64 }

// client is the clients of a tenant.
type client struct{ Server, Agent, Token, Tenant string }

// order is what the process of the noisy clients is to do.
type order struct {
	Client client
	Rates  rates
	For    time.Duration
}

// counts are what came of calls.
type counts struct{ Served, Refused, Failed, Dropped int }

func (c *counts) add(n counts) {
	c.Served, c.Refused, c.Failed, c.Dropped = c.Served+n.Served, c.Refused+n.Refused, c.Failed+n.Failed, c.Dropped+n.Dropped
}

type result struct {
	kind    string
	took    time.Duration
	status  int
	dropped bool
	err     error
}

// generate is the process of the noisy clients: it prints its counts.
func generate(ctx context.Context, spec string) error {
	var o order
	if err := json.Unmarshal([]byte(spec), &o); err != nil {
		return err
	}
	var n counts
	o.Client.work(ctx, o.Rates, o.For, 0, func(r result) {
		switch {
		case r.dropped:
			n.Dropped++
		case r.status == http.StatusTooManyRequests:
			n.Refused++
		case r.err == nil && r.status < 300:
			n.Served++
		default:
			n.Failed++
		}
	})
	return json.NewEncoder(os.Stdout).Encode(n)
}

var pool = &http.Client{Timeout: callTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute}}

func (c client) call(ctx context.Context, method, url string, body []byte) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.SetBasicAuth("noisy", c.Token)
	response, err := pool.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

func (c client) files(base string) string { return base + "/generic/" + c.Tenant + "/files/" }

// prepare publishes what is pulled, and pulls it once everywhere.
func (c client) prepare(ctx context.Context) error {
	if status, err := c.call(ctx, http.MethodPut, c.files(c.Server)+"pulled", randomBytes(pullBytes)); err != nil || status != http.StatusCreated {
		return fmt.Errorf("publish: status %d: %w", status, err)
	}
	for _, base := range []string{c.Server, c.Agent} {
		if status, err := c.call(ctx, http.MethodGet, c.files(base)+"pulled", nil); err != nil || status != http.StatusOK {
			return fmt.Errorf("pull at %s: status %d: %w", base, status, err)
		}
	}
	return nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// work calls at even intervals, whatever the answers, for so long, and says what came of
// those that began after skip. say is called by one goroutine at a time.
func (c client) work(ctx context.Context, at rates, length, skip time.Duration, say func(result)) {
	var saying sync.Mutex
	var all sync.WaitGroup
	run := func(kind string, perSecond float64, call func() (int, error)) {
		all.Go(func() {
			var under sync.WaitGroup
			defer under.Wait()
			slots := make(chan struct{}, maxUnderWay)
			began := time.Now()
			for i := 0; ; i++ {
				due := began.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
				if due.Sub(began) >= length || ctx.Err() != nil {
					return
				}
				time.Sleep(time.Until(due))
				tell := func(r result) {
					if due.Sub(began) >= skip {
						saying.Lock()
						defer saying.Unlock()
						say(r)
					}
				}
				select {
				case slots <- struct{}{}:
				default:
					tell(result{kind: kind, dropped: true})
					continue
				}
				under.Go(func() {
					defer func() { <-slots }()
					started := time.Now()
					status, err := call()
					tell(result{kind: kind, took: time.Since(started), status: status, err: err})
				})
			}
		})
	}
	body := randomBytes(publishBytes)
	run(kindsOfCalls[0], at.Publishes, func() (int, error) {
		mine := append(randomBytes(16), body[16:]...) // no two are the same
		return c.call(ctx, http.MethodPut, fmt.Sprintf("%spublished/%x", c.files(c.Server), mine[:16]), mine)
	})
	for i, base := range []string{c.Server, c.Agent} {
		run(kindsOfCalls[1+i], at.Pulls, func() (int, error) {
			return c.call(ctx, http.MethodGet, c.files(base)+"pulled", nil)
		})
	}
	all.Wait()
}
