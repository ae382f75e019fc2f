package helm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/gateway/jsonparts"
	"github.com/shoal-registry/shoal/gateway/protocol"
)

// Bounds of what is read of an upstream's index. A chart over them, or one that is none,
// is left out as if the upstream did not have it.
const (
	maxIndexBytes = 128 << 20
	maxEntryBytes = 1 << 20
)

// readIndex walks the charts of an index whose names want takes, one at a time; those of a
// name come one after another. An index in YAML is read by its lines: the names stand at
// one indent under `entries:`, their charts are the items of lists, as helm and all who use
// its library write it.
//
// Errors: protocol.ErrUpstream when it is no index; of r.
func readIndex(r io.Reader, want func(name string) bool, yield func(chart) bool) error {
	b := bufio.NewReaderSize(io.LimitReader(r, maxIndexBytes), 64<<10)
	first, err := b.Peek(1)
	if err == nil && first[0] == '{' {
		err = readJSON(b, want, yield)
	} else if err == nil {
		err = readYAML(b, want, yield)
	}
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("the upstream's index cannot be read: %v: %w", err, protocol.ErrUpstream)
	}
	return nil
}

// errEnough ends the reading of an index that nobody goes on with.
var errEnough = errors.New("enough")

// readJSON reads an index that is JSON.
func readJSON(r io.Reader, want func(string) bool, yield func(chart) bool) error {
	d := json.NewDecoder(r)
	found := false
	err := jsonparts.Object(d, func(key string) error {
		if key != "entries" {
			return jsonparts.Skip(d)
		}
		found = true
		return jsonparts.Object(d, func(name string) error {
			if !want(name) {
				return jsonparts.Skip(d)
			}
			return jsonparts.Array(d, func() error {
				var raw json.RawMessage
				if err := d.Decode(&raw); err != nil {
					return err
				}
				var ch chart
				if yaml.Unmarshal(raw, &ch) != nil { // JSON is YAML
					return nil
				}
				if ch, ok := ch.settle(name); ok && !yield(ch) {
					return errEnough
				}
				return nil
			})
		})
	})
	if err == nil && !found {
		err = errors.New("it has no entries")
	}
	return err
}

// keyLine is a key of a mapping in a line of its own: plain, or in quotes.
var keyLine = regexp.MustCompile(`^("[^"\\]*"|'[^']*'|[^\s"'#&*!|>{\[%@-][^:#]*):\s*(\{\}|\[\]|\|?)\s*(?:#.*)?$`)

// lines takes an index in YAML apart.
type lines struct {
	want  func(string) bool
	yield func(chart) bool

	inside, found bool   // under `entries:`
	names, items  int    // indents, -1 while unknown
	name          string // whose charts come
	wanted        bool
	item          bytes.Buffer
	over          bool // the item is longer than is read
}

func readYAML(r *bufio.Reader, want func(string) bool, yield func(chart) bool) error {
	l := lines{want: want, yield: yield, names: -1, items: -1}
	for {
		line, err := readLine(r)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if line != nil {
			if err := l.take(line); err != nil {
				return err
			}
		}
		if err != nil {
			break
		}
	}
	if err := l.end(); err != nil {
		return err
	}
	if !l.found {
		return errors.New("it has no entries")
	}
	return nil
}

// readLine returns a line without its end, nil at the end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxEntryBytes:
			return nil, fmt.Errorf("a line is over %d bytes", maxEntryBytes)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && len(line) == 0:
			return nil, err
		}
		return bytes.TrimRight(line, "\r\n"), err
	}
}

// take reads one line.
func (l *lines) take(line []byte) error {
	text := bytes.TrimLeft(line, " ")
	indent := len(line) - len(text)
	isItem := bytes.HasPrefix(text, []byte("- ")) || bytes.Equal(text, []byte("-"))
	deeper := l.items >= 0 && indent > l.items
	switch {
	case len(bytes.TrimSpace(text)) == 0 || text[0] == '#' && !deeper || indent == 0 && (bytes.HasPrefix(text, []byte("---")) || bytes.HasPrefix(text, []byte("..."))):
		l.keep(line)
		return nil
	case indent == 0 && !(isItem && l.inside && l.items == 0):
		if err := l.end(); err != nil {
			return err
		}
		m := keyLine.FindSubmatch(text)
		if l.inside = m != nil && unquote(m[1]) == "entries"; !l.inside {
			if bytes.HasPrefix(text, []byte("entries:")) {
				return errors.New("its entries are in a form that is not read")
			}
			return nil
		}
		l.found, l.names, l.items, l.name = true, -1, -1, ""
		return nil
	case !l.inside:
		return nil
	case l.names < 0 || indent == l.names && !isItem:
		if err := l.end(); err != nil {
			return err
		}
		m := keyLine.FindSubmatch(text)
		if m == nil {
			return fmt.Errorf("%.40q is no name of charts", text)
		}
		l.names, l.items = indent, -1
		l.name = unquote(m[1])
		l.wanted = l.want(l.name)
		return nil
	case isItem && (l.items < 0 || indent == l.items):
		if err := l.end(); err != nil {
			return err
		}
		l.items = indent
	case !deeper:
		return fmt.Errorf("the charts of %.40q are in a form that is not read", l.name)
	}
	l.keep(line)
	return nil
}

func unquote(key []byte) string {
	return strings.Trim(strings.TrimSpace(string(key)), `"'`)
}

// keep adds a line to the chart that is being read.
func (l *lines) keep(line []byte) {
	if l.items < 0 || !l.wanted || l.over {
		return
	}
	if l.item.Len()+len(line) > maxEntryBytes {
		l.over = true
		return
	}
	l.item.Write(line)
	l.item.WriteByte('\n')
}

// end makes a chart of what was kept.
func (l *lines) end() error {
	defer func() { l.item.Reset(); l.over = false }()
	if l.item.Len() == 0 || l.over {
		return nil
	}
	var list []chart
	if err := yaml.Unmarshal(l.item.Bytes(), &list); err != nil || len(list) != 1 {
		return nil // this one is no chart
	}
	if ch, ok := list[0].settle(l.name); ok && !l.yield(ch) {
		return errEnough
	}
	return nil
}

// settle checks a chart of an index, of the list under name; false for what is none.
func (ch chart) settle(name string) (chart, bool) {
	if ch.Name != name || len(ch.URLs) == 0 || ch.bytes() > maxChartBytes || checkName(ch.Name) != nil || checkVersion(ch.Version) != nil {
		return ch, false
	}
	if ch.APIVersion == "" {
		ch.APIVersion = "v1" // as helm reads old ones
	}
	ch.Digest = strings.ToLower(strings.TrimPrefix(ch.Digest, "sha256:"))
	if !hexSum.MatchString(ch.Digest) {
		ch.Digest = ""
	}
	return ch, true
}

var hexSum = regexp.MustCompile(`^[0-9a-f]{64}$`)
