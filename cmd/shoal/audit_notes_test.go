package main

import (
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
)

func TestAuditNotes(t *testing.T) {
	var out strings.Builder
	if auditNotes(&out, client.AuditTrouble{}); out.Len() > 0 {
		t.Errorf("all is well: %s", out.String())
	}
	auditNotes(&out, client.AuditTrouble{Rewound: "it was re\x1b[2Jwritten", Chains: []client.BrokenChain{{Node: "n1", Times: 1, Last: 1, Lost: 5}}})
	for _, want := range []string{"WARNING: it was re.[2Jwritten", "the chain of node n1 lost 5 lines"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
}
