package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

func newAudit() *cobra.Command {
	root := group("audit", "The audit log: who changed what, and that nobody changed the log")
	root.AddCommand(newAuditStatus(), newAuditTail(), newAuditQuery(), newAuditExport(), newAuditVerify(), newAuditProve(),
		newAuditAccess(), newAuditChains(), newAuditRetention())
	return root
}

func newAuditStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show how long the log is and who has signed it", Args: cobra.NoArgs,
		Example: "  shoal audit status",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		s, err := c.AuditLog(ctx)
		if err != nil {
			return err
		}
		return out.print(cmd, s, func() {
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%d entries of cluster %s in epoch %d, root %s\n", s.Size, s.Cluster, s.Epoch, s.Root)
			if s.Checkpoint != nil {
				if point, err := s.Checkpoint.Check(); err == nil {
					var who []string
					for _, by := range s.Checkpoint.Signers {
						who = append(who, string(by.Region))
					}
					fmt.Fprintf(w, "the last checkpoint has %d of them, of %s, signed in %s\n", point.Size, point.Time.Format(time.RFC3339), strings.Join(who, ", "))
				}
			} else {
				fmt.Fprintln(w, "there is no checkpoint yet: the leader signs one a minute")
			}
			switch r := s.Retention; {
			case r.Keep == 0:
				fmt.Fprintln(w, "entries stay for ever")
			default:
				fmt.Fprintf(w, "entries stay for %v and until they are exported: exported up to %d, pruned up to %d\n", r.Keep, r.Exported, r.Pruned)
			}
		})
	})
}

// auditFilter has the flags that choose entries.
type auditFilter struct {
	client.AuditQuery
	tenant, since, until string
}

func (f *auditFilter) flags(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.Principal, "principal", "", "who acted, as user:ada or robot:acme/ci")
	s.StringVar(&f.Credential, "token", "", "id of the credential")
	s.StringVar(&f.tenant, "tenant", "", "the tenant that it is about")
	s.StringVar(&f.Repository, "repository", "", "tenant/repository")
	s.StringVar(&f.Action, "action", "", "the command, as Publish or DeleteVersion")
	s.StringVar(&f.Request, "request", "", "request id, as in Shoal-Request-Id and the logs")
	s.StringVar(&f.Outcome, "outcome", "", "done or refused")
	s.StringVar(&f.Elevation, "elevation", "", "id of a break-glass elevation")
	s.StringVar(&f.since, "since", "", "from this time on: 2026-01-31T12:00:00Z, or an age as 2h")
	s.StringVar(&f.until, "until", "", "before this time")
}

func (f *auditFilter) query() (client.AuditQuery, error) {
	f.Tenant = meta.TenantName(f.tenant)
	for _, t := range []struct {
		text string
		to   *time.Time
	}{{f.since, &f.Since}, {f.until, &f.Until}} {
		if t.text == "" {
			continue
		}
		if age, err := time.ParseDuration(t.text); err == nil {
			*t.to = time.Now().Add(-age)
			continue
		}
		at, err := time.Parse(time.RFC3339, t.text)
		if err != nil {
			return f.AuditQuery, fmt.Errorf("%q is no time: write 2026-01-31T12:00:00Z, or an age as 2h", t.text)
		}
		*t.to = at
	}
	return f.AuditQuery, nil
}

