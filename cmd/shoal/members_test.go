package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A leader that is drained hands over, so the cluster may be without one for a moment
// while --wait asks. One that has not answered yet may not be there at all.
func TestWaitingOutlivesAnElection(t *testing.T) {
	away := &client.Error{Status: http.StatusServiceUnavailable, Kind: "unavailable", Message: "no_quorum"}
	poll := func(t *testing.T, answers ...error) (asked int, err error) {
		synctest.Test(t, func(t *testing.T) {
			err = poll(t.Context(), io.Discard, func() (bool, string, error) {
				asked++
				return asked == len(answers), "", answers[asked-1]
			})
		})
		return asked, err
	}
	if asked, err := poll(t, nil, away, fmt.Errorf("ask again: %w", away), nil, away, nil); asked != 6 || err != nil {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if asked, err := poll(t, away, nil); asked != 1 || !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if asked, err := poll(t, nil, meta.ErrDenied, nil); asked != 2 || !errors.Is(err, meta.ErrDenied) {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// What remains is only for words, and the answer to the removal may be lost.
func TestRemovingAServerOutlivesAnElection(t *testing.T) {
	var removals atomic.Int32
	cluster := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		say := func(status int, kind string) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error":{"kind":%q,"message":"at %s"}}`, kind, r.URL.Path)
		}
		if r.Method != http.MethodDelete {
			say(http.StatusServiceUnavailable, "unavailable")
			return
		}
		switch removals.Add(1) {
		case 1:
			say(http.StatusConflict, "conflict")
		case 2:
			say(http.StatusServiceUnavailable, "unavailable")
		default:
			say(http.StatusNotFound, "not_found")
		}
	}))
	defer cluster.Close()
	if err := run(strings.Fields("server remove n1 --wait --server " + cluster.URL + " --auth t")...); err != nil || removals.Load() != 3 {
		t.Errorf("after %d removals: %v", removals.Load(), err)
	}
	if err := run(strings.Fields("server remove n1 --wait --server " + cluster.URL + " --auth t")...); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("one that never was there: %v", err)
	}
}
