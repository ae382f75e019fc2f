package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// check recomputes all counts and indexes from the records they are of, and fails
// the test where one differs.
func check(b *bench) {
	b.Helper()
	v, err := b.View()
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	if err := examine(v); err != nil {
		b.Fatalf("after index %d: %v", v.Index(), err)
	}
}

func examine(v *View) error {
	have := map[string][]byte{}
	for p, err := range v.scan(span{}) {
		if err != nil {
			return err
		}
		have[string(p.key)] = bytes.Clone(p.value)
	}
	// want has the keys that must be in the spaces of indexes.
	want := map[string]bool{}
	claims := map[string]uint64{}   // link key -> uses
	links := map[string]uint64{}    // blob key -> links
	versions := map[string]uint64{} // package key -> versions
	backlog := &backlogAudit{totals: map[string]demandTotal{}, lanes: map[string]laneCount{}}
	use := func(repo meta.RepoRef, d digest.Digest) error {
		l, err := findLink(v, repo, d)
		if err != nil || l == nil {
			return fmt.Errorf("%s in %s is used and not linked: %v", d, repo, err)
		}
		claims[string(keyLink(repo, l.Link.Blob))]++
		return nil
	}
	for k, value := range have {
		rest := []byte(k[1:])
		switch k[0] {
		case spaceTenant:
			tenant, rest, _ := cutPart(rest)
			letter := rest[0]
			repoName, _, _ := cutPart(rest[1:])
			repo := meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repoName}
			switch letter {
			case inSets:
				if err := examineSets(repo, []byte(k), value, want, use); err != nil {
					return err
				}
			case inVersions:
				ver, err := decode[meta.Version]([]byte(k), value)
				if err != nil {
					return err
				}
				versions[string(keyPackage(ver.Repo, ver.Package))]++
				if ver.Promotion != nil {
					source := *ver
					source.Repo = ver.Promotion.From
					want[string(keyPromotions(&source).last(repo.Name))] = true
				}
				if waits := keyQuiet(ver); waits != nil {
					want[string(waits)] = true
				}
				if ver.Subject != "" {
					want[string(keyAttachments(ver.Repo, ver.Package, ver.Subject).last(ver.Name))] = true
				}
				for ref, err := range references(v, ver) {
					if err != nil {
						return err
					}
					if ref.Version {
						continue
					}
					if err := use(ver.Repo, ref.Digest); err != nil {
						return err
					}
				}
			case inFiles:
				f, err := decode[meta.File]([]byte(k), value)
				if err != nil {
					return err
				}
				if err := use(repo, f.Digest); err != nil {
					return err
				}
			case inFetched:
				if err := examineFetched(v, []byte(k), value, want, use); err != nil {
					return err
				}
			case inAliases:
				a, err := decode[meta.Alias]([]byte(k), value)
				if err != nil {
					return err
				}
				if have[string(keyVersion(a.Repo, a.Package, a.Version))] == nil {
					return fmt.Errorf("alias %s names %s, which is not there", a.Name, a.Version)
				}
				want[string(keyNamings(a.Repo, a.Package, a.Version).last(a.Name))] = true
			case inLinks:
				if bytes.HasPrefix(value, []byte("sha256:")) {
					_, name, _ := cutPart(rest[1:])
					want[string(append(below(tenant, inMentions), name...).last(repo.Name))] = true
				} else {
					l, err := decode[linkRecord]([]byte(k), value)
					if err != nil {
						return err
					}
					links[string(keyBlob(l.Context, l.Link.Blob))]++
					want[string(keyMentions(repo.Tenant, l.Link.Blob).last(repo.Name))] = true
					switch {
					case l.Link.Claims > 0 && l.Released:
						return fmt.Errorf("%s in %s is used and released", l.Link.Blob, repo)
					case l.Released:
						want[string(keyReleased(l.Since, repo, l.Link.Blob))] = true
					case l.Link.Claims == 0:
						want[string(upload{Since: l.Since, Repo: repo, Link: l.Link.Blob}.key())] = true
					}
				}
			case inBlobs:
				r, err := decode[blobRecord]([]byte(k), value)
				if err != nil {
					return err
				}
				want[string(keyRoots(r.Blob.Root).last(r.Blob.Context))] = true
			case inRepositories:
				r, err := decode[meta.Repository]([]byte(k), value)
				if err != nil {
					return err
				}
				for _, name := range r.Members {
					want[string(keyGroups(meta.RepoRef{Tenant: r.Ref.Tenant, Name: name}).last(r.Ref.Name))] = true
				}
			case inNames:
				if rest[1] != ofOwned {
					break
				}
				owner, pkg, _ := cutPart(rest[2:])
				if have[string(keyPackage(meta.RepoRef{Tenant: repo.Tenant, Name: owner}, string(pkg)))] != nil {
					return fmt.Errorf("package %s of %s is there and has a tombstone", pkg, owner)
				}
			case inDrafts:
				_, after, _ := cutPart(rest[1:])
				draft, part, _ := cutPart(after)
				if len(part) == 0 {
					head, err := decode[draftRecord]([]byte(k), value)
					if err != nil {
						return err
					}
					if !head.Taken {
						want[string(upload{Since: head.Since, Repo: repo, Draft: draft}.key())] = true
					}
				}
			}
		case spaceAccess:
			if k[1] != ofBindings {
				break
			}
			b, err := decode[meta.Binding]([]byte(k), value)
			if err != nil {
				return err
			}
			for _, at := range indexesOf(b) {
				want[string(at)] = true
			}
			if _, err := findRole(v, b.Role); err != nil {
				return fmt.Errorf("binding %s: %w", b.ID, err)
			}
		case spaceCredentials, spaceIssuers:
			if err := auditCredentials(v, []byte(k), value, want); err != nil {
				return err
			}
		case spaceGarbage:
			if err := auditGarbage(v, []byte(k), value, want); err != nil {
				return err
			}
		case spaceNodes:
			n, err := decode[meta.Node]([]byte(k), value)
			if err != nil {
				return err
			}
			want[string(keyMembers(n.Region).last(string(n.ID)))] = true
			region, err := load[regionRecord](v, keyRegion(n.Region))
			if err != nil {
				return err
			}
			if listed := region != nil && slices.Contains(region.Servers, n.ID); listed != (n.Role == meta.RoleServer) {
				return fmt.Errorf("%s is a %s and the servers of its region are %+v", n.ID, n.Role, region)
			}
		case spaceWaves:
			w, err := decode[meta.Wave]([]byte(k), value)
			if err != nil {
				return err
			}
			if w.Ended == 0 {
				want[string(keyOpenWave(w.ID))] = true
			} else {
				want[string(keyOverWave(w))] = true
			}
			if err := auditWave(v, w, want); err != nil {
				return err
			}
		case spaceIncidents:
			if err := auditIncidents(v, []byte(k), value); err != nil {
				return err
			}
		case spaceAudits:
			if rest[0] != inLost {
				break
			}
			lost, err := decode[meta.LostBlob]([]byte(k), value)
			if err != nil {
				return err
			}
			is, err := linked(v, lost.Root)
			if err != nil {
				return err
			}
			copies, err := Replicas{Root: lost.Root}.Answer(v)
			if err != nil {
				return err
			}
			verified := slices.ContainsFunc(copies, func(r meta.Replica) bool {
				_, err := findNode(v, r.Server)
				return err == nil && r.State == meta.ReplicaVerified
			})
			if !is || verified {
				return fmt.Errorf("%s is listed as lost, linked %v, with a verified copy %v", lost.Root, is, verified)
			}
		case spaceReplicas:
			r, err := decode[meta.Replica]([]byte(k), value)
			if err != nil {
				return err
			}
			if r.Server == "" && r.State == meta.ReplicaPending {
				want[string(keyQueued(*r))] = true
			}
			if r.Server == "" {
				if err := backlog.add(v, r, want); err != nil {
					return err
				}
			}
		}
	}
	if err := backlog.compare(have); err != nil {
		return err
	}
	for k, value := range have {
		index := k[0] == spaceBacklog && k[1] == inLanes || k[0] == spaceQueue || k[0] == spaceQuiet || k[0] == spaceMembers || k[0] == spaceUploads || k[0] == spaceRoots ||
			k[0] == spaceGarbage && (k[1] == ofReleased || k[1] == ofTimes || k[1] == ofMarks || k[1] == ofOrders || k[1] == ofOldSets) || k[0] == spaceOpenWaves || k[0] == spaceOverWaves || k[0] == spaceLeases ||
			k[0] == spaceCredentials && k[1] != byID && k[1] != ofCounts || k[0] == spaceIssuers && k[1] == issuersByURL ||
			k[0] == spaceAccess && (k[1] == bindingByID || k[1] == bindingsTenant || k[1] == bindingsRole)
		if k[0] == spaceTenant {
			_, rest, _ := cutPart([]byte(k[1:]))
			switch rest[0] {
			case inNamings, inAttachments, inMentions:
				index = true
			case inNames:
				index = rest[1] == ofGroups || rest[1] == ofPromotions
			case inFetched:
				_, below, _ := cutPart(rest[1:])
				index = below[0] == fetchedAbsences
			case inLinks:
				if bytes.HasPrefix(value, []byte("sha256:")) {
					break
				}
				l, err := decode[linkRecord]([]byte(k), value)
				if err != nil || l.Link.Claims != claims[k] {
					return fmt.Errorf("link %q has %d claims, %d uses: %v", k, l.Link.Claims, claims[k], err)
				}
			case inBlobs:
				r, err := decode[blobRecord]([]byte(k), value)
				if err != nil || r.Links != links[k] {
					return fmt.Errorf("blob %q counts %d links of %d: %v", k, r.Links, links[k], err)
				}
			case inPackages:
				p, err := decode[meta.Package]([]byte(k), value)
				if err != nil || p.Versions != versions[k] {
					return fmt.Errorf("package %q counts %d versions of %d: %v", k, p.Versions, versions[k], err)
				}
				delete(versions, k)
			}
		}
		if index && !want[k] {
			return fmt.Errorf("index entry %q is of nothing", k)
		}
		delete(want, k)
	}
	for k := range want {
		return fmt.Errorf("index entry %q is missing", k)
	}
	if err := auditCounts(v, have); err != nil {
		return err
	}
	if err := auditUsage(v, have); err != nil {
		return err
	}
	if err := auditRespond(v, have); err != nil {
		return err
	}
	for k := range versions {
		return fmt.Errorf("package %q is missing", k)
	}
	return nil
}

