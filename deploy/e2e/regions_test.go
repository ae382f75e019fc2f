package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// puller names a node in messages, e.g. `agent 2 of r2`.
type puller struct {
	name string
	node proc.Endpoint
}

func pullers(d *dev) []puller {
	var all []puller
	for _, s := range d.Servers {
		all = append(all, puller{"server of " + s.Region, s})
	}
	for _, a := range d.Agents {
		all = append(all, puller{"agent of " + a.Region, a})
	}
	return all
}

// An image pushed at region 1 reads the same, by tag and by digest, at each region and
// each agent, with the clients that the issue names; each client pushes its own image.
func TestClientsAcrossRegions(t *testing.T) {
	d := startDev(t, "", "--regions", "3", "--agents", "3")
	if len(d.Servers) != 3 || len(d.Agents) != 3 || d.AdminToken == "" {
		t.Fatalf("dev.json: %+v", d.DevFile)
	}
	home := proc.Address(d.Servers[0].Gateway)
	each(t, []string{"docker", "ctr", "podman", "skopeo", "crane"}, func(t *testing.T, c client, s session) {
		ctx := limit(t, 5*time.Minute)
		name := "/acme/regions/" + c.name
		digest, err := s.push(ctx, makeImage(t, 2, 2<<20), home+name+":1")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pullers(d) {
			for _, reference := range []string{":1", "@" + digest} {
				got, err := s.pull(ctx, proc.Address(p.node.Gateway)+name+reference)
				if err != nil {
					t.Errorf("%s: %v", p.name, err)
				} else if got != digest {
					t.Errorf("%s: pulled %s as %s, pushed %s", p.name, reference, got, digest)
				}
			}
		}
	})
}

// What is pushed at an agent's gateway is acknowledged by a server and reads at every region.
func TestPushAtAnAgent(t *testing.T) {
	d := startDev(t, "", "--regions", "2", "--agents", "2")
	each(t, []string{"docker", "crane", "skopeo"}, func(t *testing.T, c client, s session) {
		ctx := limit(t, 3*time.Minute)
		agent := d.Agents[len(d.Agents)-1]
		name := "acme/agents/" + c.name
		digest, err := s.push(ctx, makeImage(t, 2, 2<<20), proc.Address(agent.Gateway)+"/"+name+":1")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pullers(d) {
			pulled, err := registry(p.node, "").Pull(ctx, name, "1")
			if err != nil {
				t.Errorf("%s: %v", p.name, err)
			} else if got := image.DigestOf(pulled.Manifest); got != digest {
				t.Errorf("%s: %s instead of %s", p.name, got, digest)
			}
		}
	})
}

// A region that was never asked to hold an image reads it through, and many readers of
// one image at once all get the right bytes.
func TestManyReadersAtOnce(t *testing.T) {
	d := startDev(t, "", "--regions", "3", "--agents", "3")
	ctx := limit(t, 3*time.Minute)
	img := makeImage(t, 3, 24<<20)
	if err := registry(d.Servers[0], "").Push(ctx, "acme/many/image", "1", img); err != nil {
		t.Fatal(err)
	}
	const readersEach = 3
	all := pullers(d)
	errs := make(chan error, len(all)*readersEach)
	for _, p := range all {
		for range readersEach {
			go func() {
				_, err := registry(p.node, "").Pull(ctx, "acme/many/image", img.Digest())
				errs <- err
			}()
		}
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// What was acknowledged is there after a restart, on servers and through agents.
func TestRestartKeepsEverything(t *testing.T) {
	d := startDev(t, "", "--regions", "2", "--agents", "1")
	ctx := limit(t, 3*time.Minute)
	img := makeImage(t, 2, 4<<20)
	if err := registry(d.Servers[0], "").Push(ctx, "acme/kept/image", "1", img); err != nil {
		t.Fatal(err)
	}
	before := d.DevFile
	if err := d.process.Stop(time.Minute); err != nil {
		t.Errorf("a shutdown that was asked for: %v", err)
	}
	d.start(t)
	for i, node := range d.All() {
		if was := before.All()[i]; node != was {
			t.Errorf("a restart moved %+v to %+v", was, node)
		}
		check(ctx, t, node, "acme/kept/image", "1", img)
	}
}

func check(ctx context.Context, t *testing.T, node proc.Endpoint, repository, reference string, img *image.Image) {
	t.Helper()
	pulled, err := registry(node, "").Pull(ctx, repository, reference)
	if err != nil {
		t.Errorf("%s: %v", node.Gateway, err)
	} else if image.DigestOf(pulled.Manifest) != img.Digest() {
		t.Errorf("%s: %s:%s is another image", node.Gateway, repository, reference)
	}
}
