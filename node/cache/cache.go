// Package cache shows a node's blobs to the people of its host and lets them pin and
// clear: GET and POST /cache on the private listener, and the Client that `shoal cache`
// uses.
//
// Start reading at Handler. The package has no goroutines.
package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/ops"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Path is where Handler is served.
const Path = "/cache"

const (
	owner     = "operator" // of pins that are set here
	mostBlobs = 10_000     // of one answer
	maxBody   = 8 << 20
	leastName = 8 // hex digits that name a root
)

// Blob is one that is here.
type Blob struct {
	Root     string `json:"root"`
	Name     string `json:"name,omitempty"` // the latest under which a client asked for it
	Bytes    int64  `json:"bytes"`
	Complete bool   `json:"complete"`
	Pinned   bool   `json:"pinned"`
	LastUse  string `json:"last_use"` // RFC 3339
}

// View is what a cache holds.
type View struct {
	UsedBytes   int64 `json:"used_bytes"`
	CapBytes    int64 `json:"cap_bytes,omitempty"` // 0 is no cap
	PinnedBytes int64 `json:"pinned_bytes"`
	BlobCount   int   `json:"blob_count"`
	Partial     int   `json:"partial"`
	Pinned      int   `json:"pinned"`
	// Since the process started: bytes that clients read of what was here and of what
	// had to be fetched, and bytes of new blobs taken from old ones.
	LocalBytes   int64 `json:"local_bytes"`
	FetchedBytes int64 `json:"fetched_bytes"`
	ReusedBytes  int64 `json:"reused_bytes"`
	// Blobs are at most 10,000, by root; More says that there are others.
	Blobs []Blob `json:"blobs,omitempty"`
	More  bool   `json:"more,omitempty"`
	// Cleared is what a clear removed.
	Cleared      int   `json:"cleared,omitempty"`
	ClearedBytes int64 `json:"cleared_bytes,omitempty"`
}

// Request changes one thing.
type Request struct {
	Pin   string `json:"pin,omitempty"` // a root in hex, or its first 8 digits or more
	Unpin string `json:"unpin,omitempty"`
	Clear bool   `json:"clear,omitempty"`
}

// Config is what Handler serves. Disk is required.
type Config struct {
	Disk *store.Disk
	// Name returns what a root is called, "" when unknown.
	Name func(digest.CID) string
	// Reads returns how many bytes clients read here and fetched.
	Reads func() (local, fetched int64)
}

// Handler serves c: GET answers a View, with ?blobs also the blobs; POST does a Request,
// from the node's own host only.
func Handler(c Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := c.serve(w, r)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		// Who asks and leaves early reads no error.
		if err != nil {
			w.WriteHeader(statusOf(err))
			_ = json.NewEncoder(w).Encode(problem{err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	})
}

// problem is the body of an answer that refuses.
type problem struct {
	Error string `json:"error"`
}

var kinds = []struct {
	status int
	kind   error
}{
	{http.StatusBadRequest, meta.ErrInvalid}, {http.StatusForbidden, meta.ErrDenied},
	{http.StatusNotFound, meta.ErrNotFound}, {http.StatusServiceUnavailable, meta.ErrUnavailable},
}

func statusOf(err error) int {
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return k.status
		}
	}
	return http.StatusInternalServerError
}

func (c Config) serve(w http.ResponseWriter, r *http.Request) (View, error) {
	var did View
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		if err := ops.Local(r); err != nil {
			return View{}, err
		}
		var req Request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
			return View{}, fmt.Errorf(`write {"pin": ROOT}, {"unpin": ROOT} or {"clear": true}: %w: %w`, err, meta.ErrInvalid)
		}
		var err error
		if did, err = c.do(r.Context(), req); err != nil {
			return View{}, err
		}
	default:
		return View{}, fmt.Errorf("there is no %s of a cache: %w", r.Method, meta.ErrInvalid)
	}
	v, err := c.view(r.Context(), r.URL.Query().Has("blobs"))
	v.Cleared, v.ClearedBytes = did.Cleared, did.ClearedBytes
	return v, err
}

