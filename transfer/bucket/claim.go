package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
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
// once.
type Claim struct {
	Format  int             `json:"format"` // 1
	ID      string          `json:"id"`     // of the bucket in the metadata
	Cluster string          `json:"cluster"`
	Region  meta.RegionName `json:"region"`
	Created time.Time       `json:"created"`
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
	claimBytes = 4 << 10
	writeEvery = 30 * time.Second // between tries to write, while all is well
)

// Claim takes the bucket for a cluster's region, or finds that it is theirs already, and
// returns its id.
//
// Errors: meta.ErrConflict when it is another's; meta.ErrUnavailable.
func (b *Bucket) Claim(ctx context.Context, cluster string, region meta.RegionName) (Claim, error) {
	c, err := b.claimed(ctx)
	if errors.Is(err, meta.ErrNotFound) {
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails
		c = Claim{Format: 1, ID: "bucket-" + hex.EncodeToString(id[:]), Cluster: cluster, Region: region, Created: time.Now().UTC()}
		text, _ := json.MarshalIndent(c, "", "  ") // of plain fields
		err = b.remote.put(ctx, b.cfg.Location.key(claimKey), text, true)
		if errors.Is(err, meta.ErrExists) {
			err = nil // somebody was faster
		}
		if err == nil {
			// Of two that a service lets both write, the last one counts.
			c, err = b.claimed(ctx)
		}
	}
	switch {
	case err != nil:
		return Claim{}, fmt.Errorf("claim the bucket %s: %w", b.cfg.Location, err)
	case c.Cluster != cluster || c.Region != region:
		return Claim{}, fmt.Errorf("the bucket %s is that of region %s of cluster %s, and not for region %s of cluster %s: give each region a bucket, or a prefix, of its own: %w",
			b.cfg.Location, c.Region, c.Cluster, region, cluster, meta.ErrConflict)
	}
	return c, nil
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
	if _, err := b.remote.stat(ctx, b.cfg.Location.key(claimKey)); err != nil {
		b.probing.Lock()
		b.wrote = time.Time{}
		b.probing.Unlock()
		return fmt.Errorf("the bucket %s: %w", b.cfg.Location, err)
	}
	b.probing.Lock()
	due := time.Since(b.wrote) > writeEvery
	b.probing.Unlock()
	if due {
		if err := b.tryWrite(ctx); err != nil {
			return err
		}
		b.probing.Lock()
		b.wrote = time.Now()
		b.probing.Unlock()
	}
	return b.cache.Probe(ctx)
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
