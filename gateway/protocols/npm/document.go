package npm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits of the documents that clients send.
const (
	maxManifestBytes = 1 << 20   // of one version
	maxTagsBytes     = 256 << 10 // of all dist-tags
	maxDocumentBytes = 512 << 20 // of all but the tarball: the whole of a large package comes back when one version is deprecated
	maxDocVersions   = 200_000
	maxDepth         = 200
	maxKeyBytes      = 4 << 10
)

// scanner walks a JSON text as it arrives: what is large passes through, what is not
// asked for is skipped, and neither is held.
type scanner struct {
	r    *bufio.Reader
	left int64 // bytes that may still come, without those of streamed strings
}

func newScanner(r io.Reader) *scanner {
	return &scanner{r: bufio.NewReaderSize(r, 64<<10), left: maxDocumentBytes}
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("the body is not the JSON that is expected: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
}

func (s *scanner) byte() (byte, error) {
	b, err := s.r.ReadByte()
	if err != nil {
		return 0, broken(err)
	}
	if s.left--; s.left < 0 {
		return 0, fmt.Errorf("the document is over %d bytes without its tarball: %w", int64(maxDocumentBytes), meta.ErrTooLarge)
	}
	return b, nil
}

// broken says that the body ended too early.
func broken(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("it ends too early")
	}
	return err
}

// next returns the next byte that is no space.
func (s *scanner) next() (byte, error) {
	for {
		b, err := s.byte()
		if err != nil || b != ' ' && b != '\n' && b != '\t' && b != '\r' {
			return b, err
		}
	}
}

func (s *scanner) back() {
	if s.r.UnreadByte() == nil {
		s.left++
	}
}

func (s *scanner) expect(want byte) error {
	b, err := s.next()
	if err == nil && b != want {
		return malformed("%q stands where %q is expected", b, want)
	}
	return err
}

// object reads an object: field is called for each key and has to read the value.
func (s *scanner) object(field func(key string) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	for first := true; ; first = false {
		b, err := s.next()
		switch {
		case err != nil:
			return err
		case b == '}' && first:
			return nil
		case b != '"':
			return malformed("%q stands where a name is expected", b)
		}
		s.back()
		raw, err := s.value(maxKeyBytes)
		if err != nil {
			return err
		}
		var key string
		if err := json.Unmarshal(raw, &key); err != nil {
			return malformed("%v", err)
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := field(key); err != nil {
			return err
		}
		switch b, err = s.next(); {
		case err != nil:
			return err
		case b == '}':
			return nil
		case b != ',':
			return malformed("%q stands between fields", b)
		}
	}
}

// end checks that nothing follows.
func (s *scanner) end() error {
	for {
		b, err := s.r.ReadByte()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case b != ' ' && b != '\n' && b != '\t' && b != '\r':
			return malformed("something follows the document")
		}
	}
}

// value reads one value of at most maxBytes.
func (s *scanner) value(maxBytes int) ([]byte, error) {
	var buf bytes.Buffer
	err := s.walk(func(b byte) error {
		if buf.Len() == maxBytes {
			return fmt.Errorf("a part of the document is over %d bytes: %w", maxBytes, meta.ErrTooLarge)
		}
		buf.WriteByte(b)
		return nil
	})
	if err == nil && !json.Valid(buf.Bytes()) {
		err = malformed("a value is none")
	}
	return buf.Bytes(), err
}

// skip passes a value over.
func (s *scanner) skip() error { return s.walk(func(byte) error { return nil }) }

// walk hands over the bytes of one value. It finds its end, and no more.
func (s *scanner) walk(to func(byte) error) error {
	depth, inString, escaped := 0, false, false
	for started := false; ; started = true {
		read := s.byte
		if !started {
			read = s.next
		}
		b, err := read()
		if err != nil {
			return err
		}
		if !inString && depth == 0 && started && (b == ',' || b == '}' || b == ']' || b == ' ' || b == '\n' || b == '\t' || b == '\r') {
			s.back() // behind a number or a word
			return nil
		}
		if err := to(b); err != nil {
			return err
		}
		switch {
		case escaped:
			escaped = false
		case inString && b == '\\':
			escaped = true
		case b == '"':
			if inString = !inString; !inString && depth == 0 {
				return nil
			}
		case inString:
		case b == '{' || b == '[':
			if depth++; depth > maxDepth {
				return malformed("it is nested over %d deep", maxDepth)
			}
		case b == '}' || b == ']':
			switch depth--; {
			case depth == 0:
				return nil
			case depth < 0:
				return malformed("%q stands where a value is expected", b)
			}
		}
	}
}

