package state

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Health of regions and its history: what set_region_health.go, report_blobs.go and
// report_checked.go share.

// healthLevel is the cluster level from which the health of regions is recorded.
const healthLevel = 4

const (
	// maxIncidents bounds the incidents that are kept, the oldest go first.
	maxIncidents = 500
	// maxHealthText bounds a reason.
	maxHealthText = 512
	// maxHealthServers and maxBackups bound what one decision names.
	maxHealthServers = 256
	maxBackups       = 64
)

// Below spaceIncidents.
const (
	inHealth    = 'h' // [region] -> meta.RegionHealth
	inIncidents = 'i' // opened-at u64 -> meta.Incident
)

func keyHealth(region meta.RegionName) key { return key{spaceIncidents, inHealth}.last(string(region)) }
func keyIncident(id uint64) key            { return key{spaceIncidents, inIncidents}.u64(id) }

// keyIncidents holds how many incidents there are.
var keyIncidents = key{spaceIncidents, 'n'}

// healthOf returns how a region fares; one of which nothing was said is healthy.
func healthOf(r reader, region meta.RegionName) (*meta.RegionHealth, error) {
	h, err := load[meta.RegionHealth](r, keyHealth(region))
	if err == nil && h == nil {
		h = &meta.RegionHealth{Region: region, State: meta.HealthHealthy}
	}
	return h, err
}

// counts reports whether what is recorded of a server's copies can be relied on.
func counts(r reader, n *meta.Node) (bool, error) {
	h, err := healthOf(r, n.Region)
	return err == nil && h.Server(n.ID).Counts(), err
}

// ofServer returns the entry of a server in h, a new one when there is none. It holds
// until the next call.
func ofServer(h *meta.RegionHealth, id meta.NodeID) *meta.ServerHealth {
	at, found := slices.BinarySearchFunc(h.Servers, id, func(s meta.ServerHealth, id meta.NodeID) int { return cmp.Compare(s.Server, id) })
	if !found {
		h.Servers = slices.Insert(h.Servers, at, meta.ServerHealth{Server: id})
	}
	return &h.Servers[at]
}

// putHealth stores h, with what has happened in its incident.
func (t *tx) putHealth(h *meta.RegionHealth, events []meta.IncidentEvent) error {
	h.Revision = t.index
	t.put(keyHealth(h.Region), h)
	t.emit(feed.Change{Kind: feed.KindHealth, Region: h.Region, Health: h})
	if h.Incident == 0 || len(events) == 0 {
		return nil
	}
	i, err := find[meta.Incident](t, keyIncident(h.Incident), "incident", h.Incident)
	if err != nil {
		return err
	}
	t.note(i, events)
	t.put(keyIncident(i.ID), i)
	return nil
}

// note adds events to an incident.
func (t *tx) note(i *meta.Incident, events []meta.IncidentEvent) {
	for _, e := range events {
		e.At = t.now
		// The last place is for the end.
		if len(i.Events) >= meta.MaxIncidentEvents-1 && e.Kind != meta.EventClosed {
			i.More++
			continue
		}
		i.Events = append(i.Events, e)
	}
}

// openIncident begins an incident of h's region.
func (t *tx) openIncident(h *meta.RegionHealth) error {
	kept, err := number(t, keyIncidents)
	if err != nil {
		return err
	}
	for p, err := range t.scan(within(key{spaceIncidents, inIncidents})) {
		if err != nil {
			return err
		}
		if kept < maxIncidents {
			break
		}
		// The oldest may be open still, of a region that nobody removes.
		oldest, err := decode[meta.Incident](p.key, p.value)
		if err != nil {
			return err
		}
		if oldest.Closed != 0 {
			t.del(slices.Clone(p.key))
			kept--
		}
	}
	t.setNumber(keyIncidents, kept+1)
	h.Incident = t.index
	t.put(keyIncident(t.index), meta.Incident{ID: t.index, Region: h.Region, Kind: h.Kind, Opened: t.now})
	return nil
}

// closeIncident ends the incident of h's region with its last events.
func (t *tx) closeIncident(h *meta.RegionHealth, events []meta.IncidentEvent) error {
	i, err := find[meta.Incident](t, keyIncident(h.Incident), "incident", h.Incident)
	if err != nil {
		return err
	}
	t.note(i, append(events, meta.IncidentEvent{Kind: meta.EventClosed}))
	i.Closed = t.now
	t.put(keyIncident(i.ID), i)
	h.Incident = 0
	return nil
}

