package clients

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// apply is Edit.Apply.
type apply = func(old []byte) ([]byte, error)

// own is for a file that is ours as a whole.
func own(text string) apply {
	return func([]byte) ([]byte, error) { return []byte(text), nil }
}

// both does one edit after the other.
func both(first, second apply) apply {
	return func(old []byte) ([]byte, error) {
		b, err := first(old)
		if err != nil {
			return nil, err
		}
		return second(b)
	}
}

func malformed(what string, err error) error {
	return fmt.Errorf("the file is not %s, put it right or away first: %w: %w", what, err, meta.ErrInvalid)
}

// lines parts a file, its last line ended.
func lines(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func joined(lines []string) []byte {
	if len(lines) == 0 {
		return nil
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

// keyOf returns the key of a line `key = value`, "" for another.
func keyOf(line string) string {
	key, _, ok := strings.Cut(line, "=")
	if trimmed := strings.TrimSpace(line); !ok || trimmed[0] == '#' || trimmed[0] == ';' {
		return ""
	}
	return strings.TrimSpace(key)
}

// inLines sets `key=value` lines of a file without sections.
func inLines(pairs ...[2]string) apply {
	return func(old []byte) ([]byte, error) {
		all := lines(old)
		for _, pair := range pairs {
			line := pair[0] + "=" + pair[1]
			if i := slices.IndexFunc(all, func(l string) bool { return keyOf(l) == pair[0] }); i >= 0 {
				all[i] = line
			} else {
				all = append(all, line)
			}
		}
		return joined(all), nil
	}
}

// section returns where the lines of `[name]` are, without its header; from is 0 when there
// is none.
func section(all []string, name string) (from, to int) {
	for i, line := range all {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "[") {
			continue
		}
		if from > 0 {
			return from, i
		}
		if inner, _, ok := strings.Cut(line[1:], "]"); ok && strings.TrimSpace(inner) == name {
			from = i + 1
		}
	}
	return from, len(all)
}

// inSection sets `key = value` lines below `[name]`.
func inSection(name string, pairs ...[2]string) apply {
	return func(old []byte) ([]byte, error) {
		all := lines(old)
		from, to := section(all, name)
		if from == 0 {
			if len(all) > 0 {
				all = append(all, "")
			}
			all = append(all, "["+name+"]")
			from, to = len(all), len(all)
		}
		for _, pair := range pairs {
			line := pair[0] + " = " + pair[1]
			if i := slices.IndexFunc(all[from:to], func(l string) bool { return keyOf(l) == pair[0] }); i >= 0 {
				all[from+i] = line
				continue
			}
			at := to
			for at > from && strings.TrimSpace(all[at-1]) == "" {
				at-- // before the blank lines at its end
			}
			all = slices.Insert(all, at, line)
			to++
		}
		return joined(all), nil
	}
}

// inSectionList adds a value to a list below `[name]`, which goes on in indented lines.
func inSectionList(name, key, value string) apply {
	return func(old []byte) ([]byte, error) {
		all := lines(old)
		from, to := section(all, name)
		i := slices.IndexFunc(all[from:to], func(l string) bool { return keyOf(l) == key })
		if from == 0 || i < 0 {
			return inSection(name, [2]string{key, value})(old)
		}
		i += from
		_, first, _ := strings.Cut(all[i], "=")
		values := strings.Fields(first)
		end := i + 1
		for end < to && strings.TrimLeft(all[end], " \t") != all[end] {
			values = append(values, strings.Fields(all[end])...)
			end++
		}
		if slices.Contains(values, value) {
			return joined(all), nil
		}
		return joined(slices.Insert(all, end, "    "+value)), nil
	}
}

// netrc sets the credential of a host. One that is not ours stays, and is in the way.
func netrc(host, user, token string) apply {
	return func(old []byte) ([]byte, error) {
		all := lines(old)
		ours := "machine " + host + " login " + user + " password "
		for i, line := range all {
			if strings.HasPrefix(line, ours) {
				all[i] = ours + token
				return joined(all), nil
			}
			words := strings.Fields(line)
			for w := 0; w+1 < len(words); w++ {
				if words[w] == "machine" && words[w+1] == host {
					return nil, fmt.Errorf("line %d has another credential for %s, take it away first: %w", i+1, host, meta.ErrConflict)
				}
			}
		}
		// `default` has to be the last entry.
		at := slices.IndexFunc(all, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "default") })
		if at < 0 {
			at = len(all)
		}
		return joined(slices.Insert(all, at, ours+token)), nil
	}
}

// decodeObject reads a JSON object, {} when there is none.
func decodeObject(b []byte) (map[string]any, error) {
	object := map[string]any{}
	if len(bytes.TrimSpace(b)) == 0 {
		return object, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, malformed("JSON", err)
	}
	return object, nil
}

func encodeObject(object map[string]any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	err := e.Encode(object)
	return out.Bytes(), err
}

// inJSON sets the object at a path of keys.
func inJSON(at []string, value map[string]any) apply {
	return func(old []byte) ([]byte, error) {
		root, err := decodeObject(old)
		if err != nil {
			return nil, err
		}
		object := root
		for _, key := range at[:len(at)-1] {
			next, ok := object[key].(map[string]any)
			if !ok {
				if _, there := object[key]; there {
					return nil, malformed("what it is for", fmt.Errorf("%s is no object", key))
				}
				next = map[string]any{}
				object[key] = next
			}
			object = next
		}
		object[at[len(at)-1]] = value
		return encodeObject(root)
	}
}

