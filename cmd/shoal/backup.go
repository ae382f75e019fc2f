package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/backup"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newBackup() *cobra.Command {
	root := group("backup", "Backups: take, check and restore them")
	root.AddCommand(newBackupCreate(), newBackupList(), newBackupVerify(), newBackupRestore())
	return root
}

// teller prints what a long verb does, on the error output so that --json stays clean.
func teller(cmd *cobra.Command) func(string, ...any) {
	return func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
}

func newBackupCreate() *cobra.Command {
	var to target
	var out output
	var which string
	var recipients []string
	cmd := &cobra.Command{
		Use: "create DIR", Short: "Take a backup of the running cluster into a directory", Args: cobra.ExactArgs(1),
		Long: `Take a backup of the running cluster into a directory.

The metadata comes from one server, as of one index: one without a vote if there is
one, else a follower, else the leader. Blobs are stored once however many backups use
them, so every further backup into DIR only adds what is new; one that was interrupted
goes on. While it runs nothing is collected as garbage.

With --recipient the cluster's root key is part of the backup, sealed to that person's
key: only with it can the same cluster be restored when all servers are lost. Without
it a restore makes another cluster, which agents have to join anew.`,
		Example: `  shoal backup create /backup/shoal --recipient "$(cat ~/.ssh/id_ed25519.pub)"
  shoal backup create /backup/shoal --blobs critical`,
	}
	to.flags(cmd)
	out.flag(cmd)
	cmd.Flags().StringVar(&which, "blobs", "all", "blobs to keep: all, critical (those of critical repositories) or none")
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "age recipient or OpenSSH public key that the root key is sealed to; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kept := backup.Which(which)
		if kept != backup.All && kept != backup.None && kept != backup.Critical {
			return fmt.Errorf("--blobs %s: use all, critical or none", which)
		}
		c, err := to.client()
		if err != nil {
			return err
		}
		c = streaming(c)
		if err := os.MkdirAll(args[0], 0o700); err != nil {
			return err
		}
		lock, err := node.LockDir(args[0])
		if err != nil {
			return err
		}
		created, err := backup.Create(cmd.Context(), args[0], c, backup.Options{
			Which: kept, Recipients: recipients, Version: versionText(), Now: time.Now(), Say: teller(cmd),
		})
		if err = errors.Join(err, lock.Release()); err != nil {
			return err
		}
		err = out.print(cmd, created, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n  from server %s, a %s; %d blobs of %d bytes were new\n", created.Summary(), created.From, created.Kind, created.Fetched, created.FetchedBytes)
			if created.Key == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "  without the root key (no --recipient): a restore makes another cluster")
			}
			listNames(cmd, "no server has", created.Names, created.Missing)
		})
		if err == nil && created.Missing > 0 {
			err = fmt.Errorf("the backup is complete but for %d blobs that no server has", created.Missing)
		}
		return err
	}
	return cmd
}

// streaming returns c without a limit on how long an answer may take; the calls that are
// short have their own.
func streaming(c *client.Client) *client.Client {
	long := *c
	long.HTTP = &http.Client{Transport: c.HTTP.Transport}
	return &long
}

// listNames prints names of blobs, and how many more there are.
func listNames(cmd *cobra.Command, what string, names []string, total int64) {
	if total == 0 {
		return
	}
	fmt.Fprintf(cmd.OutOrStdout(), "  %s %d blobs; they belong to\n", what, total)
	for _, name := range names {
		fmt.Fprintf(cmd.OutOrStdout(), "    %s\n", clip(name, 0))
	}
}

// openPoint opens a backup of a directory, and locks that.
func openPoint(dir, id string) (*backup.Point, *node.DirLock, error) {
	d, err := backup.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	lock, err := node.LockDir(dir)
	if err != nil {
		return nil, nil, err
	}
	p, err := d.Point(id)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Release())
	}
	return p, lock, nil
}

