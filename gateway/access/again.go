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
<<<<<<< ours
	if !Credentialed(who) || who.Admin {
=======
	if !Credentialed(who) || who.Node != "" || who.Admin || g.Policy.AllowAnonymous {
>>>>>>> theirs
		return who, nil
	}
	q := state.GetCaller{Principal: who.Name}
	if credential.CheckID(who.Token) == nil {
		q.Credential = who.Token
	}
<<<<<<< ours
	c, err := g.caller(ctx, q)
	if err != nil {
		return meta.Principal{}, err
	}
	who.Rights, who.At = c.Rights, meta.TimeOf(time.Now())
	return g.opened(who), nil
=======
	now, err := g.resolve(ctx, q)
	if err != nil {
		return meta.Principal{}, err
	}
	for at := len(now.Limits); at < len(who.Limits); at++ {
		now = Narrow(now, who.Limits[at]) // the scopes of its token
	}
	now.Token, now.Elevation = who.Token, who.Elevation
	return now, nil
>>>>>>> theirs
}