// listJSON adds a text to the list at a key.
func listJSON(key, value string) apply {
	return func(old []byte) ([]byte, error) {
		root, err := decodeObject(old)
		if err != nil {
			return nil, err
		}
		list, ok := root[key].([]any)
		if _, there := root[key]; there && !ok {
			return nil, malformed("what it is for", fmt.Errorf("%s is no list", key))
		}
		if !slices.Contains(list, any(value)) {
			root[key] = append(list, value)
		}
		return encodeObject(root)
	}
}

// inYAML sets the entry of a list of mappings, below a key, that has value at id. What else
// the file has stays, its comments too.
func inYAML(list, id, value string, entry map[string]any) apply {
	return func(old []byte) ([]byte, error) {
		var doc yaml.Node
		if err := yaml.Unmarshal(old, &doc); err != nil {
			return nil, malformed("YAML", err)
		}
		if doc.Kind == 0 {
			if err := yaml.Unmarshal([]byte("apiVersion: \"\"\n"+list+": []\n"), &doc); err != nil {
				return nil, err
			}
		}
		root := doc.Content[0]
		if root.Kind != yaml.MappingNode {
			return nil, malformed("YAML of a mapping", errors.New("its root is none"))
		}
		var node yaml.Node
		if err := node.Encode(entry); err != nil {
			return nil, err
		}
		items := child(root, list)
		if items == nil {
			items = &yaml.Node{Kind: yaml.SequenceNode}
			root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: list}, items)
		}
		if items.Kind != yaml.SequenceNode {
			*items = yaml.Node{Kind: yaml.SequenceNode}
		}
		items.Style = 0
		i := slices.IndexFunc(items.Content, func(n *yaml.Node) bool {
			name := child(n, id)
			return name != nil && name.Value == value
		})
		if i >= 0 {
			items.Content[i] = &node
		} else {
			items.Content = append(items.Content, &node)
		}
		var out bytes.Buffer
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if err := errors.Join(e.Encode(&doc), e.Close()); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
}

// child returns the value of a key of a mapping, nil when it has none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// element is one element of XML that an edit looks at.
type element struct {
	start xml.StartElement
	// texts are those of its children, by name.
	texts    map[string]string
	from, to int64
}

func byChild(name, text string) func(*element) bool {
	return func(e *element) bool { return strings.TrimSpace(e.texts[name]) == text }
}

func byAttribute(name, text string) func(*element) bool {
	return func(e *element) bool {
		return slices.ContainsFunc(e.start.Attr, func(a xml.Attr) bool { return a.Name.Local == name && a.Value == text })
	}
}

func byName(name string) func(*element) bool {
	return func(e *element) bool { return e.start.Name.Local == name }
}

// inXML sets the element below root and parent that match finds; text is the element. All
// else stays as it is, to the byte. header begins a file that there is not.
func inXML(root, header, parent string, match func(*element) bool, text string) apply {
	return func(old []byte) ([]byte, error) {
		if len(bytes.TrimSpace(old)) == 0 {
			return fmt.Appendf(nil, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n%s\n  <%s>\n    %s\n  </%s>\n</%s>\n", header, parent, text, parent, root), nil
		}
		found, err := lookXML(old, root, parent, match)
		if err != nil {
			return nil, malformed("its XML", err)
		}
		switch {
		case found.element != nil:
			return splice(old, found.element.from, found.element.to, text), nil
		case found.parent == nil:
			return splice(old, found.rootEnd, found.rootEnd, fmt.Sprintf("  <%s>\n    %s\n  </%s>\n", parent, text, parent)), nil
		case found.empty:
			return splice(old, found.parent.from, found.parent.to, fmt.Sprintf("<%s>\n    %s\n  </%s>", parent, text, parent)), nil
		}
		return splice(old, found.end, found.end, fmt.Sprintf("  %s\n  ", text)), nil
	}
}

func splice(b []byte, from, to int64, text string) []byte {
	return slices.Concat(b[:from], []byte(text), b[to:])
}

// places are where an edit of XML goes.
type places struct {
	rootEnd int64    // before the end tag of the root
	parent  *element // nil when it is not there
	end     int64    // before the parent's end tag
	empty   bool     // the parent is <parent/>
	element *element // nil when it is not there
}

func lookXML(b []byte, root, parent string, match func(*element) bool) (p places, _ error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	var names []string
	var inside bool // the parent
	var now *element
	for {
		from := d.InputOffset()
		t, err := d.Token()
		if err == io.EOF {
			if p.rootEnd == 0 {
				return p, fmt.Errorf("it has no %s", root)
			}
			return p, nil
		}
		if err != nil {
			return p, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			names = append(names, t.Name.Local)
			switch {
			case len(names) == 1 && t.Name.Local != root:
				return p, fmt.Errorf("its root is %s, not %s", t.Name.Local, root)
			case len(names) == 2 && t.Name.Local == parent && p.parent == nil:
				p.parent, inside = &element{start: t.Copy(), from: from}, true
			case len(names) == 3 && inside:
				now = &element{start: t.Copy(), from: from, texts: map[string]string{}}
			}
		case xml.CharData:
			if len(names) == 4 && now != nil {
				now.texts[names[3]] += string(t)
			}
		case xml.EndElement:
			switch {
			case len(names) == 1:
				p.rootEnd = from
				if d.InputOffset() == from { // <root/>
					return p, fmt.Errorf("it is empty: %s", root)
				}
			case len(names) == 2 && inside:
				p.parent.to, p.end, inside = d.InputOffset(), from, false
				p.empty = d.InputOffset() == from
			case len(names) == 3 && now != nil:
				now.to = d.InputOffset()
				if p.element == nil && match(now) {
					p.element = now
				}
				now = nil
			}
			names = names[:len(names)-1]
		}
	}
}
