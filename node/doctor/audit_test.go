package doctor

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAuditFindings(t *testing.T) {
	recent, old := time.Now().Add(-time.Hour).UnixNano(), time.Now().Add(-30*24*time.Hour).UnixNano()
	chain := func(at int64) string {
		b, err := json.Marshal(map[string]any{"node": "n1", "times": 2, "last": at, "lost": 7})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	view := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if view == "" || r.URL.Path != "/view/audit" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(view))
	}))
	defer server.Close()
	for _, test := range []struct {
		view  string
		want  []Level
		words string
	}{
		{"", nil, ""}, // an older node
		{`{}`, []Level{OK}, "continues"},
		{`{"rewound": "the audit log was rewritten"}`, []Level{Fail}, "was rewritten"},
		{`{"chains": [` + chain(recent) + `]}`, []Level{Warn}, "node n1"},
		{`{"chains": [` + chain(old) + `]}`, []Level{OK}, "once did not continue"},
		{`{"rewound": "rewritten", "chains": [` + chain(recent) + `,` + chain(old) + `]}`, []Level{Fail, Warn}, "7 lines"},
	} {
		view = test.view
		var got []Level
		text := ""
		for _, f := range Audit(t.Context(), server.Client(), strings.TrimPrefix(server.URL, "http://")) {
			got = append(got, f.Level)
			text += f.Detail
			if f.Check == "" || (f.Advice == "") != (f.Level == OK) {
				t.Errorf("%+v", f)
			}
		}
		if len(got) != len(test.want) || !strings.Contains(text, test.words) {
			t.Errorf("%s: %v %s", test.view, got, text)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s: %v", test.view, got)
			}
		}
	}
}
