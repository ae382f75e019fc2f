package oci_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/oci"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestProtocol(t *testing.T) {
	r := start(t, catalogtest.Options{}).at(t, "acme/app/api")
	i := makeImage(t, "suite", 1, godigest.SHA256, nil)
	r.push(i, "1.0")
	blob := string(r.pushBlob([]byte("a blob of its own")))
	upload := r.expect(r.do("POST", "blobs/uploads/", nil), 202).Header.Get("Location")
	const name = "/v2/acme/app/api"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: oci.New(r.Catalog, nil), Metadata: access.Records{Asker: r.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, Absent: meta.RepoRef{Tenant: "acme", Name: "apq"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/manifests/1.0"},
			{Method: "GET", Path: name + "/manifests/" + string(i.digest)},
			{Method: "GET", Path: name + "/blobs/" + blob},
			{Method: "GET", Path: name + "/tags/list"},
			{Method: "GET", Path: name + "/tags/list?n=1"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "/manifests/2.0", Body: i.manifest},
			{Method: "POST", Path: name + "/blobs/uploads/"},
			{Method: "PATCH", Path: upload, Body: []byte("x")},
			{Method: "PUT", Path: upload + "?digest=" + blob},
			{Method: "GET", Path: upload},
			{Method: "DELETE", Path: upload},
			{Method: "DELETE", Path: name + "/manifests/1.0"},
			{Method: "DELETE", Path: name + "/blobs/" + blob},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			var doc struct {
				Errors []struct{ Code, Message string }
			}
			if err := json.Unmarshal(body, &doc); err != nil {
				return err
			}
			if len(doc.Errors) == 0 || doc.Errors[0].Code == "" || doc.Errors[0].Message == "" {
				return fmt.Errorf("no error in %s", body)
			}
			return nil
		},
	})
}
