package host

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	ma "github.com/multiformats/go-multiaddr"
)

// book is a peerstore whose addresses are the roster's. libp2p, identify and
// kad-dht offer it what peers say about addresses; it listens to none of it, so
// a hostile node can neither make others dial where it likes nor hide a peer.
// Keys, protocols, latencies and this host's own addresses are libp2p's.
type book struct {
	peerstore.Peerstore
	certified peerstore.CertifiedAddrBook
	self      peer.ID
	roster    *roster
}

var (
	_ peerstore.Peerstore         = (*book)(nil)
	_ peerstore.CertifiedAddrBook = (*book)(nil)
)

func newBook(self peer.ID, r *roster) (*book, error) {
	inner, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	certified, _ := peerstore.GetCertifiedAddrBook(inner) // pstoremem is one
	return &book{Peerstore: inner, certified: certified, self: self, roster: r}, nil
}

// Addrs returns the roster's addresses of p, or this host's own.
func (b *book) Addrs(p peer.ID) []ma.Multiaddr {
	if p == b.self {
		return b.Peerstore.Addrs(p)
	}
	return b.roster.addrs(p)
}

// PeerInfo returns p with Addrs.
func (b *book) PeerInfo(p peer.ID) peer.AddrInfo { return peer.AddrInfo{ID: p, Addrs: b.Addrs(p)} }

// PeersWithAddrs returns the roster.
func (b *book) PeersWithAddrs() peer.IDSlice { return b.roster.peers() }

// AddAddr and the rest of the writers act for this host itself only.
func (b *book) AddAddr(p peer.ID, a ma.Multiaddr, ttl time.Duration) {
	b.AddAddrs(p, []ma.Multiaddr{a}, ttl)
}

// AddAddrs ignores what is said of others.
func (b *book) AddAddrs(p peer.ID, addrs []ma.Multiaddr, ttl time.Duration) {
	if p == b.self {
		b.Peerstore.AddAddrs(p, addrs, ttl)
	}
}

// SetAddr ignores what is said of others.
func (b *book) SetAddr(p peer.ID, a ma.Multiaddr, ttl time.Duration) {
	b.SetAddrs(p, []ma.Multiaddr{a}, ttl)
}

// SetAddrs ignores what is said of others.
func (b *book) SetAddrs(p peer.ID, addrs []ma.Multiaddr, ttl time.Duration) {
	if p == b.self {
		b.Peerstore.SetAddrs(p, addrs, ttl)
	}
}

// UpdateAddrs ignores what is said of others.
func (b *book) UpdateAddrs(p peer.ID, oldTTL, newTTL time.Duration) {
	if p == b.self {
		b.Peerstore.UpdateAddrs(p, oldTTL, newTTL)
	}
}

// ClearAddrs ignores what is said of others.
func (b *book) ClearAddrs(p peer.ID) {
	if p == b.self {
		b.Peerstore.ClearAddrs(p)
	}
}

// AddrStream sends the present addresses and closes the channel when ctx ends.
func (b *book) AddrStream(ctx context.Context, p peer.ID) <-chan ma.Multiaddr {
	addrs := b.Addrs(p)
	out := make(chan ma.Multiaddr, len(addrs))
	for _, a := range addrs {
		out <- a
	}
	context.AfterFunc(ctx, func() { close(out) })
	return out
}

// ConsumePeerRecord keeps only this host's own record.
func (b *book) ConsumePeerRecord(s *record.Envelope, ttl time.Duration) (bool, error) {
	signer, err := peer.IDFromPublicKey(s.PublicKey)
	if err != nil || signer != b.self {
		return false, err
	}
	return b.certified.ConsumePeerRecord(s, ttl)
}

// GetPeerRecord returns this host's own record.
func (b *book) GetPeerRecord(p peer.ID) *record.Envelope { return b.certified.GetPeerRecord(p) }
