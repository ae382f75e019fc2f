package meta

import (
	"cmp"
	"fmt"
)

// HealthState says how a region fares.
type HealthState string

// States of a region.
const (
	HealthHealthy  HealthState = "healthy"
	HealthDegraded HealthState = "degraded" // some servers, or a blob store, or copies not looked at yet
	HealthDown     HealthState = "down"     // nobody hears any of its servers
)

// BlobsState is what a server says of its blob store.
type BlobsState string

// States of a blob store.
const (
	BlobsOK      BlobsState = ""
	BlobsLow     BlobsState = "low"     // it takes nothing new: its disk is at the reserve
	BlobsFailing BlobsState = "failing" // it cannot be written or read: lost, read-only, gone
)

// IncidentKind is the worst that an incident was.
type IncidentKind string

// Kinds of incident, the worst last.
const (
	IncidentServers   IncidentKind = "servers_lost" // some of the region's servers are not heard
	IncidentBlobsLow  IncidentKind = "blobs_low"    // a server takes no new blobs
	IncidentBlobsLost IncidentKind = "blobs_lost"   // a server's blob store fails
	IncidentDown      IncidentKind = "region_down"  // none of the region's servers is heard
)

var incidentKinds = []IncidentKind{IncidentServers, IncidentBlobsLow, IncidentBlobsLost, IncidentDown}

func (k IncidentKind) rank() int {
	for i, known := range incidentKinds {
		if k == known {
			return i + 1
		}
	}
	return 0
}

// Check refuses a kind that is none; "" is none.
func (k IncidentKind) Check() error {
	if k != "" && k.rank() == 0 {
		return fmt.Errorf("kind of incident %q: %w", k, ErrInvalid)
	}
	return nil
}

// Worse returns the worse of two kinds.
func (k IncidentKind) Worse(other IncidentKind) IncidentKind {
	if cmp.Compare(other.rank(), k.rank()) > 0 {
		return other
	}
	return k
}

// ServerHealth is what is known of a server beyond the roster.
type ServerHealth struct {
	Server NodeID `cbor:"1,keyasint,omitempty" json:"server"`
	// Silent is since when nobody hears it, 0 while it is heard.
	Silent Time `cbor:"2,keyasint,omitempty" json:"silent,omitempty"`
	// Blobs is its word on its blob store, of BlobsSince, with the reason.
	Blobs      BlobsState `cbor:"3,keyasint,omitempty" json:"blobs,omitempty"`
	BlobsSince Time       `cbor:"4,keyasint,omitempty" json:"blobs_since,omitempty"`
	Why        string     `cbor:"5,keyasint,omitempty" json:"why,omitempty"`
	// Unchecked, when not 0, is the index of what made its records of copies doubtful
	// (it was silent, its store failed): they do not count until the server has looked
	// whether the blobs are still there.
	Unchecked uint64 `cbor:"6,keyasint,omitempty" json:"unchecked,omitempty"`
	// Checked is when it last has, Copies how many it looked at, Missing how many it
	// reported failed.
	Checked Time   `cbor:"7,keyasint,omitempty" json:"checked,omitempty"`
	Copies  uint64 `cbor:"8,keyasint,omitempty" json:"copies,omitempty"`
	Missing uint64 `cbor:"9,keyasint,omitempty" json:"missing,omitempty"`
}

// Serves says that the server is heard and has its blobs.
func (s ServerHealth) Serves() bool { return s.Silent == 0 && s.Blobs != BlobsFailing }

// Counts says that what is recorded of its copies can be relied on.
func (s ServerHealth) Counts() bool { return s.Serves() && s.Unchecked == 0 }

// RegionHealth is how a region fares, as the leader has decided.
type RegionHealth struct {
	Region RegionName  `cbor:"1,keyasint,omitempty" json:"region"`
	State  HealthState `cbor:"2,keyasint,omitempty" json:"state"`
	Since  Time        `cbor:"3,keyasint,omitempty" json:"since,omitempty"`
	// Kind and Why say what is wrong, empty while it is healthy.
	Kind IncidentKind `cbor:"4,keyasint,omitempty" json:"kind,omitempty"`
	Why  string       `cbor:"5,keyasint,omitempty" json:"why,omitempty"`
	// Servers are those with something to say, by id.
	Servers []ServerHealth `cbor:"6,keyasint,omitempty" json:"servers,omitempty"`
	// Incident is the open one, 0 without.
	Incident uint64 `cbor:"7,keyasint,omitempty" json:"incident,omitempty"`
	// Backups, while the region cannot take copies, are those that take its writes,
	// nearest first.
	Backups []RegionName `cbor:"8,keyasint,omitempty" json:"backups,omitempty"`
	// Revision is the log index of the last change.
	Revision uint64 `cbor:"9,keyasint,omitempty" json:"revision,omitempty"`
}

// Server returns what is known of a server; of one without an entry all is well.
func (h RegionHealth) Server(id NodeID) ServerHealth {
	for _, s := range h.Servers {
		if s.Server == id {
			return s
		}
	}
	return ServerHealth{Server: id}
}

// Severe says that a region, or what it stores, is out: what is not urgent waits.
func (h RegionHealth) Severe() bool {
	return h.Kind == IncidentDown || h.Kind == IncidentBlobsLost
}

// Incident is a time in which a region was not healthy.
type Incident struct {
	// ID is the log index at which it was opened.
	ID     uint64       `cbor:"1,keyasint,omitempty" json:"id"`
	Region RegionName   `cbor:"2,keyasint,omitempty" json:"region"`
	Kind   IncidentKind `cbor:"3,keyasint,omitempty" json:"kind"` // the worst that it was
	Opened Time         `cbor:"4,keyasint,omitempty" json:"opened"`
	Closed Time         `cbor:"5,keyasint,omitempty" json:"closed,omitempty"` // 0 while it is open
	// Events are the first MaxIncidentEvents, More counts those beyond.
	Events []IncidentEvent `cbor:"6,keyasint,omitempty" json:"events"`
	More   uint64          `cbor:"7,keyasint,omitempty" json:"more,omitempty"`
}

// MaxIncidentEvents bounds the timeline of an incident.
const MaxIncidentEvents = 256

// EventKind is what happened in an incident.
type EventKind string

// Kinds of event.
const (
	EventOpened         EventKind = "opened"          // Text: why
	EventChanged        EventKind = "changed"         // Text: the state of the region, and why
	EventSilent         EventKind = "server_silent"   // Server
	EventHeard          EventKind = "server_heard"    // Server
	EventBlobs          EventKind = "blobs"           // Server; Text: the state of its store, and why
	EventWritesMoved    EventKind = "writes_moved"    // Region: where to
	EventWritesReturned EventKind = "writes_returned" // Region takes its writes itself again
	EventChecked        EventKind = "copies_checked"  // Server, Copies, Missing
	EventClosed         EventKind = "closed"
)

// IncidentEvent is a step of an incident.
type IncidentEvent struct {
	At      Time       `cbor:"1,keyasint,omitempty" json:"at"`
	Kind    EventKind  `cbor:"2,keyasint,omitempty" json:"event"`
	Server  NodeID     `cbor:"3,keyasint,omitempty" json:"server,omitempty"`
	Region  RegionName `cbor:"4,keyasint,omitempty" json:"region,omitempty"`
	Text    string     `cbor:"5,keyasint,omitempty" json:"text,omitempty"`
	Copies  uint64     `cbor:"6,keyasint,omitempty" json:"copies,omitempty"`
	Missing uint64     `cbor:"7,keyasint,omitempty" json:"missing,omitempty"`
}
