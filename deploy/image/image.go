// Package image makes container images out of nothing and moves them over HTTP, so
// that labs, benchmarks and tests need no builder, no base image and no network.
//
// Start reading at Make; Image.Layer streams a layer's bytes, which are a tar of one
// file of random data, recomputed from the seed at each reading and never held in
// memory. layout.go writes what clients read from disk, client.go is a small OCI
// distribution client that checks every byte. The package starts no goroutines.
//
// Sources: OCI image-spec 1.1 (manifest, config, image layout), POSIX ustar.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// Media types of what this package makes.
const (
	ManifestType = "application/vnd.oci.image.manifest.v1+json"
	ConfigType   = "application/vnd.oci.image.config.v1+json"
	LayerType    = "application/vnd.oci.image.layer.v1.tar"
	IndexType    = "application/vnd.oci.image.index.v1+json"
)

// Descriptor names a blob in a manifest.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Manifest is an OCI image manifest.
type Manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
	Subject       *Descriptor  `json:"subject,omitempty"`
}

// Image is an image whose layers are computed when they are read.
type Image struct {
	Manifest []byte // as it goes over the wire
	Config   []byte
	Parsed   Manifest
	seeds    []uint64
	payloads []int64 // bytes of each layer's file
}

// Make returns an image of layers layers with bytes bytes of random files between
// them, determined by seed: two seeds share no layer. Layers are a little larger than
// their file, by the tar's frame. bytes is at least 1 a layer.
func Make(seed uint64, layers int, bytes int64) (*Image, error) {
	if layers < 1 || bytes < int64(layers) {
		return nil, fmt.Errorf("image of %d layers and %d bytes: needs a layer and a byte for each", layers, bytes)
	}
	img := &Image{Parsed: Manifest{SchemaVersion: 2, MediaType: ManifestType}}
	var diffs []string
	for i := range layers {
		size := bytes / int64(layers)
		if i == layers-1 {
			size = bytes - size*int64(layers-1)
		}
		img.seeds = append(img.seeds, seed<<8|uint64(i))
		img.payloads = append(img.payloads, size)
		d, err := describe(img.Layer(i), LayerType)
		if err != nil {
			return nil, err
		}
		img.Parsed.Layers = append(img.Parsed.Layers, d)
		diffs = append(diffs, d.Digest)
	}
	var err error
	img.Config, err = json.Marshal(map[string]any{
		"architecture": "amd64",
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC(),
		"config":       map[string]any{"Cmd": []string{"/data-0"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return nil, err
	}
	img.Parsed.Config = Describe(img.Config, ConfigType)
	img.Manifest, err = json.Marshal(img.Parsed)
	return img, err
}

// Digest returns the manifest's digest.
func (img *Image) Digest() string { return DigestOf(img.Manifest) }

// Bytes returns the size of all layers, the config and the manifest.
func (img *Image) Bytes() int64 {
	total := int64(len(img.Manifest) + len(img.Config))
	for _, l := range img.Parsed.Layers {
		total += l.Size
	}
	return total
}

// Layer returns the bytes of layer i; each call reads from the start.
func (img *Image) Layer(i int) io.Reader {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	// A header cannot fail on these fields; the size is checked by Make.
	_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("data-%d", i), Mode: 0o755, Size: img.payloads[i],
		Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
	padding := (512-img.payloads[i]%512)%512 + 1024 // to the block, then two empty blocks
	return io.MultiReader(&head, io.LimitReader(Random(img.seeds[i]), img.payloads[i]), bytes.NewReader(make([]byte, padding)))
}

// Blob is one blob of an image: its descriptor and its bytes, read from the start at each Open.
type Blob struct {
	Descriptor
	Open func() io.Reader
}

// Blobs returns the layers, then the config: the order clients push them in.
func (img *Image) Blobs() []Blob {
	var blobs []Blob
	for i, l := range img.Parsed.Layers {
		blobs = append(blobs, Blob{l, func() io.Reader { return img.Layer(i) }})
	}
	return append(blobs, Blob{img.Parsed.Config, func() io.Reader { return bytes.NewReader(img.Config) }})
}

// Random returns an endless stream of incompressible bytes determined by seed.
func Random(seed uint64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// DigestOf returns the sha256 digest of b, as `sha256:<hex>`.
func DigestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Describe returns the descriptor of b.
func Describe(b []byte, mediaType string) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: DigestOf(b), Size: int64(len(b))}
}

func describe(r io.Reader, mediaType string) (Descriptor, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return Descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}, err
}