// forgetHealth drops what is known of a region that is removed; its incident ends.
func (t *tx) forgetHealth(region meta.RegionName) error {
	h, err := load[meta.RegionHealth](t, keyHealth(region))
	if err != nil || h == nil {
		return err
	}
	if h.Incident != 0 {
		if err := t.closeIncident(h, nil); err != nil {
			return err
		}
	}
	t.del(keyHealth(region))
	t.emit(feed.Change{Kind: feed.KindHealth, Region: region, Deleted: true})
	return nil
}

// owedNow is regionsOf with the stand-ins of those that are out.
func (t *tx) owedNow(repo *meta.Repository) ([]meta.RegionName, error) {
	owing, err := t.regionsOf(repo)
	if err != nil {
		return nil, err
	}
	return t.standIns(owing)
}

// needSure refuses, for a server that is to go, while another one's records of copies
// are doubtful: what the one has may be the last.
func (t *tx) needSure(leaving meta.NodeID) error {
	for p, err := range t.scan(within(key{spaceIncidents, inHealth})) {
		if err != nil {
			return err
		}
		h, err := decode[meta.RegionHealth](p.key, p.value)
		if err != nil {
			return err
		}
		region, err := t.region(h.Region)
		if err != nil {
			return err
		}
		for _, s := range h.Servers {
			// What a server holds that has gone, or is to go as well, does not count anyway.
			if s.Unchecked != 0 && s.Server != leaving && region != nil && slices.Contains(region.staying(), s.Server) {
				return fmt.Errorf("nobody knows whether server %s of region %s still has its copies, `shoal region status %s` says why: %w",
					s.Server, h.Region, h.Region, meta.ErrConflict)
			}
		}
	}
	return nil
}

// standIns adds to the regions that owe a copy one for each of them that cannot take
// it now: the first of its backups that can and does not owe it already. The region
// that is out owes on, and pays when it is back.
func (t *tx) standIns(owing []meta.RegionName) ([]meta.RegionName, error) {
	out := owing
	for _, region := range owing {
		h, err := load[meta.RegionHealth](t, keyHealth(region))
		if err != nil {
			return nil, err
		}
		if h == nil {
			continue
		}
		for _, backup := range h.Backups {
			if slices.Contains(out, backup) {
				continue
			}
			if r, err := t.region(backup); err != nil {
				return nil, err
			} else if r == nil || r.Region.Leaving != 0 || len(r.holders()) == 0 {
				continue
			}
			if b, err := healthOf(t, backup); err != nil {
				return nil, err
			} else if len(b.Backups) > 0 {
				continue
			}
			out = append(slices.Clip(out), backup)
			break
		}
	}
	return out, nil
}

func checkHealthText(what, s string) error {
	if len(s) > maxHealthText {
		return fmt.Errorf("%s: a reason of %d bytes, at most %d: %w", what, len(s), maxHealthText, meta.ErrInvalid)
	}
	return nil
}

// RegionHealth answers how regions fare: all, or the one named.
//
// Errors: meta.ErrNotFound for a region that nobody has made.
type RegionHealth struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q RegionHealth) Answer(v *View) ([]meta.RegionHealth, error) {
	if q.Region != "" {
		if _, err := find[regionRecord](v, keyRegion(q.Region), "region", q.Region); err != nil {
			return nil, err
		}
		h, err := healthOf(v, q.Region)
		if err != nil {
			return nil, err
		}
		return []meta.RegionHealth{*h}, nil
	}
	var all []meta.RegionHealth
	for r, err := range regions(v) {
		if err != nil {
			return nil, err
		}
		h, err := healthOf(v, r.Region.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, *h)
	}
	return all, nil
}

// ListIncidents lists incidents, the newest first, of one region when it is set.
// Page.After is an incident's id, in decimal.
type ListIncidents struct {
	Region meta.RegionName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListIncidents) Answer(v *View) ([]meta.Incident, error) {
	before, err := q.Page.number()
	if err != nil {
		return nil, err
	}
	s := within(key{spaceIncidents, inIncidents})
	if before > 0 {
		s.upper = keyIncident(before)
	}
	s.reverse = true
	return list(v, s, q.Page, func(i *meta.Incident) bool { return q.Region == "" || i.Region == q.Region })
}
