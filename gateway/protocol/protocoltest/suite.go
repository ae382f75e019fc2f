// Package protocoltest is the suite that every protocol runs through its real
// HTTP handlers, behind a real gateway on a port of its own: that the gate
// stands before each route, that refusals have the protocol's own form and
// betray nothing, that HEAD, conditions and ranges hold.
//
// Start at Run. Toy is the smallest protocol that passes, Records the metadata
// that the gate needs, in memory. Goroutines end with the test.
package protocoltest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Request is one request of a Case; the path begins with a slash.
type Request struct {
	Method, Path string
	Header       http.Header
	Body         []byte
}

func (r Request) String() string { return r.Method + " " + r.Path }

// Case is a protocol with some content.
type Case struct {
	Protocol protocol.Protocol
	// Metadata knows the repositories; it must be what the protocol's content is in.
	Metadata access.Metadata
	// Repo is an existing private repository of the protocol's format, with content;
	// Absent is one of the same length that does not exist.
	Repo, Absent meta.RepoRef
	// Reads are requests (GET) in Repo that answer 200 to who may read it.
	Reads []Request
	// Writes are requests in Repo that need the right to write. Their bodies need
	// not be good: the gate answers before them.
	Writes []Request
	// CheckError says what is wrong with the form of a refusal. It is not asked
	// about HEAD.
	CheckError func(status int, h http.Header, body []byte) error
}

// Gateway is a running gateway with a few callers' tokens.
type Gateway struct {
	URL                              string
	Reader, Writer, Stranger, Nobody string
	client                           *http.Client
}