func (c Config) view(ctx context.Context, blobs bool) (View, error) {
	u, err := c.Disk.Usage(ctx)
	if err != nil {
		return View{}, err
	}
	v := View{
		UsedBytes: u.UsedBytes, CapBytes: u.CapBytes, PinnedBytes: u.PinnedBytes, ReusedBytes: u.ReusedBytes,
		BlobCount: u.Blobs, Partial: u.Partial, Pinned: u.Pinned,
	}
	if c.Reads != nil {
		v.LocalBytes, v.FetchedBytes = c.Reads()
	}
	if !blobs {
		return v, nil
	}
	infos, err := c.Disk.List(ctx, digest.CID{}, mostBlobs)
	if err != nil {
		return View{}, err
	}
	for _, info := range infos {
		b := Blob{Root: info.Root.Hex(), Bytes: info.StoredBytes, Complete: info.Complete, Pinned: info.Pinned, LastUse: info.LastUse.UTC().Format(time.RFC3339)}
		if c.Name != nil {
			b.Name = c.Name(info.Root)
		}
		v.Blobs = append(v.Blobs, b)
	}
	v.More = u.Blobs > len(infos)
	return v, nil
}

func (c Config) do(ctx context.Context, req Request) (v View, err error) {
	var root digest.CID
	switch {
	case req.Pin != "":
		if root, err = c.root(ctx, req.Pin); err == nil {
			err = c.Disk.Pin(root, owner)
		}
	case req.Unpin != "":
		if root, err = c.root(ctx, req.Unpin); err == nil {
			err = c.Disk.Unpin(root, owner)
		}
	case req.Clear:
		v.Cleared, v.ClearedBytes, err = c.Disk.Clear(ctx)
	default:
		err = fmt.Errorf("nothing is asked for: %w", meta.ErrInvalid)
	}
	return v, err
}

// root finds the one blob here whose root begins with name.
func (c Config) root(ctx context.Context, name string) (digest.CID, error) {
	if len(name) < leastName || len(name) > 64 || strings.Trim(name, "0123456789abcdef") != "" {
		return digest.CID{}, fmt.Errorf("%q is no root: write the %d or more hex digits that `shoal cache list` prints: %w", name, leastName, meta.ErrInvalid)
	}
	var after digest.CID
	if shard, err := strconv.ParseUint(name[:2], 16, 8); err == nil {
		after[0] = byte(shard)
	}
	var found []digest.CID
	for {
		infos, err := c.Disk.List(ctx, after, mostBlobs)
		if err != nil {
			return digest.CID{}, err
		}
		for _, info := range infos {
			if strings.HasPrefix(info.Root.Hex(), name) {
				found = append(found, info.Root)
			}
			after = info.Root
		}
		if len(infos) < mostBlobs || after.Hex()[:len(name)] > name {
			break
		}
	}
	switch len(found) {
	case 0:
		return digest.CID{}, fmt.Errorf("no blob here has a root that begins with %s: %w", name, meta.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return digest.CID{}, fmt.Errorf("%d blobs here have a root that begins with %s: write more digits: %w", len(found), name, meta.ErrInvalid)
}

// Client asks a node's private listener.
type Client struct {
	// Ops is the listener's host:port.
	Ops string
}

// View returns what the cache holds, with its blobs if asked for.
//
// Errors: meta.ErrUnavailable when no node answers.
func (c Client) View(ctx context.Context, blobs bool) (View, error) {
	path := Path
	if blobs {
		path += "?blobs"
	}
	return c.do(ctx, http.MethodGet, path, nil)
}

// Do asks for a change and returns what the cache holds then.
//
// Errors: meta.ErrInvalid, meta.ErrNotFound, meta.ErrDenied, meta.ErrUnavailable.
func (c Client) Do(ctx context.Context, r Request) (View, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return View{}, err
	}
	return c.do(ctx, http.MethodPost, Path, b)
}

func (c Client) do(ctx context.Context, method, path string, body []byte) (v View, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Ops+path, bytes.NewReader(body))
	if err != nil {
		return v, fmt.Errorf("--ops %q: write HOST:PORT: %w: %w", c.Ops, err, meta.ErrInvalid)
	}
	// One request: nothing to keep a connection for.
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return v, fmt.Errorf("no node answers at %s, name its private listener with --ops: %w: %w", c.Ops, err, meta.ErrUnavailable)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return v, err
	}
	if res.StatusCode != http.StatusOK {
		var p problem
		if json.Unmarshal(answer, &p) != nil || p.Error == "" {
			p.Error = fmt.Sprintf("%s answers %s: is it a node's private listener?", c.Ops, res.Status)
		}
		return v, &refusal{p.Error, res.StatusCode}
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return v, fmt.Errorf("%s does not answer with a cache: is it a node's private listener? %w", c.Ops, err)
	}
	return v, nil
}

// refusal is a node's word, which names the kind itself.
type refusal struct {
	text   string
	status int
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Is(kind error) bool {
	for _, k := range kinds {
		if k.status == r.status {
			return k.kind == kind
		}
	}
	return false
}
