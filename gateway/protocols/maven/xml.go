package maven

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of the XML that clients send.
const (
	maxDepth      = 64
	maxTextBytes  = 4096     // of one element that is read; what is longer is no coordinate
	maxTokenBytes = 64 << 10 // of one tag, text or comment
)

// walkXML reads a document as a stream and tells visit the path of each element, like
// `project/parent/version`, with its text, once it ends. Entities are those of HTML, as
// Maven's own parser has them: a document cannot define any, so none grows.
//
// Errors: meta.ErrInvalid; those of visit and of r.
func walkXML(r io.Reader, visit func(path, text string) error) error {
	source := &failing{r: r}
	d := xml.NewDecoder(source)
	d.Entity = xml.HTMLEntity
	d.CharsetReader = latin
	bad := func(err error) error {
		if source.err != nil {
			return source.err
		}
		return fmt.Errorf("line %d is not XML: %v: %w", line(d), err, meta.ErrInvalid)
	}
	var open []string
	var text strings.Builder
	roots := 0
	for {
		source.token = 0
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if roots == 0 {
				return bad(errors.New("it has no element"))
			}
			return nil
		}
		if err != nil {
			return bad(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if len(open) == 0 {
				roots++
			}
			if len(open) == maxDepth || roots > 1 {
				return bad(fmt.Errorf("it has more than one root or %d levels", maxDepth))
			}
			open = append(open, token.Name.Local)
			text.Reset()
		case xml.CharData:
			if len(open) > 0 && text.Len() <= maxTextBytes {
				text.Write(token[:min(len(token), maxTextBytes+1)])
			}
		case xml.EndElement:
			value := ""
			if text.Len() <= maxTextBytes {
				value = strings.TrimSpace(text.String())
			}
			if err := visit(strings.Join(open, "/"), value); err != nil {
				return err
			}
			open = open[:len(open)-1]
			text.Reset()
		}
	}
}

func line(d *xml.Decoder) int {
	n, _ := d.InputPos()
	return n
}

// failing keeps the error of what it reads apart from those of the parser, and ends a
// token that is too long to be held.
type failing struct {
	r     io.Reader
	token int // bytes read since the last token
	err   error
}

func (f *failing) Read(p []byte) (int, error) {
	if f.token > maxTokenBytes {
		return 0, fmt.Errorf("a tag, text or comment of over %d bytes", maxTokenBytes)
	}
	n, err := f.r.Read(p)
	f.token += n
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// latin reads documents of other encodings byte by byte: coordinates are ASCII, which
// all but UTF-16 and EBCDIC share.
func latin(charset string, r io.Reader) (io.Reader, error) {
	charset = strings.ToLower(charset)
	if strings.HasPrefix(charset, "utf-16") || strings.HasPrefix(charset, "utf-32") || strings.HasPrefix(charset, "ucs") || strings.HasPrefix(charset, "ebcdic") {
		return nil, fmt.Errorf("encoding %q: use UTF-8", charset)
	}
	return &latinReader{r: r}, nil
}

type latinReader struct {
	r    io.Reader
	rest []byte
	raw  [2048]byte
	out  [4096]byte
}

func (l *latinReader) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		n, err := l.r.Read(l.raw[:])
		if n == 0 {
			return 0, err
		}
		out := l.out[:0]
		for _, b := range l.raw[:n] {
			if b < 0x80 {
				out = append(out, b)
			} else {
				out = append(out, 0xc0|b>>6, 0x80|b&0x3f)
			}
		}
		l.rest = out
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}
