package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func signerOf(region meta.RegionName) (Signer, ed25519.PrivateKey) {
	seed := sha256.Sum256([]byte(region))
	return Signer{Node: meta.NodeID("node-" + region), Region: region, Chain: [][]byte{[]byte(region)}}, ed25519.NewKeyFromSeed(seed[:])
}

func trusting(chain [][]byte, _ time.Time) (meta.NodeID, meta.RegionName, ed25519.PublicKey, error) {
	by, key := signerOf(meta.RegionName(chain[0]))
	if strings.HasPrefix(string(by.Region), "evil") {
		return "", "", nil, errors.New("not certified by the root")
	}
	return by.Node, by.Region, key.Public().(ed25519.PublicKey), nil
}

// testLog is a log with its checkpoints.
type testLog struct {
	t      testing.TB
	lines  []string
	tree   Tree
	points []Signed
	epoch  uint64
	now    time.Time
}

func (l *testLog) add(n int, who string) {
	for range n {
		l.now = l.now.Add(time.Second)
		e := Entry{Seq: l.tree.Size, Epoch: l.epoch, Index: l.tree.Size * 2, Time: l.now, Action: "Publish", Principal: who, Outcome: Done}
		line := e.AppendLine(nil)
		l.lines = append(l.lines, string(line))
		if err := l.tree.Append([]tlog.Hash{LeafHash(line)}, nil); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *testLog) point(regions ...meta.RegionName) Checkpoint {
	root, err := l.tree.Root()
	if err != nil {
		l.t.Fatal(err)
	}
	c := Checkpoint{Cluster: "c1", Epoch: l.epoch, Size: l.tree.Size, Root: root, Time: l.now.UTC().Truncate(time.Second)}
	var s Signed
	for _, region := range regions {
		by, key := signerOf(region)
		if err := Sign(c, by, key, &s); err != nil {
			l.t.Fatal(err)
		}
	}
	l.points = append(l.points, s)
	return c
}

func newLog(t testing.TB) *testLog { return &testLog{t: t, now: time.Unix(1_800_000_000, 0).UTC()} }

func (l *testLog) copy() *testLog {
	c := *l
	c.lines, c.points, c.tree.Hashes = slices.Clone(l.lines), slices.Clone(l.points), slices.Clone(l.tree.Hashes)
	return &c
}

func run(t testing.TB, s *State, lines []string, points []Signed, recoveries bool) Report {
	t.Helper()
	r, err := Audit(s, strings.NewReader(strings.Join(lines, "\n")+"\n"), points, trusting, recoveries)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAudit changes an export and its checkpoints in all the ways that an auditor is to
// find.
func TestAudit(t *testing.T) {
	l := newLog(t)
	for range 10 {
		l.add(10, "user:ada")
		l.point("eu", "us")
	}
	good := l.copy()
	l.add(3, "user:ada") // not signed yet
	if r := run(t, &State{}, l.lines, l.points, false); len(r.Findings) > 0 || r.Covered != 100 || r.Size != 103 || r.Checkpoints != 10 || len(r.Regions) != 2 {
		t.Fatalf("a good export: %+v", r)
	}

	rewound := good.copy()
	rewound.lines, rewound.tree = rewound.lines[:0], Tree{}
	rewound.now = good.now.Add(time.Hour)
	rewound.add(40, "user:eve")
	fork := rewound.copy()
	rewound.point("eu", "us")
	fork.add(60, "user:eve")
	fork.point("eu", "us")
	drop := func(lines []string, i int) []string { return append(slices.Clone(lines[:i]), lines[i+1:]...) }
	swapped := slices.Clone(good.lines)
	swapped[5], swapped[6] = swapped[6], swapped[5]
	by, key := signerOf("evil")
	unsigned := good.copy()
	c := Checkpoint{Cluster: "c1", Size: 103, Root: tlog.Hash{1}, Time: good.now}
	var evil Signed
	if err := Sign(c, by, key, &evil); err != nil {
		t.Fatal(err)
	}
	unsigned.points = append(unsigned.points, evil)
	forged := good.copy()
	forged.points[4].Note = []byte(strings.Replace(string(forged.points[4].Note), "\n50\n", "\n51\n", 1))

	for name, c := range map[string]struct {
		lines  []string
		points []Signed
		words  string
	}{
		"the first dropped":        {drop(good.lines, 0), good.points, "entries 0 to 0 are missing"},
		"one dropped":              {drop(good.lines, 57), good.points, "entries 57 to 57 are missing"},
		"the end dropped":          {good.lines[:99], good.points, "the end is missing"},
		"one put in":               {slices.Insert(slices.Clone(good.lines), 20, good.lines[3]), good.points, "has entry 3 again"},
		"two swapped":              {swapped, good.points, "missing"},
		"another log":              {fork.lines, good.points, "not those that were signed"},
		"a rewound log":            {rewound.lines, rewound.points, "rewound"},
		"a forked log":             {good.lines, fork.points, "forked"},
		"a stranger's checkpoint":  {good.lines, unsigned.points, "not certified"},
		"a forged checkpoint":      {good.lines, forged.points, "does not hold"},
		"nothing":                  {nil, good.points, "line 1"},
		"a space in a line":        {slices.Replace(slices.Clone(good.lines), 8, 9, strings.Replace(good.lines[8], ":", ": ", 1)), good.points, "not written as"},
		"one renumbered and added": {append(slices.Clone(good.lines), strings.Replace(good.lines[3], `"seq":3`, `"seq":100`, 1)), good.points, "before the entry"},
	} {
		r := run(t, &State{}, c.lines, c.points, false)
		if !strings.Contains(strings.Join(r.Findings, "\n"), c.words) {
			t.Errorf("%s: %q, want %q", name, r.Findings, c.words)
		}
	}
}

// TestAuditFindsEveryByte changes each byte of an export once.
// What is appended is the caller's: writing over it changes no tree.
func TestAppendKeepsNothingOfTheCaller(t *testing.T) {
	for n := 1; n < 20; n++ {
		leaves := make([]tlog.Hash, n)
		for i := range leaves {
			leaves[i] = LeafHash([]byte{byte(i)})
		}
		var tree Tree
		if err := tree.Append(leaves, nil); err != nil {
			t.Fatal(err)
		}
		before, err := tree.Root()
		if err != nil {
			t.Fatal(err)
		}
		clear(leaves)
		if after, err := tree.Root(); err != nil || after != before {
			t.Errorf("of %d leaves the root is %x, was %x: %v", n, after, before, err)
		}
	}
}

func TestAuditFindsEveryByte(t *testing.T) {
	l := newLog(t)
	l.add(5, "user:ada")
	l.point("eu")
	text := strings.Join(l.lines, "\n") + "\n"
	for i := range len(text) - 1 { // The last newline says nothing.
		changed := []byte(text)
		changed[i] ^= 1
		r, err := Audit(&State{}, strings.NewReader(string(changed)), l.points, trusting, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Findings) == 0 {
			t.Fatalf("byte %d, %q as %q, is not found", i, text[i], changed[i])
		}
	}
}

// TestAuditGoesOn audits a log in parts: what a part brings must continue the one
// before.
func TestAuditGoesOn(t *testing.T) {
	l := newLog(t)
	l.add(100, "user:ada")
	l.point("eu")
	var s State
	if r := run(t, &s, l.lines, l.points, false); len(r.Findings) > 0 || s.Tree.Size != 100 {
		t.Fatalf("%+v", r)
	}
	kept, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	other := newLog(t)
	other.add(100, "user:eve")
	for _, more := range []*testLog{l, other} {
		more.add(50, "user:ada")
		more.point("eu")
		var again State
		if err := json.Unmarshal(kept, &again); err != nil {
			t.Fatal(err)
		}
		r := run(t, &again, more.lines[100:], more.points[len(more.points)-1:], false)
		if found := len(r.Findings) > 0; found != (more == other) {
			t.Errorf("the second part: %+v", r)
		}
	}
}

// TestAuditRecovery: an epoch that began by losing entries is found, and accepted when
// the auditor knows of it.
func TestAuditRecovery(t *testing.T) {
	l := newLog(t)
	l.add(80, "user:ada")
	kept := l.copy()
	l.add(20, "user:ada")
	l.point("eu")
	kept.points = l.points
	kept.epoch, kept.now = 1, l.now
	kept.add(50, "user:ada")
	kept.point("eu")
	if r := run(t, &State{}, kept.lines, kept.points, false); len(r.Findings) != 1 || !strings.Contains(r.Findings[0], "20 are lost") {
		t.Errorf("not accepted: %+v", r)
	}
	if r := run(t, &State{}, kept.lines, kept.points, true); len(r.Findings) != 0 || len(r.Recovered) != 1 || r.Covered != 130 {
		t.Errorf("accepted: %+v", r)
	}
}

// TestWitness accepts what continues and nothing else.
func TestWitness(t *testing.T) {
	l := newLog(t)
	var points []Checkpoint
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, n := range indexes {
			out[i] = hashes[n]
		}
		return out, nil
	})
	for n := range 60 {
		l.add(1, "user:ada")
		more, err := tlog.StoredHashes(int64(n), []byte(l.lines[n]), reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		points = append(points, l.point("eu"))
	}
	prove := func(from, to uint64) (tlog.TreeProof, error) { return tlog.ProveTree(int64(to), int64(from), reader) }
	var w Witness
	for _, i := range []int{3, 4, 4, 17, 59} {
		if err := w.Accept(points[i], prove); err != nil {
			t.Fatal(err)
		}
	}
	kept := w
	other := newLog(t)
	other.add(60, "user:eve")
	forked := other.point("eu")
	longer := other.copy()
	longer.add(5, "user:eve")
	older := points[58]
	stranger := points[59]
	stranger.Cluster = "c2"
	for name, next := range map[string]Checkpoint{"rewound": older, "forked": forked, "forked and longer": longer.point("eu"), "of another cluster": stranger} {
		err := w.Accept(next, func(uint64, uint64) (tlog.TreeProof, error) { return tlog.TreeProof{{1}}, nil })
		if _, ok := errors.AsType[*RewoundError](err); !ok || w.Checkpoint != kept.Checkpoint {
			t.Errorf("%s: %v, kept %q", name, err, w.Checkpoint)
		}
	}
	recovered := points[30]
	recovered.Epoch = 1
	if err := w.Accept(recovered, prove); err != nil || len(w.Before) != 1 {
		t.Errorf("a recovery: %v, %+v", err, w)
	}
	if err := w.Accept(points[59], prove); err == nil {
		t.Error("the epoch before comes back")
	}
}

// TestCheckpointForm: only what Text writes is a checkpoint.
func TestCheckpointForm(t *testing.T) {
	c := Checkpoint{Cluster: "c1", Epoch: 2, Size: 9, Root: tlog.Hash{7}, Time: time.Unix(1_800_000_000, 0).UTC()}
	text := c.Text()
	if got, err := ParseCheckpoint(text); err != nil || got != c {
		t.Fatalf("%+v: %v", got, err)
	}
	for i := range len(text) {
		changed := []byte(text)
		changed[i] ^= 0x40
		if got, err := ParseCheckpoint(string(changed)); err == nil && got == c {
			t.Errorf("byte %d may be anything", i)
		}
	}
	for _, bad := range []string{"", "x", text + "\n", strings.Replace(text, "\n9\n", "\n09\n", 1), strings.Replace(text, "time ", "time  ", 1)} {
		if _, err := ParseCheckpoint(bad); !errors.Is(err, meta.ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestRender looks at what an entry shows of values that need care.
func TestRender(t *testing.T) {
	type inner struct{ Password, Name string }
	type record struct {
		Repo       meta.RepoRef
		Secret     string
		Hash       []byte
		Upstream   string
		List       []int
		Text       string
		Map        map[string]inner
		When       meta.Time
		Nothing    *int
		TokenHash  string
		unexported int
	}
	v := record{
		Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, Secret: "s3cret", Hash: []byte("s3cret"), Upstream: "https://ada:s3cret@host/path",
		Text: "a\"\\\n\x7f\xff\u2028é", Map: map[string]inner{"b": {"s3cret", "x"}, "a": {"", "y"}}, When: 1, TokenHash: "s3cret", unexported: 1,
	}
	for i := range 20 {
		v.List = append(v.List, i)
	}
	r := Render(v)
	if !json.Valid(r.JSON) || strings.Contains(string(r.JSON), "s3cret") || r.Repository != v.Repo || r.Tenant != "acme" {
		t.Errorf("shown as %s", r.JSON)
	}
	for _, want := range []string{
		`"repo":"acme/app"`, `"secret":"redacted"`, `"hash":"(6 bytes)"`, `"upstream":"https://redacted@host/path"`, `"token_hash":"redacted"`,
		`"list":{"count":20,"sha256":"`, `"map":{"a":{"name":"y"},"b":{"password":"redacted","name":"x"}}`, `"when":"1970-01-01T00:00:00.000000001Z"`,
	} {
		if !strings.Contains(string(r.JSON), want) {
			t.Errorf("%s lacks %s", r.JSON, want)
		}
	}
	long := Render(struct{ Text string }{strings.Repeat("ä", 500)})
	if len(long.JSON) > 300 || !json.Valid(long.JSON) {
		t.Errorf("a long text is %s", long.JSON)
	}
}

// FuzzLine feeds lines: what is read is written again the same, or is not the log's.
func FuzzLine(f *testing.F) {
	l := newLog(f)
	l.add(1, "user:ada")
	f.Add([]byte(l.lines[0]))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseLine(line)
		if err != nil {
			return
		}
		again, err := ParseLine(e.AppendLine(nil))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(e) {
			t.Fatalf("%q is %+v, then %+v: %v", line, e, again, err)
		}
	})
}
