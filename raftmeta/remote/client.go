package remote

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Client asks servers. It stays with the first of its servers that answers, turns
// to the next when one fails, and comes back to a failed one after a while.
type Client struct {
	config Config

	mu      sync.Mutex
	servers map[string]*server
}

// Config of a Client.
type Config struct {
	// HTTP carries the node's certificate and trust root; its transport bounds
	// dialling. It must not have a Timeout, which would cut the feed.
	HTTP *http.Client
	// Servers returns the base URLs to ask, `https://host:port`, best first:
	// raftmeta.Roster.Gateways, then where the node joined.
	Servers func() []string
	// Timeout bounds one try with one server; 0 is 2.5 s. A strong read has 2 s
	// more, which a server may take for its round.
	Timeout time.Duration
	// Silent is told of a server that let a question wait so long that the next was
	// asked, or would have been; nil is not told. It must not block.
	Silent func(url string)
}

const (
	defaultTimeout = 2500 * time.Millisecond
	strongRound    = 2 * time.Second
	// hedgeAfter is how long a server may be silent before the next is asked, too.
	hedgeAfter = 400 * time.Millisecond
	// hedgeStrong is the same of a strong read, which takes a round among servers that
	// may be far apart.
	hedgeStrong = time.Second
	// A server that failed is asked last for a second, twice as long each time it
	// fails again, up to coolMax.
	coolMin = time.Second
	coolMax = 30 * time.Second
	// maxServers bounds how many servers one question tries.
	maxServers = 16
)

// server is one that was asked before.
type server struct {
	ask   *connect.Client[askRequest, askResponse]
	watch *connect.Client[watchRequest, watchFrame]
	sync  *connect.Client[syncRequest, syncResponse]
	head  *connect.Client[headRequest, headResponse]

	// Guarded by Client.mu.
	cool  time.Duration // how long the last failure put it behind
	until time.Time
}

// NewClient returns a Client.
func NewClient(c Config) *Client {
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	return &Client{config: c, servers: make(map[string]*server)}
}

var (
	_ raftmeta.Upstream = (*Client)(nil)
	_ raftmeta.Watcher  = (*Client)(nil)
)

// candidate is a server in the order of asking.
type candidate struct {
	url string
	*server
}

// candidates returns the servers to ask, best first, those that failed lately last.
func (c *Client) candidates() []candidate {
	urls := c.config.Servers()
	urls = urls[:min(len(urls), maxServers)]
	c.mu.Lock()
	defer c.mu.Unlock()
	for url := range c.servers {
		if !slices.Contains(urls, url) {
			delete(c.servers, url)
		}
	}
	now := time.Now()
	var well, cooling []candidate
	for _, url := range urls {
		s := c.servers[url]
		if s == nil {
			options := clientOptions()
			s = &server{
				ask:   connect.NewClient[askRequest, askResponse](c.config.HTTP, url+askProcedure, options...),
				watch: connect.NewClient[watchRequest, watchFrame](c.config.HTTP, url+watchProcedure, options...),
				sync:  connect.NewClient[syncRequest, syncResponse](c.config.HTTP, url+syncProcedure, options...),
				head:  connect.NewClient[headRequest, headResponse](c.config.HTTP, url+headProcedure, options...),
			}
			c.servers[url] = s
		}
		if now.Before(s.until) {
			cooling = append(cooling, candidate{url, s})
		} else {
			well = append(well, candidate{url, s})
		}
	}
	return append(well, cooling...)
}

func clientOptions() []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithCodec(cborCodec{}),
		connect.WithReadMaxBytes(maxAnswerBytes),
		connect.WithSendMaxBytes(maxQuestionBytes),
	}
}

// report records how a try went.
func (c *Client) report(s *server, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		s.cool, s.until = 0, time.Time{}
		return
	}
	s.cool = min(max(2*s.cool, coolMin), coolMax)
	s.until = time.Now().Add(s.cool)
}

// noServer is the last word when no server could be asked.
func noServer(act string, tries []error) error {
	return fmt.Errorf("%s: %w", act, errors.Join(append([]error{
		&meta.UnavailableError{Reason: "no_server", RetryAfter: coolMin},
	}, tries...)...))
}

