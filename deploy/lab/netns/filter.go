package netns

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Deaf makes the host drop every packet that comes from the given addresses, and from no
// others; none makes it hear all again. Neither side is told. That one host is deaf to
// another without the other being deaf to it is how an asymmetric partition is made.
//
// Errors: no iptables (Debian package iptables), or a kernel without it.
func (h *Host) Deaf(to ...netip.Addr) error {
	rules := [][]string{{"-F", "INPUT"}}
	for _, addr := range to {
		rules = append(rules, []string{"-A", "INPUT", "-s", addr.String(), "-j", "DROP"})
	}
	err := in(h.ns, func() error {
		for _, rule := range rules {
			cmd := exec.Command("iptables", append([]string{"-w"}, rule...)...)
			if output, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("iptables %s: %w: %s", strings.Join(rule, " "), err, strings.TrimSpace(string(output)))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("filter of %s: %w", h.Name, err)
	}
	return nil
}

// Reshape gives the host's link another speed; 0 takes the limit away.
func (h *Host) Reshape(link Link) error {
	change := func(device string, bitsPerSec int64) error {
		if bitsPerSec > 0 {
			return batch("tc", fmt.Sprintf("qdisc replace dev %s root tbf rate %dbit burst %d latency 50ms", device, bitsPerSec, 128<<10))
		}
		// What a veth has without a bucket; unlike taking the bucket away, this may be repeated.
		return batch("tc", fmt.Sprintf("qdisc replace dev %s root noqueue", device))
	}
	if err := in(h.bridge, func() error { return change(h.device, link.DownBitsPerSec) }); err != nil {
		return fmt.Errorf("link of %s: %w", h.Name, err)
	}
	if err := in(h.ns, func() error { return change("eth0", link.UpBitsPerSec) }); err != nil {
		return fmt.Errorf("link of %s: %w", h.Name, err)
	}
	return nil
}
