package state

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// model is what the state machine must look like from outside, as maps.
type model struct {
	immutable bool
	links     map[string]meta.Time // content -> unclaimed since
	versions  map[string][]string  // content of the manifest -> what it uses, itself too
	aliases   map[string]string    // name -> manifest
	history   map[string][]string  // name -> manifests, "" for a deletion
	now       meta.Time
}

func (m *model) claimed(content string) bool {
	for _, uses := range m.versions {
		if slices.Contains(uses, content) {
			return true
		}
	}
	return false
}

// link makes content readable. What is unclaimed begins its time anew.
func (m *model) link(content string) {
	if !m.claimed(content) {
		m.links[content] = m.now
	}
}

// last returns the manifest that an alias names or, before it was deleted, named.
func (m *model) last(name string) string {
	for _, manifest := range slices.Backward(m.history[name]) {
		if manifest != "" {
			return manifest
		}
	}
	return ""
}

// move points an alias at a manifest; it reports the kind of refusal.
func (m *model) move(name, manifest string) error {
	if m.aliases[name] == manifest {
		return nil
	}
	if last := m.last(name); m.immutable && last != "" && last != manifest {
		return meta.ErrExists
	}
	m.aliases[name] = manifest
	m.history[name] = append(m.history[name], manifest)
	return nil
}

func (m *model) deleteAlias(name string) {
	delete(m.aliases, name)
	m.history[name] = append(m.history[name], "")
}

func (m *model) clone() *model {
	c := *m
	c.links, c.versions, c.aliases = maps.Clone(m.links), maps.Clone(m.versions), maps.Clone(m.aliases)
	c.history = maps.Clone(m.history)
	return &c
}

func (m *model) publish(manifest string, layers, aliases []string) error {
	for _, layer := range layers {
		if _, ok := m.links[layer]; !ok && layer != manifest {
			return meta.ErrInvalid
		}
	}
	m.link(manifest)
	if m.versions[manifest] == nil {
		m.versions[manifest] = append([]string{manifest}, layers...)
	}
	for _, name := range aliases {
		if err := m.move(name, manifest); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) deleteVersion(manifest string) error {
	uses, ok := m.versions[manifest]
	if !ok {
		return meta.ErrNotFound
	}
	delete(m.versions, manifest)
	for _, content := range uses {
		if !m.claimed(content) {
			m.links[content] = m.now
		}
	}
	for name, at := range m.aliases {
		if at == manifest {
			m.deleteAlias(name)
		}
	}
	return nil
}

func (m *model) expire(before meta.Time) {
	for content, since := range m.links {
		if since < before && !m.claimed(content) {
			delete(m.links, content)
		}
	}
}

// TestModel runs random commands against the machine and the model.
func TestModel(t *testing.T) {
	layers := []string{"l1", "l2", "l3"}
	manifests := []string{"m1", "m2", "m3"}
	names := []string{"a", "b"}
	rapid.Check(t, func(r *rapid.T) {
		b := newBench(t)
		m := &model{links: map[string]meta.Time{}, versions: map[string][]string{}, aliases: map[string]string{}, history: map[string][]string{}}
		// An immutable manifest has one list of layers, whatever is asked for later.
		lists := map[string][]string{}
		for _, manifest := range manifests {
			lists[manifest] = rapid.SliceOfNDistinct(rapid.SampledFrom(layers), 0, 2, rapid.ID).Draw(r, "layers of "+manifest)
		}
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(r, "later")) * time.Second)
			m.now = meta.TimeOf(b.now)
			manifest := rapid.SampledFrom(manifests).Draw(r, "manifest")
			layer := rapid.SampledFrom(layers).Draw(r, "layer")
			name := rapid.SampledFrom(names).Draw(r, "name")
			var c Command
			var want error
			next := m.clone()
			switch rapid.IntRange(0, 7).Draw(r, "command") {
			case 0:
				c = link(layer, "eu-1")
				next.link(layer)
			case 1:
				aliases := rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 2, rapid.ID).Draw(r, "aliases")
				c = tagged(image(manifest, lists[manifest]...), aliases...)
				if m.versions[manifest] != nil {
					want = next.publish(manifest, nil, aliases)
				} else {
					want = next.publish(manifest, lists[manifest], aliases)
				}
			case 2:
				c = MoveAlias{Repo: appRef, Package: "api", Name: name, Version: string(blob(manifest).Digest)}
				if want = meta.ErrNotFound; m.versions[manifest] != nil {
					want = next.move(name, manifest)
				}
			case 3:
				c = DeleteAlias{Repo: appRef, Package: "api", Name: name}
				switch {
				case m.aliases[name] == "":
					want = meta.ErrNotFound
				case m.immutable:
					want = meta.ErrDenied
				default:
					next.deleteAlias(name)
				}
			case 4:
				c = DeleteVersion{Repo: appRef, Package: "api", Version: string(blob(manifest).Digest)}
				want = next.deleteVersion(manifest)
			case 5:
				content := rapid.SampledFrom([]string{layer, manifest}).Draw(r, "content")
				c = UnlinkBlob{Repo: appRef, Digest: blob(content).Digest}
				_, ok := m.links[content]
				switch {
				case !ok:
					want = meta.ErrNotFound
				case m.claimed(content):
					want = meta.ErrConflict
				default:
					delete(next.links, content)
				}
			case 6:
				before := b.now.Add(time.Duration(rapid.IntRange(-3, 1).Draw(r, "before")) * time.Second)
				c = ExpireUploads{Before: meta.TimeOf(before), Limit: 1000}
				next.expire(meta.TimeOf(before))
			case 7:
				next.immutable = rapid.Bool().Draw(r, "immutable")
				c = SetRepository{Ref: appRef, Immutable: &next.immutable}
			}
			got := b.do(c).Err
			if (want == nil) != (got == nil) || (want != nil && !errors.Is(got, want)) {
				r.Fatalf("%s %+v: got %v, want %v", Name(c), c, got, want)
			}
			if want == nil {
				m = next
			}
		}
		if got, want := observed(b, append(layers, manifests...), names), m.String(append(layers, manifests...), names); got != want {
			r.Fatalf("the machine has\n%s\nthe model\n%s", got, want)
		}
		check(b)
	})
}