// auditGarbage checks a record of the space of garbage and names its entries in indexes.
func auditGarbage(v *View, k, value []byte, want map[string]bool) error {
	root := digest.CID{}
	switch k[1] {
	case ofRoots, ofCollected:
		root = digest.CID(k[2:])
	}
	switch k[1] {
	case ofRoots:
		g, err := decode[garbageRecord](k, value)
		if err != nil {
			return err
		}
		want[string(keyGarbageTime(g.Since, root))] = true
		if is, err := linked(v, root); err != nil || is {
			return fmt.Errorf("root %s is garbage and linked: %v", root, err)
		}
	case ofCollected:
		c, err := decode[collectedRecord](k, value)
		if err != nil {
			return err
		}
		want[string(keyMark(c.At, root))] = true
		known, err := knownRoot(v, root)
		if err != nil || known && len(c.Servers) > 0 {
			return fmt.Errorf("root %s is there and to be removed at %v: %v", root, c.Servers, err)
		}
		for _, server := range c.Servers {
			want[string(keyOrder(server, root))] = true
		}
	}
	return nil
}

// auditCounts counts what is linked, released, garbage and ordered again.
func auditCounts(v *View, have map[string][]byte) error {
	level, err := levelOf(v)
	g, gcErr := loadGC(v)
	if err = errors.Join(err, gcErr); err != nil || level < GCLevel || g.Walk {
		return err
	}
	contexts, servers := map[string]ContextCount{}, map[meta.NodeID]ReclaimCount{}
	count := func(context string, change func(*ContextCount)) {
		c := contexts[context]
		change(&c)
		contexts[context] = c
	}
	for k, value := range have {
		switch {
		case k[0] == spaceTenant:
			_, rest, _ := cutPart([]byte(k[1:]))
			switch {
			case rest[0] == inBlobs:
				r, err := decode[blobRecord]([]byte(k), value)
				if err != nil {
					return err
				}
				if r.Links > 0 {
					count(r.Blob.Context, func(c *ContextCount) { c.Blobs++; c.Bytes += r.Blob.StoredBytes })
				} else if _, discarded := have[string(keyGarbage(r.Blob.Root))]; !discarded {
					if is, err := linked(v, r.Blob.Root); err != nil || !is {
						return fmt.Errorf("nobody links %s and it is no garbage: %v", r.Blob.Root, err)
					}
				}
			case rest[0] == inLinks && !bytes.HasPrefix(value, []byte("sha256:")):
				l, err := decode[linkRecord]([]byte(k), value)
				if err != nil {
					return err
				}
				if l.Released {
					count(l.Context, func(c *ContextCount) { c.Released++; c.ReleasedBytes += l.Bytes })
				}
			}
		case k[0] == spaceGarbage && k[1] == ofRoots:
			g, err := decode[garbageRecord]([]byte(k), value)
			if err != nil {
				return err
			}
			count(g.Context, func(c *ContextCount) { c.Garbage++; c.GarbageBytes += g.StoredBytes })
		case k[0] == spaceGarbage && k[1] == ofOrders:
			name, _, _ := cutPart([]byte(k[2:]))
			o, err := decode[orderRecord]([]byte(k), value)
			if err != nil {
				return err
			}
			s := servers[meta.NodeID(name)]
			s.Ordered++
			s.OrderedBytes += o.StoredBytes
			servers[meta.NodeID(name)] = s
		}
	}
	for k, value := range have {
		if k[0] != spaceGarbage {
			continue
		}
		switch k[1] {
		case ofContexts:
			c, err := decode[ContextCount]([]byte(k), value)
			if err != nil {
				return err
			}
			got := *c
			got.Context, got.Collected, got.CollectedBytes = "", 0, 0
			if got != contexts[c.Context] {
				return fmt.Errorf("context %s counts %+v, has %+v", c.Context, got, contexts[c.Context])
			}
			delete(contexts, c.Context)
		case ofServers:
			c, err := decode[ReclaimCount]([]byte(k), value)
			if err != nil {
				return err
			}
			if s := servers[c.Server]; c.Ordered != s.Ordered || c.OrderedBytes != s.OrderedBytes {
				return fmt.Errorf("server %s counts %+v, has %+v", c.Server, c, s)
			}
			delete(servers, c.Server)
		}
	}
	if len(contexts) > 0 || len(servers) > 0 {
		return fmt.Errorf("not counted: %+v, %+v", contexts, servers)
	}
	return nil
}

