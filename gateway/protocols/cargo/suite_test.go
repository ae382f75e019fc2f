package cargo_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestProtocol(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.expect(c.put("demo", "1.0.0", "x"), 200)
	const name = "/cargo/acme/cargo"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: c.p, Metadata: access.Records{Asker: c.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "cargo"}, Absent: meta.RepoRef{Tenant: "acme", Name: "cargx"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/config.json"},
			{Method: "GET", Path: name + "/de/mo/demo"},
			{Method: "GET", Path: name + "/api/v1/crates/demo/1.0.0/download"},
			{Method: "GET", Path: name + "/api/v1/crates?q=demo"},
			{Method: "GET", Path: name + "/api/v1/crates/demo/owners"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "/api/v1/crates/new", Body: []byte("x")},
			{Method: "DELETE", Path: name + "/api/v1/crates/demo/1.0.0/yank"},
			{Method: "PUT", Path: name + "/api/v1/crates/demo/1.0.0/unyank"},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			var doc struct{ Errors []struct{ Detail string } }
			if err := json.Unmarshal(body, &doc); err != nil {
				return err
			}
			if len(doc.Errors) == 0 || doc.Errors[0].Detail == "" {
				return fmt.Errorf("no error in %s", body)
			}
			return nil
		},
	})
}