func newBackupList() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use: "list DIR", Short: "List the backups in a directory", Args: cobra.ExactArgs(1),
		Example: "  shoal backup list /backup/shoal",
	}
	out.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := backup.Open(args[0])
		if err != nil {
			return err
		}
		ids, err := d.Points()
		if err != nil {
			return err
		}
		all := []backup.Manifest{}
		for _, id := range ids {
			p, err := d.Point(id)
			if err != nil {
				return err
			}
			all = append(all, p.Manifest)
		}
		return out.print(cmd, all, func() {
			for _, m := range all {
				fmt.Fprintln(cmd.OutOrStdout(), m.Summary())
			}
		})
	}
	return cmd
}

func newBackupVerify() *cobra.Command {
	var out output
	var id, temp string
	cmd := &cobra.Command{
		Use: "verify DIR", Short: "Read all of a backup and check every digest", Args: cobra.ExactArgs(1),
		Long: `Read all of a backup and check every digest: the manifest, the metadata (which is
opened, and its state hash computed), the list of blobs against the metadata, and each
blob, chunk by chunk and as a whole. Says what peers would have to give after a restore.`,
		Example: "  shoal backup verify /backup/shoal",
	}
	out.flag(cmd)
	cmd.Flags().StringVar(&id, "backup", "", "which backup (default: the latest)")
	cmd.Flags().StringVar(&temp, "temp", "", "directory to open the metadata in, which needs its size (default: the system's)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, lock, err := openPoint(args[0], id)
		if err != nil {
			return err
		}
		v, err := backup.Verify(cmd.Context(), p, temp)
		if err = errors.Join(err, lock.Release()); err != nil {
			return err
		}
		needed := v.Left + v.Missing + v.Damaged
		err = out.print(cmd, v, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n  metadata, list and %d blobs of %d bytes are as they were written\n", v.Summary(), v.Read, v.ReadBytes)
			for _, f := range v.Findings {
				fmt.Fprintf(cmd.OutOrStdout(), "  damaged: %s\n", clip(f, 0))
			}
			listNames(cmd, "after a restore peers would have to give", v.Names, needed)
		})
		if err == nil && v.Damaged > 0 {
			err = fmt.Errorf("%d blobs of the backup are damaged; create a backup into the directory again after removing them, it fetches what is not there", v.Damaged)
		}
		return err
	}
	return cmd
}

func newBackupRestore() *cobra.Command {
	var out output
	var o node.RestoreOptions
	var id, identity, region string
	cmd := &cobra.Command{
		Use: "restore DIR", Short: "Make the data directory of a first server from a backup", Args: cobra.ExactArgs(1),
		Long: `Make the data directory of a first server from a backup, in a new epoch: tokens of
reads and writes, join tokens, waves, unfinished uploads and the administrator's token
of before do not count any more, and no server of before is part of it.

With --identity, the private key of a --recipient of the backup, the same cluster goes
on: agents follow when they find a server at an address they know, and servers of before
that still run stop as soon as they hear of it. Never do that beside a cluster that is
to live on, for a drill for example. Without it the restored cluster is another one,
with its own id and trust root, which no node of before can speak to.

All tokens of users, robots and jobs are void, because those that were revoked since the
backup was taken would live again: issue new ones, or say --keep-tokens when you know that
none was.

Blobs that the backup lacks come from servers and agents that join with them.`,
		Example: `  shoal backup restore /backup/shoal --data /var/lib/shoal --region eu --identity ~/.ssh/id_ed25519
  shoal server --data /var/lib/shoal --region eu --gateway 0.0.0.0:5000`,
	}
	out.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Data, "data", "", "the new data directory; required")
	f.StringVar(&o.Blobs, "blobs", "", "directory for its blobs, as the server will have it (default: DATA/blobs)")
	f.StringVar(&region, "region", "", "the server's region; required")
	f.StringVar(&id, "backup", "", "which backup (default: the latest)")
	f.BoolVar(&o.KeepTokens, "keep-tokens", false, "let tokens of before count on, also those revoked since the backup was taken")
	f.StringVar(&identity, "identity", "", "age identity file or OpenSSH private key that opens the root key: the same cluster goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if o.Data == "" || region == "" {
			return errors.New("say where with --data DIR and of which region the server is with --region NAME")
		}
		if identity != "" {
			if o.Identity, err = os.ReadFile(identity); err != nil {
				return err
			}
		}
		p, lock, err := openPoint(args[0], id)
		if err != nil {
			return err
		}
		o.Region, o.Log, o.Say = meta.RegionName(region), newLogger(cmd.ErrOrStderr(), "warn", "text"), teller(cmd)
		r, err := node.Restore(cmd.Context(), p, o)
		if err = errors.Join(err, lock.Release()); err != nil {
			return err
		}
		return out.print(cmd, r, func() {
			w := cmd.OutOrStdout()
			kind := "another cluster, nodes have to join it"
			if r.Same {
				kind = "the same cluster"
			}
			fmt.Fprintf(w, "restored backup %s as cluster %s (%s) in epoch %d\n  %d blobs of %d bytes, every digest checked\n", r.Backup, r.Cluster, kind, r.Epoch, r.Blobs, r.StoredBytes)
			for _, finding := range r.Findings {
				fmt.Fprintf(w, "  damaged in the backup: %s\n", clip(finding, 0))
			}
			listNames(cmd, "peers have to give", r.Names, r.Needed)
			fmt.Fprintf(w, "  a new administrator's token is in %s/%s\nnow start it: shoal server --data %s --region %s\n", o.Data, node.AdminTokenFile, o.Data, region)
		})
	}
	return cmd
}