// show prints entries, as they are with --json.
func showEntries(cmd *cobra.Command, out *output, lines []string) error {
	w := cmd.OutOrStdout()
	for _, line := range lines {
		if out.json {
			fmt.Fprintln(w, line)
			continue
		}
		e, err := audit.ParseLine([]byte(line))
		if err != nil {
			return err
		}
		what := e.Repository
		if what == "" {
			what = string(e.Tenant)
		}
		text := fmt.Sprintf("%d %s %s %s %s", e.Seq, e.Time.Local().Format(time.DateTime), orDash(e.Principal), e.Action, orDash(what))
		if e.Outcome != audit.Done {
			text += " " + e.Outcome + ": " + e.Reason
		}
		if e.Elevation != "" {
			text += " (break-glass " + e.Elevation + ")"
		}
		for _, c := range e.Changes {
			text += "; " + c.Record
		}
		fmt.Fprintln(w, clip(text, 0))
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// followEvery is how often a tail looks for more.
const followEvery = time.Second

// pause waits, and says whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// entriesFrom hands entries to take from a place on to the end of the log, and returns
// where that is.
func entriesFrom(ctx context.Context, c *client.Client, q client.AuditQuery, from uint64, take func([]string) error) (uint64, error) {
	for {
		p, err := c.AuditEntries(ctx, q, from, 1000, false)
		if err != nil {
			return from, err
		}
		if err := take(p.Lines); err != nil {
			return from, err
		}
		if from = p.Next; from >= p.Size {
			return from, nil
		}
	}
}

func newAuditTail() *cobra.Command {
	var (
		f      auditFilter
		n      int
		follow bool
	)
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the last entries, and those that come", Args: cobra.NoArgs,
		Example: "  shoal audit tail\n  shoal audit tail --follow --tenant acme --json",
	}
	f.flags(cmd)
	cmd.Flags().IntVarP(&n, "lines", "n", 20, "how many, up to 1000")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		p, err := c.AuditEntries(ctx, q, 0, n, true)
		if err != nil {
			return err
		}
		if err := showEntries(cmd, out, p.Lines); err != nil {
			return err
		}
		for from := p.Next; follow && pause(ctx, followEvery); {
			if from, err = entriesFrom(ctx, c, q, from, func(lines []string) error { return showEntries(cmd, out, lines) }); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
}

func newAuditQuery() *cobra.Command {
	var f auditFilter
	cmd := &cobra.Command{
		Use: "query", Short: "Find entries", Args: cobra.NoArgs,
		Long: `query prints the entries that match all flags. Denials, failed logins and pulls change nothing and are in the
chains of the nodes that saw them: shoal audit access.`,
		Example: `  shoal audit query --principal robot:acme/ci --since 24h
  shoal audit query --repository acme/app --action DeleteVersion --json
  shoal audit query --request 5WQXZ3L6T2Y7N4KJH8R1MCVB9D`,
	}
	f.flags(cmd)
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		_, err = entriesFrom(ctx, c, q, 0, func(lines []string) error { return showEntries(cmd, out, lines) })
		return err
	})
}

// lastEntry returns the place behind the last entry of an export, 0 of none. A last
// line that is cut off is taken away.
func lastEntry(name string) (uint64, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	// The last whole line is within the last bytes.
	from := max(0, info.Size()-2*audit.MaxLineBytes)
	tail := make([]byte, info.Size()-from)
	if _, err := f.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if err := f.Truncate(from + int64(end)); err != nil {
		return 0, err
	}
	line := bytes.TrimSuffix(tail[:end], []byte("\n"))
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	if len(line) == 0 {
		return 0, nil
	}
	e, err := audit.ParseLine(line)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return e.Seq + 1, nil
}

