package state

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// newAuditBench is newBench at the level of audits, with all settled.
func newAuditBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: lostLevel})
	settle(b, maxSettled)
	return b
}

func (b *bench) lost() (names []string) {
	b.Helper()
	for _, l := range ask(b, ListLost{}) {
		for _, content := range []string{"layer", "other", "m1", "m2"} {
			if blob(content).Root == l.Root {
				names = append(names, content+": "+l.Reason)
			}
		}
	}
	slices.Sort(names)
	check(b)
	return names
}

func failed(server meta.NodeID, reason string, contents ...string) ReportReplicas {
	c := report(server, meta.ReplicaFailed, contents...)
	for i := range c.Replicas {
		c.Replicas[i].Reason = reason
	}
	return c
}

// A blob is lost when its last verified copy goes, and no longer when one comes back.
func TestLostBlobs(t *testing.T) {
	b := newAuditBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer"))
	b.must(failed("eu-1", "chunk 3 is damaged", "layer"))
	if got := b.lost(); got != nil {
		t.Fatalf("lost %v while us-1 has it", got)
	}
	b.must(failed("us-1", "its file is gone", "layer"))
	if got := b.lost(); !slices.Equal(got, []string{"layer: its file is gone"}) {
		t.Fatalf("lost %v", got)
	}
	b.must(failed("us-1", "no source", "layer"))
	if got := b.lost(); !slices.Equal(got, []string{"layer: its file is gone"}) {
		t.Errorf("the first reason is gone: %v", got)
	}
	if l := ask(b, ListLost{Page: Page{After: blob("layer").Root.String()}}); len(l) != 0 {
		t.Errorf("behind the last there is %v", l)
	}
	if !ask(b, IsLost{Root: blob("layer").Root}) || ask(b, IsLost{Root: blob("m1").Root}) {
		t.Error("IsLost is wrong")
	}
	uses := ask(b, UsesOf{Root: blob("layer").Root})
	if len(uses.Uses) != 1 || uses.After != "" || uses.Uses[0].Repo != appRef || uses.Uses[0].Package != "api" || uses.Uses[0].Version != string(blob("m1").Digest) {
		t.Errorf("it is used by %+v", uses)
	}
	// A push of the same bytes brings it back.
	b.must(link("layer", "ap-1"))
	if got := b.lost(); got != nil {
		t.Errorf("lost %v after it was pushed again", got)
	}
	var said []string
	for c, err := range feed.Follow(t.Context(), b.Machine, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind == feed.KindLost {
			said = append(said, fmt.Sprint(c.Root == blob("layer").Root, c.Deleted))
		}
		if c.Index >= b.index || len(said) == 2 {
			break
		}
	}
	if !slices.Equal(said, []string{"true false", "true true"}) {
		t.Errorf("the feed says %v", said)
	}
}

// The copy of a server that has been removed is nobody's, though its record stays.
func TestCopiesOfRemovedServersDoNotHideALoss(t *testing.T) {
	b := newAuditBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer"))
	b.must(RemoveNode{ID: "us-1", Force: true})
	b.must(failed("eu-1", "its file is gone", "layer"))
	if got := b.lost(); !slices.Equal(got, []string{"layer: its file is gone"}) {
		t.Errorf("lost %v", got)
	}
}

// What nobody links is not lost, whatever became of its copies.
func TestUnlinkedIsNotLost(t *testing.T) {
	b := newAuditBench(t)
	b.must(link("layer", "eu-1"))
	b.must(failed("eu-1", "gone", "layer"))
	if got := b.lost(); len(got) != 1 {
		t.Fatalf("lost %v", got)
	}
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("layer").Digest})
	if got := b.lost(); got != nil {
		t.Errorf("lost %v, which nobody links", got)
	}
	b.must(failed("eu-1", "still gone", "layer"))
	if got := b.lost(); got != nil {
		t.Errorf("lost %v, which nobody links", got)
	}
}

// Below the level nothing is listed: servers of the build before would not.
func TestLostHasALevel(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: lostLevel - 1})
	b.must(link("layer", "eu-1"))
	b.must(failed("eu-1", "gone", "layer"))
	if got := b.lost(); got != nil {
		t.Errorf("lost %v", got)
	}
}

