package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/scenario"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// Three servers in three regions and eight agents, each on a host of its own with a
// limited link: the wave keeps its promises, but for what a busy machine excuses, and
// what is pushed at an agent reads at every region.
func TestWaveOverThreeRegions(t *testing.T) {
	needRoot(t, "builds network namespaces")
	needTools(t, "ip", "tc")
	plan := wave.Plan{Bin: binary, Dir: folder(t, ""), Regions: 3, Hosts: 8, Zones: 2, Layers: 3,
		Bytes: 48 << 20, Rate: 200_000_000, Seed: seed(), Say: t.Logf}
	ctx := limit(t, 10*time.Minute)
	c, err := wave.Start(ctx, plan)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, m := range c.Members() {
			lastWords.keep(t, m.Process())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	report, err := c.Wave(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	report.Print(os.Stdout)
	for _, v := range report.Verdicts() {
		if v.Gross {
			t.Errorf("%s: %s", v.Promise, v.Got)
		}
	}
	const limitBytes = 300 << 20
	if report.AgentPeakBytes > limitBytes || report.ServerPeakBytes > limitBytes {
		t.Errorf("memory: agent %d MiB, server %d MiB", report.AgentPeakBytes>>20, report.ServerPeakBytes>>20)
	}

	// An agent forwards a write with the client's own credential.
	img := makeImage(t, 2, 1<<20)
	agent := c.Agents[len(c.Agents)-1]
	if err := c.Registry(agent, c.AdminToken).Push(ctx, wave.Repository+"/at-agent", "1", img); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Servers {
		pulled, err := c.Registry(s, c.AdminToken).Pull(ctx, wave.Repository+"/at-agent", "1")
		if err != nil {
			t.Errorf("%s: %v", s.Name(), err)
		} else if image.DigestOf(pulled.Manifest) != img.Digest() {
			t.Errorf("%s has another image", s.Name())
		}
	}
}

// Every scenario of the lab runs to its end in its quick form, and the figures that no
// machine's speed excuses hold. The others are printed by `make lab-all`.
func TestLabScenarios(t *testing.T) {
	needRoot(t, "builds network namespaces")
	needTools(t, "ip", "tc")
	for _, s := range scenario.All() {
		t.Run(s.Name, func(t *testing.T) {
			r := scenario.Run(limit(t, 5*time.Minute), s, scenario.Options{Bin: binary, Quick: true, Seed: seed(), Say: t.Logf})
			if err := r.Print(os.Stdout); err != nil {
				t.Error(err)
			}
			if r.Error != "" {
				t.Error(r.Error)
			}
			for _, f := range r.Short() {
				if f.Must {
					t.Errorf("%s: %s, want %s", f.Name, f.Got, f.Goal)
				}
			}
		})
	}
}
