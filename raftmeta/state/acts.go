package state

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Acts, from level 5 on: what people and jobs changed, by who did it and with what. They
// are written in the entry of the change itself, so that what a credential did is found
// at the cost of what it did (DESIGN.md, Compromises).

// respondLevel is the level of acts, quarantine, compromises and elevations.
const respondLevel = 5

// Letters of spaceRespond; [x] is a bare last part.
const (
	ofActs        = 'a' // principal, credential, at-u64, index-u64, seq-u32 -> meta.Act
	ofActing      = 'c' // [credential] -> principal, of credentials that acted
	ofCompromises = 'i' // [id] -> meta.Compromise
	ofOpen        = 'o' // [id] -> nothing: compromises that the leader works on
	ofActors      = 'w' // id, number-u64 -> actor
	ofVisited     = 'y' // id, principal, [credential] -> nothing; allCredentials for all
	ofFindings    = 'f' // id, number-u64 -> meta.Finding
	ofFound       = 'x' // id, index-u64, seq-u32 -> nothing: acts that are findings
	ofRestored    = 'r' // id, tenant, repository, package, [alias] -> version that it names again
	ofQuarantined = 'q' // tenant, repository, package, [version] -> nothing
	ofElevations  = 'e' // [id] -> meta.Elevation
	ofElevated    = 'p' // principal, [id] -> nothing: active elevations
	ofPending     = 't' // due-u64, [id] -> nothing: elevations that end, requests that lapse
	ofUnreviewed  = 'u' // [id] -> nothing: elevations that are over and not reviewed
	ofPolicy      = 's' // meta.ElevationPolicy
	ofRecorded    = 'b' // u64: since when acts are recorded
)

func inRespond(letter byte) key { return append(make(key, 0, 128), spaceRespond, letter) }

func keyActs(principal, credential string) key {
	return inRespond(ofActs).part(principal).part(credential)
}

// actTail is the length of an act's key behind principal and credential.
const actTail = 8 + 8 + 4

func keyAct(a *meta.Act) key {
	return keyActs(a.Principal, a.Credential).u64(clock(a.At)).u64(a.Index).u32(a.Seq)
}

// parseAct reads a record of an act with what its key says.
func parseAct(k, value []byte) (*meta.Act, error) {
	fail := &StorageError{Cause: fmt.Errorf("key %x is no act", k)}
	if len(k) < 2 {
		return nil, fail
	}
	a, err := decode[meta.Act](k, value)
	if err != nil {
		return nil, err
	}
	principal, rest, ok1 := cutPart(k[2:])
	credential, rest, ok2 := cutPart(rest)
	if !ok1 || !ok2 || len(rest) != actTail {
		return nil, fail
	}
	a.Principal, a.Credential = principal, credential
	a.At = meta.Time(binary.BigEndian.Uint64(rest))
	a.Index = binary.BigEndian.Uint64(rest[8:])
	a.Seq = binary.BigEndian.Uint32(rest[16:])
	return a, nil
}

// did records an act of who sent the command. What nodes do for the cluster is none.
func (t *tx) did(a meta.Act) error {
	if t.origin.Principal == "" || strings.HasPrefix(t.origin.Principal, meta.KindNode+":") {
		return nil
	}
	level, err := levelOf(t)
	if err != nil || level < respondLevel {
		return err
	}
	a.Principal, a.Credential, a.Elevation = t.origin.Principal, t.origin.TokenID, t.origin.Elevation
	a.At, a.Index, a.Seq = t.now, t.index, t.acts
	t.acts++
	k := keyAct(&a)
	a.Principal, a.Credential, a.At, a.Index, a.Seq = "", "", 0, 0, 0 // the key has them
	t.put(k, a)
	if t.origin.TokenID != "" {
		acting := inRespond(ofActing).last(t.origin.TokenID)
		if known, err := t.get(acting); err != nil {
			return err
		} else if known == nil {
			t.set(acting, []byte(t.origin.Principal))
		}
	}
	if since, err := t.get(inRespond(ofRecorded)); err != nil || since != nil {
		return err
	}
	t.setNumber(inRespond(ofRecorded), clock(t.now))
	return nil
}

// remember records the act of a command that was done and does not record its own.
func (t *tx) remember(c Command, result any) error {
	if a, ok := actOf(c, result); ok {
		if err := t.did(a); err != nil {
			return err
		}
	}
	return t.countElevated()
}

