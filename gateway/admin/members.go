package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Servers and regions come by joining, and go in two steps: they are drained, and
// removed when nothing remains. What remains is kept by the state machine, which
// refuses in the removing entry itself; here it is only told.

// surveyLimit is how long the servers have to answer when they are listed.
const surveyLimit = 2 * time.Second

// survey asks all servers, by their ids.
func (a *API) survey(ctx context.Context) map[meta.NodeID]raftmeta.Surveyed {
	answers := map[meta.NodeID]raftmeta.Surveyed{}
	if a.Quorum == nil {
		return answers
	}
	ctx, cancel := context.WithTimeout(ctx, surveyLimit)
	defer cancel()
	for _, s := range a.Quorum.Survey(ctx) {
		answers[s.ID] = s
	}
	return answers
}

func (a *API) servers(c *protocol.Call) error {
	nodes, err := a.roster(c, meta.RoleServer, "")
	if err != nil {
		return err
	}
	answers, voters := a.survey(c.R.Context()), a.voters()
	var leader meta.NodeID
	if a.Quorum != nil {
		leader = a.Quorum.Leader()
	}
	var newest uint64
	for _, s := range answers {
		newest = max(newest, s.Applied)
	}
	list := make([]client.ServerState, 0, len(nodes))
	for _, n := range nodes {
		said := answers[n.ID]
		s := client.ServerState{
			Node: n, Voter: slices.Contains(voters, n.ID), Leader: n.ID == leader,
			Answers: said.Answered, Level: said.Level,
		}
		if said.Answered {
			s.Behind = newest - said.Applied
		}
		if n.Draining != nil {
			left, err := ask(a, c, state.Remains{Server: n.ID})
			if err != nil {
				return err
			}
			s.Remains = remainsOf(left)
		}
		list = append(list, s)
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[client.ServerState]{Items: list})
}

func remainsOf(a state.RemainsAnswer) *client.Remains {
	return &client.Remains{Counted: a.Settled, Last: a.Last, Short: a.Short, More: a.More, Removable: a.Removable()}
}

// mostRemains bounds the blobs that are named; usesOfRemain what is said of each.
const (
	mostRemains  = 100
	usesOfRemain = 3
)

func (a *API) serverRemains(c *protocol.Call) error {
	limit := 10
	if text := c.R.URL.Query().Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 0 || limit > mostRemains {
			return fmt.Errorf("limit %q, use 0 to %d: %w", text, mostRemains, meta.ErrInvalid)
		}
	}
	left, err := a.remains(c, meta.NodeID(c.Params.Get("node")), limit)
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, left)
}

// remains names the first of what a server is needed for.
func (a *API) remains(c *protocol.Call, id meta.NodeID, limit int) (*client.Remains, error) {
	answer, err := ask(a, c, state.Remains{Server: id, Limit: limit})
	if err != nil {
		return nil, err
	}
	left := remainsOf(answer)
	for _, r := range answer.Named {
		remain := client.Remain{Root: r.Root, Why: r.Why}
		b, err := ask(a, c, state.BlobByRoot{Root: r.Root})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, err
		}
		remain.Digest = b.Digest
		uses, err := ask(a, c, state.UsesOf{Root: r.Root, Limit: usesOfRemain})
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, err
		}
		for _, u := range uses.Uses {
			remain.Uses = append(remain.Uses, u.String())
		}
		left.Blobs = append(left.Blobs, remain)
	}
	return left, nil
}

func (a *API) drainServer(c *protocol.Call) error   { return a.drain(c, true) }
func (a *API) undrainServer(c *protocol.Call) error { return a.drain(c, false) }

func (a *API) drain(c *protocol.Call, drain bool) error {
	value, err := a.do(c, 0, state.DrainServer{ID: meta.NodeID(c.Params.Get("node")), Drain: drain})
	if err != nil {
		return err
	}
	return reply[meta.Node](c, http.StatusOK, value)
}

// forced reports whether the call takes a loss upon itself.
func forced(c *protocol.Call) bool { return c.R.URL.Query().Get("force") == "true" }

// strongly answers from a state that has all that was committed before.
func strongly[A any](a *API, c *protocol.Call, q state.Question[A]) (A, error) {
	answer, asOf, err := raftmeta.Ask(c.R.Context(), a.Metadata, meta.Strong, q)
	if err == nil {
		c.AsOf(asOf)
	}
	return answer, err
}

