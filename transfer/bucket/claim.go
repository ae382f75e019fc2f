package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Claim says whose a bucket, or a prefix of one, is. It is the object `claim`, written
// once, and again when another cluster takes the bucket over.
type Claim struct {
	Format  int             `json:"format"` // 1
	ID      string          `json:"id"`     // of the bucket in the metadata
	Cluster string          `json:"cluster"`
	Region  meta.RegionName `json:"region"`
	Created time.Time       `json:"created"`
	// Taken is the cluster that it was taken over from.
	Taken string `json:"taken_from,omitempty"`
}

// Known is what a server keeps of its bucket in its data directory.
type Known struct {
	URL   string `json:"url"` // as --blobs has it, without secrets
	Claim Claim  `json:"claim"`
}

// KnownFile is its name.
const KnownFile = "bucket.json"

const (
	claimKey   = "claim"
	aliveKey   = "alive" // its date says when the bucket was last used by who claimed it
	claimBytes = 4 << 10
	writeEvery = 30 * time.Second // between tries to write, while all is well
	// aliveFor is how long a bucket has to rest before another cluster may take it.
	aliveFor = 10 * writeEvery
	// probeWithin is how long a try of the bucket may take; less than a hung disk is
	// waited for (node/health), so that each is called what it is.
	probeWithin = 4 * time.Second
)

// Owner is who wants a bucket.
type Owner struct {
	Cluster string
	Region  meta.RegionName
	// Take is the id of a cluster that is lost, and whose bucket of the same region is
	// taken over; "" takes only what is nobody's.
	Take string
}

// Claim takes the bucket for a cluster's region, or finds that it is theirs already, and
// returns its id. A cluster that still uses the bucket does not lose it to Take: its
// servers stamp the object `alive`.
//
// Errors: meta.ErrConflict when it is another's; meta.ErrUnavailable.
func (b *Bucket) Claim(ctx context.Context, o Owner) (Claim, error) {
	c, err := b.claimed(ctx)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails
		c, err = b.writeClaim(ctx, Claim{ID: "bucket-" + hex.EncodeToString(id[:]), Cluster: o.Cluster, Region: o.Region}, true)
	case err == nil && c.Cluster != o.Cluster && c.Cluster == o.Take && c.Region == o.Region:
		if err = b.unused(ctx, c); err == nil {
			// Of the same id whichever of the region's servers is first. It is a new one, so
			// that no copy counts before it was looked at.
			sum := sha256.Sum256([]byte(c.ID + " " + o.Cluster))
			was := c
			if c, err = b.writeClaim(ctx, Claim{ID: "bucket-" + hex.EncodeToString(sum[:8]), Cluster: o.Cluster, Region: o.Region, Taken: c.Cluster}, false); err == nil {
				b.log.Warn("took over the bucket of another cluster", "bucket", b.cfg.Location.String(), "cluster", was.Cluster, "was", was.ID)
			}
		}
	}
	switch {
	case err != nil:
		return Claim{}, fmt.Errorf("claim the bucket %s: %w", b.cfg.Location, err)
	case c.Cluster != o.Cluster && c.Region == o.Region:
		return Claim{}, fmt.Errorf("the bucket %s is that of region %s of cluster %s, and this is cluster %s: give it a bucket, or a prefix, of its own; only if that cluster is lost for good, and this one was restored from its backup, start the server once with --take-bucket %s: %w",
			b.cfg.Location, c.Region, c.Cluster, o.Cluster, c.Cluster, meta.ErrConflict)
	case c.Cluster != o.Cluster || c.Region != o.Region:
		return Claim{}, fmt.Errorf("the bucket %s is that of region %s of cluster %s, and not for region %s of cluster %s: give each region a bucket, or a prefix, of its own: %w",
			b.cfg.Location, c.Region, c.Cluster, o.Region, o.Cluster, meta.ErrConflict)
	}
	b.Expect(c)
	return c, nil
}

// writeClaim writes a claim, once if it is the first one, and returns the one that
// counts: of two that a service lets both write, the last one.
func (b *Bucket) writeClaim(ctx context.Context, c Claim, once bool) (Claim, error) {
	c.Format, c.Created = 1, time.Now().UTC()
	text, _ := json.MarshalIndent(c, "", "  ") // of plain fields
	err := b.remote.put(ctx, b.cfg.Location.key(claimKey), text, once)
	if err != nil && !errors.Is(err, meta.ErrExists) { // that is, somebody was faster
		return c, err
	}
	return b.claimed(ctx)
}

// unused says whether nobody has used a claimed bucket lately, by the service's clock.
//
// Errors: meta.ErrConflict.
func (b *Bucket) unused(ctx context.Context, c Claim) error {
	var last time.Time
	for _, key := range []string{claimKey, aliveKey} {
		info, err := b.remote.stat(ctx, b.cfg.Location.key(key))
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		if err == nil && info.modified.After(last) {
			last = info.modified
		}
	}
	now := time.Now().Add(time.Duration(b.remote.skew.Load()))
	if ago := now.Sub(last); ago < aliveFor {
		return fmt.Errorf("cluster %s used it %v ago, and a bucket is not taken from a cluster that lives: if that one is lost, or its servers are stopped, try again when it has not been used for %v: %w",
			c.Cluster, max(0, ago).Round(time.Second), aliveFor, meta.ErrConflict)
	}
	return nil
}

// Expect says whose the bucket has to be while this server uses it; Claim says it too.
func (b *Bucket) Expect(c Claim) {
	b.probing.Lock()
	b.ours = c
	b.probing.Unlock()
}

