package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// smallDisk is what the disks of these tests have.
const smallDisk = 512 << 20

// loopDisk mounts an ext4 of its own, on a loop device over a file in dir.
func loopDisk(t *testing.T, dir, name string, bytes int64) string {
	t.Helper()
	needRoot(t, "mounts file systems of its own")
	needTools(t, "losetup", "mkfs.ext4", "mount", "umount")
	file, mount := filepath.Join(dir, name+".img"), filepath.Join(dir, name)
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(bytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx := limit(t, time.Minute)
	if out, err := command(ctx, nil, "mkfs.ext4", "-q", "-F", "-m", "0", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := command(ctx, nil, "losetup", "--find", "--show", file)
	if err != nil {
		skip(t, "no loop device to be had: %v: %s", err, out)
	}
	device := strings.TrimSpace(out)
	t.Cleanup(func() {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := command(ctx, nil, "losetup", "--detach", device); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if err := syscall.Mount(device, mount, "ext4", 0, ""); err != nil {
		skip(t, "ext4 cannot be mounted here: %v", err)
	}
	return mount
}

// lone starts a cluster of one server whose data is in a directory.
func lone(t *testing.T, data string, flags ...string) (*cluster, *member) {
	t.Helper()
	c := &cluster{dir: folder(t, "")}
	m := c.member("server", "server-r1", "r1")
	m.node.Data, m.node.Bootstrap, m.node.Extra = data, true, flags
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
	return c, m
}

// brim fills a disk, to the last byte that it takes.
func brim(t *testing.T, mount string) (ballast string) {
	t.Helper()
	ballast = filepath.Join(mount, "ballast")
	if err := fill(ballast, mount, 0); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return ballast
}

// refusedForSpace checks that an error is a refusal of the protocol's own form that
// speaks of space.
func refusedForSpace(t *testing.T, what string, err error) {
	t.Helper()
	var answer *image.StatusError
	switch {
	case err == nil:
		return
	case !errors.As(err, &answer):
		t.Errorf("%s on a full disk is no refusal: %v", what, err)
	case answer.Status != 507 && answer.Status != 503:
		t.Errorf("%s on a full disk: status %d: %s", what, answer.Status, answer.Body)
	case !strings.Contains(answer.Body, `"errors"`):
		t.Errorf("%s on a full disk: the refusal is not of the protocol's form: %s", what, answer.Body)
	}
}

// pushed are images of which the push was acknowledged.
type pushed map[string]*image.Image

// push pushes an image of one layer and keeps what was acknowledged.
func (p pushed) push(ctx context.Context, t *testing.T, c *image.Client, repository, tag string, bytes int64) error {
	t.Helper()
	img := makeImage(t, 1, bytes)
	err := c.Push(ctx, repository, tag, img)
	if err == nil {
		p[tag] = img
	}
	return err
}

// audit pulls all of them and compares.
func (p pushed) audit(ctx context.Context, t *testing.T, c *image.Client, repository, when string) {
	t.Helper()
	for tag, img := range p {
		got, err := c.Pull(ctx, repository, tag)
		if err != nil {
			t.Errorf("%s: %s, which was acknowledged: %v", when, tag, err)
		} else if string(got.Manifest) != string(img.Manifest) {
			t.Errorf("%s: %s is another manifest", when, tag)
		}
	}
}

// Everything of a server is on one disk of 512 MiB, which pushes fill: clear refusals,
// everything acknowledged stays readable, and pushes go on by themselves once there is
// room. So it is when the disk is full to the brim, and after kill -9 on it.
func TestOneDiskFilledByPushes(t *testing.T) {
	disk := loopDisk(t, folder(t, ""), "disk", smallDisk)
	c, m := lone(t, filepath.Join(disk, "data"))
	c.createRepo(t, "full")
	ctx := limit(t, 10*time.Minute)
	const repository = "acme/full/image"
	client := m.registry(c.token)
	sound := pushed{}
	other := something(t, disk)
	sound.fill(ctx, t, client, repository)
	sound.audit(ctx, t, client, repository, "full")
	makeRoom(t, other)
	sound.resumes(ctx, t, m, client, repository, "after")

	ballast := brim(t, disk)
	sound.onBrim(ctx, t, client, repository, "brim")
	alive(t, m)
	sound.audit(ctx, t, client, repository, "to the brim")
	makeRoom(t, ballast)
	sound.resumes(ctx, t, m, client, repository, "after-brim")

	ballast = brim(t, disk)
	m.process.Kill()
	m.again()
	if err := c.begin(m); err != nil {
		t.Fatal(err)
	}
	up, cancel := context.WithTimeout(ctx, 20*time.Second)
	err := m.awaitReady(up)
	cancel()
	select {
	case <-m.process.Done():
		t.Logf("on a disk without a byte left it does not start: %s", lastLine(m.process.LogTail(2048)))
	default:
		t.Logf("on a disk without a byte left it waits for room: %v, %s", err != nil, lastLine(m.process.LogTail(2048)))
		if err == nil {
			sound.audit(ctx, t, client, repository, "started on a full disk")
		}
		m.process.Kill()
	}
	makeRoom(t, ballast)
	c.launch(t, m)
	sound.audit(ctx, t, client, repository, "after kill -9")
	sound.resumes(ctx, t, m, client, repository, "after-kill")
}

// Log and state are on one disk, blobs on another, and each is filled: what it is for is
// refused, the rest goes on.
func TestTwoDisksFilledByPushes(t *testing.T) {
	dir := folder(t, "")
	meta, blobs := loopDisk(t, dir, "meta", smallDisk), loopDisk(t, dir, "blobs", smallDisk)
	c, m := lone(t, filepath.Join(meta, "data"), "--blobs", filepath.Join(blobs, "store"))
	c.createRepo(t, "full")
	ctx := limit(t, 10*time.Minute)
	const repository = "acme/full/image"
	client := m.registry(c.token)
	sound := pushed{}
	other := something(t, blobs)
	sound.fill(ctx, t, client, repository)

	// Blobs are refused; names are not, they have a disk of their own.
	ballast := brim(t, blobs)
	named := 0
	for tag, img := range sound {
		if err := client.PutManifest(ctx, repository, "also-"+tag, img.Manifest); err == nil {
			named++
		} else {
			refusedForSpace(t, "a new tag while the blobs' disk is full", err)
		}
		if named == 10 {
			break
		}
	}
	sound.audit(ctx, t, client, repository, "the blobs' disk full")
	makeRoom(t, ballast, other)
	sound.resumes(ctx, t, m, client, repository, "after")

	// Without room for log and state writes are refused; reads go on.
	ballast = brim(t, meta)
	sound.onBrim(ctx, t, client, repository, "brim")
	alive(t, m)
	sound.audit(ctx, t, client, repository, "the disk of log and state full")
	makeRoom(t, ballast)
	sound.resumes(ctx, t, m, client, repository, "after-brim")
	m.process.Kill()
	m.again()
	c.launch(t, m)
	sound.audit(ctx, t, client, repository, "after kill -9")
}

// something puts a file on the disk that is none of the server's.
func something(t *testing.T, disk string) string {
	t.Helper()
	name := filepath.Join(disk, "other")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, 64<<20); err != nil {
		t.Fatal(err)
	}
	return name
}

func makeRoom(t *testing.T, files ...string) {
	t.Helper()
	for _, name := range files {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// fill pushes until the disk is full and pushes are refused.
func (p pushed) fill(ctx context.Context, t *testing.T, c *image.Client, repository string) {
	t.Helper()
	refused := 0
	for i := 0; refused < 10 && i < 200; i++ {
		err := p.push(ctx, t, c, repository, fmt.Sprint("p", i), 12<<20)
		if err == nil {
			continue
		}
		refusedForSpace(t, "a push", err)
		if refused++; refused == 1 {
			t.Logf("after %d pushes refused: %v", i, err)
		}
	}
	if refused == 0 {
		t.Fatal("the disk does not get full")
	}
}

// onBrim writes on a disk without a byte left: what is answered is either done, and
// stays, or a refusal.
func (p pushed) onBrim(ctx context.Context, t *testing.T, c *image.Client, repository, prefix string) {
	t.Helper()
	done, refused := 0, 0
	note := func(what string, err error) {
		if err == nil {
			done++
			return
		}
		refusedForSpace(t, what, err)
		if refused++; refused == 1 {
			t.Logf("on the brim refused: %v", err)
		}
	}
	for i := range 20 {
		note("a small push", p.push(ctx, t, c, repository, fmt.Sprint(prefix, "-", i), 20<<10))
	}
	tag, img := "", (*image.Image)(nil)
	for tag, img = range p {
		break
	}
	for i := range 500 {
		again := fmt.Sprint(prefix, "-again-", i%20)
		err := c.PutManifest(ctx, repository, again, img.Manifest)
		note("a new tag of "+tag, err)
		if err == nil {
			p[again] = img
		}
	}
	t.Logf("on the brim: %d writes done, %d refused", done, refused)
}

// resumes expects that pushes are accepted again by themselves, and all is there.
func (p pushed) resumes(ctx context.Context, t *testing.T, m *member, c *image.Client, repository, tag string) {
	t.Helper()
	began := time.Now()
	if err := proc.Await(limit(t, 2*time.Minute), "pushes to be accepted again", func(ctx context.Context) error {
		return p.push(ctx, t, c, repository, tag, 1<<20)
	}, m.process); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: pushes are accepted again after %v", tag, time.Since(began).Round(time.Millisecond))
	p.audit(ctx, t, c, repository, tag)
}

// alive fails the test when the process has ended.
func alive(t *testing.T, m *member) {
	t.Helper()
	select {
	case <-m.process.Done():
		t.Fatalf("the server ended: %v\n%s", m.process.Err(), m.process.LogTail(4096))
	default:
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
