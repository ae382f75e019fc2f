package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeIsDeterminedBySeed(t *testing.T) {
	one, err := Make(7, 3, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := Make(7, 3, 10_000)
	other, _ := Make(8, 3, 10_000)
	if !bytes.Equal(one.Manifest, again.Manifest) {
		t.Error("one seed made two images")
	}
	for i := range one.Parsed.Layers {
		if one.Parsed.Layers[i].Digest == other.Parsed.Layers[i].Digest {
			t.Errorf("two seeds share layer %d", i)
		}
	}
	if one.Bytes() < 10_000 || one.Bytes() > 10_000+8192 {
		t.Errorf("image of 10,000 bytes has %d", one.Bytes())
	}
}

func TestLayersAreTars(t *testing.T) {
	img, err := Make(1, 2, 1001)
	if err != nil {
		t.Fatal(err)
	}
	var files int64
	for i, l := range img.Parsed.Layers {
		content, err := io.ReadAll(img.Layer(i))
		if err != nil || DigestOf(content) != l.Digest || int64(len(content)) != l.Size {
			t.Fatalf("layer %d: %d bytes, %v", i, len(content), err)
		}
		r := tar.NewReader(bytes.NewReader(content))
		header, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err != nil || n != header.Size {
			t.Errorf("layer %d: file of %d bytes, %v", i, n, err)
		}
		files += n
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("layer %d ends with %v", i, err)
		}
	}
	if files != 1001 {
		t.Errorf("files have %d bytes", files)
	}
}

func TestMakeRefusesTheImpossible(t *testing.T) {
	if _, err := Make(1, 0, 10); err == nil {
		t.Error("no layers")
	}
	if _, err := Make(1, 4, 3); err == nil {
		t.Error("an empty layer")
	}
}

func TestLayoutHoldsEveryBlob(t *testing.T) {
	img, err := Make(3, 2, 4096)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	if err := img.WriteLayout(dir, "1"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d blobs, %v", len(files), err)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil || DigestOf(content) != "sha256:"+filepath.Base(name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var archive bytes.Buffer
	if err := img.WriteDockerArchive(&archive, "acme/app:1"); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&archive); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
	if len(names) != 4 || names[3] != "manifest.json" {
		t.Errorf("docker archive holds %q", names)
	}
}

// shelf is a registry of finished blobs and manifests, good or lying, for the client's tests.
func shelf(t *testing.T, blobs map[string][]byte) *Client {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := blobs[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
		if !ok {
			http.Error(w, "no such thing", http.StatusNotFound)
			return
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(server.Close)
	return &Client{Base: server.URL, HTTP: server.Client()}
}

func TestPullChecksEveryByte(t *testing.T) {
	img, err := Make(5, 2, 50_000)
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[string][]byte{"1": img.Manifest}
	for _, b := range img.Blobs() {
		blobs[b.Digest], _ = io.ReadAll(b.Open())
	}
	pulled, err := shelf(t, blobs).Pull(t.Context(), "acme/app", "1")
	if err != nil || pulled.Bytes != img.Bytes() || pulled.FirstByte <= 0 || pulled.Total < pulled.FirstByte {
		t.Errorf("pulled %+v, %v", pulled, err)
	}

	layer := img.Parsed.Layers[1].Digest
	blobs[layer][700] ^= 1
	if _, err := shelf(t, blobs).Pull(t.Context(), "acme/app", "1"); err == nil || !strings.Contains(err.Error(), layer) {
		t.Errorf("a flipped bit went through: %v", err)
	}
	blobs[layer][700] ^= 1
	blobs[layer] = blobs[layer][:20_000]
	if _, err := shelf(t, blobs).Pull(t.Context(), "acme/app", "1"); err == nil {
		t.Error("a short layer went through")
	}
	delete(blobs, layer)
	var status *StatusError
	if _, err := shelf(t, blobs).Pull(t.Context(), "acme/app", "1"); !errors.As(err, &status) || StatusOf(err) != http.StatusNotFound {
		t.Errorf("a missing layer: %v", err)
	}
	blobs[img.Digest()] = append([]byte(" "), img.Manifest...)
	if _, err := shelf(t, blobs).GetManifest(t.Context(), "acme/app", img.Digest()); err == nil {
		t.Error("another manifest went through")
	}
}
