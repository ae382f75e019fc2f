package pypi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/shoal-registry/shoal/gateway/jsonparts"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what is read of an upstream's page. What is over them, or is no file that a
// client could use, is left out as if the upstream did not have it.
const (
	maxPageBytes = 64 << 20
	maxURLBytes  = 4 << 10
	maxTagBytes  = 64 << 10
	maxReason    = 1 << 10
)

// accepts is what an upstream is asked for.
const accepts = mediaV1JSON + ", " + mediaV1HTML + ";q=0.2, text/html;q=0.1"

// linked is a file of an upstream.
type linked struct {
	entry
	url  string            // absolute, http or https
	sums map[string]string // as Want.Sums
}

// readPage walks the files of an upstream's page, which was at base.
//
// Errors: protocol.ErrUpstream when the page is none; of r.
func readPage(r io.Reader, mediaType string, base *url.URL, yield func(linked) bool) error {
	kind, _, err := mime.ParseMediaType(mediaType)
	if err != nil {
		kind = mediaType
	}
	r = io.LimitReader(r, maxPageBytes)
	switch kind {
	case mediaV1JSON, mediaLatestJSON, "application/json":
		return readJSON(r, base, yield)
	case mediaHTML, mediaV1HTML, mediaLatestHTML, "application/xhtml+xml":
		return readHTML(r, base, yield)
	}
	return fmt.Errorf("the upstream's page is %.80q, not an index of files: %w", mediaType, protocol.ErrUpstream)
}

// errEnough ends the reading of a page that nobody goes on with.
var errEnough = errors.New("enough")

