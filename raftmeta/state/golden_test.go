package state

import (
	"bufio"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var update = flag.Bool("update", false, "write the golden logs that are missing; an existing one is never changed")

// scenarios are the logs to freeze: one a cluster level, with every command in it.
// A change of a scenario does not change its log; add a new one.
var scenarios = map[string]func(*testing.T) []Entry{
	"level1": func(*testing.T) []Entry { return levelOne() },
	"level2": func(*testing.T) []Entry { return levelTwo() },
	"level3": levelThree,
	"level4": levelFour,
	"level5": levelFive,
	"level6": levelSix,
}

// TestGolden replays logs that earlier builds wrote. Results and the state must
// stay what they were, or servers of two builds diverge.
//
// A log has a line an entry, `index term hex # for the reader`, below it its result
// as `= hex # for the reader`, and at the end `hash hex`.
func TestGolden(t *testing.T) {
	for name, scenario := range scenarios {
		path := filepath.Join("testdata", "golden", name+".log")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && *update {
			if err := os.WriteFile(path, writeGolden(t, scenario(t)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	paths, err := filepath.Glob(filepath.Join("testdata", "golden", "*.log"))
	if err != nil || len(paths) < len(scenarios) {
		t.Fatalf("%d golden logs of %d: %v; write new ones with -update", len(paths), len(scenarios), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			b := &bench{TB: t, Machine: openMachine(t, t.TempDir())}
			replay(b, path)
			check(b)
		})
	}
}

// TestGoldenInBatches replays them in batches, as Raft hands entries over when there are
// many: how they were cut, which differs from server to server, leaves no trace.
func TestGoldenInBatches(t *testing.T) {
	for name := range scenarios {
		t.Run(name, func(t *testing.T) {
			g := readGolden(t, filepath.Join("testdata", "golden", name+".log"))
			for seed, most := range []int{len(g.entries), 2, 3, 7, 7, 64, 64} {
				b := &bench{TB: t, Machine: openMachine(t, t.TempDir())}
				random := rand.New(rand.NewPCG(uint64(seed), 0))
				for left := g.entries; len(left) > 0; {
					n := min(most, len(left))
					if n = 1 + random.IntN(n); seed == 0 {
						n = len(left)
					}
					if _, err := b.ApplyBatch(left[:n]); err != nil {
						t.Fatal(err)
					}
					left = left[n:]
				}
				if _, sum, err := b.Hash(t.Context()); err != nil || hex.EncodeToString(sum[:]) != g.hash {
					t.Errorf("in batches of up to %d (seed %d) the state is another: %x, %v", most, seed, sum, err)
				}
			}
		})
	}
}

// golden is a log as it was written.
type golden struct {
	entries []Entry
	results map[uint64]string // by index
	hash    string
}

func readGolden(t testing.TB, path string) golden {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := golden{results: map[uint64]string{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4*MaxCommandBytes)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		switch words := strings.Fields(line); {
		case len(words) == 0:
		case words[0] == "=":
			g.results[g.entries[len(g.entries)-1].Index] = words[1]
		case words[0] == "hash":
			g.hash = words[1]
		default:
			var e Entry
			var command string
			_, err := fmt.Sscan(line, &e.Index, &e.Term, &command)
			if err == nil {
				e.Command, err = hex.DecodeString(command)
			}
			if err != nil {
				t.Fatalf("%s, line %d: %v", path, n, err)
			}
			g.entries = append(g.entries, e)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return g
}

func replay(b *bench, path string) {
	b.Helper()
	g := readGolden(b, path)
	for _, e := range g.entries {
		r, err := b.Apply(e.Index, e.Term, e.Command)
		if err != nil {
			b.Fatalf("entry %d: %v", e.Index, err)
		}
		if want, there := g.results[e.Index]; there && hex.EncodeToString(wordless(r).Encode()) != want {
			b.Fatalf("entry %d: the result is now %+v", e.Index, r)
		}
	}
	if _, sum, err := b.Hash(b.Context()); err != nil || hex.EncodeToString(sum[:]) != g.hash {
		b.Fatalf("the state is another now: %x, %v", sum, err)
	}
}

func writeGolden(t *testing.T, entries []Entry) []byte {
	m := openMachine(t, t.TempDir())
	var out strings.Builder
	seen := map[uint16]bool{}
	for _, e := range entries {
		_, command, err := Decode(e.Command)
		if err != nil {
			t.Fatal(err)
		}
		seen[command.Type()] = true
		r, err := m.Apply(e.Index, e.Term, e.Command)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%d %d %x # %s\n", e.Index, e.Term, e.Command, readable(command))
		fmt.Fprintf(&out, "= %x # %v %v\n", wordless(r).Encode(), readable(r.Value), r.Err)
	}
	for number, k := range kinds {
		if !seen[number] {
			t.Errorf("the log has no %s", k.name)
		}
	}
	_, sum, err := m.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "hash %x\n", sum)
	return []byte(out.String())
}

// wordless keeps of a refusal its kind: the words may change.
func wordless(r Result) Result {
	if r.Err != nil {
		r.Err = &meta.WireError{Kind: meta.KindOf(r.Err)}
	}
	return r
}

func readable(v any) string {
	if v == nil {
		return "none"
	}
	text := reflect.TypeOf(v).Name() + strings.TrimPrefix(fmt.Sprintf("%+v", v), reflect.TypeOf(v).String())
	return strings.ReplaceAll(text, "\n", `\n`) // it is a comment on one line
}

// levelOne is a log with every command of level 1, done and refused.
func levelOne() []Entry { return writeLevelOne().entries }

// levelTwo goes on from it with the commands of level 2.
func levelTwo() []Entry { return writeLevelTwo().entries }

// levelThree goes on from there with servers that come and go.
func levelThree(t *testing.T) []Entry { return writeLevelThree(t).entries }

func writeLevelThree(t *testing.T) *logWriter {
	l := writeLevelTwo()
	l.dir = t.TempDir
	join := func(id meta.NodeID, region meta.RegionName) {
		l.add("", CreateJoinToken{Token: meta.JoinToken{ID: "of " + string(id), Role: meta.RoleServer, Region: region, Uses: 1, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
		l.add("", AdmitNode{TokenSecretHash: "of " + string(id), Node: server(id, region)})
	}
	settle := l.settle
	critical := meta.ClassCritical
	l.add("", SettleDemands{Limit: 1}) // below its level
	l.add("", SetLevel{Level: 3})
	settle(3)
	join("us-3", "us")
	settle(4)
	l.add("", report("us-2", meta.ReplicaVerified, "layer", "m1", "sig", "staged", "index"))
	l.add("", report("us-3", meta.ReplicaVerified, "layer", "m1", "sig"))
	l.add("", RemoveNode{ID: "us-3"})
	l.add("", SettleDemands{Since: 1, Limit: 9}) // of another settlement
	settle(2)
	l.add("", SetRepository{Ref: appRef, Class: &critical})
	settle(1)
	l.add("", PutRegion{Region: meta.Region{Name: "sa", Primary: true}})
	join("sa-1", "sa")
	settle(5)
	return l
}

func writeLevelTwo() *logWriter {
	l := writeLevelOne()
	hosts := func(state meta.HostState, bytes int64, reason string, ids ...meta.NodeID) (h []meta.WaveHost) {
		for _, id := range ids {
			h = append(h, meta.WaveHost{Node: id, State: state, Bytes: bytes, Reason: reason})
		}
		return h
	}
	plan := wave("w1")
	plan.Wave.Name, plan.Wave.Platform = "launch", "linux/amd64"
	plan.Wave.Refs[0].Version, plan.Wave.Refs[0].Alias = string(blob("index").Digest), "index"
	plan.Wave.Targets = []meta.WaveTarget{{Region: "ap", Zone: "z1"}, {Region: "us"}}
	plan.Wave.MaxParallel, plan.Wave.Abort, plan.Wave.Expected = 2, &meta.WaveAbort{Above: 50, Percent: true}, 4
	plan.Wave.NotBefore = meta.TimeOf(l.now.Add(time.Minute))
	second := plan
	second.Wave.ID, second.Wave.MaxParallel, second.Wave.Abort, second.Wave.Targets = "w2", 0, &meta.WaveAbort{}, nil
	third := second
	third.Wave.ID, third.Life = "w3", 2*time.Hour
	lost := plan
	lost.Wave.Refs = []meta.WaveRef{{Repo: appRef, Package: "api", Version: "lost"}}
	mars := plan
	mars.Wave.Targets = []meta.WaveTarget{{Region: "mars"}}

	l.add("", plan)
	l.add("", SetLevel{Level: 2})
	l.add("", CreateJoinToken{Token: meta.JoinToken{ID: "t2", Role: meta.RoleAgent, Region: "us", Uses: 9, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
	for _, id := range []meta.NodeID{"a1", "a2", "a3", "a4"} {
		l.add("", AdmitNode{TokenSecretHash: "t2", Node: meta.Node{ID: id, Role: meta.RoleAgent, Region: "us", Zone: "z1"}})
	}
	l.add("", lost)
	l.add("", mars)
	l.add("w", plan)
	l.add("w", plan)
	l.add("", plan)
	l.add("", AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"a1"}}) // too early
	l.now = l.now.Add(time.Minute)
	l.add("", EndWave{ID: "w1"})
	l.add("", AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"eu-1", "nobody", "a1", "a2", "a3"}})
	l.add("", ReportHosts{Wave: "w1", Hosts: hosts(meta.HostFetching, 0, "", "a1", "a4")})
	l.now = l.now.Add(meta.WaveLease - 2*time.Second)
	l.add("", ReportHosts{Wave: "w1", Hosts: hosts(meta.HostFetching, 0, "", "a1")})
	l.now = l.now.Add(3 * time.Second)
	l.add("", AdmitHosts{Wave: "w1"}) // a2 is lost
	l.add("", AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"a3", "a4", "a2"}})
	l.add("", ReportHosts{Wave: "w1", Hosts: append(hosts(meta.HostDone, 7, "", "a1"), hosts(meta.HostFailed, 3, "no space", "a3", "a2")...)})
	l.add("", EndWave{ID: "w1"})
	l.add("", AdmitHosts{Wave: "w1", Hosts: []meta.NodeID{"a1", "a4"}})
	l.add("", ReportHosts{Wave: "w1", Hosts: hosts(meta.HostFailed, 0, "denied", "a4")}) // w1 was done: it is not aborted any more
	l.add("", CancelWave{ID: "w1", Reason: "enough"})
	l.add("", CancelWave{ID: "w1"})
	l.add("", second)
	l.add("", AdmitHosts{Wave: "w2", Hosts: []meta.NodeID{"a1", "a2", "a3", "a4"}})
	l.add("", ReportHosts{Wave: "w2", Hosts: append(hosts(meta.HostSkipped, 0, "arm", "a1"), hosts(meta.HostFailed, 0, "denied", "a2")...)}) // it aborts
	l.add("", AdmitHosts{Wave: "w2", Hosts: []meta.NodeID{"a1"}})
	l.add("", CancelWave{ID: "w2"})
	l.add("", third)
	l.add("", AdmitHosts{Wave: "w3", Hosts: []meta.NodeID{"a1", "a2"}})
	l.add("", ReportHosts{Wave: "w3", Hosts: hosts(meta.HostDone, 9, "", "a1")})
	l.add("", EndWave{ID: "w3"})
	l.now = l.now.Add(2 * time.Hour)
	l.add("", EndWave{ID: "w3"})
	l.add("", EndWave{ID: "w3"})
	l.add("", ForgetWaves{Before: meta.TimeOf(l.now.Add(-time.Hour)), Limit: 3})
	l.add("", ForgetWaves{Before: meta.TimeOf(l.now.Add(-time.Hour)), Limit: 6})
	return l
}

func writeLevelOne() *logWriter {
	l := &logWriter{now: time.Unix(1_800_000_000, 0)}
	cold, yes := meta.ClassCold, true
	other := app()
	other.Ref.Name, other.Class, other.Immutable = "other", meta.ClassCritical, true
	withSHA512 := link("base", "us-1")
	withSHA512.Blob.SHA512 = godigest.SHA512.FromString("base")
	withSHA512.Digest = withSHA512.Blob.SHA512
	index := image("index")
	index.Version.References = []meta.Reference{{Digest: blob("m1").Digest, Version: true, MediaType: "m"}}
	signature := image("sig")
	signature.Version.Subject, signature.Version.ArtifactType = blob("m1").Digest, "application/sig"
	signature.Version.Annotations = map[string]string{"b": "2", "a": "1"}
	signature.Version.Verdict = meta.Verdict{Decision: "passed", Reasons: []string{"references"}, At: 7}
	staged := image("staged")
	staged.Version.Draft = "d1"
	wheel := Publish{
		Version: meta.Version{Repo: other.Ref, Package: "wheel", Name: "1.0", State: meta.StateOpen, Labels: meta.Labels{"k": "v"}},
		Files:   []meta.File{{Path: "a/b.whl", Digest: blob("layer").Digest, MediaType: "x"}},
	}
	base := uint64(1)
	stale := image("m9")
	stale.Base = &base
	token := meta.JoinToken{ID: "t1", Role: meta.RoleServer, Region: "us", Uses: 1, Expires: meta.TimeOf(l.now.Add(time.Hour)), Read: []string{"acme/*"}}

	l.add("", Tick{})
	l.add("", CreateTenant{Name: "early"})
	l.add("", Bootstrap{Cluster: meta.Cluster{ID: "c1", Root: []byte("root"), AdminToken: []byte("hash")}, Node: server("eu-1", "eu"), Region: meta.Region{Name: "eu", Primary: true}})
	l.add("", SetLevel{Level: 1})
	l.add("", PutRegion{Region: meta.Region{Name: "ap", Primary: true}})
	l.add("", CreateJoinToken{Token: token})
	l.add("join", AdmitNode{TokenSecretHash: "t1", Node: server("us-1", "us")})
	l.add("", AdmitNode{TokenSecretHash: "t1", Node: server("us-2", "us")})
	l.add("", UpdateNode{Node: server("us-1", "us")})
	l.add("", SealRootKey{Node: "us-1", Sealed: []byte("sealed")})
	l.add("", CreateTenant{Name: "acme"})
	l.add("", CreateRepository{Repository: app()})
	l.add("", CreateRepository{Repository: other, CreateTenant: true})
	l.add("up", link("layer", "eu-1"))
	l.add("up", link("layer", "eu-1"))
	l.add("", withSHA512)
	l.add("", MountBlob{From: appRef, To: other.Ref, Digest: blob("layer").Digest})
	l.add("push", tagged(image("m1", "layer", "base"), "1", "latest"))
	l.add("", tagged(image("m2", "lost"), "latest"))
	l.add("", tagged(index, "index"))
	l.add("", signature)
	l.add("", stale)
	l.add("", StageReferences{Repo: appRef, Draft: "d1", References: []meta.Reference{{Digest: blob("base").Digest, Size: 4}}})
	l.add("", StageReferences{Repo: appRef, Draft: "lost", References: []meta.Reference{{Digest: blob("base").Digest, Size: 4}}})
	l.add("", staged)
	l.add("", wheel)
	l.add("", SetLabels{Repo: other.Ref, Package: "wheel", Labels: meta.Labels{"z": "1", "a": "2"}})
	l.add("", MoveAlias{Repo: appRef, Package: "api", Name: "latest", Version: string(blob("sig").Digest)})
	l.add("", DeleteAlias{Repo: appRef, Package: "api", Name: "1"})
	l.add("", DeleteAlias{Repo: appRef, Package: "api", Name: "1"})
	l.add("", report("us-1", meta.ReplicaVerified, "layer", "m1", "base"))
	l.add("", report("eu-1", meta.ReplicaFailed, "layer"))
	l.add("", DemandReplica{Root: blob("staged").Root, Region: "ap"})
	l.add("", SetRepository{Ref: appRef, Class: &cold, Immutable: &yes})
	l.add("", DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)})
	l.add("", tagged(image("m1", "layer"), "1"))
	l.add("", UnlinkBlob{Repo: appRef, Digest: blob("base").Digest})
	l.add("", link("orphan", "eu-1"))
	l.add("", UnlinkBlob{Repo: appRef, Digest: blob("orphan").Digest})
	l.add("", link("forgotten", "eu-1"))
	l.now = l.now.Add(time.Hour)
	l.add("", ExpireUploads{Before: meta.TimeOf(l.now), Limit: 10})
	l.add("", DeleteVersion{Repo: other.Ref, Package: "wheel", Version: "1.0"})
	l.add("", RemoveRepository{Ref: other.Ref})
	l.add("", RemoveNode{ID: "us-1"})
	l.add("", RemoveNode{ID: "eu-1"})
	return l
}

// logWriter encodes commands as a leader does.
type logWriter struct {
	entries []Entry
	now     time.Time
	dir     func() string // where settle replays the log so far
}

// settle writes what proposers do until nothing is left to settle. How far it is only
// a machine knows, so the log so far is applied to one.
func (l *logWriter) settle(limit uint32) {
	m, err := Open(l.dir(), Options{})
	if err == nil {
		_, err = m.ApplyBatch(l.entries)
	}
	if err != nil {
		panic(err)
	}
	defer m.Close()
	for {
		v, err := m.View()
		if err != nil {
			panic(err)
		}
		s, err := nextSettlement(v)
		if err = errors.Join(err, v.Close()); err != nil {
			panic(err)
		}
		if s == nil {
			return
		}
		l.add("", SettleDemands{Since: s.Since, After: s.After, Limit: limit})
		e := l.entries[len(l.entries)-1]
		if _, err := m.Apply(e.Index, e.Term, e.Command); err != nil {
			panic(err)
		}
	}
}

func (l *logWriter) add(request string, c Command) {
	l.now = l.now.Add(time.Second)
	command, err := Encode(Origin{
		RequestID: request, Principal: "user:ada", Node: "eu-1", Source: "192.0.2.1:1", Time: meta.TimeOf(l.now),
	}, c)
	if err != nil {
		panic(err)
	}
	l.entries = append(l.entries, Entry{Index: uint64(len(l.entries) + 1), Term: 1, Command: command})
}
