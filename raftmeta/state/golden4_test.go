package state

import (
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// levelFour goes on from level 3 with the commands of level 4, done and refused.
func levelFour(t *testing.T) []Entry { return writeLevelFour(t).entries }

func writeLevelFour(t *testing.T) *logWriter {
	l := writeLevelThree(t)
	join := func(id meta.NodeID, region meta.RegionName) {
		l.add("", CreateJoinToken{Token: meta.JoinToken{ID: "of " + string(id), Role: meta.RoleServer, Region: region, Uses: 1, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
		l.add("", AdmitNode{TokenSecretHash: "of " + string(id), Node: server(id, region)})
	}
	settle, root := l.settle, func(content string) digest.CID { return blob(content).Root }
	standard, premium, none, two := meta.ClassStandard, meta.TierPremium, time.Duration(0), uint32(2)
	one := uint32(1)
	regions := []meta.RegionName{"eu", "us"}

	// Below their level they are refused, fields of older commands too.
	l.add("", DrainServer{ID: "us-2", Drain: true})
	l.add("", SetRepository{Ref: appRef, CopiesBeforeAck: &two})
	l.add("", SetLevel{Level: 4})
	settle(4)
	join("eu-7", "eu")
	join("eu-8", "eu")
	join("us-7", "us")
	settle(5)

	// Servers that drain, and go.
	l.add("", SetRepository{Ref: appRef, Class: &standard})
	settle(5)
	l.add("", link("kept", "eu-7"))
	l.add("", image("m4", "kept"))
	l.add("", link("upload", "eu-7"))
	l.add("", RemoveNode{ID: "eu-7"})
	l.add("", DrainServer{ID: "eu-7", Drain: true, Autopilot: true})
	l.add("", DrainServer{ID: "eu-7", Autopilot: true})
	l.add("", DrainServer{ID: "eu-7", Drain: true})
	l.add("", DrainServer{ID: "eu-7", Autopilot: true})
	settle(2)
	l.add("", RemoveNode{ID: "eu-7"})
	l.add("", report("eu-8", meta.ReplicaVerified, "kept", "m4", "upload"))
	l.add("", report("us-7", meta.ReplicaVerified, "kept", "m4"))
	join("eu-9", "eu")
	settle(3)
	l.add("", report("eu-9", meta.ReplicaVerified, "kept", "m4", "upload"))
	l.add("", RemoveNode{ID: "eu-7"})
	settle(3)

	// A region that is given up, kept, given up again, and removed.
	l.add("", LeaveRegion{Name: "sa", Leave: true})
	l.add("", LeaveRegion{Name: "sa"})
	settle(4)
	l.add("", LeaveRegion{Name: "sa", Leave: true})
	since := meta.TimeOf(l.now)
	l.add("", RemoveRegion{Name: "sa", Since: since})
	settle(4)
	l.add("", RemoveRegion{Name: "sa", Since: 1})
	l.add("", RemoveRegion{Name: "sa", Since: since})
	settle(4)
	l.add("", HoldLevel{Level: 3})
	l.add("", HoldLevel{Level: 4})
	l.add("", SetLevel{Level: 4})
	l.add("", HoldLevel{})

	// Replication: tiers, regions and copies of a repository.
	l.add("", SetTenant{Name: "acme", Tier: &premium})
	l.add("", SetRepository{Ref: appRef, Regions: &regions, CopiesBeforeAck: &two})
	settle(4)
	l.add("", link("five", "eu-8"))
	l.add("", DemandBlobs{Repo: appRef, Blobs: []digest.Digest{blob("five").Digest}})
	l.add("", image("m5", "five")) // its manifest is at one server
	l.add("", link("m5", "eu-8"))
	l.add("", report("eu-9", meta.ReplicaVerified, "five", "m5"))
	l.add("", image("m5", "five"))
	l.add("", SetRepository{Ref: appRef, CopiesBeforeAck: &one})

	// Audits, and a blob that is lost and found.
	l.add("", RequestAudit{Request: meta.AuditRequest{Full: true}})
	asked := uint64(len(l.entries))
	l.add("", RequestAudit{Servers: []meta.NodeID{"eu-8"}, Request: meta.AuditRequest{Roots: []digest.CID{root("five")}}})
	l.add("", ReportAudit{Server: "eu-8", Report: meta.AuditReport{Answered: asked, At: meta.TimeOf(l.now), DamagedChunks: 1, FailedCopies: 1}})
	l.add("", link("lost", "eu-8"))
	l.add("", image("m6", "lost"))
	l.add("", report("eu-8", meta.ReplicaFailed, "lost"))
	l.add("", report("eu-8", meta.ReplicaVerified, "lost"))

	// The health of regions.
	l.add("", ReportBlobs{Server: "eu-8", State: meta.BlobsLow, Why: "1 GiB free"})
	l.add("", SetRegionHealth{Region: "us", State: meta.HealthDown, Kind: meta.IncidentDown, Why: "nobody hears it", Silent: []meta.NodeID{"us-2", "us-7"}, Backups: []meta.RegionName{"eu"}})
	was := uint64(len(l.entries))
	l.add("", SetRegionHealth{Region: "us", Was: 1, State: meta.HealthHealthy})
	l.add("", SetRegionHealth{Region: "us", Was: was, State: meta.HealthDegraded, Kind: meta.IncidentServers, Why: "one is away", Silent: []meta.NodeID{"us-2"}})
	l.add("", ReportChecked{Server: "us-7", Unchecked: was, Copies: 3, Missing: 1})
	l.add("", ReportBlobs{Server: "eu-8"})

	// Garbage, held off by a backup, and collected.
	l.add("", SetGC{Grace: &none})
	l.add("", link("garbage", "eu-8"))
	l.add("", image("m7", "garbage"))
	l.add("", DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m7").Digest)})
	l.add("", HoldBackup{ID: "b", Lease: time.Minute})
	l.now = l.now.Add(time.Second)
	l.add("", CollectBlobs{Limit: 100, Grace: &none})
	l.add("", HoldBackup{ID: "b", Lease: time.Minute, Renew: true})
	l.add("", CloseBackup{ID: "b"})
	l.add("", CollectBlobs{Limit: 2, Grace: &none, Strays: true})
	collected := uint64(len(l.entries))
	l.add("", CollectBlobs{Limit: 1000, Grace: &none})
	l.add("", SettleCollected{Server: "eu-8", Removed: []CollectedCopy{{Root: root("garbage"), Index: collected}, {Root: root("garbage"), Index: collected + 1}}, Kept: []CollectedCopy{{Root: root("m7"), Index: collected + 1}}})
	l.add("", CollectStrays{Server: "eu-9", Strays: []Stray{{Root: root("stray"), StoredBytes: 5}, {Root: root("kept"), StoredBytes: 4}}})

	// Servers that compare their states.
	l.add("", CompareState{})
	compared := uint64(len(l.entries))
	l.add("", ReportState{Index: compared, Server: "eu-8", Hash: make([]byte, 32)})
	l.add("", ReportState{Index: 1, Server: "eu-9", Hash: make([]byte, 32)})

	// An epoch that one server begins, with what was left unsettled.
	l.add("", DrainServer{ID: "us-7", Drain: true})
	epoch := BeginEpoch{Epoch: 2, Node: server("eu-8", "eu"), Sealed: []byte("sealed"), Recovery: meta.Recovery{First: "eu-8", Index: 1}}
	l.add("", epoch)
	epoch.Epoch = 1
	l.add("", epoch)
	settle(9)
	return l
}
