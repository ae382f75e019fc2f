package doctor

import (
	"strings"
	"testing"
	"time"
)

func TestCertificateFinding(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		certificate
		level Level
		says  string
	}{
		"fine":   {certificate{Names: []string{"a.example"}, NotAfter: now.Add(60 * 24 * time.Hour)}, OK, "a.example"},
		"soon":   {certificate{Cert: "/etc/x.pem", NotAfter: now.Add(time.Hour)}, Warn, "ends at"},
		"broken": {certificate{NotAfter: now.Add(60 * 24 * time.Hour), Error: "wrong key"}, Warn, "wrong key"},
		"ended":  {certificate{NotAfter: now.Add(-time.Hour), Error: "wrong key"}, Fail, "ended"},
	} {
		f := certificateFinding(c.certificate, now)
		if f.Level != c.level || !strings.Contains(f.Detail, c.says) || f.Level != OK && f.Advice == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
