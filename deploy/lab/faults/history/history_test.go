package history

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// o is an operation from call to end; a and b give it what it needs.
func o(verb Verb, version uint8, outcome Outcome, call, end int64) Op {
	return Op{Key: "k", Kind: File, Verb: verb, Version: version, Tags: 1, Outcome: outcome, Mode: "strong", Call: call * 1e9, Return: end * 1e9}
}

func (o Op) kind(k Kind) Op     { o.Kind = k; return o }
func (o Op) tags(t uint8) Op    { o.Tags = t; return o }
func (o Op) bounded(s int64) Op { o.Mode, o.Age = "bounded", s*1e9; return o }

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		ops  []Op
		want Result
	}{
		{"nothing there", []Op{o(Read, 0, Absent, 1, 2)}, Fine},
		{"write, then read", []Op{o(Put, 1, Done, 1, 2), o(Read, 1, Done, 3, 4)}, Fine},
		{"a lost write", []Op{o(Put, 1, Done, 1, 2), o(Read, 0, Absent, 3, 4)}, Wrong},
		{"a stale read", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 4), o(Read, 1, Done, 5, 6)}, Wrong},
		{"a read while it is written", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 6), o(Read, 1, Done, 4, 5)}, Fine},
		{"back and forth", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 9), o(Read, 2, Done, 4, 5), o(Read, 1, Done, 6, 7)}, Wrong},
		{"unknown, and it happened late", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Unknown, 3, 4), o(Read, 1, Done, 5, 6), o(Read, 2, Done, 7, 8)}, Fine},
		{"unknown, and it never happened", []Op{o(Put, 1, Unknown, 1, 2), o(Read, 0, Absent, 5, 6)}, Fine},
		{"unknown cannot happen twice", []Op{o(Put, 1, Unknown, 1, 2), o(Read, 1, Done, 3, 4), o(Put, 2, Done, 5, 6), o(Read, 2, Done, 7, 8), o(Read, 1, Done, 9, 10)}, Wrong},
		{"deleted", []Op{o(Put, 1, Done, 1, 2), o(Delete, 1, Done, 3, 4), o(Read, 0, Absent, 5, 6), o(Fetch, 1, Absent, 5, 6)}, Fine},
		{"deleted, and back", []Op{o(Put, 1, Done, 1, 2), o(Delete, 1, Done, 3, 4), o(Fetch, 1, Done, 5, 6)}, Wrong},
		{"deleted twice", []Op{o(Put, 1, Done, 1, 2), o(Delete, 1, Done, 3, 4), o(Delete, 1, Done, 5, 6)}, Wrong},
		{"a deletion that found nothing of what is there", []Op{o(Put, 1, Done, 1, 2), o(Delete, 1, Absent, 3, 4)}, Wrong},
		{"deleting an old version leaves the alias", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 4), o(Delete, 1, Done, 5, 6), o(Read, 2, Done, 7, 8)}, Fine},
		{"bounded and young", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 4), o(Read, 1, Done, 5, 6).bounded(2)}, Fine},
		{"bounded and older than it says", []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Done, 3, 4), o(Read, 1, Done, 8, 9).bounded(2)}, Younger},
		{"a release is taken", []Op{o(Put, 1, Done, 1, 2).kind(Release), o(Put, 2, Conflict, 3, 4).kind(Release), o(Read, 1, Done, 5, 6).kind(Release)}, Fine},
		{"a release is replaced", []Op{o(Put, 1, Done, 1, 2).kind(Release), o(Put, 2, Done, 3, 4).kind(Release)}, Wrong},
		{"a deleted release stays taken", []Op{o(Put, 1, Done, 1, 2).kind(Release), o(Delete, 1, Done, 3, 4).kind(Release), o(Put, 2, Done, 5, 6).kind(Release)}, Wrong},
		{"a deleted release comes back", []Op{o(Put, 1, Done, 1, 2).kind(Release), o(Delete, 1, Done, 3, 4).kind(Release), o(Put, 1, Done, 5, 6).kind(Release), o(Read, 1, Done, 7, 8).kind(Release)}, Fine},
		{"refused for nothing", []Op{o(Put, 2, Conflict, 3, 4).kind(Release)}, Wrong},
		{"an unknown release that lost", []Op{o(Put, 1, Done, 1, 2).kind(Release), o(Put, 2, Unknown, 3, 4).kind(Release), o(Read, 1, Done, 5, 6).kind(Release)}, Fine},
		{"two tags at once", []Op{o(Put, 1, Done, 1, 2).tags(3).kind(Image), o(Put, 2, Done, 3, 9).tags(3).kind(Image),
			o(Read, 2, Done, 4, 5).tags(1).kind(Image), o(Read, 1, Done, 6, 7).tags(2).kind(Image)}, Wrong},
		{"untagged", []Op{o(Put, 1, Done, 1, 2).kind(Image), o(Untag, 0, Done, 3, 4).kind(Image), o(Read, 0, Absent, 5, 6).kind(Image), o(Fetch, 1, Done, 5, 6).kind(Image)}, Fine},
		{"untagged twice", []Op{o(Put, 1, Done, 1, 2).kind(Image), o(Untag, 0, Done, 3, 4).kind(Image), o(Untag, 0, Done, 5, 6).kind(Image)}, Wrong},
	} {
		if got := Check(c.ops, time.Minute); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestShrinkKeepsWhatIsWrong(t *testing.T) {
	ops := []Op{o(Put, 1, Done, 1, 2), o(Read, 1, Done, 3, 4), o(Put, 2, Done, 5, 6), o(Read, 2, Done, 7, 8), o(Fetch, 2, Done, 7, 8),
		o(Read, 1, Done, 9, 10), o(Put, 3, Done, 11, 12), o(Read, 3, Done, 13, 14)}
	small := Shrink(ops, time.Minute)
	if Check(small, time.Minute) != Wrong || len(small) > 3 || !slices.Contains(small, ops[5]) {
		t.Errorf("shrunk to %v", small)
	}
}

func TestRecorderJudgesAndKeepsHistories(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	r, err := Create(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"good", "bad", "never closed"} {
		for _, op := range []Op{o(Put, 1, Done, 1, 2), o(Put, 2, Unknown, 3, 4), o(Read, 1, Done, 5, 6).bounded(1)} {
			op.Key = key
			r.Add(op)
		}
	}
	lost := o(Fetch, 1, Absent, 9, 10)
	lost.Key = "bad"
	r.Add(lost)
	r.CloseKey("good")
	r.CloseKey("bad")
	totals, findings, err := r.Close()
	if err != nil {
		t.Fatal(err)
	}
	want := Totals{Operations: 10, Strong: 1, Weak: 3, Writes: 6, Unknown: 3, Keys: 3}
	if totals != want {
		t.Errorf("totals %+v, want %+v", totals, want)
	}
	if len(findings) != 1 || findings[0].Key != "bad" || findings[0].Result != Wrong {
		t.Errorf("findings %+v", findings)
	}
	again, findings, err := Load(path, time.Minute)
	if err != nil || again != want || len(findings) != 1 || findings[0].Key != "bad" {
		t.Errorf("loaded %+v, %+v, %v", again, findings, err)
	}
}

// A run that was killed leaves a file that breaks off.
func TestLoadTakesWhatThereIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zip := gzip.NewWriter(f)
	if _, err := zip.Write([]byte(`{"k":"a","i":"file","v":"put","x":1,"t":1,"o":"done","b":1,"e":2}` + "\n" + `{"k":"a","i":"fi`)); err != nil {
		t.Fatal(err)
	}
	if err := zip.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	totals, findings, err := Load(path, time.Minute)
	if err != nil || totals.Operations != 1 || len(findings) != 0 {
		t.Errorf("%+v, %+v, %v", totals, findings, err)
	}
}

func TestFullKeys(t *testing.T) {
	r, err := Create(filepath.Join(t.TempDir(), "history"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < maxUnknown; i++ {
		if r.Add(o(Put, 1, Unknown, 1, 2)) {
			t.Fatalf("full after %d writes of unknown outcome", i)
		}
	}
	if !r.Add(o(Put, 1, Unknown, 1, 2)) {
		t.Error("not full")
	}
	if _, _, err := r.Close(); err != nil {
		t.Fatal(err)
	}
}
