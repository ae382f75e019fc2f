package admin_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func TestHealthOfRegions(t *testing.T) {
	f := start(t)
	all, err := f.Health(t.Context(), "")
	if err != nil || len(all) != 3 || all[0].State != meta.HealthHealthy {
		t.Fatalf("at first %+v, %v", all, err)
	}
	if _, err := f.Health(t.Context(), "mars"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of a region that is not there: %v", err)
	}
	do := func(c state.Command) {
		t.Helper()
		if _, err := f.meta.Do(t.Context(), state.Origin{Principal: "test"}, c); err != nil {
			t.Fatal(err)
		}
	}
	do(state.SetRegionHealth{Region: "eu", State: meta.HealthDown, Kind: meta.IncidentDown, Why: "gone", Silent: []meta.NodeID{self}})
	one, err := f.Health(t.Context(), "eu")
	if err != nil || len(one) != 1 || one[0].State != meta.HealthDown || one[0].Why != "gone" {
		t.Fatalf("eu is %+v, %v", one, err)
	}
	regions, err := f.Regions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range regions {
		if down := r.Name == "eu"; down != (r.Health == meta.HealthDown && r.Why == "gone") {
			t.Errorf("the list of regions has %+v", r)
		}
	}
	do(state.SetRegionHealth{Region: "eu", Was: one[0].Revision, State: meta.HealthHealthy})
	do(state.SetRegionHealth{Region: "eu", Was: one[0].Revision + 1, State: meta.HealthDegraded, Kind: meta.IncidentServers})
	var kinds []meta.IncidentKind
	for i, err := range f.Incidents(t.Context(), "eu") {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, i.Kind)
	}
	if len(kinds) != 2 || kinds[0] != meta.IncidentServers || kinds[1] != meta.IncidentDown {
		t.Errorf("incidents are %v, the newest first", kinds)
	}
	for i, err := range f.Incidents(t.Context(), "us") {
		t.Errorf("an incident of another region: %+v, %v", i, err)
	}
	if _, err := f.as("").Health(t.Context(), ""); err == nil {
		t.Error("anybody may ask")
	}
}
