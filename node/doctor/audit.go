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

// gapFor is how long a chain that did not continue is warned of.
const gapFor = 7 * 24 * time.Hour

// Audit asks a running node's ops listener, at host:port, whether the audit log and, of
// a server, the chains of nodes are what they were.
func Audit(ctx context.Context, client *http.Client, ops string) []Finding {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/view/audit", nil)
	if err != nil {
		return nil // Ready says so
	}
	res, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var t auditTrouble
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&t) != nil {
		return nil
	}
	findings := auditFindings(t, time.Now())
	for i := range findings {
		findings[i].Check = "node: audit log"
	}
	return findings
}

// auditTrouble is what the view says (gateway/admin/client.AuditTrouble).
type auditTrouble struct {
	Rewound string `json:"rewound"`
	Chains  []struct {
		Node  meta.NodeID `json:"node"`
		Times uint64      `json:"times"`
		Last  meta.Time   `json:"last"`
		Lost  uint64      `json:"lost"`
	} `json:"chains"`
}

func auditFindings(t auditTrouble, now time.Time) (all []Finding) {
	if t.Rewound != "" {
		all = append(all, bad(Fail, "do not trust the log: compare it with an export on another machine (shoal audit verify), look who could write the servers' disks", "%s", t.Rewound))
	}
	old := 0
	for _, c := range t.Chains {
		if now.Sub(c.Last.Std()) > gapFor {
			old++
			continue
		}
		all = append(all, bad(Warn, "shoal audit chains --rewound; a disk that was restored explains it, else somebody cut its log",
			"what node %s saw did not continue at %s: %d lines are missing, %d times so far", c.Node, c.Last.Std().UTC().Format(time.DateTime), c.Lost, c.Times))
	}
	if len(all) > 0 {
		return all
	}
	text := "it continues what this node has seen"
	if old > 0 {
		text += fmt.Sprintf("; chains of %d nodes once did not continue, more than a week ago", old)
	}
	return []Finding{ok("%s", text)}
}
