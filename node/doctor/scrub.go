package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// scrubLate is when a pass over all copies should have ended again, at the latest.
const scrubLate = 3 * 24 * time.Hour

// Scrub asks a running server's ops listener, at host:port, what its scrub has found.
// Of a node that has none, an agent, it says nothing.
func Scrub(ctx context.Context, client *http.Client, ops string) []Finding {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/view/scrub", nil)
	if err != nil {
		return nil // Ready says so
	}
	res, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var r meta.AuditReport
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&r) != nil {
		return nil
	}
	f := scrubFinding(r, time.Now())
	f.Check = "node: scrub"
	return []Finding{f}
}

func scrubFinding(r meta.AuditReport, now time.Time) Finding {
	text := fmt.Sprintf("%d damaged chunks and %d failed copies since the start, %d repaired", r.DamagedChunks, r.FailedCopies, r.Repaired)
	switch {
	case r.Open > 0:
		return bad(Warn, "shoal scrub list names them; look at the disk (smartctl, dmesg)", "%d copies are not whole; %s", r.Open, text)
	case r.Existence.Last != 0 && now.Sub(r.Existence.Last.Std()) > scrubLate:
		return bad(Warn, "look at the server's log", "no pass over all copies since %s", r.Existence.Last.Std().UTC().Format(time.DateTime))
	case r.DamagedChunks > 0:
		return bad(Warn, "look at the disk (smartctl, dmesg): damage that was repaired seldom stays alone", "%s", text)
	case r.Existence.Last == 0:
		return ok("the first pass over all copies has not ended yet; %s", text)
	}
	return ok("last pass over all copies %s; %s", r.Existence.Last.Std().UTC().Format(time.DateTime), text)
}
