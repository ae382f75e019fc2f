package cache_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/node/cache"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestCache(t *testing.T) {
	disk, err := store.OpenDisk(store.DiskConfig{Dir: t.TempDir(), CacheBytes: 1 << 30, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	var roots []digest.CID
	for i := range 3 {
		u, err := disk.NewUpload(t.Context(), store.UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(bytes.Repeat([]byte{byte(i)}, 1000*(i+1)))); err != nil {
			t.Fatal(err)
		}
		in, err := u.Commit(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		_ = u.Close()
		roots = append(roots, in.Root)
	}
	handler := cache.Handler(cache.Config{
		Disk: disk, Name: func(root digest.CID) string {
			if root == roots[1] {
				return "acme/app@sha256:1"
			}
			return ""
		},
		Reads: func() (int64, int64) { return 3, 1 },
	})
	server := httptest.NewServer(handler)
	defer server.Close()
	c := cache.Client{Ops: strings.TrimPrefix(server.URL, "http://")}

	v, err := c.View(t.Context(), true)
	if err != nil || v.BlobCount != 3 || len(v.Blobs) != 3 || v.UsedBytes != 3*4096 || v.CapBytes != 1<<30 || v.LocalBytes != 3 || v.More {
		t.Fatalf("View = %+v, %v", v, err)
	}
	for _, b := range v.Blobs {
		if (b.Name != "") != (b.Root == roots[1].Hex()) || !b.Complete || b.Pinned {
			t.Errorf("blob %+v", b)
		}
	}
	if v, err = c.Do(t.Context(), cache.Request{Pin: roots[1].Hex()[:12]}); err != nil || v.Pinned != 1 || v.PinnedBytes != 2000 || v.Blobs != nil {
		t.Errorf("pin: %+v, %v", v, err)
	}
	if v, err = c.Do(t.Context(), cache.Request{Clear: true}); err != nil || v.Cleared != 2 || v.ClearedBytes != 2*4096 || v.BlobCount != 1 {
		t.Errorf("clear: %+v, %v", v, err)
	}
	if v, err = c.Do(t.Context(), cache.Request{Unpin: roots[1].Hex()}); err != nil || v.Pinned != 0 {
		t.Errorf("unpin: %+v, %v", v, err)
	}
	for _, test := range []struct {
		req  cache.Request
		kind error
	}{
		{cache.Request{Pin: roots[0].Hex()}, meta.ErrNotFound}, // it was cleared
		{cache.Request{Pin: "abc"}, meta.ErrInvalid},
		{cache.Request{Pin: "acme/app:1"}, meta.ErrInvalid},
		{cache.Request{}, meta.ErrInvalid},
	} {
		if _, err := c.Do(t.Context(), test.req); !errors.Is(err, test.kind) {
			t.Errorf("%+v: %v, want %v", test.req, err, test.kind)
		}
	}
	// From elsewhere, and by a name that a browser may have been led to, nothing changes.
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.RemoteAddr = "192.0.2.1:1234" },
		func(r *http.Request) { r.Host = "evil.example" },
	} {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/cache", strings.NewReader(`{"clear":true}`))
		r.RemoteAddr = "127.0.0.1:1234"
		change(r)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("status %d", w.Code)
		}
	}
	server.Close()
	if _, err := c.View(t.Context(), false); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("without a node: %v", err)
	}
}