// removeNode takes an agent from the roster, or a server that is drained. One that is
// not yet is drained now, and removed when the caller asks again and nothing remains.
func (a *API) removeNode(c *protocol.Call) error {
	id := meta.NodeID(c.Params.Get("node"))
	if id == a.Self.ID {
		return fmt.Errorf("this is node %s itself, ask another server: %w", id, meta.ErrConflict)
	}
	node, err := strongly(a, c, state.GetNode{ID: id})
	if err != nil {
		return fmt.Errorf("remove node %s: %w", id, err)
	}
	level, err := strongly(a, c, state.GetLevel{})
	if err != nil {
		return err
	}
	remove := state.RemoveNode{ID: id, Force: forced(c)}
	switch {
	case node.Role != meta.RoleServer || remove.Force:
	case state.CheckLevel(state.DrainServer{}, level) != nil:
		if err := a.mayLose(c, id); err != nil {
			return fmt.Errorf("remove node %s: %w", id, err)
		}
	case node.Draining == nil:
		if _, err := a.do(c, 0, state.DrainServer{ID: id, Drain: true}); err != nil {
			return err
		}
	}
	if node.Role == meta.RoleServer {
		if err := a.mayVote(c.R.Context(), id); err != nil {
			return fmt.Errorf("remove node %s: %w", id, err)
		}
	}
	if _, err = a.do(c, 1, remove); err == nil {
		c.W.WriteHeader(http.StatusNoContent)
		return nil
	}
	if !errors.Is(err, meta.ErrConflict) || remove.Force {
		return err
	}
	left, why := a.remains(c, id, 3)
	if why != nil || left.Last+left.Short == 0 {
		return err
	}
	return fmt.Errorf("server %s is being drained; it still has %s; ask again when nothing is left, or lose that with --force (force=true): %w", id, wordsOf(left), meta.ErrConflict)
}

// wordsOf says what remains, the first by name.
func wordsOf(left *client.Remains) string {
	var words []string
	if left.Last > 0 {
		words = append(words, fmt.Sprintf("%d blobs that no other server has", left.Last))
	}
	if left.Short > 0 {
		words = append(words, fmt.Sprintf("%d of which its region lacks copies", left.Short))
	}
	text := strings.Join(words, " and ")
	if left.More {
		text += " and more"
	}
	var names []string
	for _, b := range left.Blobs {
		names = append(names, fmt.Sprintf("%s (%s)", cmp.Or(string(b.Digest), "root "+b.Root.String()), cmp.Or(strings.Join(b.Uses, ", "), "an upload")))
	}
	if len(names) > 0 {
		text += ", first " + strings.Join(names, ", ")
	}
	return text
}

// mayLose is for clusters of levels without drains: it refuses to let servers go that
// have the last verified copies of blobs. A publish at them right after is not seen.
func (a *API) mayLose(c *protocol.Call, leaving ...meta.NodeID) error {
	for q := (state.LastCopies{Leaving: leaving}); ; {
		found, err := ask(a, c, q)
		if err != nil {
			return err
		}
		if len(found.Roots) > 0 {
			return fmt.Errorf("%d blobs or more have no verified copy elsewhere, the first has root %s; wait until they are replicated, or lose them with --force (force=true): %w",
				len(found.Roots), found.Roots[0], meta.ErrConflict)
		}
		if found.After.IsZero() {
			return nil
		}
		q.After = found.After
	}
}

// mayVote refuses to let servers go while the voters that stay and answer are no
// majority. Who is out of the roster is heard by nobody, but the change of the
// configuration that takes its vote needs the majority of that very configuration.
func (a *API) mayVote(ctx context.Context, leaving ...meta.NodeID) error {
	voters := a.voters()
	if !slices.ContainsFunc(voters, func(id meta.NodeID) bool { return slices.Contains(leaving, id) }) {
		return nil
	}
	answers, stay := a.survey(ctx), 0
	for _, id := range voters {
		if answers[id].Answered && !slices.Contains(leaving, id) {
			stay++
		}
	}
	if 2*stay > len(voters) {
		return nil
	}
	return fmt.Errorf("%d of %d voters would stay and answer, which is no majority: drain what is to go, remove what does not answer first, and ask again when the votes have moved: %w",
		stay, len(voters), meta.ErrConflict)
}

// removal is one DELETE of a region.
type removal struct {
	*API
	call    *protocol.Call
	region  meta.RegionName
	home    meta.RegionName // of what is at home there; "" leaves that to the caller
	agents  bool
	force   bool
	waiting []string
	n       int // commands so far
}

func (r *removal) do(c state.Command) error {
	r.n++
	_, err := r.API.do(r.call, r.n, c)
	return err
}

func (r *removal) wait(format string, args ...any) {
	r.waiting = append(r.waiting, fmt.Sprintf(format, args...))
}