// readJSON reads the form of PEP 691, one file at a time.
func readJSON(r io.Reader, base *url.URL, yield func(linked) bool) error {
	d := json.NewDecoder(r)
	err := jsonparts.Object(d, func(key string) error {
		switch key {
		case "files":
			return jsonparts.Array(d, func() error {
				var f foreignFile
				if err := d.Decode(&f); err != nil {
					return err
				}
				if l, ok := f.linked(base); ok && !yield(l) {
					return errEnough
				}
				return nil
			})
		case "meta":
			var m struct {
				Version string `json:"api-version"`
			}
			if err := d.Decode(&m); err != nil {
				return err
			}
			if major, _, _ := strings.Cut(m.Version, "."); m.Version != "" && major != "1" {
				return fmt.Errorf("it is of version %.20q of the index, not 1", m.Version)
			}
			return nil
		}
		return jsonparts.Skip(d)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("the upstream's page cannot be read: %v: %w", err, protocol.ErrUpstream)
	}
	return nil
}

// foreignFile is a file in an upstream's JSON. What may be of several types is raw.
type foreignFile struct {
	Filename     string            `json:"filename"`
	URL          string            `json:"url"`
	Hashes       map[string]string `json:"hashes"`
	Requires     *string           `json:"requires-python"`
	Size         *int64            `json:"size"`
	UploadTime   string            `json:"upload-time"`
	Yanked       json.RawMessage   `json:"yanked"`
	CoreMetadata json.RawMessage   `json:"core-metadata"`
	DistInfo     json.RawMessage   `json:"dist-info-metadata"`
}

func (f *foreignFile) linked(base *url.URL) (linked, bool) {
	l := linked{entry: entry{name: f.Filename, size: -1}, sums: map[string]string{}}
	for algorithm, sum := range f.Hashes {
		l.sum(algorithm, sum)
	}
	if f.Requires != nil {
		l.requires = *f.Requires
	}
	if f.Size != nil && *f.Size >= 0 {
		l.size = *f.Size
	}
	// What does not parse is not known.
	l.uploaded, _ = time.Parse(time.RFC3339Nano, f.UploadTime)
	switch err := json.Unmarshal(f.Yanked, &l.reason); {
	case err == nil && len(f.Yanked) > 0 && f.Yanked[0] == '"':
		l.yanked = true
	default:
		l.yanked = string(f.Yanked) == "true"
	}
	said := f.CoreMetadata
	if len(said) == 0 {
		said = f.DistInfo
	}
	var sums map[string]string
	if string(said) == "true" {
		l.metadata = true
	} else if json.Unmarshal(said, &sums) == nil && sums != nil {
		l.metadata, l.metadataSum = true, sums["sha256"]
	}
	return l, l.settle(f.URL, base)
}

var hexSum = regexp.MustCompile(`^[0-9a-f]+$`)

// sumDigits are the algorithms whose sums are compared, with the length of those in hex.
var sumDigits = map[string]int{"md5": 32, "sha1": 40, "sha256": 64, "sha384": 96, "sha512": 128}

func (l *linked) sum(algorithm, sum string) {
	algorithm, sum = strings.ToLower(algorithm), strings.ToLower(sum)
	if len(sum) == sumDigits[algorithm] && hexSum.MatchString(sum) {
		l.sums[algorithm] = sum
	}
}

// settle makes one form of what a page says; false for what is no use.
func (l *linked) settle(link string, base *url.URL) bool {
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil || len(link) > maxURLBytes {
		return false
	}
	u = base.ResolveReference(u)
	if algorithm, sum, ok := strings.Cut(u.Fragment, "="); ok {
		l.sum(algorithm, sum)
	}
	u.Fragment, u.RawFragment = "", ""
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Host == "" {
		return false
	}
	l.url, l.sha256 = u.String(), l.sums["sha256"]
	if meta.CheckPath(l.name) != nil || strings.Contains(l.name, "/") || strings.HasSuffix(l.name, metadataSuffix) {
		return false
	}
	if len(l.metadataSum) != 64 || !hexSum.MatchString(l.metadataSum) {
		l.metadataSum = ""
	}
	if checkRequires(l.requires) != nil {
		return false
	}
	if len(l.reason) > maxReason {
		l.reason = strings.ToValidUTF8(l.reason[:maxReason], "")
	}
	if f, err := parseFilename(l.name); err == nil {
		l.version = f.version
	}
	return true
}

// readHTML reads the form of PEP 503: each anchor is a file.
func readHTML(r io.Reader, base *url.URL, yield func(linked) bool) error {
	z := html.NewTokenizer(r)
	z.SetMaxBuf(maxTagBytes)
	var open *linked // the anchor whose text is being read
	var href string
	end := func() bool {
		l := open
		open = nil
		if l == nil {
			return true
		}
		l.name = strings.TrimSpace(l.name)
		return !l.settle(href, base) || yield(*l)
	}
	for {
		switch z.Next() {
		case html.ErrorToken:
			if err := z.Err(); !errors.Is(err, io.EOF) {
				return fmt.Errorf("the upstream's page cannot be read: %v: %w", err, protocol.ErrUpstream)
			}
			end()
			return nil
		case html.TextToken:
			if open != nil && len(open.name) <= meta.MaxPathBytes {
				open.name += string(z.Text())
			}
		case html.StartTagToken:
			t := z.Token()
			if t.Data != "a" {
				continue
			}
			if !end() {
				return nil
			}
			open, href = &linked{entry: entry{size: -1}, sums: map[string]string{}}, ""
			for _, a := range t.Attr {
				switch a.Key {
				case "href":
					href = a.Val
				case "data-requires-python":
					open.requires = a.Val
				case "data-yanked":
					open.yanked, open.reason = true, a.Val
				case "data-core-metadata", "data-dist-info-metadata":
					if a.Val == "false" {
						continue
					}
					open.metadata = true
					if algorithm, sum, _ := strings.Cut(a.Val, "="); algorithm == "sha256" {
						open.metadataSum = sum
					}
				}
			}
		case html.EndTagToken:
			if name, _ := z.TagName(); string(name) == "a" && !end() {
				return nil
			}
		}
	}
}
