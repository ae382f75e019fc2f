package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What proxy repositories have of their upstreams, from level 6 on: a record an address.
// A record of bytes claims their link as a version does, so that collection leaves them;
// one that says that nothing was there claims nothing, and a repository keeps a bounded
// number of those, the youngest.

// proxyLevel is the level of what upstreams had, SealedLevel that of sealed secrets.
const (
	proxyLevel  = 6
	SealedLevel = 6
)

// Numbers of commands.
const (
	typeRecordFetched = 170
	typeForgetFetched = 171
	typePutSealed     = 172
	typeSealSecret    = 173
	typeRemoveSealed  = 174
)

// Below inFetched and the repository.
const (
	fetchedRecords  = 'r' // sha256 of path and accept -> meta.Fetched
	fetchedAbsences = 'n' // checked-u64, sha256 -> nothing: records that say that nothing is there
	fetchedCount    = 'c' // u64: how many those are
)

// What a repository remembers of addresses with nothing there.
const (
	maxAbsences = 20_000
	absenceKept = 24 * time.Hour
	// dropsAtOnce bounds what one command forgets of them; more than one, so that the
	// old ones run out.
	dropsAtOnce = 3
)

// FetchedKey names the record of an address, in feeds and listings.
func FetchedKey(path, accept string) string {
	return hex.EncodeToString(fetchedSum(path, accept))
}

func fetchedSum(path, accept string) []byte {
	sum := sha256.Sum256([]byte(path + "\x00" + accept))
	return sum[:]
}

func inFetchedOf(r meta.RepoRef, letter byte) key { return append(inRepo(inFetched, r), letter) }

func keyFetched(r meta.RepoRef, path, accept string) key {
	return append(inFetchedOf(r, fetchedRecords), fetchedSum(path, accept)...)
}

func keyAbsence(f *meta.Fetched) key {
	return append(inFetchedOf(f.Repo, fetchedAbsences).u64(clock(f.Checked)), fetchedSum(f.Path, f.Accept)...)
}

// forgetAbsence takes a record that says that nothing is there from their order; the
// record itself stays.
func (t *tx) forgetAbsence(f *meta.Fetched) error {
	t.del(keyAbsence(f))
	return t.countAbsences(f.Repo, -1)
}

func (t *tx) rememberAbsence(f *meta.Fetched) error {
	t.mark(keyAbsence(f))
	return t.countAbsences(f.Repo, 1)
}

func (t *tx) countAbsences(r meta.RepoRef, by int64) error {
	k := inFetchedOf(r, fetchedCount)
	n, err := number(t, k)
	if err != nil {
		return err
	}
	if n = uint64(max(int64(n)+by, 0)); n == 0 {
		t.del(k)
		return nil
	}
	t.setNumber(k, n)
	return nil
}

// dropAbsences forgets a few of those that are old, or too many.
func (t *tx) dropAbsences(r meta.RepoRef) error {
	n, err := number(t, inFetchedOf(r, fetchedCount))
	if err != nil {
		return err
	}
	prefix := inFetchedOf(r, fetchedAbsences)
	dropped := 0
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return err
		}
		rest := p.key[len(prefix):]
		if len(rest) != 8+sha256.Size {
			return &StorageError{Cause: fmt.Errorf("key %x is no absence", p.key)}
		}
		old := t.now - meta.Time(binary.BigEndian.Uint64(rest))
		if dropped == dropsAtOnce || old < meta.Time(absenceKept) && n <= maxAbsences {
			break
		}
		t.del(append(inFetchedOf(r, fetchedRecords), rest[8:]...))
		t.del(bytes.Clone(p.key))
		dropped++
		n--
	}
	return t.countAbsences(r, int64(-dropped))
}

// dropFetched removes a record and what it holds.
func (t *tx) dropFetched(f *meta.Fetched) error {
	t.del(keyFetched(f.Repo, f.Path, f.Accept))
	if f.Absent() {
		return t.forgetAbsence(f)
	}
	return t.release(f.Repo, f.Digest)
}

// GetFetched answers what a proxy repository has of an address of its upstream.
type GetFetched struct {
	Repo   meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Path   string       `cbor:"2,keyasint,omitempty"`
	Accept string       `cbor:"3,keyasint,omitempty"`
}

// FetchedAnswer is a record with the blob of its bytes.
type FetchedAnswer struct {
	Fetched meta.Fetched `cbor:"1,keyasint,omitempty"`
	// Blob is zero when nothing was there.
	Blob meta.Blob `cbor:"2,keyasint,omitempty"`
	// Lost says that no server has a sound copy any more.
	Lost bool `cbor:"3,keyasint,omitempty"`
	// Quarantine, when set, is why readers do not get it.
	Quarantine *meta.Quarantine `cbor:"4,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetFetched) Answer(v *View) (a FetchedAnswer, _ error) {
	f, err := find[meta.Fetched](v, keyFetched(q.Repo, q.Path, q.Accept), "what was fetched of", q.Path)
	if err != nil {
		return a, err
	}
	a.Fetched = *f
	if f.Absent() {
		return a, nil
	}
	l, err := findLink(v, q.Repo, f.Digest)
	if err != nil {
		return a, err
	}
	if l == nil {
		return a, &StorageError{Cause: fmt.Errorf("%s of %s is kept and not linked", f.Path, f.Repo)}
	}
	record, err := blobOf(v, l)
	if err != nil {
		return a, err
	}
	lost, err := v.get(keyLost(record.Blob.Root))
	if err != nil {
		return a, err
	}
	a.Blob, a.Lost, a.Quarantine = record.Blob, lost != nil, l.quarantined()
	return a, nil
}

// ListFetched lists what a proxy repository has of its upstream, in the order of the
// records' keys; Page.After is FetchedKey of the last one.
type ListFetched struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Page Page         `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListFetched) Answer(v *View) (a []meta.Fetched, _ error) {
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	if _, err := findRepository(v, q.Repo); err != nil {
		return nil, err
	}
	after, err := hex.DecodeString(q.Page.After)
	if err != nil {
		return nil, fmt.Errorf("page after %q: %w: %w", q.Page.After, err, meta.ErrInvalid)
	}
	prefix := inFetchedOf(q.Repo, fetchedRecords)
	for p, err := range v.scan(within(prefix).behind(prefix, string(after))) {
		if err != nil {
			return nil, err
		}
		f, err := decode[meta.Fetched](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if a = append(a, *f); len(a) == limit {
			break
		}
	}
	return a, nil
}
