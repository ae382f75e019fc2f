package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// client drives one real OCI client.
//
// References are host:port/tenant/repository/image with :tag or @digest. open starts
// what the client needs; what it returns lives until the test ends.
type client struct {
	name  string
	tools []string
	root  bool
	open  func(t *testing.T) session
}

// session is a client ready to work.
type session interface {
	// push sends the image to reference and returns the digest that the client says
	// it pushed; clients that compress layers push another manifest than the image's.
	push(ctx context.Context, img *image.Image, reference string) (digest string, err error)
	// pull fetches every byte anew, lets the client check them, and returns the
	// manifest's digest.
	pull(ctx context.Context, reference string) (digest string, err error)
}

// clients are all OCI clients under test.
var clients = []client{
	{name: "crane", tools: []string{"crane"}, open: openCrane},
	{name: "skopeo", tools: []string{"skopeo"}, open: openSkopeo},
	{name: "docker", tools: []string{"docker", "dockerd"}, root: true, open: openDocker},
	{name: "ctr", tools: []string{"ctr", "containerd"}, root: true, open: openContainerd},
	{name: "podman", tools: []string{"podman"}, root: true, open: openPodman},
	{name: "buildah", tools: []string{"buildah"}, root: true, open: openBuildah},
	{name: "oras", tools: []string{"oras"}, open: openOras},
	{name: "regctl", tools: []string{"regctl"}, open: openRegctl},
}

// each runs f as a subtest with every client of names, or with all.
func each(t *testing.T, names []string, f func(t *testing.T, c client, s session)) {
	for _, c := range clients {
		if len(names) > 0 && !strings.Contains(" "+strings.Join(names, " ")+" ", " "+c.name+" ") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			needTools(t, c.tools...)
			if c.root {
				needRoot(t, c.name+" manages containers' storage")
			}
			f(t, c, c.open(t))
		})
	}
}

// layoutClient is a client that copies between a registry and an OCI image layout, so
// that what it pulled can be compared byte by byte.
type layoutClient struct {
	t    *testing.T
	env  []string
	up   func(layout, reference string) []string // command lines
	down func(reference, layout string) []string
}

func (c layoutClient) push(ctx context.Context, img *image.Image, reference string) (string, error) {
	layout := filepath.Join(folder(c.t, ""), "layout")
	if err := img.WriteLayout(layout, "e2e"); err != nil {
		return "", err
	}
	line := c.up(layout, reference)
	_, err := command(ctx, c.env, line[0], line[1:]...)
	return img.Digest(), err
}

func (c layoutClient) pull(ctx context.Context, reference string) (string, error) {
	layout := filepath.Join(folder(c.t, ""), "layout")
	line := c.down(reference, layout)
	if _, err := command(ctx, c.env, line[0], line[1:]...); err != nil {
		return "", err
	}
	return checkLayout(layout)
}

// checkLayout checks that a layout holds one image with all its blobs, each with the
// bytes of its name, and returns the manifest's digest.
func checkLayout(layout string) (string, error) {
	var index struct{ Manifests []image.Descriptor }
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("layout of %d manifests", len(index.Manifests))
	}
	read := func(digest string) ([]byte, error) {
		content, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")))
		if err == nil && image.DigestOf(content) != digest {
			err = fmt.Errorf("blob %s has other bytes", digest)
		}
		return content, err
	}
	digest := index.Manifests[0].Digest
	text, err = read(digest)
	if err != nil {
		return "", err
	}
	var manifest image.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return "", err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if _, err := read(d.Digest); err != nil {
			return "", err
		}
	}
	return digest, nil
}

func openCrane(t *testing.T) session {
	return layoutClient{t: t, env: []string{"HOME=" + folder(t, "")},
		up: func(layout, reference string) []string {
			return []string{"crane", "push", "--insecure", layout, reference}
		},
		down: func(reference, layout string) []string {
			return []string{"crane", "pull", "--insecure", "--format", "oci", reference, layout}
		}}
}

