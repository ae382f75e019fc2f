package ops

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Local refuses a request that does not come from this host, or by a name that a
// browser on this host may have been led to. Handlers that change something ask it.
//
// Errors: meta.ErrDenied.
func Local(r *http.Request) error {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("a node is changed from its own host, over loopback: %w", meta.ErrDenied)
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
		return fmt.Errorf("a node is not changed at the name %q, use its address: %w", host, meta.ErrDenied)
	}
	return nil
}