// actOf returns what a command did. Those that record their acts themselves, because
// only they know what came of them, and what nodes send, is not among them.
func actOf(c Command, result any) (meta.Act, bool) {
	switch c := c.(type) {
	case SetLabels:
		return meta.Act{Kind: meta.ActLabels, Repo: c.Repo, Package: c.Package, Name: c.Version}, true
	case CloseVersion:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Repo: c.Repo, Package: c.Package, Detail: c.Version}, true
	case RememberSource:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Repo: c.Group, Package: c.Package, Detail: c.Member}, true
	case CreateRepository:
		return meta.Act{Kind: meta.ActRepository, Repo: c.Repository.Ref, Detail: "created"}, true
	case SetRepository:
		return meta.Act{Kind: meta.ActRepository, Repo: c.Ref, Detail: "changed"}, true
	case RemoveRepository:
		if r, _ := result.(RepositoryRemoved); r.More {
			return meta.Act{}, false // it is there still
		}
		return meta.Act{Kind: meta.ActRepository, Repo: c.Ref, Detail: "removed"}, true
	case CreateTenant:
		return meta.Act{Kind: meta.ActTenant, Name: string(c.Name), Detail: "created"}, true
	case SetTenant:
		return meta.Act{Kind: meta.ActTenant, Name: string(c.Name), Detail: "changed"}, true
	case CreateAccount:
		return meta.Act{Kind: meta.ActAccount, Name: c.Name}, true
	case AddBinding:
		b, _ := result.(meta.Binding)
		return meta.Act{Kind: meta.ActBinding, Name: b.ID, Detail: fmt.Sprintf("%s is %s on %s", b.Principal, b.Role, b.Repository)}, true
	case SetAccount:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Name}, true
	case RemoveAccount:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Name}, true
	case PutRole:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Name}, true
	case RemoveRole:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Name}, true
	case RemoveBinding:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.ID}, true
	case CreateCredential:
		return meta.Act{Kind: meta.ActCredential, Name: c.Credential.ID, Detail: c.Credential.Principal}, true
	case RotateCredential:
		made, _ := result.(meta.Credential)
		return meta.Act{Kind: meta.ActCredential, Name: c.NewID, Detail: made.Principal}, true
	case SetPassword:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Name}, true
	case PutIssuer:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Issuer.ID()}, true
	case RemoveIssuer:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: string(c.Tenant) + "/" + c.Name}, true
	case RevokeCredential:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.ID}, true
	case RevokePrincipal:
		return meta.Act{Kind: meta.ActOther, Name: Name(c), Detail: c.Principal}, true
	case PutSealed:
		return meta.Act{Kind: meta.ActRepository, Repo: c.Sealed.Repo, Detail: "secret " + c.Sealed.Name}, true
	case RemoveSealed:
		return meta.Act{Kind: meta.ActRepository, Repo: c.Repo, Detail: "secret " + c.Name + " removed"}, true
	case ForgetFetched:
		return meta.Act{Kind: meta.ActRepository, Repo: c.Repo, Detail: "what was fetched is forgotten"}, true
	case RevokeTenant, NarrowNode, RequestElevation, CreateJoinToken, RemoveNode, DrainServer, RemoveRegion, LeaveRegion, PutRegion, SetGC, CreateWave, CancelWave,
		QuarantineVersion, ReleaseVersion, OpenCompromise, CloseCompromise, DecideElevation, SetElevationPolicy:
		return meta.Act{Kind: meta.ActOther, Name: Name(c)}, true
	}
	return meta.Act{}, false
}

// mayAct refuses what comes under an elevation that is over: by the leader's time, so
// on all servers alike, whatever a gateway believed when it admitted the request.
//
// Errors: meta.ErrDenied.
func (t *tx) mayAct() error {
	id := t.origin.Elevation
	if id == "" {
		return nil
	}
	e, err := load[meta.Elevation](t, keyElevation(id))
	if err != nil {
		return err
	}
	if e == nil || e.State != meta.ElevationActive || e.Expires <= t.now || e.Principal != t.origin.Principal {
		return fmt.Errorf("elevation %s is over, ask for another with `shoal break-glass request`: %w", id, meta.ErrDenied)
	}
	return nil
}

// countElevated counts a command that was done under an elevation.
func (t *tx) countElevated() error {
	if t.origin.Elevation == "" {
		return nil
	}
	e, err := load[meta.Elevation](t, keyElevation(t.origin.Elevation))
	if err != nil || e == nil || e.State != meta.ElevationActive {
		return err
	}
	e.Acts++
	t.put(keyElevation(e.ID), e)
	return nil
}