func newAuditExport() *cobra.Command {
	var (
		name, points string
		from         uint64
		follow, mark bool
	)
	cmd := &cobra.Command{
		Use: "export", Short: "Write the log as JSON lines, and its signed checkpoints", Args: cobra.NoArgs,
		Long: `export writes every entry, a line of JSON each, to stdout or to a file. Into a file that it began it goes on
where that ends. The lines are what is signed: keep them as they are. Signed checkpoints go to FILE.checkpoints,
or where --checkpoints says; both together are what shoal audit verify needs.`,
		Example: `  shoal audit export --out audit.jsonl
  shoal audit export --from 120000 --follow | siem-forwarder
  shoal audit export --out audit.jsonl --exported`,
	}
	cmd.Flags().StringVar(&name, "out", "", "file; without one stdout")
	cmd.Flags().StringVar(&points, "checkpoints", "", "file for the checkpoints (default: FILE.checkpoints)")
	cmd.Flags().Uint64Var(&from, "from", 0, "first entry, without --out")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().BoolVar(&mark, "exported", false, "tell the cluster that these entries may be pruned when they are old enough")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, _ *output, _ []string) error {
		var w io.Writer = cmd.OutOrStdout()
		if name != "" {
			if points == "" {
				points = name + ".checkpoints"
			}
			var err error
			if from, err = lastEntry(name); err != nil {
				return err
			}
			f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			w = f
		}
		for {
			// Checkpoints first: every entry that they are of is then in the export.
			if points != "" {
				if err := exportCheckpoints(ctx, c, points); err != nil {
					return err
				}
			}
			out := bufio.NewWriter(w)
			expected := from
			next, err := entriesFrom(ctx, c, client.AuditQuery{}, from, func(lines []string) error {
				for _, line := range lines {
					if expected == from {
						if e, err := audit.ParseLine([]byte(line)); err == nil && e.Seq != from {
							return fmt.Errorf("the log has no entry %d any more, its first is %d: export from there with --from into another file", from, e.Seq)
						}
					}
					expected++
					if _, err := out.WriteString(line + "\n"); err != nil {
						return err
					}
				}
				return nil
			})
			if err = errors.Join(err, out.Flush()); err != nil {
				return err
			}
			from = next
			if f, ok := w.(*os.File); ok && name != "" {
				if err := f.Sync(); err != nil {
					return err
				}
			}
			if mark {
				if _, err := c.SetAuditRetention(ctx, nil, &from); err != nil {
					return err
				}
			}
			if !follow || !pause(ctx, followEvery) {
				return nil
			}
		}
	})
}

// exportCheckpoints appends the checkpoints that the file does not have yet.
func exportCheckpoints(ctx context.Context, c *client.Client, name string) error {
	have, err := readCheckpoints(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var after uint64
	if n := len(have); n > 0 {
		last, err := have[n-1].Check()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		after = last.Size
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for {
		page, err := c.AuditCheckpoints(ctx, after)
		if err != nil {
			return errors.Join(err, f.Close())
		}
		for _, s := range page {
			line, err := json.Marshal(s)
			if err == nil {
				_, err = f.Write(append(line, '\n'))
			}
			point, err2 := s.Check()
			if err = errors.Join(err, err2); err != nil {
				return errors.Join(err, f.Close())
			}
			after = point.Size
		}
		if len(page) == 0 {
			return f.Close()
		}
	}
}

func readCheckpoints(name string) (all []audit.Signed, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for in := json.NewDecoder(f); ; {
		var s audit.Signed
		if err := in.Decode(&s); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, fmt.Errorf("%s: checkpoint %d: %w", name, len(all)+1, err)
		}
		all = append(all, s)
	}
}

// trustOf reads root certificates (PEM) and trusts the servers that they certify.
func trustOf(names []string) (audit.Trust, error) {
	var roots []*trust.Root
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			root, err := trust.ParseRoot(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			roots = append(roots, root)
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("give the cluster's root certificate with --root: shoal trust show --pem > root.pem, from somewhere that you trust")
	}
	return func(chain [][]byte, at time.Time) (meta.NodeID, meta.RegionName, ed25519.PublicKey, error) {
		var last error
		for _, root := range roots {
			id, err := root.Verify(chain, at)
			if err == nil && id.Role != meta.RoleServer {
				err = fmt.Errorf("node %s is no server", id.ID)
			}
			if last = err; err == nil {
				key, err := trust.PublicKeyOf(id.ID)
				return id.ID, id.Region, key, err
			}
		}
		return "", "", nil, last
	}, nil
}

func newAuditVerify() *cobra.Command {
	var (
		roots, points []string
		state, proof  string
		access, heads string
		recovered     bool
		needed        int
		out           output
	)
	cmd := &cobra.Command{
		Use: "verify [EXPORT]...", Short: "Check an export, a proof or an access log offline",
		Long: `verify reads exported entries, in order, and the signed checkpoints, and needs no server: only the cluster's
root certificate. It finds a changed byte, an entry that was left out, put in or moved, a log that was rewound,
and one that was forked. With --state it keeps what it has seen (a few hundred bytes), so that the next export is
checked from there on and must continue it.

With --proof it checks an inclusion proof of shoal audit prove, with --access an access log of shoal audit access
against its own chain and, when exports are given too, against what the log says of it.`,
		Example: `  shoal audit verify --root root.pem audit.jsonl
  shoal audit verify --root root.pem --state auditor.json audit-2.jsonl
  shoal audit verify --root root.pem --proof entry-4711.json
  shoal audit verify --access access.jsonl audit.jsonl`,
	}
	f := cmd.Flags()
	f.StringArrayVar(&roots, "root", nil, "file with the cluster's root certificate (PEM); of a replaced root give both")
	f.StringArrayVar(&points, "checkpoints", nil, "files with signed checkpoints (default: EXPORT.checkpoints); earlier ones find a rewind")
	f.StringVar(&state, "state", "", "file with what was seen so far; made when it is not there")
	f.StringVar(&proof, "proof", "", "file with a proof")
	f.StringVar(&access, "access", "", "file with an access log of one node")
	f.StringVar(&heads, "heads", "", "file with what shoal audit chains --json prints, for --access")
	f.BoolVar(&recovered, "recovered", false, "the cluster was recovered or restored: entries may be lost where an epoch began")
	f.IntVar(&needed, "regions", 1, "how many regions must have signed the last checkpoint")
	out.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case access != "":
			return verifyAccess(cmd, &out, access, heads, args)
		case proof != "":
			return verifyProof(cmd, &out, proof, roots, needed)
		case len(args) == 0:
			return errors.New("name an export, or --proof, or --access")
		}
		return verifyExport(cmd, &out, args, points, roots, state, recovered, needed)
	}
	return cmd
}

