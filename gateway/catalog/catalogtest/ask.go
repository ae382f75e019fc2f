package catalogtest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// Answer is what the node said, read to its end.
type Answer struct {
	*http.Response
	Text string // the body
}

// Ask sends one request to the node, about a path with its query, and reads the answer.
// Headers are `Name: value`; body is nil for none. It follows no redirect.
func (s *Stack) Ask(t testing.TB, method, path string, body io.Reader, headers ...string) Answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	straight := *s.Client
	straight.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return answer(t, &straight, method+" "+path, req)
}

// answer sends req, which what names, and reads the answer.
func answer(t testing.TB, c *http.Client, what string, req *http.Request) Answer {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: read the answer: %v", what, err)
	}
	return Answer{resp, string(b)}
}

// Expect ends the test unless the answer has the status.
func (a Answer) Expect(t testing.TB, status int) Answer {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s answers %d %s, want %d", a.Request.Method, a.Request.URL, a.StatusCode, a.Text, status)
	}
	return a
}

// Race sends the requests that prepare makes of 0 to n-1 all at once: exactly one must be
// answered with the status won, and all others with lost. It returns which one won.
func Race(t testing.TB, n, won, lost int, prepare func(i int) func() Answer) (winner int) {
	t.Helper()
	requests, answers := make([]func() Answer, n), make([]Answer, n)
	for i := range requests {
		requests[i] = prepare(i)
	}
	var all sync.WaitGroup
	for i, ask := range requests {
		all.Go(func() { answers[i] = ask() })
	}
	all.Wait()
	winner = -1
	for i, a := range answers {
		switch {
		case a.Response == nil:
			t.Fatalf("request %d has no answer", i)
		case a.StatusCode == won && winner < 0:
			winner = i
		case a.StatusCode == won:
			t.Errorf("%d and %d were both acknowledged", winner, i)
		case a.StatusCode != lost:
			t.Errorf("request %d is answered %d %s, want %d", i, a.StatusCode, a.Text, lost)
		}
	}
	if winner < 0 {
		t.Fatalf("none of %d was acknowledged", n)
	}
	return winner
}