// removeRegion gives a region up: from the first call on its servers drain, it is owed
// nothing, and takes neither nodes nor repositories. Once nothing remains it is removed
// with its servers, in one entry. The answer says what it waits for.
func (a *API) removeRegion(c *protocol.Call) error {
	query := c.R.URL.Query()
	r := &removal{
		API: a, call: c, region: meta.RegionName(c.Params.Get("region")),
		home: meta.RegionName(query.Get("home")), agents: query.Get("agents") == "true", force: forced(c),
	}
	if err := meta.CheckRegion(r.region); err != nil {
		return err
	}
	switch r.region {
	case a.Self.Region:
		return fmt.Errorf("this server is of region %s itself, ask one of another region: %w", r.region, meta.ErrConflict)
	case r.home:
		return fmt.Errorf("region %s cannot be the new home of its own repositories: %w", r.region, meta.ErrInvalid)
	}
	removed, err := r.run()
	if err != nil {
		return fmt.Errorf("remove region %s: %w", r.region, err)
	}
	removed.Waiting = r.waiting
	status := http.StatusOK
	if !removed.Done {
		status = http.StatusAccepted
	}
	return protocol.WriteJSON(c.W, status, removed)
}

func (r *removal) run() (client.Removed, error) {
	removed := client.Removed{Nodes: []meta.NodeID{}}
	since, err := r.leave()
	if err != nil {
		return removed, err
	}
	if err := r.rehome(); err != nil {
		return removed, err
	}
	nodes, err := r.nodes()
	if err != nil {
		return removed, err
	}
	agents := 0
	for _, n := range nodes {
		switch {
		case n.Role == meta.RoleServer:
			removed.Nodes = append(removed.Nodes, n.ID)
			if r.force {
				continue
			}
			left, err := r.remains(r.call, n.ID, 3)
			if err != nil {
				return removed, err
			}
			if !left.Counted {
				r.wait("what server %s holds is being counted", n.ID)
			}
			if left.Last+left.Short > 0 {
				r.wait("server %s still has %s", n.ID, wordsOf(left))
			}
		case r.agents:
			if err := r.do(state.RemoveNode{ID: n.ID}); err != nil && !errors.Is(err, meta.ErrNotFound) {
				return removed, err
			}
			removed.Nodes = append(removed.Nodes, n.ID)
		default:
			agents++
		}
	}
	if agents > 0 {
		r.wait("%d agents are of the region: stop them and remove them with --agents (agents=true)", agents)
	}
	if len(r.waiting) == 0 {
		if err := r.shedVotes(nodes); err != nil {
			return removed, err
		}
	}
	if len(r.waiting) > 0 {
		removed.Nodes = []meta.NodeID{}
		return removed, nil
	}
	switch err := r.do(state.RemoveRegion{Name: r.region, Since: since, Force: r.force}); {
	case errors.Is(err, meta.ErrConflict):
		r.wait("%s", protocol.Message(err)) // It came between.
		removed.Nodes = []meta.NodeID{}
		return removed, nil
	case err != nil:
		return removed, err
	}
	removed.Done = true
	return removed, nil
}

// shedVotes removes one of the region's servers first, one that does not answer if there
// is one, when all of them together have too many votes to go in one entry.
func (r *removal) shedVotes(nodes []meta.Node) error {
	ctx := r.call.R.Context()
	var servers []meta.NodeID
	for _, n := range nodes {
		if n.Role == meta.RoleServer {
			servers = append(servers, n.ID)
		}
	}
	refused := r.mayVote(ctx, servers...)
	if refused == nil {
		return nil
	}
	voters, answers := r.voters(), r.survey(ctx)
	servers = slices.DeleteFunc(servers, func(id meta.NodeID) bool { return !slices.Contains(voters, id) })
	slices.SortStableFunc(servers, func(x, y meta.NodeID) int {
		rank := map[bool]int{true: 1}
		return rank[answers[x].Answered] - rank[answers[y].Answered]
	})
	if len(servers) < 2 || r.mayVote(ctx, servers[0]) != nil {
		r.wait("%s", protocol.Message(refused))
		return nil
	}
	if err := r.do(state.RemoveNode{ID: servers[0], Force: r.force}); err != nil {
		return err
	}
	r.wait("server %s was removed alone, the votes of the others go after it", servers[0])
	return nil
}

