package state

import (
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// levelFiveRespond writes the commands of compromises, quarantine and elevations.
func levelFiveRespond(l *logWriter) {
	as := func(principal, credential, elevation string, c Command) {
		l.now = l.now.Add(time.Second)
		command, err := Encode(Origin{Principal: principal, TokenID: credential, Elevation: elevation, Node: "eu-1", Source: "192.0.2.1:1", Time: meta.TimeOf(l.now)}, c)
		if err != nil {
			panic(err)
		}
		l.entries = append(l.entries, Entry{Index: uint64(len(l.entries) + 1), Term: 1, Command: command})
	}
	image := func(manifest string, blobs ...string) Publish {
		p := image(manifest, blobs...)
		p.Blobs[0].Server = "eu-8"
		return p
	}
	mutable := false
	as("user:ada", "adas", "", SetRepository{Ref: appRef, Immutable: &mutable})
	manifest := func(name string) string { return string(blob(name).Digest) }
	move := func(alias, to string) MoveAlias {
		return MoveAlias{Repo: appRef, Package: "api", Name: alias, Version: manifest(to)}
	}
	as("user:ada", "adas", "", link("stolen layer", "eu-8"))
	as("user:ada", "adas", "", tagged(image("honest"), "prod"))
	as("robot:acme/ci", "stolen", "", tagged(image("stolen 1", "stolen layer"), "prod", "new"))
	as("robot:acme/ci", "stolen", "", image("stolen 2", "stolen layer"))
	as("robot:acme/ci", "sound", "", image("sound", "stolen layer"))
	as("robot:acme/ci", "stolen", "", DeleteVersion{Repo: appRef, Package: "api", Version: manifest("sound")})
	as("user:ada", "adas", "", QuarantineVersion{Repo: appRef, Package: "api", Version: manifest("stolen 2"), Reason: "odd"})
	as("user:ada", "adas", "", OpenCompromise{ID: "c1", Credential: "nobody's", Reason: "stolen"})
	as("user:ada", "adas", "", OpenCompromise{ID: "c1", Credential: "stolen", Reason: "stolen", RestoreAliases: true})
	as("node:eu-1", "", "", AdvanceCompromise{ID: "c1", Limit: 2})
	as("node:eu-1", "", "", AdvanceCompromise{ID: "c1", Limit: 1000})
	as("node:eu-1", "", "", ReportRecheck{ID: "c1", Number: 2, Result: meta.Recheck{Node: "eu-1", Files: 2}})
	as("node:eu-1", "", "", ReportRecheck{ID: "c1", Number: 1, Result: meta.Recheck{Node: "eu-1", Files: 2, Bytes: 20, Bad: []string{"one"}}})
	as("user:ada", "adas", "", move("prod", "stolen 1"))
	as("user:ada", "adas", "", DeleteVersion{Repo: appRef, Package: "api", Version: manifest("stolen 1")})
	as("user:ada", "adas", "", ReleaseVersion{Repo: appRef, Package: "api", Version: manifest("stolen 1"), Reason: "built again"})
	as("user:ada", "adas", "", CloseCompromise{ID: "c1", Note: "over"})
	as("user:ada", "adas", "", OpenCompromise{ID: "c2", Principal: "robot:acme/ci", Since: 1, Reason: "all of it"})
	as("node:eu-1", "", "", AdvanceCompromise{ID: "c2", Limit: 1000})

	// Elevations: one that two approve, ends early and is reviewed, one that lapses, one
	// that ends by itself.
	as("user:ada", "adas", "", SetElevationPolicy{Policy: meta.ElevationPolicy{Approvers: 2, MaxTTL: 30 * time.Minute}})
	request := RequestElevation{ID: "e1", Role: "curator", Scope: "acme/*", Reason: "prod is down", TTL: 10 * time.Minute}
	as("user:ada", "adas", "", request)
	as("robot:acme/ci", "sound", "", request)
	as("user:ada", "adas", "", DecideElevation{ID: "e1", Word: ElevationApprove})
	as("user:bob", "bobs", "", DecideElevation{ID: "e1", Word: ElevationApprove})
	as("user:eve", "eves", "", DecideElevation{ID: "e1", Word: ElevationApprove, Note: "go"})
	as("user:ada", "adas", "e1", image("urgent", "stolen layer"))
	as("user:ada", "adas", "", DecideElevation{ID: "e1", Word: ElevationEnd})
	as("user:ada", "adas", "e1", image("late", "stolen layer"))
	as("user:bob", "bobs", "", DecideElevation{ID: "e1", Word: ElevationReview, Note: "fine"})
	as("user:ada", "adas", "", SetElevationPolicy{Policy: meta.ElevationPolicy{Approvers: 1, MaxTTL: time.Hour}})
	for _, id := range []string{"e2", "e3", "e4"} {
		request.ID = id
		as("user:ada", "adas", "", request)
	}
	as("user:bob", "bobs", "", DecideElevation{ID: "e3", Word: ElevationApprove})
	as("user:bob", "bobs", "", DecideElevation{ID: "e4", Word: ElevationRefuse, Note: "no"})
	l.now = l.now.Add(11 * time.Minute)
	as("node:eu-1", "", "", ExpireElevations{})
	l.now = l.now.Add(time.Hour)
	as("node:eu-1", "", "", ExpireElevations{})
}
