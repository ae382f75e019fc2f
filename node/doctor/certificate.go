package doctor

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"
)

// certificateSoon is when a given certificate should have been renewed: ACME clients
// do so a month before the end.
const certificateSoon = 14 * 24 * time.Hour

// Certificate asks a running node's ops listener, at host:port, how its given
// certificate is. Of a node that has none it says nothing.
func Certificate(ctx context.Context, client *http.Client, ops string) []Finding {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/view/certificate", nil)
	if err != nil {
		return nil // Ready says so
	}
	res, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var c certificate
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&c) != nil {
		return nil
	}
	f := certificateFinding(c, time.Now())
	f.Check = "node: certificate"
	return []Finding{f}
}

// certificate is what the view of a given certificate says (gateway/certfile.Status).
type certificate struct {
	Cert     string    `json:"cert"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	Error    string    `json:"error"`
}

func certificateFinding(c certificate, now time.Time) Finding {
	end := c.NotAfter.UTC().Format(time.DateTime)
	switch {
	case now.After(c.NotAfter):
		return bad(Fail, "renew it and put it into the files; they are taken into use within seconds", "the certificate of %v ended at %s", c.Names, end)
	case c.Error != "":
		return bad(Warn, "put a matching pair there; until then the old one is served, which ends at "+end, "new files are not used: %s", c.Error)
	case c.NotAfter.Sub(now) < certificateSoon:
		return bad(Warn, "look why "+c.Cert+" is not renewed", "the certificate of %v ends at %s", c.Names, end)
	}
	return ok("of %v, until %s", c.Names, end)
}
