package catalogtest

import (
	"io"
	"net/http"
	"strings"
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
