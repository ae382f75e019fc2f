package outbound

import "net/netip"

// network is a block of addresses that is not of the public Internet.
type network struct {
	prefix netip.Prefix
	name   string
}

// reserved are the blocks of the IANA special-purpose registries (RFC 6890 and
// its updates) that lead to this machine, this site or nowhere, and multicast.
// Metadata services of clouds are in link-local, shared and unique local space.
var reserved = []network{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("10.0.0.0/8"), "a private address"},
	{netip.MustParsePrefix("172.16.0.0/12"), "a private address"},
	{netip.MustParsePrefix("192.168.0.0/16"), "a private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), "a shared address (RFC 6598)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("192.0.0.0/24"), "a protocol assignment"},
	{netip.MustParsePrefix("192.0.2.0/24"), "a documentation address"},
	{netip.MustParsePrefix("192.88.99.0/24"), "a relay address (RFC 7526)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "a benchmarking address"},
	{netip.MustParsePrefix("198.51.100.0/24"), "a documentation address"},
	{netip.MustParsePrefix("203.0.113.0/24"), "a documentation address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved or broadcast address"},
	{netip.MustParsePrefix("::/96"), "the unspecified, loopback or an IPv4-compatible address"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a local translation (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), "a discard address"},
	{netip.MustParsePrefix("2001::/23"), "a protocol assignment"},
	{netip.MustParsePrefix("2001:db8::/32"), "a documentation address"},
	{netip.MustParsePrefix("3fff::/20"), "a documentation address"},
	{netip.MustParsePrefix("5f00::/16"), "a segment routing address"},
	{netip.MustParsePrefix("fc00::/7"), "a unique local address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("fec0::/10"), "a site-local address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// Networks whose addresses carry an IPv4 address to which a gateway translates.
var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: the last 32 bits
	sixToFo = netip.MustParsePrefix("2002::/16")    // RFC 3056: bits 16 to 48
)

// Reserved says whether an address is not of the public Internet, and what it is.
// An IPv4 address within an IPv6 one is judged as itself.
func Reserved(addr netip.Addr) (name string, reservedToo bool) {
	addr = addr.WithZone("").Unmap()
	if !addr.IsValid() {
		return "no address", true
	}
	if addr.Is6() {
		b := addr.As16()
		switch {
		case nat64.Contains(addr):
			return Reserved(netip.AddrFrom4([4]byte(b[12:16])))
		case sixToFo.Contains(addr):
			return Reserved(netip.AddrFrom4([4]byte(b[2:6])))
		}
	}
	for _, n := range reserved {
		if n.prefix.Contains(addr) {
			return n.name, true
		}
	}
	return "", false
}