func verifyProof(cmd *cobra.Command, out *output, name string, roots []string, needed int) error {
	trusted, err := trustOf(roots)
	if err != nil {
		return err
	}
	var p audit.Proof
	if err := readJSON(name, &p); err != nil {
		return err
	}
	e, point, regions, err := p.Verify(trusted)
	if err == nil && len(regions) < needed {
		err = fmt.Errorf("the checkpoint was signed in %d regions, %d are needed", len(regions), needed)
	}
	if err != nil {
		return err
	}
	return out.print(cmd, map[string]any{"entry": e, "size": point.Size, "time": point.Time, "regions": regions}, func() {
		fmt.Fprintf(cmd.OutOrStdout(), "entry %d is in the log of cluster %s that was signed at %s with %d entries, in %v:\n%s\n",
			e.Seq, point.Cluster, point.Time.Format(time.RFC3339), point.Size, regions, p.Entry)
	})
}

func verifyExport(cmd *cobra.Command, out *output, exports, points, roots []string, state string, recovered bool, needed int) error {
	trusted, err := trustOf(roots)
	if err != nil {
		return err
	}
	var s audit.State
	if state != "" {
		if err := readJSON(state, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(points) == 0 {
		for _, name := range exports {
			points = append(points, name+".checkpoints")
		}
	}
	var signed []audit.Signed
	for _, name := range points {
		some, err := readCheckpoints(name)
		if err != nil {
			return err
		}
		signed = append(signed, some...)
	}
	var readers []io.Reader
	for _, name := range exports {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		readers = append(readers, f)
	}
	r, err := audit.Audit(&s, io.MultiReader(readers...), signed, trusted, recovered)
	if err != nil {
		return err
	}
	if len(r.Findings) == 0 {
		switch {
		case r.Size > r.From && r.Checkpoints == 0:
			r.Findings = append(r.Findings, "no checkpoint covers what was read: nothing says that it is the log")
		case r.Checkpoints > 0 && r.Covered > r.From && len(r.Regions) < needed:
			r.Findings = append(r.Findings, fmt.Sprintf("the last checkpoint was signed in %d regions, %d are needed", len(r.Regions), needed))
		}
	}
	if err := out.print(cmd, r, func() {
		w := cmd.OutOrStdout()
		fmt.Fprintf(w, "entries %d to %d, root %s\n", r.From, r.Size, r.Root)
		if r.Covered > 0 {
			fmt.Fprintf(w, "%d checkpoints hold; the last has %d entries, was signed at %s in %v\n", r.Checkpoints, r.Covered, r.Signed.Format(time.RFC3339), r.Regions)
		}
		if behind := r.Size - min(r.Covered, r.Size); behind > 0 {
			fmt.Fprintf(w, "%d entries are behind it and not signed yet\n", behind)
		}
		for _, text := range r.Recovered {
			fmt.Fprintln(w, "accepted:", text)
		}
		for _, text := range r.Findings {
			fmt.Fprintln(w, "WRONG:", text)
		}
	}); err != nil {
		return err
	}
	if len(r.Findings) > 0 {
		return fmt.Errorf("the log does not hold: %s", r.Findings[0])
	}
	if state != "" {
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(state, b, 0o600)
	}
	return nil
}

func verifyAccess(cmd *cobra.Command, out *output, name, heads string, exports []string) error {
	var known []audit.Head
	if heads != "" {
		var chains []audit.Chain
		if err := readJSON(heads, &chains); err != nil {
			return err
		}
		for _, c := range chains {
			known = append(known, c.Head)
		}
	}
	for _, export := range exports {
		some, err := anchoredHeads(export)
		if err != nil {
			return err
		}
		known = append(known, some...)
	}
	node, err := chainOf(name)
	if err != nil {
		return err
	}
	own := known[:0:0]
	for _, h := range known {
		if h.Node == node {
			own = append(own, h)
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := audit.ReadChain(f, own, nil)
	if err != nil {
		return err
	}
	if err := out.print(cmd, r, func() {
		w := cmd.OutOrStdout()
		fmt.Fprintf(w, "%d lines of node %s, %d to %d; the log has %d ends of the chain\n", r.Links, r.Node, r.First, r.Last, len(own))
		for _, text := range r.Gaps {
			fmt.Fprintln(w, "gap:", text)
		}
		for _, text := range r.Broken {
			fmt.Fprintln(w, "WRONG:", text)
		}
	}); err != nil {
		return err
	}
	if len(r.Broken) > 0 {
		return fmt.Errorf("the access log does not hold: %s", r.Broken[0])
	}
	return nil
}

// chainOf returns the node whose chain a file has.
func chainOf(name string) (meta.NodeID, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var l audit.Link
	if err := json.NewDecoder(f).Decode(&l); err != nil {
		return "", fmt.Errorf("%s is no access log: %w", name, err)
	}
	return l.Node, nil
}

// anchoredHeads reads the ends of chains from the entries of an export.
func anchoredHeads(export string) (heads []audit.Head, err error) {
	f, err := os.Open(export)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 64<<10), audit.MaxLineBytes)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(`"action":"AnchorChains"`)) {
			continue
		}
		e, err := audit.ParseLine(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", export, err)
		}
		heads = append(heads, audit.HeadsOf(e)...)
	}
	return heads, lines.Err()
}

