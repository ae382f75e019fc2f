package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// reply is a whole answer.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends one request to a member, as the administrator, with further headers in
// pairs of name and value.
func (c *cluster) ask(ctx context.Context, at *member, method, path, body string, header ...string) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+at.gateway()+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(content)}, err
}

// TestWithoutQuorum kills two servers of three: at the one that is left existing
// versions stay readable over every protocol, and say what they are; a mode that was
// named is not replaced by another; writes are refused with a reason and a time, in
// the protocol's own words; and all of it works again when the quorum is back.
func TestWithoutQuorum(t *testing.T) {
	c := startCluster(t, 3, 1)
	ctx := limit(t, 4*time.Minute)
	c.createRepo(t, "app")
	c.shoal(t, c.servers[0], "repo", "create", "acme/files", "--format", "generic", "--home", "r1")
	img := makeImage(t, 1, 64<<10)
	last := c.servers[0]
	if err := last.registry(c.token).Push(ctx, "acme/app/image", "1", img); err != nil {
		t.Fatal(err)
	}
	const file = "/generic/acme/files/notes.txt"
	put, err := c.ask(ctx, last, http.MethodPut, file, "kept")
	if err != nil || put.status != http.StatusCreated {
		t.Fatalf("%+v, %v", put, err)
	}
	manifest := "/v2/acme/app/image/manifests/"
	reads := []string{
		manifest + "1", manifest + image.DigestOf(img.Manifest), "/v2/acme/app/image/tags/list", "/v2/_catalog", file,
		"/api/v1/tenants", "/api/v1/repositories/acme/app", "/api/v1/repositories/acme/app/packages/image/aliases", "/api/v1/status", "/api/v1/nodes",
	}
	for _, path := range reads {
		for _, mode := range []string{"strong", "bounded=2s", "local"} {
			r, err := c.ask(ctx, last, http.MethodGet, path, "", "Shoal-Mode", mode)
			want, _, _ := strings.Cut(mode, "=")
			if err != nil || r.status != http.StatusOK || r.header.Get("Shoal-Mode") != want || r.header.Get("Shoal-Epoch") == "" || r.header.Get("Shoal-Index") == "" || r.header.Get("Shoal-Stale") != "" {
				t.Errorf("%s as %s with a quorum: %d %v %v", path, mode, r.status, r.header, err)
			}
		}
	}
	for _, s := range c.servers[1:] {
		s.process.Kill()
	}
	// The bound of what is known runs out within its 2 s.
	if err := proc.Await(ctx, "reads that say that there is no quorum", func(ctx context.Context) error {
		r, err := c.ask(ctx, last, http.MethodGet, manifest+"1", "")
		if err == nil && r.header.Get("Shoal-Stale") != "1" {
			err = fmt.Errorf("%d %v", r.status, r.header)
		}
		return err
	}, last.process); err != nil {
		t.Fatal(err)
	}
	for _, at := range []*member{last, c.agents[0]} {
		for _, path := range reads {
			r, err := c.ask(ctx, at, http.MethodGet, path, "")
			if err != nil || r.status != http.StatusOK || r.header.Get("Shoal-Mode") != "local" {
				t.Errorf("%s of %s without a quorum: %d %v %s %v", path, at.name, r.status, r.header, r.body, err)
				continue
			}
			// Of an answer that was served from what is known the age says how old it may be.
			if age, err := strconv.ParseFloat(r.header.Get("Shoal-Age"), 64); err != nil || age < 1 {
				t.Errorf("%s of %s is of age %q", path, at.name, r.header.Get("Shoal-Age"))
			}
			for _, mode := range []string{"strong", "bounded=1s"} {
				if path != reads[0] && path != file && path != "/api/v1/tenants" {
					break // each waits its 2 s; one a protocol will do
				}
				r, err := c.ask(ctx, at, http.MethodGet, path, "", "Shoal-Mode", mode)
				if err != nil || r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "no_quorum") {
					t.Errorf("%s of %s as %s: %d %v %s %v", path, at.name, mode, r.status, r.header, r.body, err)
				}
			}
			if r, err := c.ask(ctx, at, http.MethodGet, path, "", "Shoal-Mode", "local"); err != nil || r.status != http.StatusOK || r.header.Get("Shoal-Mode") != "local" {
				t.Errorf("%s of %s as local: %d %v %v", path, at.name, r.status, r.header, err)
			}
		}
		if p, err := at.registry(c.token).Pull(ctx, "acme/app/image", "1"); err != nil || !bytes.Equal(p.Manifest, img.Manifest) {
			t.Errorf("a pull at %s: %v", at.name, err)
		}
		for _, w := range []struct{ method, path, body, kind string }{
			{http.MethodPut, manifest + "2", string(img.Manifest), `"code":"UNAVAILABLE"`},
			{http.MethodDelete, manifest + "1", "", `"code":"UNAVAILABLE"`},
			{http.MethodPut, "/generic/acme/files/new.txt", "new", `"code":"unavailable"`},
			{http.MethodDelete, file, "", `"code":"unavailable"`},
			{http.MethodPost, "/api/v1/tenants", `{"name":"beta"}`, `"kind":"unavailable"`},
		} {
			r, err := c.ask(ctx, at, w.method, w.path, w.body, "Content-Type", image.ManifestType)
			if err != nil || r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" ||
				!strings.Contains(strings.ReplaceAll(r.body, `": "`, `":"`), w.kind) || !strings.Contains(r.body, "no_quorum") {
				t.Errorf("%s %s at %s: %d %v %s %v", w.method, w.path, at.name, r.status, r.header, r.body, err)
			}
		}
		// What is not known cannot be said not to exist.
		if r, err := c.ask(ctx, at, http.MethodGet, manifest+"none", ""); err != nil || r.status != http.StatusServiceUnavailable {
			t.Errorf("an unknown tag at %s: %d %v", at.name, r.status, err)
		}
	}
	for _, s := range c.servers[1:] {
		s.again()
		c.launch(t, s)
	}
	if err := proc.Await(ctx, "a write", func(ctx context.Context) error {
		r, err := c.ask(ctx, last, http.MethodPut, "/generic/acme/files/new.txt", "new")
		if err == nil && r.status != http.StatusCreated {
			err = errors.New(r.body)
		}
		return err
	}, last.process); err != nil {
		t.Fatal(err)
	}
	if r, err := c.ask(ctx, c.servers[2], http.MethodGet, "/generic/acme/files/new.txt", "", "Shoal-Mode", "strong"); err != nil || r.body != "new" || r.header.Get("Shoal-Mode") != "strong" {
		t.Errorf("%+v, %v", r, err)
	}
}