func newRecover() *cobra.Command {
	var out output
	var dir string
	var yes, force bool
	cmd := &cobra.Command{
		Use: "recover", Short: "Go on with one server after a lost quorum", Args: cobra.NoArgs,
		Long: `Go on with one server after the majority of the voters is lost for good: its data
directory becomes that of the only server of a new epoch. Run it on a stopped server, the
one whose log goes furthest (shoal recover inspect).

What was acknowledged and is not in its log is lost; entries of its log that were not
known to be committed are kept, and listed. Other servers of before must not come back
with their old log: give it up with shoal recover discard, then join them anew; their
blobs count again once they are verified.`,
		Example: `  shoal recover inspect --data /var/lib/shoal
  shoal recover --data /var/lib/shoal --yes`,
	}
	out.flag(cmd)
	cmd.Flags().StringVar(&dir, "data", "", "data directory of the stopped server; required")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it; without it only say what would be done")
	cmd.Flags().BoolVar(&force, "force", false, "do it though a server that answers has more of the log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dir == "" {
			return errors.New("say which with --data DIR")
		}
		r, err := node.Recover(cmd.Context(), dir, force, newLogger(cmd.ErrOrStderr(), "warn", "text"), func(s node.Survey) error {
			if yes {
				return nil
			}
			printSurvey(cmd, s)
			return errors.New("nothing was done: make sure that the voters above are lost for good, then say --yes")
		})
		if err != nil {
			return err
		}
		return out.print(cmd, r, func() {
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "server %s goes on alone, in epoch %d, from index %d (%s)\n", r.Node, r.Epoch, r.Last, writtenAt(r.Stamp))
			fmt.Fprintf(w, "  unknown and possibly lost: what was acknowledged after that on the servers below\n")
			for _, s := range r.Lost {
				fmt.Fprintf(w, "    %s of region %s at %s\n", s.ID, s.Region, s.Gateway)
			}
			const shown = 20
			last := r.Uncertain[max(0, len(r.Uncertain)-shown):]
			if len(last) > 0 {
				fmt.Fprintf(w, "  kept from its log: %d entries; of the last it is not known whether they were acknowledged\n", r.Replayed)
			}
			for _, u := range last {
				fmt.Fprintf(w, "    %d %s %s\n", u.Index, u.Time.Format(time.RFC3339), clip(u.What, 0))
			}
			fmt.Fprintf(w, "  the metadata of before is in %s\nnow start it: shoal server --data %s --region %s\n", r.Kept, dir, r.Region)
		})
	}
	cmd.AddCommand(newRecoverInspect(), newRecoverDiscard())
	return cmd
}

func writtenAt(t meta.Time) string {
	if t == 0 {
		return "at an unknown time"
	}
	return t.Std().Format(time.RFC3339)
}

