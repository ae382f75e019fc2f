package state

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// levelFiveQuotas has a tenant of before level 5 counted, and quotas used and refused.
func levelFiveQuotas(l *logWriter) {
	all, fresh := int64(1<<20), meta.RepoRef{Tenant: "quotas", Name: "files"}
	l.add("", RecountUsage{Tenant: "acme", Limit: 2})
	l.add("", link("between", "eu-9"))
	for range 20 {
		l.add("", RecountUsage{Tenant: "acme", Limit: 5})
	}
	l.add("", RecountUsage{Tenant: "nobody", Limit: 5})
	l.add("", CreateTenant{Name: "quotas"})
	repo := app()
	repo.Ref = fresh
	l.add("", CreateRepository{Repository: repo})
	period, warn, rate := meta.PerDay, int64(50), int64(100)
	l.add("", SetTenant{Name: "quotas", Limits: &meta.LimitsChange{StorageBytes: &warn, StorageWarn: &warn, EgressBytes: &rate, EgressPeriod: &period, PublishRequests: &rate}})
	l.add("", ReserveStorage{Server: "eu-9", Lease: time.Minute, Wants: []StorageWant{{"quotas", 40}, {"acme", 7}, {"nobody", 1}}})
	first := linkInto(fresh, "thirty bytes, or something like it", "eu-9")
	first.Reserved = 30
	l.add("", first)
	l.add("", linkInto(fresh, "and some more than there is room for", "eu-9"))
	l.add("", ReserveStorage{Server: "eu-9", Lease: time.Minute, Wants: []StorageWant{{"quotas", 0}}})
	l.add("", ReportEgress{Sums: []EgressSum{{"quotas", 90, 2}, {"nobody", 5, 1}}})
	l.add("", ReportEgress{Sums: []EgressSum{{"quotas", 20, 2}}})
	l.add("", SetTenant{Name: "quotas", Limits: &meta.LimitsChange{StorageBytes: &all, EgressBytes: &all}})
	l.add("", linkInto(fresh, "and some more than there is room for", "eu-9"))
	l.add("", ReserveStorage{Server: "nobody", Lease: time.Minute, Wants: []StorageWant{{"quotas", 1}}})
}

// linkInto is link into another repository.
func linkInto(repo meta.RepoRef, content string, server meta.NodeID) LinkBlob {
	c := link(content, server)
	c.Repo, c.Blob.Context = repo, string(repo.Tenant)
	return c
}

func newUsageBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: quotaLevel})
	b.must(CollectBlobs{Limit: 1000})
	return b
}

// recount counts a tenant anew to the end.
func (b *bench) recount(tenant meta.TenantName, limit uint32) RecountResult {
	b.Helper()
	for {
		r := b.must(RecountUsage{Tenant: tenant, Limit: limit}).Value.(RecountResult)
		if !r.More {
			return r
		}
	}
}

func (b *bench) held(tenant meta.TenantName) int64 { return ask(b, GetUsage{Tenant: tenant}).Bytes }

// auditUsage counts again what tenants and repositories hold and what is reserved.
func auditUsage(v *View, have map[string][]byte) error {
	level, err := levelOf(v)
	if err != nil || level < quotaLevel {
		return err
	}
	tenants, repos := map[meta.TenantName]heldCount{}, map[string]heldCount{}
	reserved := map[meta.TenantName]int64{}
	for k, value := range have {
		switch {
		case k[0] == spaceTenant:
			name, rest, _ := cutPart([]byte(k[1:]))
			if rest[0] != inLinks || bytes.HasPrefix(value, []byte("sha256:")) {
				continue
			}
			l, err := decode[linkRecord]([]byte(k), value)
			if err != nil {
				return err
			}
			if l.Released {
				continue
			}
			r, err := blobOf(v, l)
			if err != nil {
				return err
			}
			repo, _, _ := cutPart(rest[1:])
			key := string(keyRepoUsage(meta.RepoRef{Tenant: meta.TenantName(name), Name: repo}))
			t, in := tenants[meta.TenantName(name)], repos[key]
			t.add(1, r.Blob.PlainBytes)
			in.add(1, r.Blob.PlainBytes)
			tenants[meta.TenantName(name)], repos[key] = t, in
		case k[0] == spaceQuotas && k[1] == ofReserved:
			r, err := decode[reservation]([]byte(k), value)
			if err != nil {
				return err
			}
			name, _, _ := cutPart([]byte(k[2:]))
			reserved[meta.TenantName(name)] += r.Bytes
		}
	}
	names, err := tenantNames(v)
	if err != nil {
		return err
	}
	for _, name := range names {
		u, err := load[usageRecord](v, keyUsage(name))
		if err != nil {
			return err
		}
		if u == nil || !u.Counted {
			continue
		}
		if u.Held != tenants[name] || u.Reserved != reserved[name] {
			return fmt.Errorf("tenant %s holds %+v, %d reserved, and is counted as %+v, %d reserved", name, tenants[name], reserved[name], u.Held, u.Reserved)
		}
		prefix := keyRepoUsages(name)
		for p, err := range v.scan(within(prefix)) {
			if err != nil {
				return err
			}
			c, err := decode[heldCount](p.key, p.value)
			if err != nil || *c != repos[string(p.key)] {
				return fmt.Errorf("repository %s/%s holds %+v and is counted as %+v: %v", name, p.key[len(prefix):], repos[string(p.key)], c, err)
			}
			delete(repos, string(p.key))
		}
		for k, c := range repos {
			if bytes.HasPrefix([]byte(k), prefix) && c != (heldCount{}) {
				return fmt.Errorf("repository %q holds %+v and is not counted", k, c)
			}
		}
	}
	return nil
}

// What repositories hold is counted in the entry that changes it: each blob once a
// repository, and no longer once its last version is deleted.
func TestUsage(t *testing.T) {
	b := newUsageBench(t)
	other := app()
	other.Ref.Name = "other"
	b.must(CreateRepository{Repository: other})
	b.recount("acme", 10)
	want := func(acme, inApp, inOther int64) {
		t.Helper()
		check(b)
		if got := b.held("acme"); got != acme {
			t.Fatalf("acme holds %d bytes, want %d", got, acme)
		}
		got := map[string]int64{}
		for _, r := range ask(b, ListRepositoryUsage{Tenant: "acme"}) {
			got[r.Repository] = r.Bytes
		}
		if got["app"] != inApp || got["other"] != inOther {
			t.Fatalf("by repository %v, want %d and %d", got, inApp, inOther)
		}
	}
	b.must(link("layer", "eu-1")) // 5 bytes
	want(5, 5, 0)
	b.must(link("layer", "eu-2"))
	want(5, 5, 0)
	b.must(MountBlob{From: appRef, To: other.Ref, Digest: blob("layer").Digest})
	want(10, 5, 5)
	b.must(image("m1", "layer"))
	want(12, 7, 5)
	b.must(manifestOf("m1")) // both of its blobs wait to be collected
	want(5, 0, 5)
	b.must(image("m1", "layer")) // and are back
	want(12, 7, 5)
	b.must(manifestOf("m1"))
	b.now = b.now.Add(2 * time.Hour)
	b.collect(time.Hour)
	want(5, 0, 5)
	b.must(ExpireUploads{Before: meta.TimeOf(b.now), Limit: 10})
	want(0, 0, 0)
	if r := b.recount("acme", 1); r.Drift != 0 || r.Bytes != 0 {
		t.Fatalf("recounted %+v", r)
	}
}

// A tenant of before level 5 is counted while it goes on to change; no quota of it
// holds before that.
func TestRecountMeanwhile(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 4})
	for i := range 7 {
		b.must(link(fmt.Sprint("blob ", i), "eu-1"))
	}
	b.must(SetLevel{Level: quotaLevel})
	one := int64(1)
	b.must(SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &one}})
	if got := ask(b, Uncounted{}); !slices.Equal(got, []meta.TenantName{"acme"}) {
		t.Fatalf("not counted are %v", got)
	}
	for i := 7; ; i++ {
		r := b.must(RecountUsage{Tenant: "acme", Limit: 2}).Value.(RecountResult)
		if !r.More {
			break
		}
		b.must(link(fmt.Sprint("blob ", i), "eu-1"))
		b.must(UnlinkBlob{Repo: appRef, Digest: blob(fmt.Sprint("blob ", i-5)).Digest})
	}
	check(b)
	if u := ask(b, GetUsage{Tenant: "acme"}); !u.Counted || u.Drift != 0 || len(ask(b, Uncounted{})) != 0 {
		t.Fatalf("counted as %+v", u)
	}
	b.refuse(link("more", "eu-1"), meta.ErrDenied)
	b.must(CreateTenant{Name: "young"})
	if u := ask(b, GetUsage{Tenant: "young"}); !u.Counted {
		t.Fatal("a new tenant is not counted")
	}
}

// A wrong count is found and put right by a recount.
func TestRecountFindsDrift(t *testing.T) {
	b := newUsageBench(t)
	b.must(link("layer", "eu-1"))
	b.recount("acme", 10)
	damage := func(k key, v []byte) {
		if err := b.db.Set(k, v, nil); err != nil {
			t.Fatal(err)
		}
	}
	batch := b.db.NewIndexedBatch()
	tx := newTx(batch, 0, Origin{})
	tx.put(keyUsage("acme"), usageRecord{Counted: true, Held: heldCount{9, 905}})
	tx.put(keyRepoUsage(meta.RepoRef{Tenant: "acme", Name: "aaa"}), heldCount{1, 2})
	tx.put(keyRepoUsage(appRef), heldCount{8, 903})
	tx.put(keyRepoUsage(meta.RepoRef{Tenant: "acme", Name: "zzz"}), heldCount{1, 2})
	for p, err := range tx.scan(within(key{spaceQuotas})) {
		if err != nil {
			t.Fatal(err)
		}
		damage(bytes.Clone(p.key), bytes.Clone(p.value))
	}
	_ = batch.Close()
	if r := b.recount("acme", 1); r.Drift != 5-905 {
		t.Fatalf("found a drift of %d", r.Drift)
	}
	check(b)
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Bytes != 5 || u.Drift != -900 || u.Checked == 0 {
		t.Fatalf("counted as %+v", u)
	}
}

// A quota holds for all that adds bytes, and for what is reserved; what adds nothing
// goes on.
func TestStorageQuota(t *testing.T) {
	b := newUsageBench(t)
	b.recount("acme", 10)
	quota, warn := int64(20), int64(50)
	b.must(SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &quota, StorageWarn: &warn}})
	reserve := func(server meta.NodeID, bytes int64) int64 {
		t.Helper()
		r := b.must(ReserveStorage{Server: server, Lease: time.Minute, Wants: []StorageWant{{"acme", bytes}}}).Value.(Reservations)
		check(b)
		return r.Granted[0].Bytes
	}
	b.must(link("12345", "eu-1"))
	if got := reserve("eu-1", 10); got != 10 {
		t.Fatalf("reserved %d of 10", got)
	}
	if got := reserve("eu-2", 10); got != 5 {
		t.Fatalf("reserved %d, 5 are left", got)
	}
	b.refuse(link("x", "us-1"), meta.ErrDenied)
	reserved := link("123456789", "eu-1")
	reserved.Reserved = 9
	b.must(reserved)
	check(b)
	u := ask(b, GetUsage{Tenant: "acme"})
	if u.Bytes != 14 || u.Reserved != 6 || u.Storage != meta.NearQuota {
		t.Fatalf("holds %+v", u)
	}
	// What is there already adds nothing.
	b.must(link("12345", "us-1"))
	b.must(MountBlob{From: appRef, To: appRef, Digest: blob("12345").Digest})
	// A server that is gone holds nothing for long.
	b.now = b.now.Add(2 * time.Minute)
	b.must(link("x", "us-1"))
	check(b)
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Bytes != 15 || u.Reserved != 0 {
		t.Fatalf("after the leases %+v", u)
	}
	b.refuse(image("a manifest"), meta.ErrDenied)
	b.must(link("abcde", "us-1"))
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Storage != meta.OverQuota {
		t.Fatalf("full, and said to be %v", u.Storage)
	}
	none := int64(0)
	b.must(SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &none}})
	b.must(image("a manifest"))
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Storage != meta.BelowQuota {
		t.Fatalf("without a quota it is %v", u.Storage)
	}
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	changes, _, err := v.changes(0, 1000)
	said := 0
	for _, c := range changes {
		if c.Kind == feed.KindQuota && c.Name == "acme" {
			said++
		}
	}
	if err != nil || said != 3 {
		t.Fatalf("the feed tells of %d thresholds, %v", said, err)
	}
	// Unknown tenants and those without a quota reserve nothing.
	r := b.must(ReserveStorage{Server: "eu-1", Lease: time.Minute, Wants: []StorageWant{{"acme", 7}, {"nobody", 8}}}).Value.(Reservations)
	if r.Granted[0].Bytes != 7 || r.Granted[1].Bytes != 8 || r.Granted[0].Quota != 0 {
		t.Fatalf("granted %+v", r)
	}
	check(b)
	b.refuse(ReserveStorage{Server: "nobody", Lease: time.Minute, Wants: []StorageWant{{"acme", 1}}}, meta.ErrInvalid)
}

// Egress is counted by day and month; a quota of a period is over with it.
func TestEgress(t *testing.T) {
	b := newUsageBench(t)
	b.now = time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)
	quota, day := int64(100), meta.PerDay
	b.must(SetTenant{Name: "acme", Limits: &meta.LimitsChange{EgressBytes: &quota, EgressPeriod: &day}})
	report := func(bytes int64) TenantUsage {
		b.must(ReportEgress{Sums: []EgressSum{{"acme", bytes, 1}, {"nobody", 5, 5}}})
		return ask(b, GetUsage{Tenant: "acme"})
	}
	if u := report(79); u.EgressState != meta.BelowQuota || u.Egress.DayBytes != 79 {
		t.Fatalf("%+v", u)
	}
	if u := report(1); u.EgressState != meta.NearQuota {
		t.Fatalf("%+v", u)
	}
	if u := report(20); u.EgressState != meta.OverQuota || u.Egress.MonthRequests != 3 {
		t.Fatalf("%+v", u)
	}
	b.now = b.now.Add(2 * time.Hour)
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Egress.In(day, meta.TimeOf(b.now)) != 0 || u.Egress.In("", meta.TimeOf(b.now)) != 0 {
		t.Fatalf("yesterday counts for today: %+v", u)
	}
	u := report(3)
	if e := u.Egress; u.EgressState != meta.BelowQuota || e.DayBytes != 3 || e.LastDayBytes != 100 || e.MonthBytes != 3 || e.LastMonthBytes != 100 {
		t.Fatalf("%+v", u)
	}
	b.now = b.now.Add(-3 * time.Hour) // another leader's clock
	if e := report(4).Egress; e.Day != "2026-12-01" || e.DayBytes != 7 {
		t.Fatalf("%+v", e)
	}
	b.refuse(ReportEgress{Sums: []EgressSum{{"acme", -1, 0}}}, meta.ErrInvalid)
}

// TestUsageModel runs random commands and counts all again after each.
func TestUsageModel(t *testing.T) {
	contents := []string{"a", "bb", "cccc", "dddddddd", "eeeeeeeeeeeeeeee"}
	rapid.Check(t, func(r *rapid.T) {
		b := newBench(t)
		b.must(SetLevel{Level: 4})
		other := app()
		other.Ref.Name = "other"
		b.must(CreateRepository{Repository: other})
		repos := []meta.RepoRef{appRef, other.Ref}
		quota := int64(0)
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(r, "later")) * time.Second)
			content := rapid.SampledFrom(contents).Draw(r, "content")
			repo := rapid.SampledFrom(repos).Draw(r, "repository")
			server := rapid.SampledFrom([]meta.NodeID{"eu-1", "eu-2"}).Draw(r, "server")
			grace := time.Duration(rapid.IntRange(0, 1).Draw(r, "grace")) * time.Minute
			amount := int64(rapid.IntRange(0, 40).Draw(r, "amount"))
			lift := false
			var c Command
			switch rapid.IntRange(0, 11).Draw(r, "command") {
			case 0:
				into := linkInto(repo, content, server)
				if rapid.Bool().Draw(r, "was reserved") {
					into.Reserved = into.Blob.PlainBytes
				}
				c = into
			case 1:
				p := image("m"+content, rapid.SliceOfNDistinct(rapid.SampledFrom(contents), 0, 2, rapid.ID).Draw(r, "layers")...)
				p.Version.Repo = repo
				for i := range p.Blobs {
					p.Blobs[i].Repo = repo
				}
				c = p
			case 2:
				c = DeleteVersion{Repo: repo, Package: "api", Version: string(blob("m" + content).Digest)}
			case 3:
				c = UnlinkBlob{Repo: repo, Digest: blob(content).Digest}
			case 4:
				c = MountBlob{From: appRef, To: other.Ref, Digest: blob(content).Digest}
			case 5:
				c = ExpireUploads{Before: meta.TimeOf(b.now.Add(-time.Minute)), Limit: 3}
			case 6:
				c = CollectBlobs{Limit: 5, Grace: &grace}
			case 7, 8:
				c = RecountUsage{Tenant: "acme", Limit: uint32(rapid.IntRange(1, 3).Draw(r, "page"))}
			case 9:
				c = ReserveStorage{Server: server, Lease: time.Minute, Wants: []StorageWant{{"acme", amount}}}
			case 10:
				if lift = amount == 0 || amount > quota && quota > 0; lift || quota == 0 {
					c = SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &amount}}
				} else {
					c = ReportEgress{Sums: []EgressSum{{"acme", amount, 1}}}
				}
			case 11:
				c = SetLevel{Level: quotaLevel}
			}
			before := ask(b, GetUsage{Tenant: "acme"})
			result := b.do(c)
			if set, ok := c.(SetTenant); ok && result.Err == nil {
				quota = *set.Limits.StorageBytes
			}
			check(b)
			after := ask(b, GetUsage{Tenant: "acme"})
			if quota > 0 && before.Counted && after.Bytes+after.Reserved > quota && after.Bytes > before.Bytes {
				r.Fatalf("%T added %d bytes over the quota of %d: %+v", c, after.Bytes-before.Bytes, quota, after)
			}
			if recounted, ok := result.Value.(RecountResult); ok && recounted.Drift != 0 {
				r.Fatalf("the counts were off by %d bytes", recounted.Drift)
			}
		}
	})
}
