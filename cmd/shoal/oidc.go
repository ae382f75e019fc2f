package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newOIDC() *cobra.Command {
	root := group("oidc", "Issuers: whose jobs may do what, without a secret of ours")
	root.AddCommand(newOIDCAdd(), newOIDCList(), newOIDCShow(), newOIDCRemove(), newOIDCTest())
	return root
}

// parseRule reads `NAME: ROLE on PATTERN [in ENVIRONMENT] [for LIFE] when CEL`.
func parseRule(text string) (r meta.IssuerRule, err error) {
	wrong := fmt.Errorf("rule %q: write NAME: ROLE on PATTERN [in ENVIRONMENT] [for LIFE] when EXPRESSION", text)
	head, when, ok := strings.Cut(text, " when ")
	name, rest, named := strings.Cut(head, ":")
	words := strings.Fields(rest)
	if !ok || !named || len(words) < 3 || words[1] != "on" || len(words)%2 == 0 {
		return r, wrong
	}
	r = meta.IssuerRule{Name: strings.TrimSpace(name), When: strings.TrimSpace(when), Role: words[0], Repository: words[2]}
	for i := 3; i < len(words); i += 2 {
		switch words[i] {
		case "in":
			r.Environment = words[i+1]
		case "for":
			if r.Life, err = time.ParseDuration(words[i+1]); err != nil {
				return r, fmt.Errorf("rule %s: life %q: %w", r.Name, words[i+1], err)
			}
		default:
			return r, wrong
		}
	}
	return r, nil
}

func ruleText(r meta.IssuerRule) string {
	text := fmt.Sprintf("%s: %s on %s", r.Name, r.Role, r.Repository)
	if r.Environment != "" {
		text += " in " + r.Environment
	}
	if r.Life != 0 {
		text += " for " + r.Life.String()
	}
	return text + " when " + r.When
}

// splitIssuer reads `TENANT/ISSUER`.
func splitIssuer(arg string) (meta.TenantName, string, error) {
	tenant, name, ok := strings.Cut(arg, "/")
	if !ok {
		return "", "", fmt.Errorf("issuer %q: write TENANT/ISSUER", arg)
	}
	return meta.TenantName(tenant), name, meta.CheckTenant(meta.TenantName(tenant))
}

func newOIDCAdd() *cobra.Command {
	var (
		n           client.NewIssuer
		rules       []string
		jwks, roots string
		rulesFile   string
	)
	cmd := &cobra.Command{
		Use: "add TENANT/ISSUER", Short: "Trust an issuer, or change what its jobs may do", Args: cobra.ExactArgs(1),
		Long: `add lets jobs exchange the OpenID Connect token of their CI system for one of this registry, of 15 minutes
at most. A rule says which jobs, by a CEL expression over claims, and what they get:

  NAME: ROLE on PATTERN [in ENVIRONMENT] [for LIFE] when EXPRESSION

A job that no rule is true for gets nothing. The keys of the issuer are fetched now and by the hour, and kept: when it
is down, jobs go on. Where there is no way to it, pin its keys with --jwks.`,
		Example: `  shoal oidc add acme/forge --url https://gitlab.example --audience https://registry.example \
    --rule 'main: publisher on acme/app when claims.project_path == "acme/app" && claims.ref_protected == "true"'
  shoal oidc add acme/github --url https://token.actions.githubusercontent.com --audience shoal --rules rules.json`,
	}
	f := cmd.Flags()
	f.StringVar(&n.URL, "url", "", "the iss of its tokens, https://...")
	f.StringVar(&n.Audience, "audience", "", "the aud that its tokens must be for")
	f.StringArrayVar(&rules, "rule", nil, "a rule, as above; repeatable")
	f.StringVar(&rulesFile, "rules", "", "file of rules: JSON as `shoal oidc show --json` has them, or a rule a line")
	f.StringVar(&jwks, "jwks", "", "file with its JSON Web Key Set, which is then never fetched")
	f.StringVar(&roots, "ca", "", "file with the PEM certificates that its server is trusted by")
	for _, name := range []string{"url", "audience"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		tenant, name, err := splitIssuer(args[0])
		if err != nil {
			return err
		}
		if rulesFile != "" {
			if n.Rules, err = readRules(rulesFile); err != nil {
				return err
			}
		}
		for _, text := range rules {
			r, err := parseRule(text)
			if err != nil {
				return err
			}
			n.Rules = append(n.Rules, r)
		}
		for file, into := range map[string]*[]byte{jwks: &n.Keys, roots: &n.Roots} {
			if file == "" {
				continue
			}
			if *into, err = os.ReadFile(file); err != nil {
				return err
			}
		}
		i, err := c.PutIssuer(ctx, tenant, name, n)
		if err != nil {
			return err
		}
		return out.print(cmd, i, func() { showIssuer(cmd, i) })
	})
}