func (m *model) String(contents, names []string) string {
	var out []string
	for _, content := range contents {
		if since, ok := m.links[content]; ok {
			out = append(out, fmt.Sprint("link ", content, " ", m.claimed(content), " ", since > 0))
		}
	}
	for manifest := range m.versions {
		out = append(out, "version "+manifest)
	}
	for _, name := range names {
		if at := m.aliases[name]; at != "" {
			out = append(out, "alias "+name+" "+at)
		}
		out = append(out, fmt.Sprintf("history %s %q", name, m.history[name]))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// observed asks the machine for what the model has.
func observed(b *bench, contents, names []string) string {
	b.Helper()
	var out []string
	content := map[string]string{}
	for _, c := range contents {
		content[string(blob(c).Digest)] = c
		if a, err := try(b, GetBlob{Repo: appRef, Digest: blob(c).Digest}); err == nil {
			out = append(out, fmt.Sprint("link ", c, " ", a.Link.Claims > 0, " ", a.Link.Uploaded > 0))
		}
	}
	if versions, err := try(b, ListVersions{Repo: appRef, Package: "api"}); err == nil {
		for _, v := range versions {
			out = append(out, "version "+content[v.Name])
		}
	}
	if aliases, err := try(b, ListAliases{Repo: appRef, Package: "api"}); err == nil {
		for _, a := range aliases {
			out = append(out, "alias "+a.Name+" "+content[a.Version])
		}
	}
	for _, name := range names {
		moves := []string(nil)
		history := ask(b, AliasHistory{Repo: appRef, Package: "api", Alias: name})
		slices.SortFunc(history, func(x, y meta.Alias) int { return cmp.Compare(x.Move, y.Move) })
		for i, h := range history {
			if h.Move != uint64(i+1) {
				b.Errorf("move %d of %s has number %d", i+1, name, h.Move)
			}
			if h.Deleted {
				moves = append(moves, "")
			} else {
				moves = append(moves, content[h.Version])
			}
		}
		out = append(out, fmt.Sprintf("history %s %q", name, moves))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
