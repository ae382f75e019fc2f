package admin_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestScrub(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	v := publish(t, f.meta, "api", "1", "one")
	answer, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.GetBlob{Repo: ref, Digest: v.Digest})
	if err != nil {
		t.Fatal(err)
	}
	blob := answer.Blob

	r := must[meta.AuditRequest](t)(f.RunScrub(ctx, client.NewScrub{Full: true}))
	if r.ID == 0 || !r.Full {
		t.Errorf("asked for %+v", r)
	}
	s := must[client.ScrubStatus](t)(f.Scrub(ctx))
	if done, of := s.Answered(r.ID); done != 0 || of != len(s.Servers) || of == 0 || s.Unrepairable != 0 {
		t.Errorf("%d of %d have answered: %+v", done, of, s)
	}
	f.do(t, state.ReportAudit{Server: self, Report: meta.AuditReport{Answered: r.ID, FailedCopies: 1}})
	f.do(t, state.ReportReplicas{Replicas: []meta.Replica{{Root: blob.Root, Server: self, State: meta.ReplicaFailed, Reason: "its file is gone"}}})
	s = must[client.ScrubStatus](t)(f.Scrub(ctx))
	at := slices.IndexFunc(s.Servers, func(a meta.Audit) bool { return a.Server == self })
	if at < 0 || s.Servers[at].Report.FailedCopies != 1 || s.Servers[at].Report.Answered != r.ID || s.Unrepairable != 1 {
		t.Errorf("it says %+v", s)
	}
	failed := collect(t, f.FailedCopies(ctx))
	if len(failed) != 1 || failed[0].Root != blob.Root || failed[0].Reason != "its file is gone" {
		t.Errorf("failed are %+v", failed)
	}
	lost := collect(t, f.Unrepairable(ctx))
	if len(lost) != 1 || lost[0].Root != blob.Root || len(lost[0].Uses) != 1 || lost[0].Uses[0].Version != v.Name || lost[0].More {
		t.Errorf("lost are %+v", lost)
	}
	if status := must[client.Status](t)(f.Status(ctx)); status.Unrepairable != 1 {
		t.Errorf("the status counts %d", status.Unrepairable)
	}

	for name, err := range map[string]error{
		"status": second(f.as(f.gw.Reader).Scrub(ctx)),
		"run":    second(f.as(f.gw.Writer).RunScrub(ctx, client.NewScrub{})),
	} {
		if !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s of who is no administrator: %v", name, err)
		}
	}
	if _, err := f.RunScrub(ctx, client.NewScrub{Servers: []meta.NodeID{"nobody"}}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("at an unknown server: %v", err)
	}
	if _, err := f.RunScrub(ctx, client.NewScrub{Roots: make([]digest.CID, 3)}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("of no roots: %v", err)
	}
}