// leave lets the region be given up, if it is not yet, and returns since when it is.
func (r *removal) leave() (meta.Time, error) {
	if err := r.do(state.LeaveRegion{Name: r.region, Leave: true}); err != nil {
		return 0, err
	}
	regions, err := strongly(r.API, r.call, state.ListRegions{})
	if err != nil {
		return 0, err
	}
	for _, known := range regions {
		if known.Name == r.region {
			return known.Leaving, nil
		}
	}
	return 0, fmt.Errorf("region %s: %w", r.region, meta.ErrNotFound)
}

// rehome gives other regions to the repositories that name this one, or names them.
// None comes to name it meanwhile.
func (r *removal) rehome() error {
	var named []string
	for page := (state.Page{Limit: 1000}); ; {
		repos, err := strongly(r.API, r.call, state.ListRepositories{Page: page})
		if err != nil {
			return err
		}
		for _, repo := range repos {
			left, err := r.move(repo)
			if err != nil {
				return err
			}
			if left {
				named = append(named, repo.Ref.String())
			}
		}
		if len(repos) == 0 {
			break
		}
		page.After = repos[len(repos)-1].Ref.String()
	}
	if len(named) > 0 {
		r.wait("%d repositories name the region, first %s: give them another --home, or all of them with --home REGION (home=)",
			len(named), strings.Join(named[:min(len(named), 5)], ", "))
	}
	return nil
}

// move gives a repository other regions than the one that goes; left says that it still
// names it.
func (r *removal) move(repo meta.Repository) (left bool, err error) {
	inList := slices.Contains(repo.Regions, r.region)
	if repo.Home != r.region && repo.Second != r.region && !inList {
		return false, nil
	}
	change := state.SetRepository{Ref: repo.Ref}
	home, second := repo.Home, repo.Second
	if home == r.region {
		if r.home == "" {
			return true, nil
		}
		home = r.home
	}
	if second == r.region || second == home {
		second = ""
		if r.Nearest != nil {
			second = r.Nearest(r.call.R.Context(), home)
		}
		if second == r.region || second == home {
			second = "" // None that stays is known; its home alone holds it.
		}
	}
	if home != repo.Home {
		change.Home = &home
	}
	if second != repo.Second {
		change.Second = &second
	}
	if inList {
		rest := slices.DeleteFunc(slices.Clone(repo.Regions), func(name meta.RegionName) bool { return name == r.region })
		if len(rest) == 0 {
			return true, nil // Its list means something: who wrote it says what it is now.
		}
		change.Regions = &rest
	}
	return false, r.do(change)
}

// nodes lists the region's nodes, agents first: what is left of a removal that breaks
// off still has its servers.
func (r *removal) nodes() ([]meta.Node, error) {
	nodes, err := r.roster(r.call, "", r.region)
	slices.SortStableFunc(nodes, func(a, b meta.Node) int {
		rank := map[meta.Role]int{meta.RoleAgent: 0, meta.RoleServer: 1}
		return rank[a.Role] - rank[b.Role]
	})
	return nodes, err
}

func (a *API) keepRegion(c *protocol.Call) error {
	value, err := a.do(c, 0, state.LeaveRegion{Name: meta.RegionName(c.Params.Get("region"))})
	if err != nil {
		return err
	}
	return reply[meta.Region](c, http.StatusOK, value)
}

func (a *API) level(c *protocol.Call) error {
	level, err := a.clusterLevel(c)
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, level)
}

func (a *API) clusterLevel(c *protocol.Call) (l client.Level, err error) {
	if l.Level, err = ask(a, c, state.GetLevel{}); err != nil {
		return l, err
	}
	if l.Hold, err = ask(a, c, state.GetHold{}); err != nil {
		return l, err
	}
	nodes, err := a.roster(c, meta.RoleServer, "")
	if err != nil {
		return l, err
	}
	answers := a.survey(c.R.Context())
	l.Waiting = []meta.NodeID{}
	var newest uint32
	for _, n := range nodes {
		s := answers[n.ID]
		l.Servers = append(l.Servers, client.ServerLevel{ID: n.ID, Region: n.Region, Answers: s.Answered, Level: s.Level})
		newest = max(newest, s.Level)
	}
	l.Next = l.Level
	if newest > l.Level {
		l.Next = newest
		if l.Hold != 0 {
			l.Next = min(l.Next, l.Hold)
		}
	}
	for _, s := range l.Servers {
		if l.Next > l.Level && s.Level < l.Next {
			l.Waiting = append(l.Waiting, s.ID)
		}
	}
	return l, nil
}

func (a *API) holdLevel(c *protocol.Call) error {
	var body client.LevelChange
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	if _, err := a.do(c, 0, state.HoldLevel{Level: body.Hold}); err != nil {
		return err
	}
	return a.level(c)
}