func newAuditProve() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "prove ENTRY", Short: "Write a proof that an entry is in the signed log", Args: cobra.ExactArgs(1),
		Long: `prove writes the entry, its path to the root of the last checkpoint, and that with its signatures. Whoever has
the cluster's root certificate checks it offline: shoal audit verify --root root.pem --proof FILE.`,
		Example: "  shoal audit prove 4711 --out entry-4711.json",
	}
	cmd.Flags().StringVar(&name, "out", "", "file; without one stdout")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, _ *output, args []string) error {
		seq, err := strconv.ParseUint(args[0], 10, 62)
		if err != nil {
			return fmt.Errorf("%q is no entry: give its number, as shoal audit query prints it", args[0])
		}
		p, err := c.AuditProof(ctx, seq)
		if err != nil {
			return err
		}
		if p.Entry == "" {
			return fmt.Errorf("entry %d was pruned; its line is in the export of it", seq)
		}
		b, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		if name == "" {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
			return err
		}
		return os.WriteFile(name, append(b, '\n'), 0o600)
	})
}

func newAuditAccess() *cobra.Command {
	var (
		from   uint64
		follow bool
	)
	cmd := &cobra.Command{
		Use: "access", Short: "Show the access log of the node that is asked: pulls, denials, failed logins", Args: cobra.NoArgs,
		Long: `access prints, as JSON lines, what the node of --server saw that changed nothing: pulls, denials, failed logins,
minted tokens. Each line has the hash of the one before; the ends of the chains are in the audit log. A caller's
links beyond 100 of a kind in a minute are counted. Request ids are those of Shoal-Request-Id.`,
		Example: `  shoal audit access --server http://127.0.0.1:5000 > access.jsonl
  shoal audit access --follow`,
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "first line")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, _ *output, _ []string) error {
		w := cmd.OutOrStdout()
		for {
			p, err := c.AccessLog(ctx, from, 1000)
			if err != nil {
				return err
			}
			for _, line := range p.Lines {
				fmt.Fprintln(w, line)
			}
			from = p.Next
			if len(p.Lines) == 0 && (!follow || !pause(ctx, followEvery)) {
				return nil
			}
		}
	})
}

