package catalogtest

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// Converse runs the conversation in a txtar file against the node: requests and
// the answers they must get, reviewed as a diff. Each file of the archive whose
// name begins with `>` is a request,
//
//	-- > a manifest that is no JSON --
//	PUT /v2/acme/app/manifests/1
//	Content-Type: application/vnd.oci.image.manifest.v1+json
//
//	{
//
// and the file after it, named `<`, is its answer: status, the headers that say
// something, body. `$LOCATION` in a request is the last answer's Location.
// Addresses, ids and times are masked. With update the answers are written anew.
func Converse(t *testing.T, s *Stack, path string, update bool, auth string) {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	location := ""
	var out []txtar.File
	for i, f := range archive.Files {
		name, ok := strings.CutPrefix(f.Name, "> ")
		if !ok {
			continue
		}
		resp, body := s.exchange(t, name, strings.ReplaceAll(string(f.Data), "$LOCATION", location), auth)
		if l := resp.Header.Get("Location"); l != "" {
			location = l
		}
		got := s.mask(render(resp, body))
		out = append(out, f, txtar.File{Name: "<", Data: got})
		if update {
			continue
		}
		if i+1 >= len(archive.Files) || archive.Files[i+1].Name != "<" {
			t.Errorf("%s: no answer is recorded", name)
			continue
		}
		if want := archive.Files[i+1].Data; !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(want)) {
			t.Errorf("%s: the answer is\n%s\nwant\n%s", name, got, want)
		}
	}
	if update {
		archive.Files = out
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// exchange sends a request as it is written in a conversation.
func (s *Stack) exchange(t *testing.T, name, text, auth string) (*http.Response, []byte) {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	lines := bufio.NewScanner(strings.NewReader(head))
	lines.Scan()
	method, target, ok := strings.Cut(lines.Text(), " ")
	if !ok {
		t.Fatalf("%s: %q is no request line", name, lines.Text())
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+target, strings.NewReader(strings.TrimSuffix(body, "\n")))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if auth != "" {
		req.SetBasicAuth("anybody", auth)
	}
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		if key == "Authorization" {
			req.Header.Del(key)
		}
		req.Header.Add(key, value)
	}
	a := answer(t, s.Client, name, req)
	return a.Response, []byte(a.Text)
}

// silent are headers that say nothing about the case.
var silent = []string{
	"Date", "Content-Length", "X-Content-Type-Options", "Cross-Origin-Resource-Policy", "Referrer-Policy", "X-Frame-Options", "Shoal-Request-Id", "Shoal-Index", "Shoal-Epoch", "Shoal-Age", "Shoal-Token",
	"Docker-Distribution-Api-Version", "Last-Modified", "Docker-Upload-Uuid",
}

func render(resp *http.Response, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", resp.Status)
	var lines []string
	for key, values := range resp.Header {
		if slices.Contains(silent, key) {
			continue
		}
		for _, v := range values {
			lines = append(lines, key+": "+v)
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	if len(body) > 0 {
		fmt.Fprintf(&b, "\n%s\n", bytes.TrimSpace(body))
	}
	return b.Bytes()
}

var (
	maskUpload = regexp.MustCompile(string(Node) + `~[A-Za-z0-9]+~[\w-]+`)
	maskTime   = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+Z)?|\b20\d{12}\b`)
	maskTag    = regexp.MustCompile(`(?m)^Etag: .*$`)
)

func (s *Stack) mask(b []byte) []byte {
	host := strings.TrimPrefix(s.URL, "http://")
	addressed := bytes.Contains(b, []byte(host))
	b = bytes.ReplaceAll(b, []byte(host), []byte("HOST"))
	b = maskUpload.ReplaceAll(b, []byte("UPLOAD"))
	if addressed || maskTime.Match(b) { // a document with times, or our port, has a tag of its own each time
		b = maskTag.ReplaceAll(b, []byte("Etag: OF-TIME"))
	}
	return maskTime.ReplaceAll(b, []byte("TIME"))
}
