package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

type binaries struct{ shoal, registry, crane string }

// subject is one of the servers under measurement.
type subject struct {
	name    string
	address string // host:port
	process *proc.Process
	client  *image.Client
}

// bench is one file system's run.
type bench struct {
	place    string // tmpfs or disk
	dir      string
	bins     binaries
	scale    float64
	repeat   int
	seed     uint64 // of the next image; no two runs push the same bytes
	subjects []*subject
}

// start starts shoal, then the other.
func (b *bench) start(ctx context.Context) error {
	b.seed = uint64(time.Now().UnixNano())
	for _, launch := range []func(context.Context) (*subject, error){b.startShoal, b.startDistribution} {
		s, err := launch(ctx)
		if s != nil {
			b.subjects = append(b.subjects, s)
		}
		if err != nil {
			return err
		}
		s.client = &image.Client{Base: "http://" + s.address, HTTP: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: 64, DisableCompression: true,
		}}}
	}
	return nil
}

func (b *bench) close() {
	for _, s := range b.subjects {
		s.process.Kill()
	}
}

func (b *bench) startShoal(ctx context.Context) (*subject, error) {
	data := filepath.Join(b.dir, "shoal")
	process, err := proc.Start(proc.Spec{Name: "shoal", Path: b.bins.shoal, Log: filepath.Join(b.dir, "shoal.log"),
		Args: []string{"dev", "--data", data, "--gateway", "127.0.0.1:0"}, Env: []string{"HOME=" + b.dir}})
	if err != nil {
		return nil, err
	}
	s := &subject{name: "shoal", process: process}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s, proc.Await(ctx, "shoal to be ready", func(ctx context.Context) error {
		dev, err := proc.ReadDevFile(data)
		if err != nil {
			return err
		}
		if len(dev.Servers) == 0 {
			return errors.New("dev.json lists no server")
		}
		s.address = proc.Address(dev.Servers[0].Gateway)
		return proc.Ready(ctx, http.DefaultClient, dev.Servers[0].Ops)
	}, process)
}

// freeAddress returns an address of 127.0.0.1 that was free a moment ago; the registry
// cannot tell which port it was given. It has to be this address: crane speaks plain
// HTTP to 127.0.0.1 alone, and over TLS, which only shoal offers, it would measure
// something else.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// distributionConfig is the registry's own example, less what a benchmark must not
// have (a debug listener) and with its in-memory descriptor cache, its recommended
// setting. The file system driver syncs each blob before it moves it into place.
const distributionConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s, maxthreads: 100}
  cache: {blobdescriptor: inmemory}
  delete: {enabled: true}
http: {addr: %s, secret: bench}
`

func (b *bench) startDistribution(ctx context.Context) (*subject, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, "distribution.yml")
	text := fmt.Sprintf(distributionConfig, filepath.Join(b.dir, "distribution"), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	process, err := proc.Start(proc.Spec{Name: "distribution", Path: b.bins.registry, Log: filepath.Join(b.dir, "distribution.log"),
		Args: []string{"serve", config}, Env: []string{"OTEL_TRACES_EXPORTER=none"}})
	if err != nil {
		return nil, err
	}
	s := &subject{name: "distribution", address: address, process: process}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := &image.Client{Base: "http://" + address}
	return s, proc.Await(ctx, "distribution to be ready", func(ctx context.Context) error {
		response, err := client.Do(ctx, http.MethodGet, "/v2/", nil, nil, 0, http.StatusOK)
		if err != nil {
			return err
		}
		return response.Body.Close()
	}, process)
}
