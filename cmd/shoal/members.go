package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// waitEvery is how often a verb with --wait asks again.
const waitEvery = time.Second

// poll asks until done, with a line each time the words change. Who has answered once may
// be unavailable later: what is waited for can be the reason, as of a leader that drains.
func poll(ctx context.Context, out io.Writer, ask func() (done bool, words string, err error)) error {
	last, answered := "", false
	for {
		done, words, err := ask()
		switch {
		case answered && errors.Is(err, meta.ErrUnavailable):
			words = err.Error()
		case err != nil || done:
			return err
		}
		answered = true
		if words != last {
			fmt.Fprintln(out, words)
			last = words
		}
		select {
		case <-time.After(waitEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func newRegionList() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the regions: what they have, what they lack, and which loss the cluster survives", Args: cobra.NoArgs,
		Example: "  shoal region list",
	}
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		regions, err := c.Regions(ctx)
		if err != nil {
			return err
		}
		return out.print(list, regions, func() {
			regionTable(list, regions, true)
			for _, r := range regions {
				if r.Leaving != 0 {
					fmt.Fprintf(list.OutOrStdout(), "\nregion %s is being removed since %s: `shoal region remove %s` says what it waits for, `shoal region keep %s` keeps it\n",
						r.Name, r.Leaving.Std().Format(time.RFC3339), r.Name, r.Name)
				}
			}
		})
	})
}

// regionTable prints regions. quorum says whether the answering node sees the
// Raft group; voters and what a loss does are known by it.
func regionTable(cmd *cobra.Command, regions []client.Region, quorum bool) {
	var rows [][]string
	for _, r := range regions {
		voters, loss := strconv.Itoa(r.Voters), "survives"
		switch {
		case !quorum:
			voters, loss = "?", "?"
		case !r.SafeToLose:
			loss = "needs recovery"
		}
		servers := strconv.Itoa(r.Servers)
		if r.Draining > 0 {
			servers += fmt.Sprintf(" (%d draining)", r.Draining)
		}
		rows = append(rows, []string{
			string(r.Name), strconv.FormatBool(r.Primary), servers, strings.Join(r.Zones, ","), voters, strconv.Itoa(r.Agents), string(r.Health), loss, filled(r),
		})
	}
	table(cmd, []string{"region", "primary", "servers", "zones", "voters", "agents", "health", "its loss", "copies"}, rows)
}

// filled says how far a region has what it is to have.
func filled(r client.Region) string {
	switch o := r.Owed; {
	case !r.Counted:
		return ""
	case o.WaitingBlobs == 0:
		return "complete"
	default:
		return fmt.Sprintf("%d of %d blobs wait (%s)", o.WaitingBlobs, o.Blobs, size(o.WaitingBytes))
	}
}

func newRegionSet() *cobra.Command {
	set := &cobra.Command{
		Use: "set NAME", Short: "Make a region, or change whether it is primary", Args: cobra.ExactArgs(1),
		Long: `set changes whether a region is primary: critical repositories are copied to all primary regions. A region
that is not there yet is made; its first server makes it by itself, too, as a primary one.`,
		Example: "  shoal region set ap --primary=false",
	}
	primary := set.Flags().Bool("primary", true, "critical repositories are copied there")
	return adminVerb(set, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		r, err := c.PutRegion(ctx, meta.RegionName(args[0]), client.RegionChange{Primary: *primary})
		if err != nil {
			return err
		}
		return out.print(set, r, func() {
			fmt.Fprintf(set.OutOrStdout(), "region %s: primary %v\n", r.Name, r.Primary)
		})
	})
}

