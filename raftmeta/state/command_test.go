package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// TestWireNames pins what is in logs and between nodes: a number or name never
// changes, and none is used again.
func TestWireNames(t *testing.T) {
	var commands []string
	for _, number := range slices.Sorted(maps.Keys(kinds)) {
		commands = append(commands, fmt.Sprint(number, " ", kinds[number].name))
	}
	want := "1 Tick, 2 Bootstrap, 3 SetLevel, 10 CreateTenant, 11 CreateRepository, 12 SetRepository, 13 RemoveRepository, " +
		"20 LinkBlob, 21 MountBlob, 22 UnlinkBlob, 23 ExpireUploads, 24 StageReferences, " +
		"30 Publish, 31 MoveAlias, 32 DeleteAlias, 33 DeleteVersion, 34 SetLabels, " +
		"40 AdmitNode, 41 UpdateNode, 42 RemoveNode, 43 CreateJoinToken, 44 PutRegion, 45 SealRootKey, " +
		"46 RemoveRegion, 47 DrainServer, 48 LeaveRegion, 49 HoldLevel, " +
		"50 ReportReplicas, 51 DemandReplica, 52 SettleDemands, 53 DemandBlobs, 54 SetTenant, 55 RequestAudit, 56 ReportAudit, " +
		"60 CreateWave, 61 CancelWave, 62 AdmitHosts, 63 ReportHosts, 64 EndWave, 65 ForgetWaves, " +
		"70 SetRegionHealth, 71 ReportBlobs, 72 ReportChecked, " +
		"80 HoldBackup, 81 CloseBackup, 82 BeginEpoch, " +
		"90 CollectBlobs, 91 SettleCollected, 92 CollectStrays, 93 SetGC, 94 CompareState, 95 ReportState, " +
		"100 CreateAccount, 101 SetAccount, 102 RemoveAccount, 103 PutRole, 104 RemoveRole, 105 AddBinding, 106 RemoveBinding, " +
		"110 CreateCredential, 111 TouchCredentials, 112 ExpireCredentials, 113 RotateCredential, 114 SetPassword, 115 PutIssuer, 116 RemoveIssuer, 117 SetIssuerKeys, " +
		"120 RevokeCredential, 121 RevokePrincipal, 122 RevokeTenant, 123 NarrowNode, " +
		"125 PutCheckpoint, 126 AnchorChains, 127 SetAuditRetention, 128 PruneEntries, " +
		"130 OpenCompromise, 131 AdvanceCompromise, 132 CloseCompromise, 133 QuarantineVersion, 134 ReleaseVersion, 135 ReportRecheck, " +
		"136 RequestElevation, 137 DecideElevation, 138 ExpireElevations, 139 SetElevationPolicy, " +
		"140 RecountUsage, 141 ReserveStorage, 142 ReportEgress, " +
		"150 BeginRotation, 151 ConfirmRoot, 152 FinishRotation, 153 SealNextKey, 154 RevokeJoinToken, " +
		"155 AttachBucket, " +
		"160 MarkVersions, 161 CloseVersion, 162 RememberSource, 165 Promote, " +
		"170 RecordFetched, 171 ForgetFetched, 172 PutSealed, 173 SealSecret, 174 RemoveSealed, " +
		"180 OpenSets, 181 LeaseSets, 182 CommitSets, 183 SealSetsKey"
	if got := strings.Join(commands, ", "); got != want {
		t.Errorf("commands are\n%s\nwant\n%s", got, want)
	}
	want = "GetFetched ListFetched GetSealed ListSealed Attachments BlobByRoot FindLink GetBlob GetCluster GetFile GetJoinToken GetNode GetPackage GetRepository GetTenant " +
		"GetVersion GetTombstone GetHold GetLevel Remains AliasHistory ListAliases ListFiles ListNodes ListPackages ListReferences ListRegions ListRepositories " +
		"OpenBackups UsedBlobs ListTenants ListVersions LastCopies NextSettlement PendingReplicas Replicas Resolve GetWave ListWaves WaveHosts ListWaveHosts " +
		"GetUsage ListUsage ListRepositoryUsage Uncounted GetGC GarbageDue ListGarbage ListOrders GetOrder StrayRoots " +
		"ListComparisons RegionHealth ListIncidents ListBacklogs TenantBacklogs PendingInLane Replication CopiesOf ListBuckets " +
		"GetAccessHead GetRevocation MayHold " +
		"GetCaller GetAccount ListAccounts GetRole ListRoles GetBinding ListBindings " +
		"ListJoinTokens GetTrust ListHolders " +
		"GetCredential ListCredentials CredentialsEnded GetIssuer ListIssuers IssuersAt " +
		"GetCompromise ListCompromises ListFindings GetFinding ListQuarantined ListActs GetRespondWork GetElevation ListElevations GetElevationPolicy " +
		"GetAuditLog Prunable ListEntries ProveEntry ProveContinuation ListCheckpoints ListChains GetChain " +
		"GetSets GetSigningKey GetPublication ListPublications RepositoryVersions " +
		"GetSources Members ListPackageFiles CountFiles Search QuietVersions " +
		"GetAudit IsLost ListAudits ListCopies ListLost UsesOf"
	names := strings.Fields(want)
	slices.Sort(names)
	if got := slices.Sorted(maps.Keys(Questions)); !slices.Equal(got, names) {
		t.Errorf("questions are\n%v\nwant\n%v", got, names)
	}
}

