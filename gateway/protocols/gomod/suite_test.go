package gomod_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestProtocol(t *testing.T) {
	m := start(t, catalogtest.Options{})
	m.expect(m.put("example.com/lib", "v1.0.0", "x"), 201)
	const name = "/go/acme/go"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: m.p, Metadata: access.Records{Asker: m.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "go"}, Absent: meta.RepoRef{Tenant: "acme", Name: "no"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/example.com/lib/@v/list"},
			{Method: "GET", Path: name + "/example.com/lib/@v/v1.0.0.info"},
			{Method: "GET", Path: name + "/example.com/lib/@v/v1.0.0.mod"},
			{Method: "GET", Path: name + "/example.com/lib/@v/v1.0.0.zip"},
			{Method: "GET", Path: name + "/example.com/lib/@latest"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "/example.com/lib/@v/v1.0.1.zip", Body: []byte("x")},
			{Method: "DELETE", Path: name + "/example.com/lib/@v/v1.0.0.zip"},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			if h.Get("Content-Type") != "text/plain; charset=utf-8" || len(body) == 0 {
				return fmt.Errorf("the go command shows nothing of %q, %q", h.Get("Content-Type"), body)
			}
			return nil
		},
	})
}
