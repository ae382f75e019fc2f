package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// Each wrong input gets the protocol's own error, and the node goes on.
func TestBadInputs(t *testing.T) {
	d := startDev(t, "")
	c := registry(d.Servers[0], "")
	ctx := limit(t, 2*time.Minute)
	const repository = "acme/bad/image"
	img := makeImage(t, 1, 64<<10)
	if err := c.Push(ctx, repository, "1", img); err != nil {
		t.Fatal(err)
	}
	open := func(t *testing.T) string {
		t.Helper()
		response, err := c.Do(ctx, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil, http.NoBody, 0, http.StatusAccepted)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.Header.Get("Location")
	}
	with := func(location, digest string) string {
		if strings.Contains(location, "?") {
			return location + "&digest=" + digest
		}
		return location + "?digest=" + digest
	}
	refused := func(t *testing.T, err error, status int, code string) {
		t.Helper()
		var answer *image.StatusError
		if !errors.As(err, &answer) {
			t.Fatalf("not refused: %v", err)
		}
		if answer.Status != status || !strings.Contains(answer.Body, `"`+code+`"`) {
			t.Errorf("%d %s, want %d with code %s", answer.Status, answer.Body, status, code)
		}
	}

	t.Run("a wrong digest", func(t *testing.T) {
		content := []byte("these are not the bytes")
		wrong := image.DigestOf([]byte("those are"))
		_, err := c.Do(ctx, http.MethodPut, with(open(t), wrong), nil, bytes.NewReader(content), int64(len(content)), http.StatusCreated)
		refused(t, err, http.StatusBadRequest, "DIGEST_INVALID")
		if _, err := c.Do(ctx, http.MethodHead, "/v2/"+repository+"/blobs/"+wrong, nil, nil, 0, http.StatusOK); image.StatusOf(err) != http.StatusNotFound {
			t.Errorf("the wrong digest reads: %v", err)
		}
	})
	t.Run("a truncated upload", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		location := open(t)
		content := make([]byte, 100_000)
		// Half of what Content-Length promises, then the line is cut.
		if err := cutUpload(ctx, d.Servers[0], location, content[:50_000], len(content)); err != nil {
			t.Fatal(err)
		}
		digest := image.DigestOf(content)
		if _, err := c.Do(ctx, http.MethodHead, "/v2/"+repository+"/blobs/"+digest, nil, nil, 0, http.StatusOK); image.StatusOf(err) != http.StatusNotFound {
			t.Errorf("half a blob reads: %v", err)
		}
		// What came is kept, and closing the session as if it were whole is refused, as soon
		// as the server has seen the cut: until then another request is using it.
		if err := proc.Await(ctx, "the upload to be free again", func(ctx context.Context) error {
			response, err := c.Do(ctx, http.MethodGet, location, nil, nil, 0, http.StatusNoContent)
			if err != nil {
				return err
			}
			response.Body.Close()
			if got := response.Header.Get("Range"); got != "0-49999" {
				return fmt.Errorf("range %q", got)
			}
			return nil
		}, d.process); err != nil {
			t.Fatal(err)
		}
		var refusal error
		if err := proc.Await(ctx, "the cut request to end", func(ctx context.Context) error {
			_, refusal = c.Do(ctx, http.MethodPut, with(location, digest), nil, http.NoBody, 0, http.StatusCreated)
			if image.StatusOf(refusal) == http.StatusConflict {
				return refusal
			}
			return nil
		}, d.process); err != nil {
			t.Fatal(err)
		}
		refused(t, refusal, http.StatusBadRequest, "DIGEST_INVALID")
	})
	t.Run("an oversized manifest", func(t *testing.T) {
		huge := append(img.Manifest[:len(img.Manifest):len(img.Manifest)], bytes.Repeat([]byte(" "), 4<<20)...)
		err := c.PutManifest(ctx, repository, "huge", huge)
		if image.StatusOf(err) != http.StatusRequestEntityTooLarge {
			t.Errorf("an oversized manifest: %v", err)
		}
	})
	t.Run("a manifest of blobs nobody pushed", func(t *testing.T) {
		err := c.PutManifest(ctx, repository, "orphan", makeImage(t, 1, 1000).Manifest)
		var answer *image.StatusError
		if !errors.As(err, &answer) || answer.Status/100 != 4 || !strings.Contains(answer.Body, "MANIFEST_BLOB_UNKNOWN") {
			t.Errorf("an orphan manifest: %v", err)
		}
	})
	t.Run("not a manifest", func(t *testing.T) {
		refused(t, c.PutManifest(ctx, repository, "noise", []byte("{")), http.StatusBadRequest, "MANIFEST_INVALID")
	})
	t.Run("an unknown repository", func(t *testing.T) {
		_, err := c.GetManifest(ctx, "nobody/nothing/image", "1")
		refused(t, err, http.StatusNotFound, "NAME_UNKNOWN")
	})
	t.Run("an unknown tag", func(t *testing.T) {
		_, err := c.GetManifest(ctx, repository, "2")
		refused(t, err, http.StatusNotFound, "MANIFEST_UNKNOWN")
	})
	t.Run("an unknown upload", func(t *testing.T) {
		_, err := c.Do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/uploads/nonsense", nil, nil, 0, http.StatusNoContent)
		refused(t, err, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	})
	check(ctx, t, d.Servers[0], repository, "1", img)
}