func TestQuestionsTravel(t *testing.T) {
	b := newBench(t)
	for name := range Questions {
		q, err := DecodeQuestion(name, []byte{0xa0})
		if err != nil || q.Name() != name {
			t.Fatalf("%s without arguments is %v: %v", name, q, err)
		}
		v, err := b.View()
		if err != nil {
			t.Fatal(err)
		}
		// Whatever is asked, the answer has a kind, or is one.
		if err := q.Run(v); err != nil && meta.KindOf(err) == "" {
			t.Errorf("%s: %v has no kind", name, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := DecodeQuestion("GetEverything", []byte{0xa0}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("an unknown question: %v", err)
	}
	if _, err := DecodeQuestion("GetTenant", []byte("no")); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("what is no question: %v", err)
	}
	if _, err := try(b, ListTenants{Page: Page{Limit: maxPage + 1}}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a page over the limit: %v", err)
	}
}

// young is a CreateTenant with a field of a later level.
type young struct{ CreateTenant }

func (young) since() uint32 { return 4 }

// TestLevelOfCommands: what enters the log is what all builds of the level know, the
// fields too.
func TestLevelOfCommands(t *testing.T) {
	for number, k := range kinds {
		c, err := k.decode([]byte{0xa0})
		if err != nil {
			t.Fatal(err)
		}
		for level := range Level + 1 {
			err := CheckLevel(c, level)
			if allowed := k.level <= level; allowed != (err == nil) || (!allowed && !errors.Is(err, meta.ErrConflict)) {
				t.Errorf("%d %s of level %d in a cluster of level %d: %v", number, k.name, k.level, level, err)
			}
		}
	}
	if err := CheckLevel(young{}, 3); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a field of level 4 in a cluster of level 3: %v", err)
	}
	if err := CheckLevel(young{}, 4); err != nil {
		t.Error(err)
	}
	if level := ask(newBench(t), GetLevel{}); level == 0 || level > Level {
		t.Errorf("the level is %d", level)
	}
}

// TestCheck has for each command what it refuses before it reaches the log.
func TestCheck(t *testing.T) {
	badRepo := meta.RepoRef{Tenant: "Acme", Name: "app"}
	d := blob("x").Digest
	repository := func(change func(*meta.Repository)) CreateRepository {
		r := app()
		change(&r)
		return CreateRepository{Repository: r}
	}
	blobWith := func(change func(*LinkBlob)) LinkBlob {
		c := link("x", "eu-1")
		change(&c)
		return c
	}
	version := func(change func(*Publish)) Publish {
		p := image("x")
		change(&p)
		return p
	}
	node := func(change func(*meta.Node)) AdmitNode {
		n := server("n", "eu")
		change(&n)
		return AdmitNode{TokenSecretHash: "t", Node: n}
	}
	long := strings.Repeat("x", 2000)
	waveWith := func(change func(*meta.Wave)) CreateWave {
		c := wave("w1")
		change(&c.Wave)
		return c
	}
	for _, c := range []Command{
		Bootstrap{},
		Bootstrap{Cluster: meta.Cluster{ID: "c"}, Node: server("a", "eu"), Region: meta.Region{Name: "us"}},
		SetLevel{}, SetLevel{Level: Level + 1},
		CreateTenant{}, CreateTenant{Name: "-"}, CreateTenant{Name: meta.PublicContext},
		repository(func(r *meta.Repository) { r.Ref = badRepo }),
		repository(func(r *meta.Repository) { r.Ref.Tenant = meta.PublicContext }),
		repository(func(r *meta.Repository) { r.Format = "" }),
		repository(func(r *meta.Repository) { r.Kind = "x" }),
		repository(func(r *meta.Repository) { r.Class = "x" }),
		repository(func(r *meta.Repository) { r.Visibility = "" }),
		repository(func(r *meta.Repository) { r.Environment = long }),
		repository(func(r *meta.Repository) { r.Home = "" }),
		repository(func(r *meta.Repository) { r.Second = r.Home }),
		SetRepository{Ref: badRepo}, RemoveRepository{Ref: badRepo},
		blobWith(func(c *LinkBlob) { c.Repo = badRepo }),
		blobWith(func(c *LinkBlob) { c.Digest = blob("y").Digest }),
		blobWith(func(c *LinkBlob) { c.Blob.Digest = "sha256:short" }),
		blobWith(func(c *LinkBlob) { c.Blob.SHA512 = c.Blob.Digest }),
		blobWith(func(c *LinkBlob) { c.Blob.Context = "globex" }),
		blobWith(func(c *LinkBlob) { c.Blob.PlainBytes = -1 }),
		blobWith(func(c *LinkBlob) { c.Blob.Root = [32]byte{} }),
		MountBlob{From: badRepo, To: appRef, Digest: d}, MountBlob{From: appRef, To: badRepo, Digest: d}, MountBlob{From: appRef, To: appRef},
		UnlinkBlob{Repo: appRef}, UnlinkBlob{Repo: badRepo, Digest: d},
		ExpireUploads{}, ExpireUploads{Limit: 1001},
		StageReferences{Repo: appRef, Draft: "d"},
		StageReferences{Repo: appRef, References: []meta.Reference{{Digest: d}}},
		StageReferences{Repo: appRef, Draft: "d", References: []meta.Reference{{Digest: "x"}}},
		StageReferences{Repo: appRef, Draft: "d", Part: maxDraftParts, References: []meta.Reference{{Digest: d}}},
		version(func(p *Publish) { p.Version.Repo = badRepo }),
		version(func(p *Publish) { p.Version.Package = "" }),
		version(func(p *Publish) { p.Version.Name = long }),
		version(func(p *Publish) { p.Version.State = meta.StateDeleted }),
		version(func(p *Publish) { p.Version.Size = -1 }),
		version(func(p *Publish) { p.Version.Digest = "sha256:short" }),
		version(func(p *Publish) { p.Version.Subject = "x" }),
		version(func(p *Publish) {
			p.Version.Draft, p.Version.References = "d", []meta.Reference{{Digest: d}}
		}),
		version(func(p *Publish) { p.Files = nil }),
		version(func(p *Publish) { p.Files = append(p.Files, p.Files[0]) }),
		version(func(p *Publish) { p.Files[0].Path = "../x" }),
		version(func(p *Publish) { p.Files[0].Digest = "" }),
		version(func(p *Publish) { p.Blobs[0].Repo.Name = "other" }),
		version(func(p *Publish) { p.Aliases = []string{""} }),
		version(func(p *Publish) { p.Aliases = make([]string, maxAliases+1) }),
		version(func(p *Publish) { p.Version.Labels = meta.Labels{"": ""} }),
		MoveAlias{Repo: appRef, Package: "p", Version: "v"}, MoveAlias{Repo: badRepo, Package: "p", Version: "v", Name: "a"},
		DeleteAlias{Repo: appRef, Package: "p"}, DeleteAlias{Repo: appRef, Name: "a"},
		DeleteVersion{Repo: appRef, Package: "p"},
		SetLabels{Repo: appRef}, SetLabels{Repo: appRef, Package: "p", Version: long}, SetLabels{Repo: appRef, Package: "p", Labels: meta.Labels{long: ""}},
		AdmitNode{Node: server("n", "eu")},
		node(func(n *meta.Node) { n.ID = "" }),
		node(func(n *meta.Node) { n.Role = "guest" }),
		node(func(n *meta.Node) { n.Region = "" }),
		node(func(n *meta.Node) { n.Swarm = make([]string, 17) }),
		node(func(n *meta.Node) { n.Zone = long }),
		node(func(n *meta.Node) { n.Gateway = long }),
		node(func(n *meta.Node) { n.Read = []string{"x"} }),
		UpdateNode{}, RemoveNode{}, DrainServer{}, LeaveRegion{}, RemoveRegion{},
		CreateJoinToken{}, CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleAgent, Region: "eu", Expires: 1}},
		CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleAgent, Region: "eu", Uses: 1}},
		CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleAgent, Region: "eu", Uses: 1, Expires: 1, Read: []string{"x"}}},
		PutRegion{}, SealRootKey{Node: "n"},
		ReportReplicas{}, ReportReplicas{Replicas: make([]meta.Replica, MaxReportedReplicas+1)},
		ReportReplicas{Replicas: []meta.Replica{{Root: blob("x").Root, State: meta.ReplicaVerified}}},
		ReportReplicas{Replicas: []meta.Replica{{Root: blob("x").Root, Server: "s"}}},
		DemandReplica{Region: "eu"}, DemandReplica{Root: blob("x").Root},
		SetRegionHealth{}, SetRegionHealth{Region: "eu"}, SetRegionHealth{Region: "eu", State: meta.HealthDown},
		SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: "rain"},
		SetRegionHealth{Region: "eu", State: meta.HealthHealthy, Silent: []meta.NodeID{"eu-1"}},
		SetRegionHealth{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers, Silent: []meta.NodeID{"eu-2", "eu-1"}},
		SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: meta.IncidentDown, Why: long},
		SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: meta.IncidentDown, Backups: []meta.RegionName{"eu"}},
		SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: meta.IncidentDown, Backups: []meta.RegionName{"us", "us"}},
		SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: meta.IncidentDown, Silent: make([]meta.NodeID, maxHealthServers+1)},
		ReportBlobs{}, ReportBlobs{Server: "eu-1", State: "sad"}, ReportBlobs{Server: "eu-1", Why: long},
		ReportChecked{}, ReportChecked{Server: "eu-1", Copies: 1, Missing: 2},
		waveWith(func(w *meta.Wave) { w.ID = "" }), waveWith(func(w *meta.Wave) { w.ID = "A b" }),
		waveWith(func(w *meta.Wave) { w.Name = long }),
		waveWith(func(w *meta.Wave) { w.Refs = nil }),
		waveWith(func(w *meta.Wave) { w.Refs = make([]meta.WaveRef, meta.MaxWaveRefs+1) }),
		waveWith(func(w *meta.Wave) { w.Refs[0].Repo = badRepo }),
		waveWith(func(w *meta.Wave) { w.Refs[0].Package = "" }),
		waveWith(func(w *meta.Wave) { w.Refs[0].Version = "" }),
		waveWith(func(w *meta.Wave) { w.Refs[0].Alias = long }),
		waveWith(func(w *meta.Wave) { w.Targets = make([]meta.WaveTarget, meta.MaxWaveTargets+1) }),
		waveWith(func(w *meta.Wave) { w.Targets = []meta.WaveTarget{{}} }),
		waveWith(func(w *meta.Wave) { w.Targets = []meta.WaveTarget{{Region: "E U"}} }),
		waveWith(func(w *meta.Wave) { w.Targets = []meta.WaveTarget{{Zone: long}} }),
		waveWith(func(w *meta.Wave) { w.Platform = "linux" }),
		waveWith(func(w *meta.Wave) { w.Abort = &meta.WaveAbort{Above: 101, Percent: true} }),
		CreateWave{Wave: wave("w1").Wave}, CreateWave{Wave: wave("w1").Wave, Life: maxWaveLife + 1},
		CancelWave{}, CancelWave{ID: "w1", Reason: long},
		AdmitHosts{}, AdmitHosts{Wave: "w1", Hosts: make([]meta.NodeID, MaxWaveHosts+1)}, AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{""}},
		ReportHosts{Wave: "w1"}, ReportHosts{Wave: "w1", Hosts: make([]meta.WaveHost, MaxWaveHosts+1)},
		reported("w1", meta.WaveHost{State: meta.HostDone}), reported("w1", meta.WaveHost{Node: "a", State: meta.HostLost}),
		reported("", meta.WaveHost{Node: "a", State: meta.HostDone}),
		reported("w1", meta.WaveHost{Node: "a", State: meta.HostDone, Bytes: -1}),
		reported("w1", meta.WaveHost{Node: "a", State: meta.HostFailed, Reason: long}),
		EndWave{}, ForgetWaves{}, ForgetWaves{Limit: 1001},
		AttachBucket{}, attach("eu-1", "bucket-1"), attach("", bucketA), attach("eu-1", "eu-2"), AttachBucket{Server: "eu-1", Bucket: meta.Bucket{ID: bucketA, Location: long}},
	} {
		if _, err := Encode(Origin{}, c); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%T %+v: %v", c, c, err)
		}
	}
}

