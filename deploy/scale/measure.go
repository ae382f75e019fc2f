package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// latency is of some hundred requests, one after the other.
type latency struct{ median, p99 time.Duration }

// server is the binary on one data directory.
type server struct {
	*proc.Process
	image.Client
	ops string
}

const repository = "acme/app"

// start starts the binary and waits until it is ready.
func (o options) start(ctx context.Context, dir, address string, first bool) (*server, error) {
	n := proc.Node{Role: "server", Region: "eu", Data: dir, Host: address, Bootstrap: first, Extra: []string{"--plain"}}
	p, err := proc.Start(proc.Spec{Name: "server", Path: o.bin, Args: n.Args(), Log: dir + ".log"})
	if err != nil {
		return nil, err
	}
	s := &server{Process: p, ops: address + ":" + proc.OpsPort}
	s.Base = "http://" + address + ":" + proc.GatewayPort
	err = proc.Await(ctx, "the server to be ready", func(ctx context.Context) error { return proc.Ready(ctx, http.DefaultClient, s.ops) }, p)
	if err == nil {
		s.Token, err = proc.AdminToken(dir)
	}
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("%w\n%s", err, p.LogTail(2000))
	}
	return s, nil
}

// end stops the server as a service manager does.
func (s *server) end() error { return s.Stop(time.Minute) }

// call sends a request and reads the answer whole.
func (s *server) call(ctx context.Context, method, path string, header http.Header, body []byte, want int) ([]byte, error) {
	r, err := s.Do(ctx, method, path, header, bytes.NewReader(body), int64(len(body)), want)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}

// measure makes a package of n versions in dir and measures it.
func (o options) measure(ctx context.Context, dir string, n int) (f figures, err error) {
	address := proc.LoopbackHost()
	s, err := o.start(ctx, dir, address, true)
	if err != nil {
		return f, err
	}
	defer func() { s.Kill() }()
	img, err := image.Make(1, 1, 1000)
	if err != nil {
		return f, err
	}
	cluster, err := s.found(ctx, img)
	if err != nil {
		return f, err
	}
	if err := s.end(); err != nil {
		return f, err
	}
	if err := o.fill(ctx, dir, cluster, n, &f); err != nil {
		return f, err
	}

	began := time.Now()
	if s, err = o.start(ctx, dir, address, false); err != nil {
		return f, err
	}
	f.restart = time.Since(began)
	strong := http.Header{"Shoal-Mode": {"strong"}}
	if _, err := s.call(ctx, http.MethodHead, s.manifest(tagName(0)), strong, nil, http.StatusOK); err != nil {
		return f, err
	}
	f.strong = time.Since(began)
	tags := tagsOf(n)
	random := func() string { return s.manifest(tagName(rand.IntN(tags))) }
	for _, m := range []struct {
		into *latency
		run  func(i int) error
	}{
		{&f.resolve, func(int) error {
			_, err := s.call(ctx, http.MethodHead, random(), nil, nil, http.StatusOK)
			return err
		}},
		{&f.strongly, func(int) error {
			_, err := s.call(ctx, http.MethodHead, random(), strong, nil, http.StatusOK)
			return err
		}},
		{&f.tags, func(int) error {
			return s.page(ctx, "/v2/"+repository+"/"+packageName+"/tags/list?n=100", min(tags, 100))
		}},
		{&f.versions, func(int) error {
			return s.page(ctx, "/api/v1/repositories/"+repository+"/packages/"+packageName+"/versions?limit=100", min(n, 100))
		}},
		{&f.publish, func(i int) error { return s.publish(ctx, img, i) }},
	} {
		if *m.into, err = o.times(m.run); err != nil {
			return f, err
		}
	}
	memory, err := s.Memory()
	if err != nil {
		return f, err
	}
	f.residentMiB = float64(memory.Now) / (1 << 20)
	return f, s.end()
}

func (s *server) manifest(reference string) string {
	return "/v2/" + repository + "/" + packageName + "/manifests/" + reference
}

// found makes the repository and pushes what all versions will consist of.
func (s *server) found(ctx context.Context, img *image.Image) (cluster string, err error) {
	for _, c := range []struct{ path, body string }{
		{"tenants", `{"name":"acme"}`},
		{"repositories", `{"ref":{"tenant":"acme","name":"app"},"format":"oci"}`},
	} {
		r, err := s.Do(ctx, http.MethodPost, "/api/v1/"+c.path, http.Header{"Content-Type": {"application/json"}},
			bytes.NewReader([]byte(c.body)), int64(len(c.body)), http.StatusOK, http.StatusCreated)
		if err != nil {
			return "", err
		}
		r.Body.Close()
	}
	if err := s.Push(ctx, repository+"/"+packageName, "first", img); err != nil {
		return "", err
	}
	body, err := s.call(ctx, http.MethodGet, "/api/v1/status", nil, nil, http.StatusOK)
	if err != nil {
		return "", err
	}
	var status struct{ Cluster string }
	return status.Cluster, errors.Join(json.Unmarshal(body, &status), nil)
}

// fill adds the versions while the server is stopped.
func (o options) fill(ctx context.Context, dir, cluster string, n int, f *figures) error {
	l, err := open(ctx, dir, cluster)
	if err != nil {
		return err
	}
	defer l.close()
	like, files, err := l.example(ctx, "first")
	if err != nil {
		return err
	}
	o.log("filling %s with %d versions", dir, n)
	began := time.Now()
	if err := l.fill(ctx, like, files, n, tagsOf(n), o.width); err != nil {
		return err
	}
	f.load = time.Since(began)
	f.perSecond = float64(n) / f.load.Seconds()
	if f.snapshot, err = l.snapshot(ctx, like, files); err != nil {
		return err
	}
	f.longest = time.Duration(l.longest.Load())
	if err := l.close(); err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(dir, "state"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			f.stateMiB += float64(info.Size()) / (1 << 20)
		}
		return err
	})
}

// times runs o.requests calls, after a few that warm up.
func (o options) times(run func(i int) error) (l latency, err error) {
	const warm = 20
	took := make([]time.Duration, 0, o.requests)
	for i := range o.requests + warm {
		began := time.Now()
		if err := run(i); err != nil {
			return l, err
		}
		if i >= warm {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return latency{took[len(took)/2], took[len(took)*99/100]}, nil
}

// page reads a page and counts what is in it.
func (s *server) page(ctx context.Context, path string, want int) error {
	body, err := s.call(ctx, http.MethodGet, path, nil, nil, http.StatusOK)
	if err != nil {
		return err
	}
	var page struct {
		Tags  []string
		Items []json.RawMessage
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return err
	}
	if got := len(page.Tags) + len(page.Items); got < want {
		return fmt.Errorf("%s has %d entries, want %d", path, got, want)
	}
	return nil
}

// publish puts a manifest of its own under a new tag.
func (s *server) publish(ctx context.Context, img *image.Image, i int) error {
	var m map[string]any
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		return err
	}
	m["annotations"] = map[string]string{"n": fmt.Sprint(i)}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.PutManifest(ctx, repository+"/"+packageName, fmt.Sprintf("new%d", i), manifest)
}
