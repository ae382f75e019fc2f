package image

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// WriteLayout writes the image as an OCI image layout into dir, which is made; tag is
// the reference's name in the index.
func (img *Image) WriteLayout(dir, tag string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, b := range img.Blobs() {
		if err := writeFile(filepath.Join(blobs, hexOf(b.Digest)), b.Open()); err != nil {
			return fmt.Errorf("layout: %w", err)
		}
	}
	self := Describe(img.Manifest, ManifestType)
	self.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": IndexType, "manifests": []Descriptor{self}})
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		filepath.Join(blobs, hexOf(self.Digest)): string(img.Manifest),
		filepath.Join(dir, "index.json"):         string(index),
		filepath.Join(dir, "oci-layout"):         `{"imageLayoutVersion":"1.0.0"}`,
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// WriteDockerArchive writes the image as `docker load` reads it, under the given name.
func (img *Image) WriteDockerArchive(w io.Writer, name string) error {
	archive := tar.NewWriter(w)
	add := func(name string, size int64, r io.Reader) error {
		header := &tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(archive, r)
		return err
	}
	var layers []string
	for i, l := range img.Parsed.Layers {
		file := hexOf(l.Digest) + "/layer.tar"
		layers = append(layers, file)
		if err := add(file, l.Size, img.Layer(i)); err != nil {
			return fmt.Errorf("docker archive: %w", err)
		}
	}
	config := hexOf(img.Parsed.Config.Digest) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": config, "RepoTags": []string{name}, "Layers": layers}})
	if err != nil {
		return err
	}
	if err := add(config, int64(len(img.Config)), strings.NewReader(string(img.Config))); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	if err := add("manifest.json", int64(len(manifest)), strings.NewReader(string(manifest))); err != nil {
		return fmt.Errorf("docker archive: %w", err)
	}
	return archive.Close()
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func writeFile(name string, r io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(f, r, make([]byte, 1<<20)); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
