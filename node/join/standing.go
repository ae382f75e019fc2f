package join

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Standing asks the server at base whether the node of key is of the cluster, which
// the server looks up with a strong read. It is for a node that nobody answers any
// more: one that was removed is refused everywhere else.
//
// Errors: meta.ErrUnavailable when it cannot be known there.
func Standing(ctx context.Context, base string, root [32]byte, key *trust.Key) (member bool, err error) {
	body := codec.Encode(Request{Node: meta.Node{ID: key.ID()}})
	message := signed{Request: body, Proof: key.ProvePossession(root, body)}
	reply, err := post(ctx, base, StandingPath, trust.JoinTLS(root), codec.Encode(message))
	if err != nil {
		return false, fmt.Errorf("standing of %s at %s: %w", key.ID(), base, err)
	}
	return reply.Node.ID == key.ID(), nil
}

// Standing serves StandingPath: the reply names the node when it is in the roster, and
// nothing else.
func (s *Server) Standing(w http.ResponseWriter, r *http.Request) {
	var message signed
	s.serve(w, r, &message, func(ctx context.Context) (Reply, error) { return s.standing(ctx, message) })
}

func (s *Server) standing(ctx context.Context, message signed) (Reply, error) {
	req, cluster, err := s.proven(ctx, message)
	if err != nil {
		return Reply{}, err
	}
	_, _, err = raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetNode{ID: req.Node.ID})
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return Reply{Cluster: cluster.ID}, nil
	case err != nil:
		return Reply{}, err
	}
	return Reply{Cluster: cluster.ID, Node: meta.Node{ID: req.Node.ID}}, nil
}