// stillOurs looks whether the claim is the one that is expected. While it is another's,
// nothing is written to the bucket or removed from it.
func (b *Bucket) stillOurs(ctx context.Context) error {
	info, err := b.remote.stat(ctx, b.cfg.Location.key(claimKey))
	if err != nil || b.ours.ID == "" || info.etag == b.claimTag {
		return err
	}
	c, err := b.claimed(ctx)
	if err != nil {
		return err
	}
	if c.ID != b.ours.ID {
		taken := fmt.Errorf("it is now %s, of region %s of cluster %s, and not this server's: stop this server, its cluster has lost the bucket: %w", c.ID, c.Region, c.Cluster, meta.ErrConflict)
		b.remote.barred.Store(&taken)
		return taken
	}
	b.remote.barred.Store(nil)
	b.claimTag = info.etag
	return nil
}

func (b *Bucket) claimed(ctx context.Context) (c Claim, err error) {
	text, err := b.remote.read(ctx, b.cfg.Location.key(claimKey), claimBytes)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil || c.Format != 1 || c.ID == "" {
		return c, fmt.Errorf("the object %q is no claim that this build knows: %w", b.cfg.Location.key(claimKey), meta.ErrCorrupt)
	}
	return c, nil
}

// Probe tries whether the store can be used: the cache takes something new, the bucket
// answers and, from time to time and while it did not, takes an object.
//
// Errors: meta.ErrNoSpace when nothing new is taken; others when it cannot be used.
func (b *Bucket) Probe(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, probeWithin)
	err := b.probe(limited)
	slow := err != nil && limited.Err() != nil && ctx.Err() == nil
	cancel()
	switch {
	case slow:
		return fmt.Errorf("the bucket %s has not answered for %v: %w", b.cfg.Location, probeWithin, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
	case err != nil:
		return err
	}
	return b.cache.Probe(ctx)
}

func (b *Bucket) probe(ctx context.Context) error {
	b.probing.Lock()
	defer b.probing.Unlock()
	if err := b.stillOurs(ctx); err != nil {
		b.wrote = time.Time{}
		return fmt.Errorf("the bucket %s: %w", b.cfg.Location, err)
	}
	if time.Since(b.wrote) <= writeEvery {
		return nil
	}
	if b.ours.ID != "" {
		if err := b.remote.put(ctx, b.cfg.Location.key(aliveKey), []byte(b.ours.Cluster+"\n"), false); err != nil {
			return fmt.Errorf("the bucket %s takes no object: %w", b.cfg.Location, err)
		}
	}
	if err := b.tryWrite(ctx); err != nil {
		return err
	}
	b.wrote = time.Now()
	return nil
}

// tryWrite does what a push and a collection do, with an object of its own.
func (b *Bucket) tryWrite(ctx context.Context) (err error) {
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	key := b.cfg.Location.key("probe", hex.EncodeToString(nonce[:]))
	want := []byte("shoal looks whether it can write here " + hex.EncodeToString(nonce[:]))
	if err := b.remote.put(ctx, key, want, false); err != nil {
		return fmt.Errorf("the bucket %s takes no object: %w", b.cfg.Location, err)
	}
	got, err := b.remote.read(ctx, key, claimBytes)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("it read other bytes than it had written: %w", meta.ErrCorrupt)
	}
	if gone := b.remote.remove(ctx, key); err == nil && gone != nil {
		err = fmt.Errorf("objects cannot be deleted: %w", gone)
	}
	if err != nil {
		return fmt.Errorf("the bucket %s: %w", b.cfg.Location, err)
	}
	return nil
}

// Check is one finding of Examine.
type Check struct {
	Name string
	Err  error
	// Text says what was found, when nothing is wrong.
	Text string
}

// Examine tries all that a server does with a bucket, for an operator: whether it is
// reached, the credentials are good, the clocks agree, and objects can be written, read,
// listed, deleted and uploaded in parts.
func Examine(ctx context.Context, location Location, creds *credentials.Credentials) []Check {
	b := &Bucket{cfg: Config{Location: location}, metrics: newMetrics(nil), log: slog.New(slog.DiscardHandler)}
	var err error
	if b.remote, err = newRemote(location, creds, b.metrics); err != nil {
		return []Check{{Name: "bucket", Err: err}}
	}
	defer b.remote.close()
	return b.examine(ctx)
}

func (b *Bucket) examine(ctx context.Context) []Check {
	var checks []Check
	note := func(name, text string, err error) bool {
		checks = append(checks, Check{Name: name, Text: text, Err: err})
		return err == nil
	}
	claim, err := b.claimed(ctx)
	text := fmt.Sprintf("it is %s, of region %s", claim.ID, claim.Region)
	if errors.Is(err, meta.ErrNotFound) {
		err, text = nil, "nobody has claimed it yet"
	}
	if !note("bucket is reached", text, err) {
		return checks
	}
	skew := time.Duration(b.remote.skew.Load())
	if skew.Abs() > time.Minute {
		err = fmt.Errorf("its clock is %v from this server's, and services refuse requests from 15 minutes on: set this server's clock", skew.Round(time.Second))
	}
	note("bucket's clock", fmt.Sprintf("%v away", skew.Round(time.Second)), err)
	if !note("bucket takes and gives objects", "written, read and deleted", b.tryWrite(ctx)) {
		return checks
	}
	_, err = b.roots(ctx, [32]byte{}, 1, func(found) bool { return true })
	note("bucket lists objects", "listed", err)
	m, err := b.remote.beginParts(ctx, b.cfg.Location.key("probe", "parts"))
	if err == nil {
		err = b.remote.abort(ctx, m)
	}
	note("bucket takes large objects", "begun and given up", err)
	return checks
}