// cutUpload sends a PUT that promises length bytes, sends body and closes the line.
func cutUpload(ctx context.Context, node proc.Endpoint, location string, body []byte, length int) error {
	var dialer net.Dialer
	address := proc.Address(node.Gateway)
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	location = strings.TrimPrefix(location, "http://"+address)
	_, err = fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%s",
		location, address, length, body)
	return err
}

// A full disk refuses uploads and says so, goes on serving, and accepts again when
// there is room.
func TestFullDisk(t *testing.T) {
	needRoot(t, "mounts a small file system")
	dir := folder(t, "")
	mount := filepath.Join(dir, "disk")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	const diskBytes, reserveBytes = 512 << 20, 96 << 20
	if err := syscall.Mount("shoal-e2e", mount, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes)); err != nil {
		skip(t, "no tmpfs to be had: %v", err)
	}
	c := &cluster{dir: mount}
	m := c.member("server", "server-r1", "r1")
	m.node.Bootstrap = true
	m.node.Extra = []string{"--reserve", fmt.Sprint(reserveBytes)}
	c.servers = []*member{m}
	t.Cleanup(func() {
		if m.process != nil {
			m.process.Kill()
			lastWords.keep(t, m.process)
		}
	})
	c.launch(t, m)
	var err error
	if c.token, err = proc.AdminToken(m.node.Data); err != nil {
		t.Fatal(err)
	}
	c.createRepo(t, "full")
	ctx := limit(t, 3*time.Minute)
	client := m.registry(c.token)
	const repository = "acme/full/image"
	before := makeImage(t, 1, 8<<20)
	if err := client.Push(ctx, repository, "before", before); err != nil {
		t.Fatal(err)
	}

	ballast := filepath.Join(mount, "ballast")
	if err := fill(ballast, mount, reserveBytes/2); err != nil {
		t.Fatal(err)
	}
	err = client.Push(ctx, repository, "during", makeImage(t, 1, 8<<20))
	var answer *image.StatusError
	if !errors.As(err, &answer) {
		t.Fatalf("a push to a full disk: %v", err)
	}
	if said := strings.ToLower(answer.Body); answer.Status < 500 || !strings.Contains(said, "space") && !strings.Contains(said, "disk_reserve") {
		t.Errorf("the refusal does not speak of space: %v", answer)
	}
	t.Logf("refused: %v", answer)
	if _, err := client.Pull(ctx, repository, "before"); err != nil {
		t.Errorf("a full disk does not serve: %v", err)
	}
	if err := client.PutManifest(ctx, repository, "again", before.Manifest); err != nil {
		// Metadata is small and has the reserve to itself, but a refusal is fair if it is clear.
		if image.StatusOf(err) < 500 {
			t.Errorf("a new tag on a full disk: %v", err)
		}
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	after := makeImage(t, 1, 8<<20)
	if err := proc.Await(ctx, "uploads to be accepted again", func(ctx context.Context) error {
		return client.Push(ctx, repository, "after", after)
	}, m.process); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"before", "after"} {
		if _, err := client.Pull(ctx, repository, tag); err != nil {
			t.Error(err)
		}
	}
}

// fill writes a file until only left bytes are free.
func fill(name, mount string, left int64) error {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(mount, &stat); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(f, image.Random(1), int64(stat.Bavail)*stat.Bsize-left)
	return err
}

