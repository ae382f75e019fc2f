package store

import (
	"strings"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Owned lists what is pinned by the owners whose name begins with prefix.
func (d *Disk) Owned(prefix string) map[string][]digest.CID { return d.pins.owned(prefix) }

func (p *pins) owned(prefix string) map[string][]digest.CID {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := map[string][]digest.CID{}
	for root, owners := range p.owners {
		for owner := range owners {
			if strings.HasPrefix(owner, prefix) {
				found[owner] = append(found[owner], root)
			}
		}
	}
	return found
}
