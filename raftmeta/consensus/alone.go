package consensus

import (
	"net"

	"github.com/hashicorp/raft"
)

// standAlone lets a server that is the only voter stand for election at once: nobody
// else can lead, and to wait for a heartbeat is to wait for nothing (5 to 10 s on wan).
// It tells itself what a leader tells its heir.
func (n *Node) standAlone(transport *raft.NetworkTransport) {
	var voters []raft.ServerID
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.ID)
		}
	}
	self := raft.ServerID(n.cfg.Self)
	if len(voters) != 1 || voters[0] != self {
		return
	}
	address := raft.ServerAddress(self)
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: transport.EncodePeer(self, address)}
	if err := transport.TimeoutNow(self, address, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{}); err != nil {
		n.log.Debug("the election waits for its time", "error", err)
	}
}

// dialSelf connects this server with itself; the other end is accepted.
func (l *streamLayer) dialSelf() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.accepted <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