// auditWave counts the hosts of a wave again, and names their leases.
func auditWave(v *View, w *meta.Wave, want map[string]bool) error {
	counted := &meta.Wave{ID: w.ID}
	for p, err := range v.scan(within(keyWaveHosts(w.ID))) {
		if err != nil {
			return err
		}
		h, err := decode[meta.WaveHost](p.key, p.value)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(counted.Regions, func(r meta.WaveRegion) bool { return r.Region == h.Region })
		if at < 0 {
			at, counted.Regions = len(counted.Regions), append(counted.Regions, meta.WaveRegion{Region: h.Region})
		}
		*counted.Regions[at].Count(h.State)++
		if h.State == meta.HostDone {
			counted.Regions[at].Bytes += h.Bytes
		}
		if leased := h.State == meta.HostFetching && w.MaxParallel > 0; leased != (h.Until != 0) {
			return fmt.Errorf("host %s of wave %s is %s and has a lease until %d", h.Node, w.ID, h.State, h.Until)
		}
		if h.Until != 0 {
			want[string(keyLease(w.ID, h))] = true
		}
	}
	forgotten := w.Ended != 0 && counted.Total().Took() < w.Total().Took() // its hosts go first
	if !forgotten && (len(counted.Regions) != len(w.Regions) || counted.Total() != w.Total()) {
		return fmt.Errorf("wave %s counts %+v, its hosts are %+v", w.ID, w.Regions, counted.Regions)
	}
	if total := w.Total(); w.MaxParallel > 0 && total.Fetching > w.MaxParallel {
		return fmt.Errorf("%d hosts of wave %s fetch, at most %d may", total.Fetching, w.ID, w.MaxParallel)
	}
	return nil
}