func newAuditChains() *cobra.Command {
	var rewound bool
	cmd := &cobra.Command{
		Use: "chains", Short: "Show the ends of the nodes' access logs as the audit log has them", Args: cobra.NoArgs,
		Long: `chains lists, by node, the number and the hash of the last line that is anchored, and how often a node came back
with less than that or something else: its disk was lost, restored, or changed.`,
		Example: "  shoal audit chains\n  shoal audit chains --rewound",
	}
	cmd.Flags().BoolVar(&rewound, "rewound", false, "only those that did not continue")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		all := []audit.Chain{}
		for after := meta.NodeID(""); ; {
			page, err := c.AuditChains(ctx, after)
			if err != nil {
				return err
			}
			for _, chain := range page {
				if after = chain.Head.Node; !rewound || chain.Rewound > 0 {
					all = append(all, chain)
				}
			}
			if len(page) == 0 {
				break
			}
		}
		return out.print(cmd, all, func() {
			var rows [][]string
			for _, chain := range all {
				state := ""
				if chain.Rewound > 0 {
					state = fmt.Sprintf("rewound %d times, last %s, %d lines lost", chain.Rewound, instant(chain.RewoundAt), chain.Lost)
				}
				rows = append(rows, []string{string(chain.Head.Node), strconv.FormatUint(chain.Head.Seq, 10), instant(chain.Head.Time), state})
			}
			table(cmd, []string{"node", "lines", "anchored", "state"}, rows)
		})
	})
}

// auditNotes says what is wrong with the audit log, nothing while all is well.
func auditNotes(w io.Writer, t client.AuditTrouble) {
	if t.Rewound != "" {
		fmt.Fprintf(w, "\nWARNING: %s: shoal audit verify, and shoal doctor on the node\n", clip(t.Rewound, 0))
	}
	for _, c := range t.Chains {
		fmt.Fprintf(w, "\nthe chain of node %s lost %d lines, last at %s: shoal audit chains --rewound\n", clip(string(c.Node), 0), c.Lost, instant(c.Last))
	}
}

func newAuditRetention() *cobra.Command {
	var keep time.Duration
	cmd := &cobra.Command{
		Use: "retention", Short: "Say how long entries stay, or show it", Args: cobra.NoArgs,
		Long: `retention sets for how long entries stay at least. Older ones go once they were exported (shoal audit export
--exported says so); their hashes stay, so that what was exported can be proved and verified for ever. Without a
--keep, and with --keep 0, which is the standard, entries stay for ever.`,
		Example: "  shoal audit retention\n  shoal audit retention --keep 2160h",
	}
	cmd.Flags().DurationVar(&keep, "keep", 0, "at least 1h; 0 is for ever")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		var r audit.Retention
		if set := given(cmd, "keep", keep); set != nil {
			var err error
			if r, err = c.SetAuditRetention(ctx, set, nil); err != nil {
				return err
			}
		} else {
			s, err := c.AuditLog(ctx)
			if err != nil {
				return err
			}
			r = s.Retention
		}
		return out.print(cmd, r, func() {
			text := "for ever"
			if r.Keep > 0 {
				text = "for " + r.Keep.String() + " and until they are exported"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "entries stay %s; exported up to %d, pruned up to %d\n", text, r.Exported, r.Pruned)
		})
	})
}
