// Package upstream is the proxy engine: it gets what foreign registries have, once a
// region, keeps it like anything else that was published here, and says when it may be
// served without asking again.
//
// Start reading at Want, Found and Engine.Fetch; fresh.go decides, as pure functions,
// whether what is known answers; group.go says which member of a group answers for a
// package; rules.go what a proxy may fetch. A protocol makes a Want of a request, and
// serves or rewrites what it Found. Tests of protocols use upstreamtest.
//
// Invariants: bytes enter the repository only with the digest and the checksums that
// were wanted of them; one server of a region asks for an address, all others ask it;
// nothing of an upstream's credentials leaves for another host than the upstream's own;
// an address is dialled only within the rules of gateway/outbound.
package upstream

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Kind is how an address of an upstream behaves.
type Kind uint8

// Kinds. A Document may change, and is asked for again when its time is over; a File
// never does.
const (
	Document Kind = iota
	File
)

// Want is what a protocol asks of an upstream.
type Want struct {
	// Path is canonical: below the upstream's base URL, without a leading slash, escaped
	// as it is sent, with its query; or an absolute URL on a host that the upstream's own
	// document named.
	Path string `cbor:"1,keyasint,omitempty"`
	Kind Kind   `cbor:"2,keyasint,omitempty"`
	// Package and Version are normalized names; the repository's rules are of these. An
	// empty Package is of no package, and no rule holds for it.
	Package string `cbor:"3,keyasint,omitempty"`
	Version string `cbor:"4,keyasint,omitempty"`
	// Accept are the media types asked for; with Path it names what is kept.
	Accept string `cbor:"5,keyasint,omitempty"`
	// Digest is the sha256 or sha512 that the bytes must have, "" when unknown; Sums are
	// the upstream's own checksums, by lower-case algorithm (md5, sha1, sha256, sha384,
	// sha512) in lower-case hex.
	Digest digest.Digest     `cbor:"6,keyasint,omitempty"`
	Sums   map[string]string `cbor:"7,keyasint,omitempty"`
	// MaxBytes bounds the answer; 0 means MaxDocumentBytes for a Document and no bound
	// but the tenant's quota for a File.
	MaxBytes int64 `cbor:"8,keyasint,omitempty"`
	// TTL, when set, is how long a Document answers without being asked for again, where
	// the repository does not say so itself.
	TTL time.Duration `cbor:"9,keyasint,omitempty"`
	// Raw wants a Document's bytes as they lie at the upstream, as a File's are: an archive
	// that it calls an encoding of what is in it is not unpacked.
	Raw bool `cbor:"10,keyasint,omitempty"`
	// Passing says that readers make up any number of such Documents: pages of a list from
	// wherever they like, or directories of an upstream that has all of them. A repository
	// keeps a bounded number of those, each in the place of another (passing.go).
	Passing bool `cbor:"11,keyasint,omitempty"`
}

// maxSums bounds the checksums of a Want.
const maxSums = 16

// check refuses what no protocol asks: a Want comes from other nodes, too.
//
// Errors: meta.ErrInvalid; protocol.ErrUpstream for a digest that is none, which an
// upstream's document said.
func (w *Want) check() error {
	if w.Digest != "" {
		if _, err := digest.Parse(string(w.Digest)); err != nil {
			return fmt.Errorf("the promise of %.200q: %w: %w", w.Path, protocol.ErrUpstream, err)
		}
	}
	if w.Kind > File || w.Passing && w.Kind != Document || w.MaxBytes < 0 || w.TTL < 0 || len(w.Sums) > maxSums || w.Accept != text(w.Accept) {
		return fmt.Errorf("what is wanted of %.200q, kind %d as %.80q, at most %d bytes for %s with %d checksums, makes no sense: %w",
			w.Path, w.Kind, w.Accept, w.MaxBytes, w.TTL, len(w.Sums), meta.ErrInvalid)
	}
	return nil
}

// MaxDocumentBytes bounds a Document unless Want says otherwise: the packuments of npm
// pass 10 MB.
const MaxDocumentBytes = 64 << 20

// Found is what an upstream has.
type Found struct {
	Record meta.Fetched `cbor:"1,keyasint,omitempty"`
	Blob   meta.Blob    `cbor:"2,keyasint,omitempty"`
	AsOf   meta.AsOf    `cbor:"3,keyasint,omitempty"`
	// Stale says that the record's time is over and the upstream could not be asked.
	Stale bool `cbor:"4,keyasint,omitempty"`
	// Source answers a Question with a Group: the proxy that it takes the package from.
	Source string `cbor:"5,keyasint,omitempty"`
}

// BlockedError says that a rule of the proxy keeps a package out. It is meta.ErrDenied.
type BlockedError struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	// Rule is what meta.Upstream.Admits says: `block PATTERN`, or `allow`.
	Rule string `cbor:"3,keyasint,omitempty"`
}

func (e *BlockedError) Error() string {
	if e.Rule == "allow" {
		return fmt.Sprintf("package %s is not among those that proxy repository %s may fetch (`shoal repo set %s --allow`)", e.Package, e.Repo, e.Repo)
	}
	return fmt.Sprintf("package %s is kept out by a rule of proxy repository %s: %s", e.Package, e.Repo, e.Rule)
}

// Unwrap returns meta.ErrDenied.
func (e *BlockedError) Unwrap() error { return meta.ErrDenied }

// IntegrityError says that an upstream sent other bytes than its own documents, or the
// caller, said. Nothing of them was kept.
type IntegrityError struct {
	Path     string
	Mismatch *digest.MismatchError
}

func (e *IntegrityError) Error() string {
	return fmt.Sprintf("the upstream's bytes of %s are not what was promised, nothing of them was kept: %v", e.Path, e.Mismatch)
}

// Unwrap returns the mismatch, protocol.ErrUpstream and meta.ErrCorrupt.
func (e *IntegrityError) Unwrap() []error {
	return []error{protocol.ErrUpstream, meta.ErrCorrupt, e.Mismatch}
}
