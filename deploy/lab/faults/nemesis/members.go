package nemesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// status is of `shoal status --json`.
type status struct {
	Servers []struct {
		ID, Gateway string
		Voter       bool
	}
}

func statusAt(ctx context.Context, cluster *wave.Cluster, at *wave.Member) (s status, err error) {
	out, err := cluster.ShoalOn(ctx, at, "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// AwaitVoters waits until the cluster has the servers it shall have, and all of them vote
// that shall. Before that it does not survive what one server may do to it.
func AwaitVoters(ctx context.Context, cluster *wave.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	want := min(5, (len(cluster.Servers)+1)/2*2-1)
	return proc.Await(ctx, "votes for all servers", func(ctx context.Context) error {
		s, err := statusAt(ctx, cluster, cluster.Origin())
		if err != nil {
			return err
		}
		voters := 0
		for _, server := range s.Servers {
			if server.Voter {
				voters++
			}
		}
		if voters != want || len(s.Servers) != len(cluster.Servers) {
			return fmt.Errorf("%d of %d servers vote, not %d of %d", voters, len(s.Servers), want, len(cluster.Servers))
		}
		return nil
	})
}

// identity returns the id under which the cluster knows a server.
func (n *Nemesis) identity(ctx context.Context, m *wave.Member) (string, error) {
	var errs []error
	for _, at := range n.others(m) {
		s, err := statusAt(ctx, n.Cluster, at)
		if err == nil {
			for _, server := range s.Servers {
				if strings.Contains(server.Gateway, m.Host.Addr.String()+":") {
					return server.ID, nil
				}
			}
			err = fmt.Errorf("%s knows no server at %s", at.Name(), m.Host.Addr)
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// remove takes a server of that id from the cluster, by way of any other: the first
// request drains it, and it is asked again until nothing lies at that server alone. force
// does not wait for that.
func (n *Nemesis) remove(ctx context.Context, m *wave.Member, id string, force bool, patience time.Duration) error {
	path := "/api/v1/nodes/" + id
	if force {
		path += "?force=true"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not removed within %v", patience))
	defer cancel()
	for {
		var last error
		for _, at := range n.others(m) {
			attempt, stop := context.WithTimeout(ctx, 10*time.Second)
			response, err := n.Cluster.Registry(at, n.Cluster.AdminToken).Do(attempt, http.MethodDelete, path, nil, nil, 0, http.StatusOK, http.StatusNoContent)
			stop()
			if err == nil {
				response.Body.Close()
				return nil
			}
			if image.StatusOf(err) == http.StatusNotFound {
				return nil // an attempt without an answer, or the cluster by itself
			}
			last = err
		}
		if err := pass(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("remove %s: %w (last: %w)", m.Name(), err, last)
		}
	}
}

// membership lets a server join a region and takes it away again.
func membership(n *Nemesis, ctx context.Context, s Step, _ *rand.Rand) error {
	n.joined++
	group := s.Victim%n.Regions + 1
	name := fmt.Sprintf("server r%d-x%d", group, n.joined)
	d, err := n.MakeDisk(strings.ReplaceAll(name, " ", "-"))
	if err != nil {
		return err
	}
	m, err := n.Cluster.AddServer(ctx, group, name)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	n.Disks[m] = d
	n.Load.SetMembers(n.Cluster.Members())
	n.undo(func(ctx context.Context) error {
		// Its last publishes are copied to the others before it may go.
		n.Load.Shun(m.Name(), true)
		id, err := n.identity(ctx, m)
		if err == nil {
			if err = n.remove(ctx, m, id, false, 2*time.Minute); err != nil {
				// Slow is not wrong: it is counted, and goes as one that has died.
				n.Say("%v", err)
				n.Restarts["a server that was not drained in time: removed by force"]++
				err = n.remove(ctx, m, id, true, n.Patience)
			}
		}
		n.Load.SetMembers(wave.Members(n.Cluster.Members(), func(o *wave.Member) bool { return o != m }))
		n.Load.Shun(m.Name(), false)
		delete(n.Disks, m)
		return errors.Join(err, n.Cluster.Drop(m), d.Close(), AwaitVoters(ctx, n.Cluster))
	})
	return nil
}
