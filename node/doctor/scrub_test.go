package doctor

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestScrubFinding(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ago := func(d time.Duration) meta.AuditPass { return meta.AuditPass{Last: meta.TimeOf(now.Add(-d))} }
	for _, test := range []struct {
		r     meta.AuditReport
		level Level
		says  string
	}{
		{meta.AuditReport{}, OK, "not ended yet"},
		{meta.AuditReport{Existence: ago(time.Hour)}, OK, "last pass"},
		{meta.AuditReport{Existence: ago(80 * time.Hour)}, Warn, "no pass"},
		{meta.AuditReport{Existence: ago(time.Hour), DamagedChunks: 2, FailedCopies: 1, Repaired: 1}, Warn, "1 repaired"},
		{meta.AuditReport{Existence: ago(time.Hour), Open: 3}, Warn, "3 copies are not whole"},
	} {
		f := scrubFinding(test.r, now)
		if f.Level != test.level || !strings.Contains(f.Detail, test.says) || (f.Advice == "") != (test.level == OK) {
			t.Errorf("%+v: %+v", test.r, f)
		}
	}
}

func TestScrubAsks(t *testing.T) {
	var found any = meta.AuditReport{Open: 1}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if found == nil {
			http.NotFound(w, r) // an agent
			return
		}
		_ = json.NewEncoder(w).Encode(found)
	}))
	defer server.Close()
	ops := strings.TrimPrefix(server.URL, "http://")
	if f := Scrub(t.Context(), server.Client(), ops); len(f) != 1 || f[0].Level != Warn || f[0].Check != "node: scrub" {
		t.Errorf("%+v", f)
	}
	if found = nil; len(Scrub(t.Context(), server.Client(), ops)) != 0 {
		t.Error("something is said of an agent")
	}
}
