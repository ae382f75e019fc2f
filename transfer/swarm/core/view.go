package core

// PeerHave returns how many chunks p is known to have; 0 when p is not connected.
func (c *Core) PeerHave(p Peer) int {
	if q := c.peers[p]; q != nil && q.state == up {
		return q.haveCount
	}
	return 0
}
