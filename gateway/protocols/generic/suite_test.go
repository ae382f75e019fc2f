package generic_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/generic"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestProtocol(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.expect(f.do("PUT", "dir/a.txt", "content"), 201)
	const name = "/generic/acme/files"
	version := "?version=" + string(digest.FromBytes([]byte("content")))
	const session = "server~session~sum" // of the gateway of the suite
	protocoltest.Run(t, protocoltest.Case{
		Protocol: generic.New(f.Catalog, nil), Metadata: access.Records{Asker: f.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "files"}, Absent: meta.RepoRef{Tenant: "acme", Name: "filex"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/dir/a.txt"},
			{Method: "GET", Path: name + "/dir/a.txt" + version},
			{Method: "GET", Path: name + "/dir/a.txt?history"},
			{Method: "GET", Path: name + "/"},
			{Method: "GET", Path: name + "/dir/", Header: http.Header{"Accept": {"text/html"}}},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "/new", Body: []byte("x")},
			{Method: "DELETE", Path: name + "/dir/a.txt"},
			{Method: "POST", Path: name + "/new?uploads"},
			{Method: "PATCH", Path: name + "/new/.uploads/" + session, Body: []byte("x")},
			{Method: "PUT", Path: name + "/new/.uploads/" + session, Body: []byte("x")},
			{Method: "GET", Path: name + "/new/.uploads/" + session},
			{Method: "DELETE", Path: name + "/new/.uploads/" + session},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			var doc struct{ Code, Error string }
			if err := json.Unmarshal(body, &doc); err != nil {
				return err
			}
			if doc.Code == "" || doc.Error == "" {
				return fmt.Errorf("no error in %s", body)
			}
			return nil
		},
	})
}