func printSurvey(cmd *cobra.Command, s node.Survey) {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "server %s of region %s, cluster %s, epoch %d\n", s.Node, s.Region, s.Cluster.ID, s.Epoch)
	fmt.Fprintf(w, "  log ends at %d of term %d, written %s; %d of it are in the state\n", s.Last, s.LastTerm, writtenAt(s.Stamp), s.Applied)
	if s.Damage != "" {
		fmt.Fprintf(w, "  damaged behind that: %s\n", clip(s.Damage, 0))
	}
	if s.Superseded != "" {
		fmt.Fprintf(w, "  %s\n", clip(s.Superseded, 0))
	}
	var rows [][]string
	for _, p := range s.Peers {
		row := []string{string(p.ID), string(p.Region), p.Gateway, "no", "no answer", ""}
		if p.Voter {
			row[3] = "yes"
		}
		if p.Reached {
			row[4] = fmt.Sprintf("answers, epoch %d", p.Epoch)
		}
		if p.Last > 0 {
			row[5] = fmt.Sprint(p.Last)
		}
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		table(cmd, []string{"other server", "region", "gateway", "votes", "now", "last index"}, rows)
	}
}

func newRecoverInspect() *cobra.Command {
	var out output
	var dirs []string
	cmd := &cobra.Command{
		Use: "inspect [REPORT.json ...]", Short: "Say how far a stopped server's log goes, and which of several goes furthest",
		Long: `Say how far a stopped server's log goes and who of the others answers. Given several
data directories, or what inspect --json printed on other hosts, it names the server to
recover: of the last entries the one of the highest term, then the highest index.`,
		Example: `  shoal recover inspect --data /var/lib/shoal --json > eu-1.json
  shoal recover inspect eu-1.json us-1.json`,
	}
	out.flag(cmd)
	cmd.Flags().StringArrayVar(&dirs, "data", nil, "data directory of a stopped server; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, reports []string) error {
		if len(dirs)+len(reports) == 0 {
			return errors.New("say which server with --data DIR, or give reports of --json")
		}
		var all []node.Survey
		for _, dir := range dirs {
			s, err := node.Inspect(cmd.Context(), dir, newLogger(cmd.ErrOrStderr(), "error", "text"))
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		for _, name := range reports {
			var s node.Survey
			if err := readJSON(name, &s); err != nil {
				return err
			}
			if s.Node == "" {
				return fmt.Errorf("%s is no report of one server by `shoal recover inspect --json`", name)
			}
			all = append(all, s)
		}
		var printed any = all
		if len(all) == 1 {
			printed = all[0]
		}
		return out.print(cmd, printed, func() {
			best := all[0]
			for _, s := range all {
				printSurvey(cmd, s)
				if s.Damage == "" && (best.Damage != "" || s.Epoch > best.Epoch || s.Epoch == best.Epoch && s.Newer(best.Standing)) {
					best = s
				}
			}
			if len(all) > 1 {
				fmt.Fprintf(cmd.OutOrStdout(), "server %s of region %s has the furthest log (term %d, index %d): recover that one\n", best.Node, best.Region, best.LastTerm, best.Last)
			}
		})
	}
	return cmd
}

func newRecoverDiscard() *cobra.Command {
	var dir string
	var yes bool
	cmd := &cobra.Command{
		Use: "discard", Short: "Give up a stopped server's metadata, so that it can join anew with its blobs", Args: cobra.NoArgs,
		Example: `  shoal recover discard --data /var/lib/shoal --yes
  shoal server --data /var/lib/shoal --region us --join https://first.example:5000 --token shoal1...`,
	}
	cmd.Flags().StringVar(&dir, "data", "", "data directory of the stopped server; required")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case dir == "":
			return errors.New("say which with --data DIR")
		case !yes:
			return fmt.Errorf("the log in %s may hold writes that the cluster lacks (shoal recover inspect); say --yes to give it up", dir)
		}
		kept, err := node.Discard(dir)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "the metadata is in %s now, key and blobs stay; join the server with a new token\n", strings.TrimSpace(kept))
		return nil
	}
	return cmd
}

var _ backup.Source = (*client.Client)(nil)
