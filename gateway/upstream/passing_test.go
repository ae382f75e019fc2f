package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// TestMadeUpQuestionsFillNothing: of an upstream that answers everything, readers who make
// up pages have a bounded number of records kept, each of them is told what the upstream
// says to his own question, and what was fetched besides stays.
func TestMadeUpQuestionsFillNothing(t *testing.T) {
	p := start(t)
	p.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("last") == "none" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"1"`) // of all of them: a page is compared with itself only
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, r.URL.String()+" "+r.Header.Get("Accept"))
	}))
	page := func(i int) upstream.Want {
		return upstream.Want{Path: fmt.Sprintf("list?last=%d", i), Accept: "text/a", Passing: true}
	}
	p.expect(upstream.Want{Path: "doc", Accept: "text/a"}, "/doc text/a")
	const questions = 600 // to 256 records
	for i := range questions {
		p.expect(page(i), fmt.Sprintf("/list?last=%d text/a", i))
	}
	other := page(questions - 1)
	other.Accept = "text/b"
	p.expect(other, fmt.Sprintf("/list?last=%d text/b", questions-1))
	p.refuse(upstream.Want{Path: "list?last=none", Passing: true}, meta.ErrNotFound)
	bounded := func() {
		t.Helper()
		if n := len(p.kept()); n > 1+256 {
			t.Errorf("%d records", n)
		}
	}
	bounded()
	// The last one is known, and asked for again when its time is over.
	before := p.Total()
	p.expect(page(questions-1), fmt.Sprintf("/list?last=%d text/a", questions-1))
	p.expect(upstream.Want{Path: "doc", Accept: "text/a"}, "/doc text/a")
	if n := p.Total() - before; n > 1 {
		t.Errorf("%d requests for what is known", n)
	}
	p.Later(time.Hour)
	p.expect(page(questions-1), fmt.Sprintf("/list?last=%d text/a", questions-1))
	// Those that ask at once for more than fit do not get each other's.
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 40 {
				k := 1000 + i*40 + j
				f, err := p.fetch(page(k))
				if err != nil {
					t.Error(err)
				} else if got, err := p.Engine.Document(t.Context(), f, 1<<10); err != nil || string(got) != fmt.Sprintf("/list?last=%d text/a", k) {
					t.Errorf("%q is answered to %d, %v", got, k, err)
				}
			}
		})
	}
	group.Wait()
	bounded()
}
