package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
)

// A file in pieces by curl: begun at an agent, gone on at another server than the one that
// has it, broken off, over a restart of the one that has it, and read far away.
func TestPieces(t *testing.T) {
	needTools(t, "curl")
	c := startCluster(t, 2, 1)
	c.createRepo(t, "files", "--format", "generic")
	ctx := limit(t, 4*time.Minute)
	dir := folder(t, "")
	content := make([]byte, 24<<20)
	if _, err := image.Random(seed()).Read(content); err != nil {
		t.Fatal(err)
	}
	// curl returns the status and the headers, in small letters.
	curl := func(args ...string) (string, map[string]string) {
		t.Helper()
		out, err := command(ctx, []string{"HOME=" + dir}, "curl", append([]string{"--silent", "--show-error", "--user", "me:" + c.token,
			"--output", filepath.Join(dir, "body"), "--dump-header", "-", "--write-out", "%{http_code}"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		headers := map[string]string{}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for _, line := range lines {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
				headers[strings.ToLower(name)] = value
			}
		}
		return lines[len(lines)-1], headers
	}
	piece := func(from, to int) string {
		t.Helper()
		name := filepath.Join(dir, "piece")
		write(t, name, string(content[from:to]))
		return name
	}
	base := func(m *member) string { return "http://" + m.gateway() }

	status, h := curl("--request", "POST", base(c.agents[0])+"/generic/acme/files/big.bin?uploads")
	session := h["location"]
	if status != "202" || !strings.HasPrefix(session, "/generic/acme/files/big.bin/.uploads/") {
		t.Fatalf("a session begins with %s %v", status, h)
	}
	send := func(m *member, from, to int) (string, map[string]string) {
		t.Helper()
		return curl("--request", "PATCH", "--header", fmt.Sprintf("Content-Range: %d-%d", from, to-1), "--upload-file", piece(from, to), base(m)+session)
	}
	offset := func(m *member) int {
		t.Helper()
		status, h := curl(base(m) + session)
		at, err := strconv.Atoi(h["upload-offset"])
		if status != "204" || err != nil {
			t.Fatalf("the session at %s: %s %v", m.name, status, h)
		}
		return at
	}
	const mib = 1 << 20
	for i, m := range []*member{c.servers[0], c.servers[1], c.agents[0]} {
		if status, h := send(m, 4*i*mib, 4*(i+1)*mib); status != "202" || h["upload-offset"] != strconv.Itoa(4*(i+1)*mib) {
			t.Fatalf("piece %d at %s: %s %v", i, m.name, status, h)
		}
	}
	if status, h := send(c.servers[1], 0, mib); status != "416" || h["upload-offset"] != strconv.Itoa(12*mib) {
		t.Errorf("a piece that belongs elsewhere: %s %v", status, h)
	}
	// A client that goes away in the middle: what came stays, and it goes on there.
	if _, err := command(ctx, []string{"HOME=" + dir}, "curl", "--silent", "--user", "me:"+c.token, "--limit-rate", "2M", "--max-time", "1", "--request", "PATCH",
		"--header", fmt.Sprintf("Content-Range: %d-%d", 12*mib, 20*mib-1), "--upload-file", piece(12*mib, 20*mib), base(c.agents[0])+session); err == nil {
		t.Log("the piece was whole before its time was over")
	}
	for _, m := range c.servers {
		m.process.Kill()
		m.again()
		if err := c.begin(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members() {
		if err := m.awaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	at := offset(c.servers[0])
	t.Logf("after a client that went away and a kill of both servers the session has %d of %d bytes", at, len(content))
	if at < 12*mib || at > 20*mib {
		t.Fatalf("the session has %d bytes", at)
	}
	if status, h := send(c.agents[0], at, 22*mib); status != "202" {
		t.Fatalf("the rest: %s %v", status, h)
	}
	sum := image.DigestOf(content)
	if status, _ := curl(base(c.agents[0]) + "/generic/acme/files/big.bin"); status != "404" {
		t.Errorf("before the end the file answers %s", status)
	}
	if status, h := curl("--request", "PUT", "--upload-file", piece(22*mib, 24*mib), base(c.servers[1])+session+"?digest="+sum); status != "201" {
		body, _ := os.ReadFile(filepath.Join(dir, "body"))
		t.Fatalf("the end: %s %v %s", status, h, body)
	}
	if status, _ := curl(base(c.agents[0]) + "/generic/acme/files/big.bin"); status != "200" {
		t.Fatalf("the file answers %s", status)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "body")); err != nil || image.DigestOf(got) != sum {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
	if status, _ := curl(base(c.servers[0]) + session); status != "404" {
		t.Errorf("behind the end the session answers %s", status)
	}
}

// 10 GiB in pieces, one of them sent twice: the server's memory does not grow with them.
func TestLargePieces(t *testing.T) {
	if !full {
		t.Skip("SKIPPED: SHOAL_E2E=full writes 10 GiB")
	}
	const (
		want = int64(10 << 30)
		most = int64(512 << 20) // of memory
	)
	var disk syscall.Statfs_t
	if err := syscall.Statfs(os.TempDir(), &disk); err != nil {
		t.Fatal(err)
	}
	free := int64(disk.Bavail) * disk.Bsize
	length := min(want, free/3)
	if length < want {
		t.Logf("SCALED DOWN: %d MiB are free, so the file has %d MiB and not %d", free>>20, length>>20, want>>20)
	}
	if length < 256<<20 {
		skip(t, "%d MiB are free", free>>20)
	}
	c := startCluster(t, 1, 0)
	c.createRepo(t, "files", "--format", "generic")
	server := c.servers[0]
	ctx := limit(t, time.Hour)
	call := func(method, path string, body io.Reader, n int64, contentRange string) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, method, "http://"+server.gateway()+path, body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+c.token)
		request.ContentLength = n
		if contentRange != "" {
			request.Header.Set("Content-Range", contentRange)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response
	}
	session := call(http.MethodPost, "/generic/acme/files/large?uploads", nil, 0, "").Header.Get("Location")
	began, sent, source := time.Now(), sha256.New(), noise()
	pieceBytes := length/10 + 1
	for at := int64(0); at < length; at += pieceBytes {
		n := min(pieceBytes, length-at)
		r := call(http.MethodPatch, session, io.TeeReader(io.LimitReader(source, n), sent), n, fmt.Sprintf("%d-%d", at, at+n-1))
		if r.StatusCode != http.StatusAccepted {
			t.Fatalf("the piece at %d: %d", at, r.StatusCode)
		}
		if r := call(http.MethodPatch, session, strings.NewReader("again"), 5, fmt.Sprintf("%d-%d", at, at+4)); r.StatusCode != http.StatusRequestedRangeNotSatisfiable || r.Header.Get("Upload-Offset") != fmt.Sprint(at+n) {
			t.Fatalf("the piece at %d again: %d %v", at, r.StatusCode, r.Header)
		}
	}
	r := call(http.MethodPut, session+"?digest=sha256:"+hex.EncodeToString(sent.Sum(nil)), nil, 0, "")
	if r.StatusCode != http.StatusCreated {
		t.Fatalf("the end: %d", r.StatusCode)
	}
	memory, err := server.process.Memory()
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("%d MiB in %v, %.0f MiB/s; the server's memory is %d MiB, it was %d MiB at most",
		length>>20, took.Round(100*time.Millisecond), float64(length>>20)/took.Seconds(), memory.Now>>20, memory.Peak>>20)
	if memory.Peak > most {
		t.Errorf("it takes %d MiB of memory", memory.Peak>>20)
	}
}
