package pypi

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
)

func FuzzPage(f *testing.F) {
	f.Add("application/vnd.pypi.simple.v1+json", []byte(`{"meta":{"api-version":"1.0"},"x":[{}],"files":[{"filename":"a-1.tar.gz","url":"../a","yanked":"x","core-metadata":{"sha256":"x"}}]}`))
	f.Add("text/html", []byte(`<a href="../a-1.tar.gz#sha256=00" data-yanked data-requires-python="&gt;=3">a-1.tar.gz</a>`))
	base, err := url.Parse("https://example.com/simple/a/")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		var files []entry
		err := readPage(bytes.NewReader(b), kind, base, func(l linked) bool {
			if l.name == "" || strings.Contains(l.name, "/") || !strings.HasPrefix(l.url, "http") {
				t.Errorf("%+v", l)
			}
			files = append(files, l.entry)
			return true
		})
		if err != nil {
			return
		}
		all := func(yield func(entry, error) bool) {
			for _, e := range files {
				if !yield(e, nil) {
					return
				}
			}
		}
		// What was read is written so that it reads the same.
		for media, write := range map[string]func(*bytes.Buffer) error{
			mediaV1JSON: func(w *bytes.Buffer) error { return writeJSON(w, "a", all, false) },
			mediaHTML:   func(w *bytes.Buffer) error { return writeHTML(w, "a", all) },
		} {
			var page bytes.Buffer
			if err := write(&page); err != nil {
				t.Fatal(err)
			}
			n := 0
			if err := readPage(&page, media, base, func(linked) bool { n++; return true }); err != nil {
				t.Errorf("%s is not read back: %v", media, err)
			}
			if media == mediaV1JSON && n != len(files) {
				t.Errorf("%d of %d files are read back", n, len(files))
			}
		}
	})
}