// Answer implements raftmeta.Asker. A server that has no quorum is not the last
// word while another may have one.
//
// Errors: of the question; *meta.UnavailableError, of which the reason is
// no_server when none could be reached.
func (c *Client) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	args, err := codec.Marshal(q.Args())
	if err != nil {
		return meta.AsOf{}, fmt.Errorf("%s: %w: %w", q.Name(), err, meta.ErrInvalid)
	}
	request := askRequest{Name: q.Name(), Args: args, Freshness: f}
	timeout := c.config.Timeout
	if f.Mode == meta.ModeStrong || f.Exact {
		timeout += strongRound // a bound that was named waits for a round too
	}
	// A silent server is asked last for a while, but the question at hand waits for it:
	// after hedgeAfter the next is asked beside it.
	wait := hedgeAfter
	if f.Mode == meta.ModeStrong {
		wait = hedgeStrong
	}
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		candidate
		response *askResponse
		err      error
	}
	left := c.candidates()
	outcomes := make(chan outcome, len(left)) // nobody waits to hand one in
	asked := make(map[candidate]time.Time)    // that have not answered yet
	defer func() {
		// Another was quicker by so much that it comes first for a while.
		for s, since := range asked {
			if ctx.Err() == nil && time.Since(since) >= wait {
				c.report(s.server, false)
			}
		}
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	var tries []error
	var unable error
	for len(left) > 0 || len(asked) > 0 {
		var o outcome
		select {
		case <-next.C:
			for s, since := range asked {
				if c.config.Silent != nil && time.Since(since) >= wait {
					c.config.Silent(s.url)
				}
			}
			if len(left) > 0 {
				s := left[0]
				left = left[1:]
				asked[s] = time.Now()
				go func() {
					response, err := call(trying, c, s, s.ask, &request, timeout)
					outcomes <- outcome{s, response, err}
				}()
				next.Reset(wait)
			}
			continue
		case o = <-outcomes:
			delete(asked, o.candidate)
		}
		if o.err != nil {
			if ctx.Err() != nil {
				return meta.AsOf{}, fmt.Errorf("ask %s: %w", q.Name(), context.Cause(ctx))
			}
			if connect.CodeOf(o.err) == connect.CodeInvalidArgument {
				return meta.AsOf{}, fmt.Errorf("ask %s of %s: %w: %w", q.Name(), o.url, o.err, meta.ErrInvalid)
			}
			tries = append(tries, fmt.Errorf("ask %s: %w", o.url, o.err))
			next.Reset(0)
			continue
		}
		if err := o.response.Failure.err(); err != nil {
			if errors.Is(err, meta.ErrUnavailable) {
				unable = err
				next.Reset(0)
				continue
			}
			return o.response.AsOf, err
		}
		if err := codec.Unmarshal(o.response.Answer, q.Into()); err != nil {
			return meta.AsOf{}, fmt.Errorf("answer of %s: %w: %w", o.url, err, meta.ErrCorrupt)
		}
		return o.response.AsOf, nil
	}
	if unable != nil {
		return meta.AsOf{}, unable
	}
	return meta.AsOf{}, noServer("ask "+q.Name(), tries)
}

// call makes one try with one server.
func call[Q, A any](ctx context.Context, c *Client, s candidate, with *connect.Client[Q, A], request *Q, timeout time.Duration) (*A, error) {
	try, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := with.CallUnary(try, connect.NewRequest(request))
	if err != nil {
		// A caller that went away says nothing of the server.
		if ctx.Err() == nil {
			c.report(s.server, connect.CodeOf(err) == connect.CodeUnimplemented) // of an older build
		}
		return nil, err
	}
	c.report(s.server, true)
	return response.Msg, nil
}

// Watch implements raftmeta.Watcher: it follows all changes.
func (c *Client) Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return c.Follow(ctx, after, feed.Filter{})
}

// Follow yields the changes after an index that pass f, and at least every second
// feed.KindProgress. It stays with one server until that fails; the reader calls
// it again to go on with the next.
//
// Errors: feed.ErrCompacted; *meta.UnavailableError; of ctx.
func (c *Client) Follow(ctx context.Context, after uint64, f feed.Filter) iter.Seq2[feed.Change, error] {
	return func(yield func(feed.Change, error) bool) {
		var tries []error
		for _, s := range c.candidates() {
			began, err := c.follow(ctx, s, &watchRequest{After: after, Filter: f}, yield)
			switch {
			case err == nil:
				return
			case ctx.Err() != nil:
				yield(feed.Change{}, fmt.Errorf("follow the feed: %w", context.Cause(ctx)))
				return
			case began:
				yield(feed.Change{}, fmt.Errorf("follow the feed of %s: %w", s.url, err))
				return
			}
			tries = append(tries, fmt.Errorf("follow the feed of %s: %w", s.url, err))
		}
		yield(feed.Change{}, noServer("follow the feed", tries))
	}
}

// follow reads one stream. A nil error says that the reader has stopped; began,
// that it got something, or the server's own word of refusal.
func (c *Client) follow(ctx context.Context, s candidate, request *watchRequest, yield func(feed.Change, error) bool) (began bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(c.config.Timeout, func() {
		cancel(fmt.Errorf("the server is silent: %w", meta.ErrUnavailable))
	})
	defer silent.Stop()
	fail := func(err error) (bool, error) {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		c.report(s.server, false)
		if !errors.Is(err, meta.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", err, meta.ErrUnavailable)
		}
		return began, err
	}
	stream, err := s.watch.CallServerStream(ctx, connect.NewRequest(request))
	if err != nil {
		return fail(err)
	}
	defer func() { _ = stream.Close() }() // The context ends it either way.
	for stream.Receive() {
		silent.Reset(silence)
		frame := stream.Msg()
		if err := frame.Failure.err(); err != nil {
			if errors.Is(err, meta.ErrUnavailable) {
				return fail(err)
			}
			return true, err
		}
		if !began {
			began = true
			c.report(s.server, true)
		}
		for _, change := range frame.Changes {
			if !yield(change, nil) {
				return true, nil
			}
		}
		if !yield(feed.Change{Kind: feed.KindProgress, Index: frame.Index}, nil) {
			return true, nil
		}
	}
	err = stream.Err()
	if err == nil {
		err = errors.New("the server ended the stream")
	}
	return fail(err)
}
