package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// MaxVersionFiles bounds the files of an open version, which gains them one publish at a
// time: a command that takes the version away, or into quarantine, changes all of them in
// one entry. Who publishes asks CountFiles beforehand, so that no entry counts them.
const MaxVersionFiles = 10_000

// CountFiles answers how many files a version has, MaxVersionFiles at most; 0 for one that
// is not there. It is for servers, which publish.
type CountFiles struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

func (CountFiles) serversOnly() {}

// Answer implements Question.
func (q CountFiles) Answer(v *View) (n int, _ error) {
	for _, err := range v.scan(within(keyFiles(q.Repo, q.Package, q.Version))) {
		if err != nil {
			return n, err
		}
		if n++; n == MaxVersionFiles {
			break
		}
	}
	return n, nil
}