func newRegionRemove() *cobra.Command {
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Empty a region and take it out of the cluster", Args: cobra.ExactArgs(1),
		Long: `remove gives a region up. Its servers drain at once: what only they have is copied to the regions that are to
have it, and the region takes neither servers nor repositories any more. Once nothing remains there, no
repository names it and its agents are gone, it is removed with its servers. Until then remove says what it
waits for, and is asked again; with --wait it waits itself. shoal region keep takes it back.`,
		Example: "  shoal region remove us-old --home us --agents --wait",
	}
	var how client.RegionRemoval
	f := remove.Flags()
	f.BoolVar(&how.Force, "force", false, "also when blobs have their last copies there: they are lost")
	f.BoolVar(&how.Agents, "agents", false, "remove the region's agents too")
	f.StringVar((*string)(&how.Home), "home", "", "new home of the repositories that are at home there")
	wait := f.Bool("wait", false, "ask again until the region is gone")
	return adminVerb(remove, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		var removed client.Removed
		ask := func() (bool, string, error) {
			var err error
			removed, err = c.RemoveRegion(ctx, meta.RegionName(args[0]), how)
			return removed.Done || !*wait, strings.Join(removed.Waiting, "\n"), err
		}
		if err := poll(ctx, remove.ErrOrStderr(), ask); err != nil {
			return err
		}
		if err := out.print(remove, removed, func() {
			if removed.Done {
				fmt.Fprintf(remove.OutOrStdout(), "region %s is removed with %d nodes; its servers and agents may be stopped\n", args[0], len(removed.Nodes))
				return
			}
			fmt.Fprintf(remove.OutOrStdout(), "region %s is being emptied; it waits for:\n", args[0])
			for _, w := range removed.Waiting {
				fmt.Fprintf(remove.OutOrStdout(), "  %s\n", w)
			}
		}); err != nil {
			return err
		}
		if !removed.Done {
			return fmt.Errorf("region %s is not removed yet, ask again or use --wait", args[0])
		}
		return nil
	})
}

func newRegionKeep() *cobra.Command {
	keep := &cobra.Command{
		Use: "keep NAME", Short: "Take back that a region is being removed", Args: cobra.ExactArgs(1),
		Example: "  shoal region keep us-old",
	}
	return adminVerb(keep, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		r, err := c.KeepRegion(ctx, meta.RegionName(args[0]))
		if err != nil {
			return err
		}
		return out.print(keep, r, func() { fmt.Fprintf(keep.OutOrStdout(), "region %s stays\n", r.Name) })
	})
}

func newServerList() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the servers, and how far those that drain are", Args: cobra.NoArgs, Example: "  shoal server list",
	}
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		servers, err := c.Servers(ctx)
		if err != nil {
			return err
		}
		return out.print(list, servers, func() {
			var rows [][]string
			for _, s := range servers {
				part, state := "non-voter", "answers"
				switch {
				case s.Leader:
					part = "leader"
				case s.Voter:
					part = "voter"
				}
				switch {
				case !s.Answers:
					state = "does not answer"
				case s.Behind > 0:
					state = fmt.Sprintf("answers, %d entries behind", s.Behind)
				}
				rows = append(rows, []string{string(s.ID), string(s.Region), s.Zone, s.Gateway, part, state, cmp.Or(string(s.Bucket), "disk"), draining(s)})
			}
			table(list, []string{"server", "region", "zone", "gateway", "raft", "state", "blobs", "drain"}, rows)
		})
	})
}

// draining says how far a server is with its drain.
func draining(s client.ServerState) string {
	if s.Draining == nil {
		return ""
	}
	text := fmt.Sprintf("since %s by %s: ", s.Draining.Since.Std().Format(time.RFC3339), s.Draining.By)
	if s.Remains == nil {
		return text + "unknown"
	}
	return text + remaining(*s.Remains)
}

func remaining(r client.Remains) string {
	more := ""
	if r.More {
		more = " and more"
	}
	switch {
	case r.Removable:
		return "nothing remains, it may be removed"
	case !r.Counted:
		return fmt.Sprintf("what it holds is being counted, %d blobs so far", r.Last+r.Short)
	}
	return fmt.Sprintf("%d blobs remain%s, of %d it has the last copy", r.Last+r.Short, more, r.Last)
}

func newServerDrain() *cobra.Command {
	drain := &cobra.Command{
		Use: "drain SERVER", Short: "Empty a server, so that it can be removed", Args: cobra.ExactArgs(1),
		Long: `drain lets a server go on serving and takes all duties from it: what it holds is copied to the other servers of
its region, it hands over leadership, and loses its vote when another can have it. Once nothing remains it
may be removed. To replace a server, join the new one, then drain and remove the old:

  shoal token join --role server --region eu          # start the new one with it
  shoal server drain OLD --wait && shoal server remove OLD`,
		Example: "  shoal server drain 12D3KooW... --wait",
	}
	wait := drain.Flags().Bool("wait", false, "wait until nothing remains")
	return adminVerb(drain, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		id := meta.NodeID(args[0])
		n, err := c.DrainServer(ctx, id, true)
		if err != nil {
			return err
		}
		if *wait {
			if err := poll(ctx, drain.ErrOrStderr(), func() (bool, string, error) {
				r, err := c.ServerRemains(ctx, id, 0)
				return r.Removable, remaining(r), err
			}); err != nil {
				return err
			}
		}
		return out.print(drain, n, func() {
			if *wait {
				fmt.Fprintf(drain.OutOrStdout(), "nothing remains at server %s, it may be removed: shoal server remove %s\n", id, id)
				return
			}
			fmt.Fprintf(drain.OutOrStdout(), "server %s drains; `shoal server list` says what remains\n", id)
		})
	})
}

