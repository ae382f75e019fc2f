package access

import (
	"context"
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// empty is the metadata of a server that has joined and has no state yet.
type empty struct{ raftmeta.Asker }

func (empty) Answer(context.Context, meta.Freshness, raftmeta.Request) (meta.AsOf, error) {
	return meta.AsOf{}, meta.ErrNotFound
}

// Who is asked before it knows anything says so, and does not refuse a credential that
// is right: clients give up at 401, and go to another server at 503.
func TestAServerWithoutStateRefusesNobody(t *testing.T) {
	g := &Gate{Config: Config{Metadata: Records{Asker: empty{}}}}
	_, err := g.Verify(t.Context(), "the administrator's")
	var unavailable *meta.UnavailableError
	var refused *CredentialsError
	if !errors.As(err, &unavailable) || unavailable.Reason != "starting" || errors.As(err, &refused) {
		t.Errorf("it says %v", err)
	}
	if _, err := g.Metadata.Node(t.Context(), "12D3KooW"); !errors.As(err, &unavailable) {
		t.Errorf("of a node it says %v", err)
	}
}
