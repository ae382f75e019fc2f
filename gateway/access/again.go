package access

import (
	"context"
	"time"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Again returns who, whom this gate found out a while ago, with the rights of now. That
// a token of /token has ended meanwhile does not matter: it was good when the call began.
//
// Errors: *CredentialsError when what the caller showed was revoked since;
// meta.ErrUnavailable when that cannot be found out, which Judge has a limit for.
func (g *Gate) Again(ctx context.Context, who meta.Principal) (meta.Principal, error) {
	if !Credentialed(who) || who.Name == meta.AdminBootstrap || who.Node != "" {
		return who, nil
	}
	q := state.GetCaller{Principal: who.Name}
	if credential.CheckID(who.Token) == nil {
		q.Credential = who.Token
	}
	c, err := g.caller(ctx, q)
	if err != nil {
		return meta.Principal{}, err
	}
	who.Rights, who.At = c.Rights, meta.TimeOf(time.Now()) // its limits stay
	return g.opened(who), nil
}
