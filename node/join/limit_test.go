package join

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func from(addr string) *http.Request { return &http.Request{RemoteAddr: addr} }

func TestLimit(t *testing.T) {
	held := 0
	l := NewLimit(func() { held++ })
	now := time.Now()
	enter := func(addr string) error {
		done, err := l.enter(from(addr), now)
		if err == nil {
			done()
		}
		return err
	}
	for i := range sourceBurst {
		if err := enter(fmt.Sprintf("192.0.2.1:%d", 1000+i)); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := enter("192.0.2.1:9999")
	u, ok := errors.AsType[*meta.UnavailableError](err)
	if !ok || u.RetryAfter < time.Second || held != 1 {
		t.Fatalf("a flood: %v, held %d", err, held)
	}
	if err := enter("192.0.2.2:1"); err != nil {
		t.Fatalf("another source: %v", err)
	}
	// An IPv6 site has as many addresses as it likes, and one bucket.
	for i := range sourceBurst {
		if err := enter(fmt.Sprintf("[2001:db8::%x]:1", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if enter("[2001:db8::ffff]:1") == nil {
		t.Fatal("another address of the site")
	}
	now = now.Add(time.Second)
	if err := enter("192.0.2.1:1"); err != nil {
		t.Fatalf("a second later: %v", err)
	}
	// From very many sources, what all may do bounds it, and the table.
	now, held = now.Add(time.Hour), 0
	passed := 0
	for i := range 3 * maxSources {
		if enter(fmt.Sprintf("10.%d.%d.1:1", i/256, i%256)) == nil {
			passed++
		}
	}
	if passed != allBurst || l.sources.Len() > maxSources {
		t.Fatalf("%d passed, %d sources", passed, l.sources.Len())
	}
}

func TestLimitAtOnce(t *testing.T) {
	l := NewLimit(nil)
	var ends []func()
	for i := range atOnce {
		done, err := l.enter(from(fmt.Sprintf("192.0.2.%d:1", i)), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, done)
	}
	if _, err := l.enter(from("198.51.100.1:1"), time.Now()); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatal(err)
	}
	for _, done := range ends {
		done()
	}
	if _, err := l.enter(from("198.51.100.2:1"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := (*Limit)(nil).enter(from("x"), time.Now()); err != nil {
		t.Fatal(err)
	}
}