func openSkopeo(t *testing.T) session {
	return layoutClient{t: t, env: []string{"HOME=" + folder(t, "")},
		up: func(layout, reference string) []string {
			return []string{"skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "oci:" + layout + ":e2e", "docker://" + reference}
		},
		down: func(reference, layout string) []string {
			return []string{"skopeo", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false", "docker://" + reference, "oci:" + layout + ":e2e"}
		}}
}

func openOras(t *testing.T) session {
	return layoutClient{t: t, env: []string{"HOME=" + folder(t, "")},
		up: func(layout, reference string) []string {
			return []string{"oras", "cp", "--from-oci-layout", "--to-plain-http", layout + ":e2e", reference}
		},
		down: func(reference, layout string) []string {
			return []string{"oras", "cp", "--from-plain-http", "--to-oci-layout", reference, layout + ":e2e"}
		}}
}

func openRegctl(t *testing.T) session {
	plain := func(reference string) string {
		host, _, _ := strings.Cut(reference, "/")
		return "reg=" + host + ",tls=disabled"
	}
	return layoutClient{t: t, env: []string{"HOME=" + folder(t, "")},
		up: func(layout, reference string) []string {
			return []string{"regctl", "--host", plain(reference), "image", "copy", "ocidir://" + layout + ":e2e", reference}
		},
		down: func(reference, layout string) []string {
			return []string{"regctl", "--host", plain(reference), "image", "copy", reference, "ocidir://" + layout + ":e2e"}
		}}
}

var sha256Digest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// docker is a dockerd of our own with its client.
type docker struct {
	t      *testing.T
	env    []string
	folder string
}

func openDocker(t *testing.T) session {
	dir := folder(t, "")
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	daemon, err := proc.Start(proc.Spec{Name: "dockerd", Path: "dockerd", Log: filepath.Join(dir, "log"), Env: []string{"HOME=" + dir},
		Args: []string{"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
			"--host", socket, "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs", "--live-restore=false"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It ends its containerd when it is asked to, not when it is killed.
		if err := daemon.Stop(30 * time.Second); err != nil {
			t.Log(err)
		}
	})
	d := docker{t: t, folder: dir, env: []string{"DOCKER_HOST=" + socket, "HOME=" + dir}}
	if err := proc.Await(limit(t, time.Minute), "dockerd", func(ctx context.Context) error {
		_, err := command(ctx, d.env, "docker", "version")
		return err
	}, daemon); err != nil {
		t.Fatalf("%v\nlog: %s", err, daemon.LogTail(4096))
	}
	return d
}

func (d docker) push(ctx context.Context, img *image.Image, reference string) (string, error) {
	archive, err := os.Create(filepath.Join(d.folder, "archive.tar"))
	if err != nil {
		return "", err
	}
	defer archive.Close()
	if err := img.WriteDockerArchive(archive, reference); err != nil {
		return "", err
	}
	if _, err := command(ctx, d.env, "docker", "load", "--quiet", "--input", archive.Name()); err != nil {
		return "", err
	}
	out, err := command(ctx, d.env, "docker", "push", reference)
	if err != nil {
		return "", err
	}
	return lastDigest(out)
}

func (d docker) pull(ctx context.Context, reference string) (string, error) {
	if ids, err := command(ctx, d.env, "docker", "images", "--quiet", "--no-trunc"); err != nil {
		return "", err
	} else if fields := strings.Fields(ids); len(fields) > 0 {
		if _, err := command(ctx, d.env, "docker", append([]string{"rmi", "--force"}, fields...)...); err != nil {
			return "", err
		}
	}
	out, err := command(ctx, d.env, "docker", "pull", reference)
	if err != nil {
		return "", err
	}
	return lastDigest(out)
}

// lastDigest returns the last digest that a client printed.
func lastDigest(out string) (string, error) {
	found := sha256Digest.FindAllString(out, -1)
	if len(found) == 0 {
		return "", fmt.Errorf("no digest in %q", out)
	}
	return found[len(found)-1], nil
}

// containerd is a containerd of our own with ctr.
type containerd struct {
	t      *testing.T
	folder string
	socket string
	env    []string
}

func openContainerd(t *testing.T) session {
	dir := folder(t, "")
	c := containerd{t: t, folder: dir, socket: filepath.Join(dir, "containerd.sock"), env: []string{"HOME=" + dir}}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon, err := proc.Start(proc.Spec{Name: "containerd", Path: "containerd", Args: []string{"--config", config}, Log: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(daemon.Kill)
	if err := proc.Await(limit(t, time.Minute), "containerd", func(ctx context.Context) error {
		_, err := c.ctr(ctx, "version")
		return err
	}, daemon); err != nil {
		t.Fatalf("%v\nlog: %s", err, daemon.LogTail(4096))
	}
	return c
}

func (c containerd) ctr(ctx context.Context, args ...string) (string, error) {
	return command(ctx, c.env, "ctr", append([]string{"--address", c.socket, "--namespace", "e2e"}, args...)...)
}

func (c containerd) push(ctx context.Context, img *image.Image, reference string) (string, error) {
	colon := strings.LastIndex(reference, ":")
	base, tag := reference[:colon], reference[colon+1:]
	layout := filepath.Join(folder(c.t, ""), "layout")
	if err := img.WriteLayout(layout, tag); err != nil {
		return "", err
	}
	archive := layout + ".tar"
	if _, err := command(ctx, nil, "tar", "-C", layout, "-cf", archive, "."); err != nil {
		return "", err
	}
	if _, err := c.ctr(ctx, "images", "import", "--no-unpack", "--base-name", base, archive); err != nil {
		return "", err
	}
	_, err := c.ctr(ctx, "images", "push", "--plain-http", reference)
	return img.Digest(), err
}

func (c containerd) pull(ctx context.Context, reference string) (string, error) {
	names, err := c.ctr(ctx, "images", "list", "--quiet")
	if err != nil {
		return "", err
	}
	if fields := strings.Fields(names); len(fields) > 0 {
		// --sync collects the garbage too, so that the next pull finds nothing.
		if _, err := c.ctr(ctx, append([]string{"images", "remove", "--sync"}, fields...)...); err != nil {
			return "", err
		}
	}
	if content, err := c.ctr(ctx, "content", "list", "--quiet"); err != nil {
		return "", err
	} else if strings.TrimSpace(content) != "" {
		return "", fmt.Errorf("containerd still has %q", content)
	}
	if _, err := c.ctr(ctx, "images", "pull", "--plain-http", "--snapshotter", "native", reference); err != nil {
		return "", err
	}
	out, err := c.ctr(ctx, "images", "list", "name=="+reference)
	if err != nil {
		return "", err
	}
	return lastDigest(out)
}

// storage is podman or buildah with a store of its own.
type storage struct {
	t    *testing.T
	tool string
	args []string
	env  []string
}

func openPodman(t *testing.T) session  { return openStorage(t, "podman", "--cgroup-manager=cgroupfs") }
func openBuildah(t *testing.T) session { return openStorage(t, "buildah") }

func openStorage(t *testing.T, tool string, args ...string) session {
	dir := folder(t, "")
	return storage{t: t, tool: tool, env: []string{"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "TMPDIR=" + dir},
		args: append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)}
}

func (s storage) run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, s.env, s.tool, append(append([]string(nil), s.args...), args...)...)
}

func (s storage) push(ctx context.Context, img *image.Image, reference string) (string, error) {
	dir := folder(s.t, "")
	if s.tool == "buildah" {
		return s.build(ctx, dir, reference)
	}
	layout := filepath.Join(dir, "layout")
	if err := img.WriteLayout(layout, "e2e"); err != nil {
		return "", err
	}
	out, err := s.run(ctx, "pull", "--quiet", "oci:"+layout+":e2e")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) == 0 {
		return "", errors.New("podman pulled nothing")
	}
	return s.send(ctx, dir, fields[len(fields)-1], reference)
}

// build makes an image from scratch with buildah, which is what buildah is for.
func (s storage) build(ctx context.Context, dir, reference string) (string, error) {
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte(reference), 0o600); err != nil {
		return "", err
	}
	out, err := s.run(ctx, "from", "scratch")
	if err != nil {
		return "", err
	}
	container := strings.TrimSpace(out)
	if _, err := s.run(ctx, "copy", "--quiet", container, file, "/file"); err != nil {
		return "", err
	}
	if _, err := s.run(ctx, "commit", "--quiet", container, reference); err != nil {
		return "", err
	}
	return s.send(ctx, dir, reference, reference)
}

func (s storage) send(ctx context.Context, dir, id, reference string) (string, error) {
	file := filepath.Join(dir, "digest")
	if _, err := s.run(ctx, "push", "--quiet", "--tls-verify=false", "--digestfile", file, id, "docker://"+reference); err != nil {
		return "", err
	}
	digest, err := os.ReadFile(file)
	return strings.TrimSpace(string(digest)), err
}

func (s storage) pull(ctx context.Context, reference string) (string, error) {
	if s.tool == "buildah" {
		if _, err := s.run(ctx, "rm", "--all"); err != nil {
			return "", err
		}
	}
	if _, err := s.run(ctx, "rmi", "--all", "--force"); err != nil {
		return "", err
	}
	if _, err := s.run(ctx, "pull", "--quiet", "--tls-verify=false", reference); err != nil {
		return "", err
	}
	out, err := s.run(ctx, "images", "--format", "{{.Digest}}", "--no-trunc")
	if err != nil {
		return "", err
	}
	return lastDigest(out)
}
