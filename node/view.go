package node

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

// View is what GET /view/swarm on a node's ops listener answers, and `shoal top`
// shows: what the node fetches and serves now.
type View struct {
	Node    meta.NodeID     `json:"node"`
	Role    meta.Role       `json:"role"`
	Region  meta.RegionName `json:"region"`
	Zone    string          `json:"zone,omitempty"`
	Gateway string          `json:"gateway"`
	Version string          `json:"version"`
	// ServerReachable says, on an agent, whether a server answered the last time that
	// one was asked.
	ServerReachable *bool `json:"server_reachable,omitempty"`
	swarm.Snapshot
	// Names has, by root in hex, how those blobs of Roots and Swarms that the node has
	// a name for are called: repository@digest.
	Names map[string]string `json:"names"`
	// Swarms are, on a server, those whose members turn to its registrar; Reported the
	// peers that members say sent wrong chunks.
	Swarms   []RegionSwarm      `json:"swarms,omitempty"`
	Reported []dht.ReportedPeer `json:"reported,omitempty"`
}

// RegionSwarm is a swarm of the region; Chunks and Bytes are 0 where the server
// does not know the blob's size.
type RegionSwarm struct {
	dht.SwarmView
	Chunks int   `json:"chunks"`
	Bytes  int64 `json:"bytes"`
}

// view makes the views of a node. The functions of a server are nil on an agent.
func (n *Node) view(swarms *swarm.Swarm, names *names, reachable func() bool, registrar *dht.Registrar) func() any {
	return func() any {
		v := View{
			Node: n.ID(), Role: n.Role(), Region: n.Region(), Zone: n.id.Node.Zone, Gateway: n.Gateway(), Version: n.cfg.Version,
			Snapshot: swarms.Snapshot(), Names: map[string]string{},
		}
		if reachable != nil {
			r := reachable()
			v.ServerReachable = &r
		}
		sizes := map[digest.CID]swarm.RootSnapshot{}
		for _, r := range v.Roots {
			sizes[r.Root] = r
			names.tell(r.Root, v.Names)
		}
		if registrar != nil {
			v.Reported = registrar.Reported()
			for _, s := range registrar.Swarms() {
				known := sizes[s.Root]
				v.Swarms = append(v.Swarms, RegionSwarm{s, known.Chunks, known.Bytes})
				names.tell(s.Root, v.Names)
			}
		}
		return v
	}
}

// names remembers what the blobs that passed are called, of 4,096 the latest. Where
// metadata is here (servers), it is asked for the others.
type names struct {
	metadata raftmeta.Asker // nil on an agent

	mu  sync.Mutex
	lru *simplelru.LRU[digest.CID, string]
}

func newNames(metadata raftmeta.Asker) *names {
	lru, _ := simplelru.NewLRU[digest.CID, string](4096, nil) // fails for sizes <= 0 only
	return &names{metadata: metadata, lru: lru}
}

// note takes the name under which a client asks for a blob.
func (s *names) note(b meta.Blob, repo meta.RepoRef, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Add(b.Root, repo.String()+"@"+d.String())
}

// name returns the name of root, "" when it is not remembered.
func (s *names) name(root digest.CID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, _ := s.lru.Get(root)
	return name
}

// tell puts the name of root into to, if there is one.
func (s *names) tell(root digest.CID, to map[string]string) {
	name := s.name(root)
	ok := name != ""
	if !ok && s.metadata != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		b, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.BlobByRoot{Root: root})
		cancel()
		if ok = err == nil; ok {
			name = b.Digest.String()
			s.mu.Lock()
			s.lru.Add(root, name)
			s.mu.Unlock()
		}
	}
	if ok {
		to[root.Hex()] = name
	}
}