func TestAudits(t *testing.T) {
	b := newAuditBench(t)
	one := b.must(RequestAudit{Request: meta.AuditRequest{Full: true}, Servers: []meta.NodeID{"us-1"}}).Value.(meta.AuditRequest)
	all := b.must(RequestAudit{Request: meta.AuditRequest{Roots: []digest.CID{blob("layer").Root}}}).Value.(meta.AuditRequest)
	if one.ID == 0 || all.ID <= one.ID || all.At == 0 || !one.Full {
		t.Errorf("requests are %+v and %+v", one, all)
	}
	report := meta.AuditReport{Answered: all.ID, Full: meta.AuditPass{Blobs: 7, PerMille: 1000}}
	b.must(ReportAudit{Server: "us-1", Report: report})
	if a := ask(b, GetAudit{Server: "us-1"}); a.Report != report || a.Wanted.ID != all.ID || len(a.Wanted.Roots) != 1 {
		t.Errorf("of us-1: %+v", a)
	}
	if got := ask(b, ListAudits{}); len(got) != 4 {
		t.Errorf("%d audits of 4 servers", len(got))
	}
	b.refuse(RequestAudit{Servers: []meta.NodeID{"nobody"}}, meta.ErrNotFound)
	b.refuse(ReportAudit{Server: "nobody"}, meta.ErrNotFound)
	if err := (RequestAudit{Request: meta.AuditRequest{Roots: make([]digest.CID, 101)}}).Check(); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("101 roots: %v", err)
	}
	if a := ask(b, GetAudit{Server: "nobody"}); a.Server != "nobody" || a.Wanted.ID != 0 {
		t.Errorf("of nobody: %+v", a)
	}
	check(b)
}

func TestListCopies(t *testing.T) {
	b := newAuditBench(t)
	var contents []string
	for i := range 30 {
		contents = append(contents, fmt.Sprint("blob ", i))
		b.must(link(contents[i], "eu-1"))
	}
	b.must(report("us-1", meta.ReplicaVerified, contents[:20]...))
	b.must(failed("us-1", "gone", contents[:5]...))
	for _, test := range []struct {
		q    ListCopies
		want int
	}{
		{ListCopies{}, 50}, {ListCopies{Server: "us-1"}, 20}, {ListCopies{Server: "us-1", State: meta.ReplicaVerified}, 15},
		{ListCopies{State: meta.ReplicaFailed}, 5}, {ListCopies{Server: "ap-1"}, 0},
	} {
		for _, limit := range []int{0, 1, 7} {
			got, pages := 0, 0
			seen := map[string]bool{}
			for q := test.q; ; pages++ {
				q.Limit = limit
				a := ask(b, q)
				for _, c := range a.Copies {
					if name := c.Root.String() + string(c.Server); seen[name] {
						t.Errorf("%s twice", name)
					} else {
						seen[name] = true
					}
				}
				got += len(a.Copies)
				if q.After = a.After; q.After.IsZero() || pages > 100 {
					break
				}
				test.q = q
			}
			if test.q.After = (digest.CID{}); got != test.want {
				t.Errorf("%+v in pages of %d: %d copies, want %d", test.q, limit, got, test.want)
			}
		}
	}
}

func TestUsesOfPages(t *testing.T) {
	b := newAuditBench(t)
	b.must(link("layer", "eu-1"))
	for i := range 12 {
		b.must(image(fmt.Sprint("image ", i), "layer"))
	}
	seen := map[string]bool{}
	for q := (UsesOf{Root: blob("layer").Root, Limit: 5}); ; {
		a := ask(b, q)
		if len(a.Uses) > 5 {
			t.Errorf("%d uses in a page of 5", len(a.Uses))
		}
		for _, u := range a.Uses {
			seen[u.String()] = true
		}
		if q.After = a.After; q.After == "" {
			break
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d uses of 12", len(seen))
	}
	if _, err := try(b, UsesOf{After: "x"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("after x: %v", err)
	}
	if a := ask(b, UsesOf{Root: blob("nothing").Root}); len(a.Uses) != 0 {
		t.Errorf("uses of nothing: %v", a)
	}
}
