package gateway

import (
	"context"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Quota bounds what tenants and principals take of a node and of the cluster. It is
// asked once for each call of a protocol on a repository, after the gate let it pass
// and when it is this node that serves it: what is forwarded is asked where it ends.
// It is a *quota.Quota.
type Quota interface {
	// Admit waits, for a bounded time, until the call may begin. The caller ends the
	// Pass.
	//
	// Errors: *meta.QuotaError; of ctx.
	Admit(ctx context.Context, c Charge) (Pass, error)
}

// Charge is what a call wants to do.
type Charge struct {
	Tenant    meta.TenantName
	Principal string
	// Publish says that it changes something, otherwise it reads.
	Publish bool
	// Length is that of the request's body in bytes, 0 without one, -1 when unknown.
	Length int64
}

// Pass is a call that was admitted. Its methods are called by one goroutine at a time,
// Received and Sent of one call possibly by two.
type Pass interface {
	// Warnings are sentences for the client: thresholds that were passed.
	Warnings() []string
	// Received and Sent say that n bytes of a body were read or written, and return when
	// the next may be.
	Received(ctx context.Context, n int)
	Sent(ctx context.Context, n int)
	End()
}

// HeaderQuotaWarning says that a tenant has passed a threshold below its quota.
const HeaderQuotaWarning = "Shoal-Quota-Warning"

// charge asks the quota for a call. The returned function ends what was admitted.
func (g *Gateway) charge(e *exchange, call *protocol.Call) (end func(), err error) {
	if g.Quota == nil || call.Repo == (meta.RepoRef{}) || e.protocol.Format() == "" {
		return func() {}, nil
	}
	pass, err := g.Quota.Admit(call.R.Context(), Charge{
		Tenant: call.Repo.Tenant, Principal: call.Who.Name,
		Publish: call.R.Method != http.MethodGet && call.R.Method != http.MethodHead,
		Length:  call.R.ContentLength,
	})
	if err != nil {
		return nil, err
	}
	for _, text := range pass.Warnings() {
		e.stream.Header().Add(HeaderQuotaWarning, text)
	}
	e.stream.limit(call.R.Context(), pass)
	return pass.End, nil
}