func newServerUndrain() *cobra.Command {
	undrain := &cobra.Command{
		Use: "undrain SERVER", Short: "Give a server its duties back", Args: cobra.ExactArgs(1),
		Example: "  shoal server undrain 12D3KooW...",
	}
	return adminVerb(undrain, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		n, err := c.DrainServer(ctx, meta.NodeID(args[0]), false)
		if err != nil {
			return err
		}
		return out.print(undrain, n, func() { fmt.Fprintf(undrain.OutOrStdout(), "server %s stays\n", n.ID) })
	})
}

func newServerRemove() *cobra.Command {
	remove := &cobra.Command{
		Use: "remove SERVER", Short: "Take a server that is drained out of the cluster", Args: cobra.ExactArgs(1),
		Long: `remove takes a server out of the cluster when nothing remains at it; one that is not drained is drained first,
also one that is gone for good. With --force it goes at once, and what only it has is lost: without, the
refusal names that.`,
		Example: "  shoal server remove 12D3KooW... --wait",
	}
	force := remove.Flags().Bool("force", false, "also when it has the last copies of blobs: they are lost")
	wait := remove.Flags().Bool("wait", false, "ask again until nothing remains and it is removed")
	return adminVerb(remove, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		id := meta.NodeID(args[0])
		unsure := false // whether the last try removed it
		if err := poll(ctx, remove.ErrOrStderr(), func() (bool, string, error) {
			err := c.RemoveNode(ctx, id, *force)
			switch {
			case unsure && errors.Is(err, meta.ErrNotFound):
				return true, "", nil
			case *wait && errors.Is(err, meta.ErrConflict):
				unsure = false
				r, asked := c.ServerRemains(ctx, id, 0)
				switch {
				case asked == nil:
					return false, remaining(r), nil
				case errors.Is(asked, meta.ErrUnavailable):
					return false, err.Error(), nil
				}
			case errors.Is(err, meta.ErrUnavailable):
				unsure = true
			}
			return true, "", err
		}); err != nil {
			return err
		}
		return out.print(remove, map[string]meta.NodeID{"removed": id}, func() {
			fmt.Fprintf(remove.OutOrStdout(), "server %s is removed; it may be stopped, and its data deleted\n", id)
		})
	})
}

func newCluster() *cobra.Command {
	root := group("cluster", "The cluster as a whole")
	level := &cobra.Command{
		Use: "level", Short: "Show the cluster level, or hold it while servers are updated", Args: cobra.NoArgs,
		Long: `The cluster level says which kinds of change may enter the log. The leader raises it by itself once every
server runs a build that knows the next one; from then on no older build can run. With --hold it stays where
it is, so that an update can be taken back; --auto lets it go.`,
		Example: "  shoal cluster level\n  shoal cluster level --hold\n  shoal cluster level --auto",
	}
	hold := level.Flags().Bool("hold", false, "keep the level where it is")
	auto := level.Flags().Bool("auto", false, "let the leader raise it again")
	level.MarkFlagsMutuallyExclusive("hold", "auto")
	root.AddCommand(adminVerb(level, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		l, err := c.ClusterLevel(ctx)
		if err == nil && (*hold || *auto) {
			to := uint32(0)
			if *hold {
				to = l.Level
			}
			l, err = c.HoldLevel(ctx, to)
		}
		if err != nil {
			return err
		}
		return out.print(level, l, func() {
			w := level.OutOrStdout()
			fmt.Fprintf(w, "the cluster is at level %d\n", l.Level)
			if l.Hold != 0 {
				fmt.Fprintf(w, "it is held at %d, `shoal cluster level --auto` lets it go\n", l.Hold)
			}
			if l.Next > l.Level {
				fmt.Fprintf(w, "it rises to %d once all servers know it; %d do not yet\n", l.Next, len(l.Waiting))
			}
			var rows [][]string
			for _, s := range l.Servers {
				known := "does not answer"
				if s.Answers {
					known = strconv.FormatUint(uint64(s.Level), 10)
				}
				rows = append(rows, []string{string(s.ID), string(s.Region), known})
			}
			table(level, []string{"server", "region", "its build knows level"}, rows)
		})
	}))
	return root
}