// text begins a string and returns its content as it comes, for one that needs no
// unescaping but for `\/`. The reader must be read to its end.
func (s *scanner) text() (io.Reader, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	return &text{r: s.r}, nil
}

type text struct {
	r    *bufio.Reader
	done bool
}

// Read implements io.Reader.
func (t *text) Read(p []byte) (int, error) {
	if t.done {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := t.r.Peek(1); err != nil {
		return 0, broken(err)
	}
	have, _ := t.r.Peek(min(t.r.Buffered(), len(p)))
	n := bytes.IndexAny(have, "\"\\")
	switch {
	case n < 0:
		n = len(have)
	case n > 0:
	case have[0] == '"':
		_, _ = t.r.Discard(1)
		t.done = true
		return 0, io.EOF
	default:
		pair, err := t.r.Peek(2)
		if err != nil {
			return 0, broken(err)
		}
		if pair[1] != '/' {
			return 0, malformed("the tarball is not in base64")
		}
		_, _ = t.r.Discard(2)
		p[0] = '/'
		return 1, nil
	}
	copy(p, have[:n])
	_, _ = t.r.Discard(n)
	return n, nil
}

// document is what came of a body beside what went to its receiver.
type document struct {
	ID   string            `json:"_id"`
	Name string            `json:"name"`
	Rev  string            `json:"_rev"`
	Tags map[string]string `json:"dist-tags"`
	// Versions and Attachments count what the receiver got.
	Versions, Attachments int
}

// receiver takes the large parts of a document, in the order in which they come.
type receiver struct {
	// version gets the manifest of a version; the bytes are its own.
	version func(version string, manifest []byte) error
	// attachment gets the content of an attachment, as the string in the document has
	// it; it must read to the end.
	attachment func(name string, data io.Reader) error
}

// readDocument reads what a client PUTs under the name of a package, in one pass.
//
// Errors: meta.ErrInvalid, meta.ErrTooLarge; of the receiver.
func readDocument(r io.Reader, to receiver) (d document, _ error) {
	s := newScanner(r)
	seen := map[string]bool{}
	err := s.object(func(key string) error {
		var into any
		limit := maxKeyBytes
		switch key {
		case "_id":
			into = &d.ID
		case "name":
			into = &d.Name
		case "_rev":
			into = &d.Rev
		case "dist-tags":
			into, limit = &d.Tags, maxTagsBytes
		case "versions", "_attachments":
		default:
			return s.skip()
		}
		if seen[key] {
			return malformed("%s comes twice", key)
		}
		seen[key] = true
		switch key {
		case "versions":
			return s.versions(&d, to)
		case "_attachments":
			return s.attachments(&d, to)
		}
		raw, err := s.value(limit)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return malformed("%s: %v", key, err)
		}
		return nil
	})
	if err == nil {
		err = s.end()
	}
	return d, err
}

func (s *scanner) versions(d *document, to receiver) error {
	return s.object(func(version string) error {
		if d.Versions++; d.Versions > maxDocVersions {
			return fmt.Errorf("the document has over %d versions: %w", maxDocVersions, meta.ErrTooLarge)
		}
		manifest, err := s.value(maxManifestBytes)
		if err != nil {
			return fmt.Errorf("version %q: %w", version, err)
		}
		if !utf8.Valid(manifest) {
			return malformed("version %q is not UTF-8", version)
		}
		return to.version(version, manifest)
	})
}

func (s *scanner) attachments(d *document, to receiver) error {
	return s.object(func(name string) error {
		d.Attachments++
		had := false
		return s.object(func(key string) error {
			if key != "data" {
				return s.skip()
			}
			if had {
				return malformed("attachment %q has its data twice", name)
			}
			had = true
			data, err := s.text()
			if err != nil {
				return err
			}
			if err := to.attachment(name, data); err != nil {
				return err
			}
			if n, err := io.Copy(io.Discard, data); n > 0 || err != nil {
				return errors.Join(malformed("attachment %q goes on behind its end", name), err)
			}
			return nil
		})
	})
}