// Start runs a gateway of one server for a protocol until the test ends. reader
// and writer may read ref, writer also write it, the stranger neither; nobody is
// an anonymous caller's token.
func Start(t testing.TB, p protocol.Protocol, records access.Metadata, ref meta.RepoRef) *Gateway {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	may := func(actions ...access.Action) []meta.Right { return []meta.Right{{Actions: actions, Repository: "*"}} }
	gate, err := access.New(access.Config{
		Self: "server", Key: private, Metadata: callers{records, map[string][]meta.Right{
			"user:reader":   may(access.Pull, access.List),
			"user:writer":   may(access.Pull, access.List, access.Push, access.Delete),
			"user:stranger": nil,
		}},
		KeyOf: func(id meta.NodeID) (ed25519.PublicKey, error) { return public, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	gw, err := gateway.New(gateway.Config{
		Self: "server", Role: meta.RoleServer, Listen: "127.0.0.1:0", Protocols: []protocol.Protocol{p},
		Gate: gate, Repositories: records, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- gw.Run(ctx) }()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("gateway: %v", err)
		}
	})
	token := func(name string, actions ...string) string {
		who := meta.Principal{Name: name, Rights: may(access.Pull, access.Push, access.Delete)}
		if name != meta.Anonymous.Name {
			who.Token = credentialID
		}
		issued, err := gate.Issue(t.Context(), who, []access.Scope{{Type: "repository", Name: ref.String(), Actions: actions}})
		if err != nil {
			t.Fatal(err)
		}
		return issued.Text
	}
	return &Gateway{
		URL:      "http://" + gw.Addr().String(),
		Reader:   token("user:reader", "pull"),
		Writer:   token("user:writer", "pull", "push", "delete"),
		Stranger: token("user:stranger"),
		Nobody:   token(meta.Anonymous.Name, "pull"),
		client: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// credentialID is the id of the credential that all callers have.
const credentialID = "aaaaaaaaaaaaaaaa"

// callers is a Metadata that knows some principals besides.
type callers struct {
	access.Metadata
	rights map[string][]meta.Right
}

func (c callers) Caller(ctx context.Context, q state.GetCaller, f meta.Freshness) (state.Caller, error) {
	if rights, ok := c.rights[q.Principal]; ok && q.Credential == credentialID {
		of := &meta.Credential{ID: credentialID, Principal: q.Principal, Expires: meta.TimeOf(time.Now().Add(time.Hour))}
		return state.Caller{Principal: q.Principal, Rights: rights, Credential: of}, nil
	}
	return c.Metadata.Caller(ctx, q, f)
}

// Do sends a request with a token, "" for none, and reads the answer.
func (g *Gateway) Do(t testing.TB, r Request, token string) (status int, h http.Header, body []byte) {
	t.Helper()
	req, err := http.NewRequest(r.Method, g.URL+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range r.Header {
		req.Header[name] = values
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", r, err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatalf("%s: read the answer: %v", r, err)
	}
	return resp.StatusCode, resp.Header, body
}

// Run runs the suite.
func Run(t *testing.T, c Case) {
	if len(c.Reads) == 0 || len(c.Writes) == 0 || c.CheckError == nil {
		t.Fatal("a case has reads, writes and a check of errors")
	}
	g := Start(t, c.Protocol, c.Metadata, c.Repo)
	s := suite{Case: c, g: g}
	t.Run("table", s.table)
	t.Run("challenge", s.challenge)
	t.Run("absent looks forbidden", s.absentLooksForbidden)
	t.Run("write needs the right", s.writeNeedsRight)
	t.Run("head equals get", s.headEqualsGet)
	t.Run("conditions", s.conditions)
	t.Run("ranges", s.ranges)
	t.Run("unknown paths and methods", s.unknown)
}

type suite struct {
	Case
	g *Gateway
}

// refused checks status and form of a refusal.
func (s *suite) refused(t *testing.T, r Request, token string, want int) (http.Header, []byte) {
	t.Helper()
	status, h, body := s.g.Do(t, r, token)
	if status != want {
		t.Errorf("%s: %d %q, want %d", r, status, body, want)
		return h, body
	}
	if r.Method != http.MethodHead {
		if err := s.CheckError(status, h, body); err != nil {
			t.Errorf("%s: the form of %d is not the protocol's: %v", r, status, err)
		}
	}
	if cache := h.Get("Cache-Control"); !strings.Contains(cache, "no-store") {
		t.Errorf("%s: a refusal may be cached: %q", r, cache)
	}
	return h, body
}

func (s *suite) requests() []Request { return append(slices.Clone(s.Reads), s.Writes...) }

// table checks what the declaration promises beyond what NewRouter asks.
func (s *suite) table(t *testing.T) {
	for _, r := range s.Protocol.Routes() {
		write := slices.Contains([]access.Action{
			access.Push, access.Delete, access.Promote, access.Curate, access.Manage, access.Respond, access.Operate, access.Admin,
		}, r.Action)
		if r.Method == http.MethodGet && r.Action == access.Delete {
			t.Errorf("%s: a GET that deletes", r.Name)
		}
		if (r.Method == http.MethodPut || r.Method == http.MethodPatch || r.Method == http.MethodDelete) && !write {
			t.Errorf("%s: %s with action %s", r.Name, r.Method, r.Action)
		}
	}
}

func (s *suite) challenge(t *testing.T) {
	for _, r := range s.requests() {
		for name, token := range map[string]string{"no token": "", "a bad token": "wrong", "an anonymous token": s.g.Nobody} {
			t.Run(name, func(t *testing.T) {
				h, _ := s.refused(t, r, token, http.StatusUnauthorized)
				if h.Get("WWW-Authenticate") == "" {
					t.Errorf("%s: a challenge without WWW-Authenticate", r)
				}
			})
		}
	}
}

// absentLooksForbidden compares the answers about a private repository and one
// that is not there, for a caller without rights, but for what names it.
func (s *suite) absentLooksForbidden(t *testing.T) {
	for _, r := range s.requests() {
		for _, token := range []string{s.g.Stranger, ""} {
			want := http.StatusNotFound
			if token == "" {
				want = http.StatusUnauthorized
			}
			there := s.outsideView(t, r, token, want)
			moved := r
			moved.Path = strings.Replace(r.Path, "/"+s.Repo.String(), "/"+s.Absent.String(), 1)
			if moved.Path == r.Path {
				t.Fatalf("%s is not in repository %s", r, s.Repo)
			}
			gone := strings.ReplaceAll(s.outsideView(t, moved, token, want), s.Absent.String(), s.Repo.String())
			if there != gone {
				t.Errorf("%s tells forbidden from absent:\n%s\n%s", r, there, gone)
			}
		}
	}
}

// outsideView is an answer as a text, without what differs for each answer.
func (s *suite) outsideView(t *testing.T, r Request, token string, want int) string {
	t.Helper()
	h, body := s.refused(t, r, token, want)
	h = h.Clone()
	h.Del("Date")
	h.Del(protocol.HeaderRequestID)
	var lines []string
	for name, values := range h {
		lines = append(lines, name+": "+strings.Join(values, ", "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n" + string(body)
}

func (s *suite) writeNeedsRight(t *testing.T) {
	for _, r := range s.Writes {
		s.refused(t, r, s.g.Reader, http.StatusForbidden)
		s.refused(t, r, s.g.Stranger, http.StatusNotFound)
	}
}

func (s *suite) get(t *testing.T, r Request) (http.Header, []byte) {
	t.Helper()
	status, h, body := s.g.Do(t, r, s.g.Reader)
	if status != http.StatusOK {
		t.Fatalf("%s: %d %q, want 200", r, status, body)
	}
	return h, body
}

func (s *suite) headEqualsGet(t *testing.T) {
	for _, r := range s.Reads {
		want, body := s.get(t, r)
		if want.Get(protocol.HeaderIndex) == "" || want.Get(protocol.HeaderMode) == "" {
			t.Errorf("%s does not say what it is (Shoal-Index, Shoal-Mode)", r)
		}
		if length := want.Get("Content-Length"); length != fmt.Sprint(len(body)) {
			t.Errorf("%s: Content-Length %q of %d bytes", r, length, len(body))
		}
		head := r
		head.Method = http.MethodHead
		status, got, none := s.g.Do(t, head, s.g.Reader)
		if status != http.StatusOK || len(none) != 0 {
			t.Errorf("%s: %d with %d bytes", head, status, len(none))
		}
		for _, volatile := range []string{"Date", protocol.HeaderRequestID, protocol.HeaderIndex, protocol.HeaderAge} {
			want.Del(volatile)
			got.Del(volatile)
		}
		for name := range want {
			if strings.Join(want[name], "|") != strings.Join(got[name], "|") {
				t.Errorf("%s: %s is %q, of GET %q", head, name, got[name], want[name])
			}
		}
	}
}

func (s *suite) conditions(t *testing.T) {
	tagged := 0
	for _, r := range s.Reads {
		h, _ := s.get(t, r)
		tag := h.Get("Etag")
		if tag == "" {
			continue
		}
		tagged++
		for header, want := range map[string]int{"If-None-Match": http.StatusNotModified, "If-Match": http.StatusOK} {
			conditional := r
			conditional.Header = r.Header.Clone()
			if conditional.Header == nil {
				conditional.Header = http.Header{}
			}
			conditional.Header.Set(header, tag)
			status, again, body := s.g.Do(t, conditional, s.g.Reader)
			if status != want || want == http.StatusNotModified && len(body) > 0 {
				t.Errorf("%s with %s: %d with %d bytes, want %d", r, header, status, len(body), want)
			}
			if again.Get("Etag") != tag {
				t.Errorf("%s with %s: the ETag is %q, was %q", r, header, again.Get("Etag"), tag)
			}
		}
	}
	if tagged == 0 {
		t.Error("no read has an ETag")
	}
}

func (s *suite) ranges(t *testing.T) {
	for _, r := range s.Reads {
		h, body := s.get(t, r)
		if h.Get("Accept-Ranges") != "bytes" || len(body) == 0 {
			continue
		}
		part := r
		part.Header = r.Header.Clone()
		if part.Header == nil {
			part.Header = http.Header{}
		}
		part.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(body)-1))
		status, got, last := s.g.Do(t, part, s.g.Reader)
		want := fmt.Sprintf("bytes %d-%d/%d", len(body)-1, len(body)-1, len(body))
		if status != http.StatusPartialContent || !bytes.Equal(last, body[len(body)-1:]) || got.Get("Content-Range") != want {
			t.Errorf("%s, last byte: %d %q %q", r, status, last, got.Get("Content-Range"))
		}
		part.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(body)))
		s.refused(t, part, s.g.Reader, http.StatusRequestedRangeNotSatisfiable)
	}
}

func (s *suite) unknown(t *testing.T) {
	prefix, _, _ := strings.Cut(s.Reads[0].Path[1:], "/")
	s.refused(t, Request{Method: http.MethodGet, Path: "/" + prefix + "/%2e%2e/x"}, s.g.Reader, http.StatusNotFound)
	for _, r := range s.Reads {
		r.Method = "BREW"
		h, _ := s.refused(t, r, s.g.Reader, http.StatusMethodNotAllowed)
		if allow := h.Get("Allow"); !strings.Contains(allow, http.MethodGet) || !strings.Contains(allow, http.MethodHead) {
			t.Errorf("%s: Allow is %q", r, allow)
		}
	}
	// A wrapped error keeps its kind through WriteError.
	for _, err := range []error{meta.ErrUnavailable, errors.New("an internal secret")} {
		w := &recorder{header: http.Header{}}
		req, _ := http.NewRequest(http.MethodGet, s.Reads[0].Path, nil)
		s.Protocol.WriteError(w, req, fmt.Errorf("do it: %w", err))
		if w.status < 500 || strings.Contains(w.body.String(), "secret") {
			t.Errorf("%v is written as %d %q", err, w.status, w.body.String())
		}
		if errors.Is(err, meta.ErrUnavailable) && (w.status != http.StatusServiceUnavailable || w.header.Get("Retry-After") == "") {
			t.Errorf("unavailable is %d with Retry-After %q", w.status, w.header.Get("Retry-After"))
		}
	}
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
func (r *recorder) WriteHeader(status int)      { r.status = status }
