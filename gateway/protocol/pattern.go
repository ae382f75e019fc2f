package protocol

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A pattern is `/` and segments parted by `/`, matched against the segments of
// the escaped path, so that `%2F` never parts:
//
//	v2               itself (compared unescaped)
//	{reference}      one segment, not empty
//	{image...}       zero or more segments; at most one in a pattern, anywhere
//	(empty, at the end)   a trailing slash
//
// {image...} takes what the segments before and after it leave over: the
// pattern is matched from both ends. Its value is the unescaped segments joined
// by `/`; a value may be empty, or end in `/` when the path does and the pattern
// ends in the parameter. A path with a part `.` or `..`, also escaped, matches
// nothing.
//
// Of several patterns that match a path, the first in this order is the most
// specific: compare segment by segment from the left, up to the {x...}, a
// literal before {x} before the end before {x...}; if all are equal, in the same
// way from the right; the first difference decides. The order is total:
// two patterns tie only when they match the same paths, and then a table with
// one method for both is refused. So what serves a request can be read off the
// table, and does not depend on the order of registration.
type pattern struct {
	text           string
	prefix, suffix []segment // around the rest
	rest           string    // name of {x...}; "" when there is none, and then suffix is empty
	hasRest        bool
}

// segment is a literal, or, when param is set, a parameter.
type segment struct {
	literal string
	param   string
}

func parsePattern(text string) (*pattern, error) {
	bad := func(format string, args ...any) (*pattern, error) {
		return nil, fmt.Errorf("pattern %q: %s: %w", text, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if !strings.HasPrefix(text, "/") {
		return bad("it does not begin with /")
	}
	p := &pattern{text: text}
	seen := map[string]bool{}
	parts := strings.Split(text[1:], "/")
	for i, part := range parts {
		name, isParam := strings.CutPrefix(part, "{")
		if !isParam {
			if strings.ContainsAny(part, "{}%") {
				return bad("segment %q: a parameter is a whole segment, a literal is written unescaped", part)
			}
			if part == "." || part == ".." || part == "" && i != len(parts)-1 {
				return bad("segment %q never matches", part)
			}
			p.add(segment{literal: part})
			continue
		}
		name, closed := strings.CutSuffix(name, "}")
		name, isRest := strings.CutSuffix(name, "...")
		switch {
		case !closed || name == "" || strings.ContainsAny(name, "{}."):
			return bad("segment %q is not {name} or {name...}", part)
		case seen[name]:
			return bad("parameter %s comes twice", name)
		case isRest && p.hasRest:
			return bad("more than one {x...}")
		}
		seen[name] = true
		if isRest {
			p.rest, p.hasRest = name, true
			continue
		}
		p.add(segment{param: name})
	}
	return p, nil
}

func (p *pattern) add(s segment) {
	if p.hasRest {
		p.suffix = append(p.suffix, s)
	} else {
		p.prefix = append(p.prefix, s)
	}
}

func (p *pattern) has(param string) bool {
	if p.hasRest && p.rest == param {
		return true
	}
	for _, s := range append(p.prefix[:len(p.prefix):len(p.prefix)], p.suffix...) {
		if s.param == param {
			return true
		}
	}
	return false
}

// match compares with the unescaped segments of a path. It allocates only for
// a match.
func (p *pattern) match(plain []string) (Params, bool) {
	n, m := len(p.prefix), len(p.suffix)
	if len(plain) < n+m || !p.hasRest && len(plain) != n {
		return nil, false
	}
	tail := plain[len(plain)-m:]
	for i, s := range p.prefix {
		if !s.matches(plain[i]) {
			return nil, false
		}
	}
	for i, s := range p.suffix {
		if !s.matches(tail[i]) {
			return nil, false
		}
	}
	params := make(Params, 0, n+m+1)
	for i, s := range p.prefix {
		if s.param != "" {
			params = append(params, Param{s.param, plain[i]})
		}
	}
	if p.hasRest {
		params = append(params, Param{p.rest, strings.Join(plain[n:len(plain)-m], "/")})
	}
	for i, s := range p.suffix {
		if s.param != "" {
			params = append(params, Param{s.param, tail[i]})
		}
	}
	return params, true
}

func (s segment) matches(plain string) bool {
	if s.param != "" {
		return plain != ""
	}
	return s.literal == plain
}

// compare orders patterns by specificity; 0 says that they match the same paths.
func (p *pattern) compare(o *pattern) int {
	if c := compareSegments(p.prefix, o.prefix, p.hasRest, o.hasRest); c != 0 {
		return c
	}
	reversed := func(s []segment) []segment {
		r := make([]segment, 0, len(s))
		for i := len(s) - 1; i >= 0; i-- {
			r = append(r, s[i])
		}
		return r
	}
	return compareSegments(reversed(p.suffix), reversed(o.suffix), p.hasRest, o.hasRest)
}

func compareSegments(a, b []segment, aRest, bRest bool) int {
	for i := range max(len(a), len(b)) {
		if c := rank(a, i, aRest) - rank(b, i, bRest); c != 0 {
			return c
		}
		if c := strings.Compare(a[i].literal, b[i].literal); c != 0 {
			return c
		}
	}
	return rank(a, len(a), aRest) - rank(b, len(b), bRest)
}

// rank is 0 for a literal, 1 for a parameter, 2 for the end, 3 for {x...}.
func rank(s []segment, i int, rest bool) int {
	switch {
	case i < len(s) && s[i].param == "":
		return 0
	case i < len(s):
		return 1
	case rest:
		return 3
	}
	return 2
}

// split parts an escaped path into its unescaped segments; ok is false for a
// path that no pattern may match.
func split(escaped string) (plain []string, ok bool) {
	rest, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, false
	}
	plain = strings.Split(rest, "/")
	for i, s := range plain {
		if strings.IndexByte(s, '%') >= 0 {
			u, err := url.PathUnescape(s)
			if err != nil {
				return nil, false
			}
			plain[i] = u
		}
		for part := range strings.SplitSeq(plain[i], "/") {
			if part == "." || part == ".." {
				return nil, false
			}
		}
	}
	return plain, true
}
