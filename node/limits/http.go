package limits

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/ops"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Path is where Handler is served.
const Path = "/limits"

// maxBody bounds requests and answers: limits of the most tenants there may be.
const maxBody = 512 << 10

// problem is the body of an answer that refuses.
type problem struct {
	Error string `json:"error"`
}

// Handler serves the Keeper.
func (k *Keeper) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, status, err := k.serve(w, r)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		// Who asks and leaves early reads no error.
		if err != nil {
			_ = json.NewEncoder(w).Encode(problem{err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	})
}

func (k *Keeper) serve(w http.ResponseWriter, r *http.Request) (v View, status int, err error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return k.View(), http.StatusOK, nil
	}
	if err := ops.Local(r); err != nil {
		return View{}, http.StatusForbidden, err
	}
	switch r.Method {
	case http.MethodDelete:
		v, err = k.Reset()
	case http.MethodPatch:
		if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
			return View{}, http.StatusUnsupportedMediaType, errors.New("changes are sent as application/json")
		}
		var c Changes
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		if err := d.Decode(&c); err != nil {
			return View{}, http.StatusBadRequest, fmt.Errorf(`changes are like {"up": 50000000, "tenants.acme": null}: %w`, err)
		}
		v, err = k.Change(c)
	default:
		w.Header().Set("Allow", "GET, HEAD, PATCH, DELETE")
		return View{}, http.StatusMethodNotAllowed, fmt.Errorf("there is no %s of limits", r.Method)
	}
	switch {
	case errors.Is(err, meta.ErrInvalid):
		return View{}, http.StatusBadRequest, err
	case err != nil:
		return View{}, http.StatusInternalServerError, err
	}
	return v, http.StatusOK, nil
}

// Client asks a node's private listener.
type Client struct {
	// Ops is the listener's host:port.
	Ops string
}

// View returns the node's limits.
func (c Client) View(ctx context.Context) (View, error) { return c.do(ctx, http.MethodGet, nil) }

// Change changes limits.
//
// Errors: meta.ErrInvalid, meta.ErrDenied, meta.ErrUnavailable when no node answers.
func (c Client) Change(ctx context.Context, changes Changes) (View, error) {
	b, err := json.Marshal(changes)
	if err != nil {
		return View{}, err
	}
	return c.do(ctx, http.MethodPatch, b)
}

// Reset takes all changes back; errors are as of Change.
func (c Client) Reset(ctx context.Context) (View, error) { return c.do(ctx, http.MethodDelete, nil) }

func (c Client) do(ctx context.Context, method string, body []byte) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Ops+Path, bytes.NewReader(body))
	if err != nil {
		return View{}, fmt.Errorf("--ops %q: write HOST:PORT: %w: %w", c.Ops, err, meta.ErrInvalid)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// One request: nothing to keep a connection for.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return View{}, fmt.Errorf("no node answers at %s, name its private listener with --ops: %w: %w", c.Ops, err, meta.ErrUnavailable)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return View{}, err
	}
	if resp.StatusCode != http.StatusOK {
		var p problem
		if json.Unmarshal(answer, &p) != nil || p.Error == "" {
			p.Error = fmt.Sprintf("%s answers %s: is it a node's private listener?", c.Ops, resp.Status)
		}
		kind := meta.ErrUnavailable
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusUnsupportedMediaType:
			kind = meta.ErrInvalid
		case http.StatusForbidden:
			kind = meta.ErrDenied
		}
		return View{}, &refusal{p.Error, kind}
	}
	var v View
	if err := json.Unmarshal(answer, &v); err != nil {
		return View{}, fmt.Errorf("%s does not answer with limits: is it a node's private listener? %w", c.Ops, err)
	}
	return v, nil
}

// refusal is a node's word, which names the kind itself.
type refusal struct {
	text string
	kind error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }
