package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What tenants use, from level 5 on. A repository holds the blobs that it links and
// whose last version was not deleted (those that wait to be collected cost nobody
// anything); a tenant holds what its repositories do together. Both are counted in the
// entry that links, releases or takes away. A tenant of before level 5 is counted by
// RecountUsage, and no quota of it holds before that is through.

// quotaLevel is the cluster level from which usage is counted.
const quotaLevel = 5

// Letters of the space of quotas; [x] is a bare last part.
const (
	ofUsage     = 'u' // [tenant] -> usageRecord
	ofRepoUsage = 'r' // tenant, [repository] -> heldCount, where it is not zero
	ofReserved  = 'h' // tenant, [server] -> reservation
	ofEgress    = 'e' // [tenant] -> egressRecord
)

// heldCount counts blobs and their plain bytes.
type heldCount struct {
	Blobs uint64 `cbor:"1,keyasint,omitempty"`
	Bytes int64  `cbor:"2,keyasint,omitempty"`
}

func (c *heldCount) add(by, bytes int64) { c.Blobs, c.Bytes = c.Blobs+uint64(by), c.Bytes+by*bytes }

// usageRecord is what a tenant holds.
type usageRecord struct {
	Held heldCount `cbor:"1,keyasint,omitzero"`
	// Counted says that Held is complete.
	Counted bool `cbor:"2,keyasint,omitempty"`
	// Reserved is the sum of the tenant's reservations, those that have run out too.
	Reserved int64 `cbor:"3,keyasint,omitempty"`
	// Recount is the count that is under way.
	Recount *recount `cbor:"4,keyasint,omitempty"`
	// Drift is by how many bytes the last recount corrected Held, at Checked.
	Drift   int64     `cbor:"5,keyasint,omitempty"`
	Checked meta.Time `cbor:"6,keyasint,omitempty"`
	// Said is the threshold that followers were last told.
	Said meta.Threshold `cbor:"7,keyasint,omitempty"`

	before int64 // Held.Bytes before this command
}

// recount is a walk over the links of a tenant. What changes at or before After is
// counted here too.
type recount struct {
	After  []byte    `cbor:"1,keyasint,omitempty"` // key of the last link that was read
	Held   heldCount `cbor:"2,keyasint,omitzero"`
	Repo   string    `cbor:"3,keyasint,omitempty"` // of After
	InRepo heldCount `cbor:"4,keyasint,omitzero"`
}

// reservation is what a server may still bring into a tenant's repositories.
type reservation struct {
	Bytes int64     `cbor:"1,keyasint,omitempty"`
	Until meta.Time `cbor:"2,keyasint,omitempty"`
}

func inQuotas(letter byte) key          { return append(make(key, 0, 96), spaceQuotas, letter) }
func keyUsage(t meta.TenantName) key    { return inQuotas(ofUsage).last(string(t)) }
func keyEgress(t meta.TenantName) key   { return inQuotas(ofEgress).last(string(t)) }
func keyReserved(t meta.TenantName) key { return inQuotas(ofReserved).part(string(t)) }
func keyRepoUsages(t meta.TenantName) key {
	return inQuotas(ofRepoUsage).part(string(t))
}
func keyRepoUsage(r meta.RepoRef) key { return keyRepoUsages(r.Tenant).last(r.Name) }

// countsUsage reports whether usage is counted at this level.
func (t *tx) countsUsage() (bool, error) {
	level, err := levelOf(t)
	return level >= quotaLevel, err
}

// usage returns what a tenant holds as it is in this command, to be changed.
func (t *tx) usage(tenant meta.TenantName) (*usageRecord, error) {
	if u := t.usages[tenant]; u != nil {
		return u, nil
	}
	u, err := load[usageRecord](t, keyUsage(tenant))
	if err != nil {
		return nil, err
	}
	if u == nil {
		u = &usageRecord{}
	}
	u.before = u.Held.Bytes
	if t.usages == nil {
		t.usages = map[meta.TenantName]*usageRecord{}
	}
	t.usages[tenant] = u
	return u, nil
}

// hold counts that a repository holds a blob of so many plain bytes (by 1), or no
// longer does (-1).
func (t *tx) hold(repo meta.RepoRef, d digest.Digest, bytesHeld, by int64) error {
	if on, err := t.countsUsage(); err != nil || !on {
		return err
	}
	u, err := t.usage(repo.Tenant)
	if err != nil {
		return err
	}
	r := t.repoUsages[repo]
	if r == nil {
		if r, err = load[heldCount](t, keyRepoUsage(repo)); err != nil {
			return err
		}
		if r == nil {
			r = &heldCount{}
		}
		if t.repoUsages == nil {
			t.repoUsages = map[meta.RepoRef]*heldCount{}
		}
		t.repoUsages[repo] = r
	}
	u.Held.add(by, bytesHeld)
	r.add(by, bytesHeld)
	if c := u.Recount; c != nil && bytes.Compare(keyLink(repo, d), c.After) <= 0 {
		c.Held.add(by, bytesHeld)
		if repo.Name == c.Repo {
			c.InRepo.add(by, bytesHeld)
		}
	}
	return nil
}

// holdLinked is hold of a link, whose blob is looked up.
func (t *tx) holdLinked(repo meta.RepoRef, l *linkRecord, by int64) error {
	if on, err := t.countsUsage(); err != nil || !on {
		return err
	}
	record, err := blobOf(t, l)
	if err != nil {
		return err
	}
	return t.hold(repo, l.Link.Blob, record.Blob.PlainBytes, by)
}

// putUsages writes what a command has changed of usages, each once, and refuses one by
// which a tenant outgrows its quota.
//
// Errors: meta.ErrDenied.
func (t *tx) putUsages() error {
	for _, repo := range slices.SortedFunc(maps.Keys(t.repoUsages), compareRefs) {
		if c := t.repoUsages[repo]; *c == (heldCount{}) {
			t.del(keyRepoUsage(repo))
		} else {
			t.put(keyRepoUsage(repo), c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.usages)) {
		u := t.usages[name]
		tenant, err := load[meta.Tenant](t, keyTenant(name))
		if err != nil {
			return err
		}
		var limits meta.TenantLimits
		if tenant != nil {
			limits = tenant.Limits
		}
		if u.Counted {
			if quota := limits.StorageBytes; quota > 0 && u.Held.Bytes > u.before && u.Held.Bytes+u.Reserved > quota {
				if err := t.expireReservations(name, u); err != nil {
					return err
				}
				if u.Held.Bytes+u.Reserved > quota {
					return storageFull(name, u, quota)
				}
			}
			said := meta.ThresholdOf(u.Held.Bytes, limits.StorageBytes, limits.StorageWarn)
			if said != u.Said {
				u.Said = said
				t.emit(feed.Change{Kind: feed.KindQuota, Name: string(name)})
			}
		}
		t.put(keyUsage(name), u)
	}
	return nil
}

func compareRefs(a, b meta.RepoRef) int {
	return bytes.Compare([]byte(a.String()), []byte(b.String()))
}

func storageFull(tenant meta.TenantName, u *usageRecord, quota int64) error {
	return fmt.Errorf("the storage quota of tenant %s is reached: %d of %d bytes are used, %d more reserved by uploads; delete what is not needed or ask for a larger quota: %w",
		tenant, u.Held.Bytes, quota, u.Reserved, meta.ErrDenied)
}

// expireReservations drops a tenant's reservations that have run out.
func (t *tx) expireReservations(tenant meta.TenantName, u *usageRecord) error {
	for p, err := range t.scan(within(keyReserved(tenant))) {
		if err != nil {
			return err
		}
		r, err := decode[reservation](p.key, p.value)
		if err != nil {
			return err
		}
		if r.Until < t.now {
			u.Reserved -= r.Bytes
			t.del(bytes.Clone(p.key))
		}
	}
	return nil
}

// settleReserved takes bytes that have arrived from a server's reservation.
func (t *tx) settleReserved(tenant meta.TenantName, server meta.NodeID, arrived int64) error {
	k := keyReserved(tenant).last(string(server))
	r, err := load[reservation](t, k)
	if err != nil || r == nil {
		return err // It has run out: what arrives is judged like any other.
	}
	u, err := t.usage(tenant)
	if err != nil {
		return err
	}
	arrived = min(arrived, r.Bytes)
	r.Bytes -= arrived
	u.Reserved -= arrived
	t.put(k, r)
	return nil
}

// TenantUsage is what a tenant uses, and of what.
type TenantUsage struct {
	Tenant meta.Tenant `cbor:"1,keyasint,omitempty" json:"tenant"`
	// Blobs and Bytes (plain) are held by its repositories, each blob once a repository.
	Blobs uint64 `cbor:"2,keyasint,omitempty" json:"blobs"`
	Bytes int64  `cbor:"3,keyasint,omitempty" json:"bytes"`
	// Counted says that they are complete; a cluster that came from an older level counts
	// first.
	Counted bool `cbor:"4,keyasint,omitempty" json:"counted"`
	// Reserved is for uploads that are under way.
	Reserved int64 `cbor:"5,keyasint,omitempty" json:"reserved"`
	// Drift is by how many bytes the last recount corrected Bytes, at Checked.
	Drift   int64          `cbor:"6,keyasint,omitempty" json:"drift"`
	Checked meta.Time      `cbor:"7,keyasint,omitempty" json:"checked,omitempty"`
	Storage meta.Threshold `cbor:"8,keyasint,omitempty" json:"storage"`
	Egress  Egress         `cbor:"9,keyasint,omitzero" json:"egress"`
	// EgressState is of the egress quota as it was last reported.
	EgressState meta.Threshold `cbor:"10,keyasint,omitempty" json:"egress_state"`
}

func usageOf(r reader, tenant *meta.Tenant) (a TenantUsage, err error) {
	u, err := load[usageRecord](r, keyUsage(tenant.Name))
	if err != nil {
		return a, err
	}
	if u == nil {
		u = &usageRecord{}
	}
	a = TenantUsage{
		Tenant: *tenant, Blobs: u.Held.Blobs, Bytes: u.Held.Bytes, Counted: u.Counted, Reserved: u.Reserved,
		Drift: u.Drift, Checked: u.Checked, Storage: u.Said,
	}
	e, err := load[egressRecord](r, keyEgress(tenant.Name))
	if err == nil && e != nil {
		a.Egress, a.EgressState = e.Egress, e.Said
	}
	return a, err
}

// GetUsage answers what a tenant uses.
type GetUsage struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetUsage) Answer(v *View) (a TenantUsage, _ error) {
	tenant, err := find[meta.Tenant](v, keyTenant(q.Tenant), "tenant", q.Tenant)
	if err != nil {
		return a, err
	}
	return usageOf(v, tenant)
}

// ListUsage lists what tenants use, in byte order of their names.
type ListUsage struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListUsage) Answer(v *View) (a []TenantUsage, _ error) {
	prefix := key{spaceTenants}
	tenants, err := list[meta.Tenant](v, within(prefix).behind(prefix, q.Page.After), q.Page, nil)
	if err != nil {
		return nil, err
	}
	for i := range tenants {
		u, err := usageOf(v, &tenants[i])
		if err != nil {
			return nil, err
		}
		a = append(a, u)
	}
	return a, nil
}

// RepositoryUsage is what a repository holds.
type RepositoryUsage struct {
	Repository string `cbor:"1,keyasint,omitempty" json:"repository"`
	Blobs      uint64 `cbor:"2,keyasint,omitempty" json:"blobs"`
	Bytes      int64  `cbor:"3,keyasint,omitempty" json:"bytes"`
}

// ListRepositoryUsage lists the repositories of a tenant that hold something, in byte
// order.
type ListRepositoryUsage struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListRepositoryUsage) Answer(v *View) (a []RepositoryUsage, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	prefix := keyRepoUsages(q.Tenant)
	for p, err := range v.scan(within(prefix).behind(prefix, q.Page.After)) {
		if err != nil {
			return nil, err
		}
		c, err := decode[heldCount](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if a = append(a, RepositoryUsage{string(p.key[len(prefix):]), c.Blobs, c.Bytes}); len(a) == limit {
			break
		}
	}
	return a, nil
}

// Uncounted lists tenants, at most 100, whose usage is not counted yet or is being
// counted anew.
type Uncounted struct{}

// Answer implements Question.
func (Uncounted) Answer(v *View) (a []meta.TenantName, _ error) {
	const most = 100
	level, err := levelOf(v)
	if err != nil || level < quotaLevel {
		return nil, err
	}
	names, err := tenantNames(v)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		u, err := load[usageRecord](v, keyUsage(name))
		if err != nil {
			return nil, err
		}
		if u == nil || !u.Counted || u.Recount != nil {
			if a = append(a, name); len(a) == most {
				break
			}
		}
	}
	return a, nil
}

// RecountUsage counts what a tenant holds anew, Limit links further in each command:
// of a tenant of before level 5, and to check the counts. While it goes on the old
// counts stay. Result: RecountResult.
//
// Errors: meta.ErrNotFound.
type RecountUsage struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Limit  uint32          `cbor:"2,keyasint,omitempty"` // links to read: 1 to 1,000
}

// RecountResult says what came of it.
type RecountResult struct {
	// More says that there are further links.
	More  bool   `cbor:"1,keyasint,omitempty" json:"more"`
	Blobs uint64 `cbor:"2,keyasint,omitempty" json:"blobs"` // so far
	Bytes int64  `cbor:"3,keyasint,omitempty" json:"bytes"`
	// Drift is by how many bytes the counts were off, once all is counted. It is 0 for a
	// tenant that was not counted before.
	Drift int64 `cbor:"4,keyasint,omitempty" json:"drift"`
}

// maxRecount bounds the links that one command reads.
const maxRecount = 1000

// Type implements Command.
func (RecountUsage) Type() uint16 { return typeRecountUsage }

// Check implements Command.
func (c RecountUsage) Check() error {
	if c.Limit == 0 || c.Limit > maxRecount {
		return fmt.Errorf("recount usage: limit %d, use 1 to %d: %w", c.Limit, maxRecount, meta.ErrInvalid)
	}
	return meta.CheckTenant(c.Tenant)
}

func (c RecountUsage) apply(t *tx) (any, error) {
	if _, err := find[meta.Tenant](t, keyTenant(c.Tenant), "tenant", c.Tenant); err != nil {
		return nil, err
	}
	u, err := t.usage(c.Tenant)
	if err != nil {
		return nil, err
	}
	if u.Recount == nil {
		u.Recount = &recount{}
	}
	w := u.Recount
	prefix := below(string(c.Tenant), inLinks)
	s := within(prefix)
	if w.After != nil {
		s.lower = append(bytes.Clone(w.After), 0)
	}
	read := uint32(0)
	for p, err := range t.scan(s) {
		if err != nil {
			return nil, err
		}
		if read == c.Limit {
			return RecountResult{More: true, Blobs: w.Held.Blobs, Bytes: w.Held.Bytes}, nil
		}
		read++
		repo, rest, ok := cutPart(p.key[len(prefix):])
		if !ok || len(rest) == 0 {
			return nil, &StorageError{Cause: fmt.Errorf("key %x is no link", p.key)}
		}
		if repo != w.Repo {
			t.endRepository(c.Tenant, w, repo)
		}
		w.After = bytes.Clone(p.key)
		if rest[0] != algSHA256 {
			continue // a blob's second name
		}
		l, err := decode[linkRecord](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if l.Released {
			continue
		}
		record, err := blobOf(t, l)
		if err != nil {
			return nil, err
		}
		w.Held.add(1, record.Blob.PlainBytes)
		w.InRepo.add(1, record.Blob.PlainBytes)
	}
	t.endRepository(c.Tenant, w, "")
	drift := w.Held.Bytes - u.Held.Bytes
	if !u.Counted {
		drift = 0
	}
	u.Held, u.Counted, u.Recount, u.Drift, u.Checked = w.Held, true, nil, drift, t.now
	u.before = u.Held.Bytes // A recount adds nothing.
	return RecountResult{Blobs: u.Held.Blobs, Bytes: u.Held.Bytes, Drift: drift}, nil
}

// endRepository writes what was counted of the repository that the walk leaves, and
// drops the counts of those up to next ("" is the end) that link nothing.
func (t *tx) endRepository(tenant meta.TenantName, w *recount, next string) {
	prefix := keyRepoUsages(tenant)
	lower, upper := prefix, keyRepoUsage(meta.RepoRef{Tenant: tenant, Name: next})
	if w.Repo != "" {
		this := keyRepoUsage(meta.RepoRef{Tenant: tenant, Name: w.Repo})
		if w.InRepo == (heldCount{}) {
			t.del(this)
		} else {
			t.put(this, w.InRepo)
		}
		lower = append(bytes.Clone(this), 0)
	}
	if next == "" {
		upper = prefix.after()
	}
	if bytes.Compare(lower, upper) < 0 {
		if err := t.batch.DeleteRange(lower, upper, nil); err != nil {
			t.err = errors.Join(t.err, &StorageError{Cause: err})
		}
	}
	w.Repo, w.InRepo = next, heldCount{}
}