func readRules(file string) ([]meta.IssuerRule, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var rules []meta.IssuerRule
	if text := strings.TrimSpace(string(raw)); strings.HasPrefix(text, "[") {
		if err := json.Unmarshal(raw, &rules); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return rules, nil
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRule(line)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func showIssuer(cmd *cobra.Command, i meta.Issuer) {
	keys := "fetched " + instant(i.KeysAt)
	if i.Pinned {
		keys = "pinned " + instant(i.KeysAt)
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "issuer    %s\nurl       %s\naudience  %s\nkeys      %s, %d bytes\nchanged   at index %d, made by %s\n", i.ID(), clip(i.URL, 0), clip(i.Audience, 0), keys, len(i.Keys), i.Revision, i.CreatedBy)
	for _, r := range i.Rules {
		fmt.Fprintf(w, "rule      %s\n", clip(ruleText(r), 0))
	}
}

func newOIDCList() *cobra.Command {
	cmd := &cobra.Command{Use: "list TENANT", Short: "List the issuers that a tenant trusts", Args: cobra.ExactArgs(1), Example: "  shoal oidc list acme"}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		issuers, err := collect(c.Issuers(ctx, meta.TenantName(args[0])))
		if err != nil {
			return err
		}
		return out.print(cmd, issuers, func() {
			var rows [][]string
			for _, i := range issuers {
				keys := instant(i.KeysAt)
				if i.Pinned {
					keys = "pinned"
				}
				rows = append(rows, []string{i.ID(), i.URL, i.Audience, fmt.Sprint(len(i.Rules)), keys})
			}
			table(cmd, []string{"issuer", "url", "audience", "rules", "keys of"}, rows)
		})
	})
}

func newOIDCShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show TENANT/ISSUER", Short: "Show an issuer and its rules", Args: cobra.ExactArgs(1), Example: "  shoal oidc show acme/forge"}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		tenant, name, err := splitIssuer(args[0])
		if err != nil {
			return err
		}
		i, err := c.Issuer(ctx, tenant, name)
		if err != nil {
			return err
		}
		return out.print(cmd, i, func() { showIssuer(cmd, i) })
	})
}

func newOIDCRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm TENANT/ISSUER", Short: "Trust an issuer no more; what its jobs hold ends at once", Args: cobra.ExactArgs(1),
		Example: "  shoal oidc rm acme/forge",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		tenant, name, err := splitIssuer(args[0])
		if err != nil {
			return err
		}
		if err := c.RemoveIssuer(ctx, tenant, name); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"removed": args[0]}, func() { fmt.Fprintf(cmd.OutOrStdout(), "issuer %s is gone\n", args[0]) })
	})
}

func newOIDCTest() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test TENANT/ISSUER", Short: "Say what a job's token, on standard input, would be worth", Args: cobra.ExactArgs(1),
		Long:    "test verifies a token and evaluates all rules, and makes nothing of it. It fails when no rule is true.",
		Example: "  echo $CI_JOB_TOKEN | shoal oidc test acme/forge",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		tenant, name, err := splitIssuer(args[0])
		if err != nil {
			return err
		}
		token, err := readSecret(cmd.InOrStdin())
		if err != nil {
			return err
		}
		v, err := c.TestIssuer(ctx, tenant, name, token)
		if err != nil {
			return err
		}
		err = out.print(cmd, v, func() {
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "the token verifies: it is %s\n", clip(v.Principal, 0))
			for _, claim := range slices.Sorted(maps.Keys(v.Claims)) {
				fmt.Fprintf(w, "  claims.%s = %s\n", clip(claim, 0), clip(fmt.Sprint(v.Claims[claim]), 200))
			}
			for _, r := range v.Rules {
				fmt.Fprintf(w, "holds: %s\n", clip(ruleText(r), 0))
			}
			for _, rule := range slices.Sorted(maps.Keys(v.Failed)) {
				fmt.Fprintf(w, "rule %s does not hold: %s\n", rule, clip(v.Failed[rule], 0))
			}
		})
		if err == nil && len(v.Rules) == 0 {
			err = fmt.Errorf("no rule of %s is true for it, so it is worth nothing", args[0])
		}
		return err
	})
}

// readSecret reads one line, of at most 16 KiB.
func readSecret(r io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, 16<<10+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(raw), "\r\n")
	if text == "" || len(raw) > 16<<10 || strings.ContainsAny(text, "\r\n") {
		return "", fmt.Errorf("standard input has to be one line with the secret")
	}
	return text, nil
}
