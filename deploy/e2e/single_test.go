package e2e

import (
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// Every client pushes to a single node and pulls by tag and by digest what it pushed;
// crane then reads the same digest.
func TestClientsPushAndPull(t *testing.T) {
	d := startDev(t, "")
	host := proc.Address(d.Servers[0].Gateway)
	each(t, nil, func(t *testing.T, c client, s session) {
		ctx := limit(t, 3*time.Minute)
		name := host + "/acme/clients/" + c.name
		digest, err := s.push(ctx, makeImage(t, 3, 3<<20), name+":1")
		if err != nil {
			t.Fatal(err)
		}
		for _, reference := range []string{name + ":1", name + "@" + digest} {
			got, err := s.pull(ctx, reference)
			if err != nil {
				t.Fatal(err)
			}
			if got != digest {
				t.Errorf("pulled %s as %s, pushed %s", reference, got, digest)
			}
		}
		if pulled, err := registry(d.Servers[0], "").Pull(ctx, "acme/clients/"+c.name, digest); err != nil {
			t.Error(err)
		} else {
			t.Logf("%s pushed %d bytes", c.name, pulled.Bytes)
		}
	})
}