func TestEncodeBounds(t *testing.T) {
	p := image("x")
	p.Version.Annotations = map[string]string{"long": strings.Repeat("x", MaxCommandBytes)}
	if _, err := Encode(Origin{}, p); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("a long command: %v", err)
	}
	for _, o := range []Origin{{RequestID: strings.Repeat("x", 200)}, {Trace: strings.Repeat("x", 8<<10)}} {
		if _, err := Encode(o, Tick{}); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("a long origin: %v", err)
		}
	}
}

// TestOlderBuildsStop: a build stops at a level that it does not know, in the log, on
// disk and in a snapshot, rather than go on as if it were not there.
func TestOlderBuildsStop(t *testing.T) {
	b := newBench(t)
	command, err := Encode(Origin{Time: meta.TimeOf(b.now)}, SetLevel{Level: Level})
	if err != nil {
		t.Fatal(err)
	}
	newer := append(slices.Clone(command[:len(command)-1]), byte(Level+1)) // the body is {1: level}
	if _, c, err := Decode(newer); err != nil || c.(SetLevel).Level != Level+1 {
		t.Fatalf("%+v, %v", c, err)
	}
	index, _ := b.Applied()
	var unknown *UnknownLevelError
	if _, err := b.Apply(index+1, 1, newer); !errors.As(err, &unknown) || unknown.Level != Level+1 {
		t.Errorf("applying level %d: %v", Level+1, err)
	}
	if now, _ := b.Applied(); now != index {
		t.Errorf("it went on to %d", now)
	}

	dir := t.TempDir()
	m := openMachine(t, dir)
	if _, err := m.Apply(index+100, 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.db.Set(keyLevel, binary.BigEndian.AppendUint64(nil, uint64(Level+1)), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	snapshot, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := snapshot.WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(snapshot.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.As(err, &unknown) {
		t.Errorf("opening: %v", err)
	}
	if err := b.Restore(&stream); !errors.As(err, &unknown) {
		t.Errorf("restoring: %v", err)
	}
	b.must(CreateTenant{Name: "after"}) // What it had is there.
}
