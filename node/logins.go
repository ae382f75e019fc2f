package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/gateway/outbound"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/npmlogin"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// usedPath is where agents say which credentials were used at their gateways: codec of
// up to maxUses state.CredentialUse.
const (
	usedPath     = "/shoal.credentials.v1/Used"
	maxUses      = 500
	maxUsesBytes = 64 << 10
	reportEvery  = time.Minute
	reportFor    = 5 * time.Second
)

// makeDesk builds what gives credentials to people and jobs.
func (n *Node) makeDesk(records *raftmeta.Store) error {
	var err error
	n.logins, err = login.New(login.Config{
		Metadata: records, Doer: records,
		Client: func(roots *x509.CertPool) *http.Client {
			return outbound.Client(outbound.Rules{Allow: n.cfg.OutgoingAllow, Roots: roots, MaxBytes: 1 << 20})
		},
		Leads: func() bool { return records.Leader() == n.ID() },
		Log:   n.log,
	})
	if err != nil {
		return err
	}
	n.used = n.logins.Used
	n.parts.Add("logins", n.logins.Run)
	return nil
}

// npmLogin lets npm, pnpm and yarn log in.
func (n *Node) npmLogin(gate *access.Gate) protocol.Protocol {
	p := &npmlogin.Protocol{Handler: npmlogin.Handler{Gate: gate, Metadata: n.metadata}}
	if n.logins != nil {
		p.Desk = n.logins
	}
	return p
}

// usedMount takes what agents say of uses.
func (n *Node) usedMount() gateway.Mount {
	return gateway.Mount{Name: "credentials_used", Pattern: usedPath, Methods: []string{http.MethodPost}, Action: access.NodeOnly, Serve: func(c *protocol.Call) error {
		body, err := protocol.ReadBody(c.R, maxUsesBytes)
		if err != nil {
			return err
		}
		var uses []state.CredentialUse
		if err := codec.Unmarshal(body, &uses); err != nil || len(uses) > maxUses {
			return fmt.Errorf("uses of credentials: %d of them, %v: %w", len(uses), err, meta.ErrInvalid)
		}
		n.logins.Report(uses)
		c.W.WriteHeader(http.StatusNoContent)
		return nil
	}}
}

// reportUses tells a server, once a minute, which credentials were used at this agent.
// What no server takes is forgotten: the next use says it again.
func (n *Node) reportUses(uses *login.Uses, client *http.Client) func(context.Context) error {
	tell := func(ctx context.Context, url string, body []byte) bool {
		ctx, cancel := context.WithTimeout(ctx, reportFor)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+usedPath, bytes.NewReader(body))
		if err != nil {
			return false
		}
		answer, err := client.Do(request)
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 4<<10)) // so that the connection is used again
		answer.Body.Close()
		return answer.StatusCode == http.StatusNoContent
	}
	return func(ctx context.Context) error {
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			for used := uses.Take(maxUses); len(used) > 0; used = uses.Take(maxUses) {
				body := codec.Encode(used)
				for i, url := range n.serverURLs(n.id.Node.Region) {
					if i == 3 || tell(ctx, url, body) {
						break
					}
				}
			}
		}
	}
}
