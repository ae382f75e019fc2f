package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetRegionHealth is the leader's decision on how a region fares. The first that is
// not healthy opens an incident, the next that is closes it; what changes between is
// in its timeline. Result: meta.RegionHealth.
//
// The proposer says which record it has judged by; a command that comes after
// another change does nothing, so that two proposers do no harm.
//
// Errors: meta.ErrNotFound for the region.
type SetRegionHealth struct {
	Region meta.RegionName   `cbor:"1,keyasint,omitempty"`
	Was    uint64            `cbor:"2,keyasint,omitempty"` // Revision of the record judged by, 0 when there was none
	State  meta.HealthState  `cbor:"3,keyasint,omitempty"`
	Kind   meta.IncidentKind `cbor:"4,keyasint,omitempty"` // of what is not healthy
	Why    string            `cbor:"5,keyasint,omitempty"`
	// Silent are all servers of the region that nobody hears, sorted.
	Silent []meta.NodeID `cbor:"6,keyasint,omitempty"`
	// Backups, when the region cannot take copies, are those that take its writes,
	// nearest first.
	Backups []meta.RegionName `cbor:"7,keyasint,omitempty"`
}

// Type implements Command.
func (SetRegionHealth) Type() uint16 { return typeSetRegionHealth }

// Check implements Command.
func (c SetRegionHealth) Check() error {
	if err := meta.CheckRegion(c.Region); err != nil {
		return err
	}
	act := fmt.Sprintf("health of region %s", c.Region)
	switch c.State {
	case meta.HealthHealthy:
		if c.Kind != "" || len(c.Silent) > 0 || len(c.Backups) > 0 {
			return fmt.Errorf("%s: healthy, and not: %w", act, meta.ErrInvalid)
		}
	case meta.HealthDegraded, meta.HealthDown:
		if c.Kind == "" {
			return fmt.Errorf("%s: %s without a kind: %w", act, c.State, meta.ErrInvalid)
		}
	default:
		return fmt.Errorf("%s: state %q: %w", act, c.State, meta.ErrInvalid)
	}
	if err := c.Kind.Check(); err != nil {
		return err
	}
	if len(c.Silent) > maxHealthServers || len(c.Backups) > maxBackups {
		return fmt.Errorf("%s: %d servers and %d backups, at most %d and %d: %w", act, len(c.Silent), len(c.Backups), maxHealthServers, maxBackups, meta.ErrInvalid)
	}
	if !slices.IsSorted(c.Silent) {
		return fmt.Errorf("%s: silent servers out of order: %w", act, meta.ErrInvalid)
	}
	for i, b := range c.Backups {
		if err := meta.CheckRegion(b); err != nil {
			return err
		}
		if b == c.Region || slices.Contains(c.Backups[:i], b) {
			return fmt.Errorf("%s: backup %s: %w", act, b, meta.ErrInvalid)
		}
	}
	return checkHealthText(act, c.Why)
}

func (c SetRegionHealth) apply(t *tx) (any, error) {
	region, err := t.region(c.Region)
	if err != nil {
		return nil, err
	}
	if region == nil {
		return nil, fmt.Errorf("health of region %s: %w", c.Region, meta.ErrNotFound)
	}
	h, err := healthOf(t, c.Region)
	if err != nil {
		return nil, err
	}
	if h.Revision != c.Was {
		return *h, nil // Another change came first.
	}
	wasState, wasWhy, wasBackups := h.State, h.Why, h.Backups
	events := c.servers(t, h, region.Servers)
	if h.State != c.State {
		h.State, h.Since = c.State, t.now
	}
	h.Kind, h.Why, h.Backups = c.Kind, c.Why, c.Backups
	switch {
	case len(c.Backups) > 0 && (len(wasBackups) == 0 || wasBackups[0] != c.Backups[0]):
		events = append(events, meta.IncidentEvent{Kind: meta.EventWritesMoved, Region: c.Backups[0]})
	case len(c.Backups) == 0 && len(wasBackups) > 0:
		events = append(events, meta.IncidentEvent{Kind: meta.EventWritesReturned, Region: c.Region})
	}
	switch {
	case h.Incident == 0 && c.State != meta.HealthHealthy:
		if err := t.openIncident(h); err != nil {
			return nil, err
		}
		events = append([]meta.IncidentEvent{{Kind: meta.EventOpened, Text: string(c.State) + ": " + c.Why}}, events...)
	case h.Incident != 0 && c.State == meta.HealthHealthy:
		if err := t.closeIncident(h, events); err != nil {
			return nil, err
		}
	case h.Incident != 0:
		if err := t.worsen(h); err != nil {
			return nil, err
		}
		if c.State != wasState || c.Why != wasWhy {
			events = append(events, meta.IncidentEvent{Kind: meta.EventChanged, Text: string(c.State) + ": " + c.Why})
		}
	}
	if err := t.putHealth(h, events); err != nil {
		return nil, err
	}
	return *h, nil
}

// servers notes which servers are heard and which not; those that have left the region
// go, and those that are well and always were.
func (c SetRegionHealth) servers(t *tx, h *meta.RegionHealth, roster []meta.NodeID) (events []meta.IncidentEvent) {
	for _, id := range roster {
		_, silent := slices.BinarySearch(c.Silent, id)
		if !silent && h.Server(id).Silent == 0 {
			continue
		}
		switch s := ofServer(h, id); {
		case silent && s.Silent == 0:
			// Whatever it loses while nobody sees it, its records would still say.
			s.Silent, s.Unchecked = t.now, t.index
			events = append(events, meta.IncidentEvent{Kind: meta.EventSilent, Server: id})
		case !silent && s.Silent != 0:
			s.Silent = 0
			events = append(events, meta.IncidentEvent{Kind: meta.EventHeard, Server: id})
		}
	}
	h.Servers = slices.DeleteFunc(h.Servers, func(s meta.ServerHealth) bool { return !slices.Contains(roster, s.Server) })
	return events
}

// worsen keeps the worst kind of the open incident.
func (t *tx) worsen(h *meta.RegionHealth) error {
	i, err := find[meta.Incident](t, keyIncident(h.Incident), "incident", h.Incident)
	if err != nil {
		return err
	}
	if worse := i.Kind.Worse(h.Kind); worse != i.Kind {
		i.Kind = worse
		t.put(keyIncident(i.ID), i)
	}
	return nil
}
