package catalogtest

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"
)

// patience bounds what would hang for ever if it was wrong.
const patience = 2 * time.Minute

// Dawdle checks that a client who sends slowly holds nothing that others wait for. It sends
// a request to the path with the first part of a body, and when the node reads that, takes
// all of the budget for documents in flight and gives it back. Then it sends the rest, and
// returns the answer's status.
func (s *Stack) Dawdle(t testing.TB, method, path, first, rest string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	body, send := io.Pipe()
	reads := make(chan struct{})
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: func() { close(reads) }})
	req, err := http.NewRequestWithContext(traced, method, s.URL+path, body)
	fatal(t, err)
	req.Header.Set("Expect", "100-continue")
	transport := &http.Transport{ExpectContinueTimeout: patience}
	defer transport.CloseIdleConnections()
	status := make(chan int, 1)
	go func() {
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			status <- 0
			return
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode >= 300 {
			t.Logf("%s %s: %s %s, %v", method, path, resp.Status, b, err)
		}
		status <- resp.StatusCode
	}()
	select {
	case <-reads:
	case early := <-status:
		t.Fatalf("%s %s is answered %d before its body is read", method, path, early)
	}
	if _, err := io.WriteString(send, first); err != nil {
		t.Fatal(err)
	}
	release, err := s.Catalog.Reserve(ctx, math.MaxInt64)
	if err != nil {
		t.Errorf("%s %s: who sends slowly holds the memory of all: %v", method, path, err)
		cancel()
	} else {
		release()
	}
	_, err = io.WriteString(send, rest)
	if err := errors.Join(err, send.Close()); err != nil {
		t.Errorf("send the rest: %v", err)
	}
	return <-status
}
