package cargo

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits of a publish.
const (
	// maxMetadataBytes bounds the JSON in front of a crate, which has the README in it.
	maxMetadataBytes = 2 << 20
	// maxCrateBytes bounds the crate; crates.io takes 10 MiB.
	maxCrateBytes = 512 << 20
)

// metadata is what cargo says of a crate that it publishes (the book, «Web API»).
type metadata struct {
	Name         string              `json:"name"`
	Vers         string              `json:"vers"`
	Deps         []metadataDep       `json:"deps"`
	Features     map[string][]string `json:"features"`
	Authors      []string            `json:"authors"`
	Description  string              `json:"description"`
	Homepage     string              `json:"homepage"`
	License      string              `json:"license"`
	Repository   string              `json:"repository"`
	Links        *string             `json:"links"`
	RustVersion  *string             `json:"rust_version"`
	ReadmeFile   string              `json:"readme_file"`
	Keywords     []string            `json:"keywords"`
	CategoryList []string            `json:"categories"`
}

type metadataDep struct {
	Name            string   `json:"name"`
	VersionReq      string   `json:"version_req"`
	Features        []string `json:"features"`
	Optional        bool     `json:"optional"`
	DefaultFeatures bool     `json:"default_features"`
	Target          *string  `json:"target"`
	Kind            string   `json:"kind"`
	Registry        *string  `json:"registry"`
	ExplicitName    *string  `json:"explicit_name_in_toml"`
}

// parseMetadata reads the first frame of a publish.
//
// Errors: meta.ErrInvalid.
func parseMetadata(b []byte) (*metadata, error) {
	var m metadata
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("the metadata is not the JSON that cargo sends: %.300v: %w", err, meta.ErrInvalid)
	}
	return &m, nil
}

// readCrate returns the second frame, which is the rest of the body.
//
// Errors: meta.ErrInvalid, meta.ErrTooLarge; the reader's are meta.ErrInvalid when the body
// does not end with the frame.
func readCrate(r io.Reader) (io.Reader, error) {
	n, err := frame(r, "crate", maxCrateBytes)
	if err != nil {
		return nil, err
	}
	return &last{r: r, left: n}, nil
}

// frame reads the length of a frame: 32 bits, little end first.
func frame(r io.Reader, what string, most int64) (int64, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, fmt.Errorf("the body ends before the length of the %s: %w", what, meta.ErrInvalid)
	}
	n := int64(binary.LittleEndian.Uint32(size[:]))
	if n > most {
		return 0, fmt.Errorf("the %s has %d bytes, at most %d: %w", what, n, most, meta.ErrTooLarge)
	}
	return n, nil
}

// last is a frame behind which nothing may come.
type last struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (l *last) Read(p []byte) (int, error) {
	if l.left == 0 {
		switch n, err := io.ReadFull(l.r, make([]byte, 1)); {
		case n > 0:
			return 0, fmt.Errorf("the body goes on behind the crate: %w", meta.ErrInvalid)
		case !errors.Is(err, io.EOF):
			return 0, err
		}
		return 0, io.EOF
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if errors.Is(err, io.EOF) && l.left > 0 {
		err = fmt.Errorf("the body ends %d bytes before the crate does: %w", l.left, meta.ErrInvalid)
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