// A bit that flips on a region's disk is found, never served, and the region serves
// the right bytes from another one's copy.
func TestFlippedBit(t *testing.T) {
	c := startCluster(t, 2, 0)
	c.createRepo(t, "bits", "--class", "critical")
	ctx := limit(t, 3*time.Minute)
	const repository = "acme/bits/image"
	img := makeImage(t, 1, 12<<20)
	if err := c.servers[0].registry(c.token).Push(ctx, repository, "1", img); err != nil {
		t.Fatal(err)
	}
	// Read at the other region: it has its copy then, by replication or by this.
	if _, err := c.servers[1].registry(c.token).Pull(ctx, repository, "1"); err != nil {
		t.Fatal(err)
	}
	damaged := c.servers[0]
	// The other region's copy must be whole on disk before the first is spoilt.
	if err := proc.Await(ctx, "a copy at the other region", func(context.Context) error {
		_, err := findOnDisk(c.servers[1].node.Data, sample(t, img))
		return err
	}, c.servers[1].process); err != nil {
		t.Fatal(err)
	}

	if err := damaged.process.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	file, err := findOnDisk(damaged.node.Data, sample(t, img))
	if err != nil {
		t.Fatal(err)
	}
	if err := flipBit(file); err != nil {
		t.Fatal(err)
	}
	damaged.again()
	c.launch(t, damaged)
	for _, s := range c.servers {
		for range 2 {
			if _, err := s.registry(c.token).Pull(ctx, repository, "1"); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
	}
	if found, err := damaged.metric(ctx, "shoal_store_corrupt_chunks_total"); err != nil || found < 1 {
		t.Errorf("%s counts %v damaged chunks, %v", damaged.name, found, err)
	}
}

// A flipped bit with no other copy: the client gets an error and never the wrong bytes.
func TestFlippedBitWithoutAnotherCopy(t *testing.T) {
	d := startDev(t, "")
	ctx := limit(t, 2*time.Minute)
	const repository = "acme/bits/image"
	img := makeImage(t, 1, 12<<20)
	if err := registry(d.Servers[0], "").Push(ctx, repository, "1", img); err != nil {
		t.Fatal(err)
	}
	d.process.Kill()
	file, err := findOnDisk(d.data, sample(t, img))
	if err != nil {
		t.Fatal(err)
	}
	if err := flipBit(file); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	layer := img.Parsed.Layers[0]
	asked, cancel := context.WithTimeout(ctx, 100*time.Second) // the server gives up sooner
	defer cancel()
	response, err := registry(d.Servers[0], "").Do(asked, http.MethodGet, "/v2/"+repository+"/blobs/"+layer.Digest, nil, nil, 0, http.StatusOK)
	if err != nil {
		t.Logf("refused: %v", err)
		return
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err == nil || asked.Err() != nil {
		t.Errorf("%d bytes came as if they were whole, or the client was kept waiting: %v", len(got), err)
	}
	want, _ := io.ReadAll(img.Layer(0))
	if !bytes.HasPrefix(want, got) {
		t.Error("wrong bytes were served")
	}
	t.Logf("cut after %d of %d bytes: %v", len(got), layer.Size, err)
}

// sample returns some bytes from the middle of an image's first layer.
func sample(t *testing.T, img *image.Image) []byte {
	t.Helper()
	content, err := io.ReadAll(img.Layer(0))
	if err != nil {
		t.Fatal(err)
	}
	return content[len(content)/2:][:64]
}

// findOnDisk returns the file beneath dir that holds the bytes.
func findOnDisk(dir string, wanted []byte) (string, error) {
	var found string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || found != "" {
			return nil // files come and go while a node runs
		}
		content, err := os.ReadFile(name)
		if err == nil && bytes.Contains(content, wanted) {
			found = name
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no file beneath %s holds the layer", dir)
	}
	return found, err
}

// flipBit flips one bit in the middle of a file.
func flipBit(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var b [1]byte
	at := info.Size() / 2
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return errors.Join(err, f.Sync())
}

// A large layer passes a server and an agent, each with less than 300 MiB of memory.
func TestMemoryIsBounded(t *testing.T) {
	bytes := int64(512 << 20)
	if full {
		bytes = 5 << 30
	}
	const limitBytes = 300 << 20
	// Server and agent each keep a copy.
	parent := os.TempDir()
	if room, err := freeBytes(parent); err != nil {
		t.Fatal(err)
	} else if room < 3*bytes {
		scaled := max(64<<20, room/4)
		t.Logf("SCALED DOWN: %d MiB are free in %s, so the layer has %d MiB instead of %d", room>>20, parent, scaled>>20, bytes>>20)
		bytes = scaled
	}
	c := startCluster(t, 1, 1)
	c.createRepo(t, "large")
	ctx := limit(t, 20*time.Minute)
	img := makeImage(t, 1, bytes)
	start := time.Now()
	if err := c.servers[0].registry(c.token).Push(ctx, "acme/large/image", "1", img); err != nil {
		t.Fatal(err)
	}
	t.Logf("pushed %d MiB in %v", bytes>>20, time.Since(start).Round(time.Millisecond))
	for _, from := range c.members() {
		start := time.Now()
		token := c.token
		if from.node.Role == "agent" {
			token = "" // as its host
		}
		if _, err := from.registry(token).Pull(ctx, "acme/large/image", "1"); err != nil {
			t.Errorf("%s: %v", from.name, err)
		}
		t.Logf("pulled from %s in %v", from.name, time.Since(start).Round(time.Millisecond))
	}
	for _, m := range c.members() {
		memory, err := m.process.Memory()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MiB at most", m.name, memory.Peak>>20)
		if memory.Peak > limitBytes {
			t.Errorf("%s had %d MiB, more than %d", m.name, memory.Peak>>20, int64(limitBytes)>>20)
		}
	}
}

func freeBytes(dir string) (int64, error) {
	var stat syscall.Statfs_t
	err := syscall.Statfs(dir, &stat)
	return int64(stat.Bavail) * stat.Bsize, err
}
