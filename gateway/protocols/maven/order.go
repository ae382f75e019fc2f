package maven

import (
	"cmp"
	"slices"
	"strings"
)

// compareVersions orders versions as Maven does (ComparableVersion of maven-artifact
// 3.8.7): numbers by value, qualifiers alpha, beta, milestone, rc, snapshot, none, sp, and
// others behind those by name; a hyphen, letters, and where letters and digits meet begin a
// list that counts less than a number behind a dot. It takes time in proportion to the
// lengths, which are at most meta.MaxVersionBytes.
func compareVersions(a, b string) int { return parseVersion(a).compare(parseVersion(b)) }

// item is a part of a version: a list, a number (without zeroes before it), or a
// qualifier.
type item struct {
	kind      itemKind
	number    string
	qualifier string // its rank, as a text that compares
	list      []*item
}

type itemKind uint8

const (
	itemList itemKind = iota
	itemNumber
	itemQualifier
)

// qualifiers in order; the release is the one without a name.
var qualifiers = []string{"alpha", "beta", "milestone", "rc", "snapshot", "", "sp"}

const releaseRank = "5" // of "" in qualifiers

func parseVersion(version string) *item {
	version = strings.ToLower(version)
	root := &item{}
	list, lists := root, []*item{root}
	add := func(i *item) { list.list = append(list.list, i) }
	nest := func() {
		inner := &item{}
		add(inner)
		list = inner
		lists = append(lists, inner)
	}
	start, digit := 0, false
	for i := range len(version) {
		c := version[i]
		switch {
		case c == '.' || c == '-':
			if i == start {
				add(newItem(true, "0", false))
			} else {
				add(newItem(digit, version[start:i], false))
			}
			start = i + 1
			if c == '-' {
				nest()
			}
		case c >= '0' && c <= '9':
			if !digit && i > start {
				if len(list.list) > 0 {
					nest() // .x is -x
				}
				add(newItem(false, version[start:i], true))
				start = i
				nest()
			}
			digit = true
		default:
			if digit && i > start {
				add(newItem(true, version[start:i], false))
				start = i
				nest()
			}
			digit = false
		}
	}
	if start < len(version) {
		if !digit && len(list.list) > 0 {
			nest()
		}
		add(newItem(digit, version[start:], false))
	}
	for _, l := range slices.Backward(lists) {
		l.normalize()
	}
	return root
}

func newItem(number bool, s string, beforeDigit bool) *item {
	if number {
		return &item{kind: itemNumber, number: strings.TrimLeft(s, "0")}
	}
	if beforeDigit {
		switch s {
		case "a":
			s = "alpha"
		case "b":
			s = "beta"
		case "m":
			s = "milestone"
		}
	}
	switch s {
	case "ga", "final", "release":
		s = ""
	case "cr":
		s = "rc"
	}
	rank := "7-" + s
	if i := slices.Index(qualifiers, s); i >= 0 {
		rank = string(rune('0' + i))
	}
	return &item{kind: itemQualifier, qualifier: rank}
}

// normalize takes away what says nothing at the end, before lists too: 1.0 is 1.
func (l *item) normalize() {
	for i := len(l.list) - 1; i >= 0; i-- {
		switch last := l.list[i]; {
		case last.empty():
			l.list = slices.Delete(l.list, i, i+1)
		case last.kind != itemList:
			return
		}
	}
}

func (l *item) empty() bool {
	switch l.kind {
	case itemNumber:
		return l.number == ""
	case itemQualifier:
		return l.qualifier == releaseRank
	}
	return len(l.list) == 0
}

// compare takes nil for nothing there.
func (l *item) compare(o *item) int {
	switch {
	case l == nil && o == nil:
		return 0
	case l == nil:
		return -o.compare(nil)
	case o == nil:
		switch l.kind {
		case itemNumber:
			return cmp.Compare(len(l.number), 0)
		case itemQualifier:
			return strings.Compare(l.qualifier, releaseRank)
		}
		for _, i := range l.list {
			if c := i.compare(nil); c != 0 {
				return c
			}
		}
		return 0
	case l.kind != o.kind:
		// A number is above a list, a list above a qualifier.
		return cmp.Compare(height[l.kind], height[o.kind])
	}
	switch l.kind {
	case itemNumber:
		return cmp.Or(cmp.Compare(len(l.number), len(o.number)), strings.Compare(l.number, o.number))
	case itemQualifier:
		return strings.Compare(l.qualifier, o.qualifier)
	}
	for i := range max(len(l.list), len(o.list)) {
		if c := l.at(i).compare(o.at(i)); c != 0 {
			return c
		}
	}
	return 0
}

var height = map[itemKind]int{itemQualifier: 0, itemList: 1, itemNumber: 2}

func (l *item) at(i int) *item {
	if i < len(l.list) {
		return l.list[i]
	}
	return nil
}
