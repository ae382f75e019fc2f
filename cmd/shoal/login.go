package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// loginFlags say how to log in.
type loginFlags struct {
	to                       target
	out                      output
	user, tenant             string
	passwordIn, tokenIn, job bool
	remove                   bool
}

func newLogin() *cobra.Command {
	var l loginFlags
	cmd := &cobra.Command{
		Use:   "login [URL]",
		Short: "Log in, and keep the credential for the client verbs",
		Long: `login keeps a server and a credential in a file that only you can read. The credential is one of

  --user NAME            a session of eight hours, for the password that is asked for (or --password-stdin)
  --token-stdin          a token from standard input (without it --auth or SHOAL_TOKEN)
  --oidc-token-stdin     what a CI job gets for the token of its issuer (--tenant when several trust it)

With https and a cluster's own certificates, give the root's hash with --trust.`,
		Example: `  shoal login https://first.example:5000 --trust 5f1c... --user ada
  shoal token create --ttl 720h | shoal login --token-stdin
  echo $ID_TOKEN | shoal login https://first.example:5000 --oidc-token-stdin --tenant acme`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return l.run(cmd, args) }
	l.to.flags(cmd)
	l.out.flag(cmd)
	f := cmd.Flags()
	f.StringVarP(&l.user, "user", "u", "", "log in as this user, with a password")
	f.BoolVar(&l.passwordIn, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&l.tokenIn, "token-stdin", false, "read a token from standard input")
	f.BoolVar(&l.job, "oidc-token-stdin", false, "read the token of a CI job's issuer from standard input")
	f.StringVar(&l.tenant, "tenant", "", "tenant that trusts the issuer")
	f.BoolVar(&l.remove, "forget", false, "remove what is kept, as logout does without a server")
	cmd.MarkFlagsMutuallyExclusive("user", "token-stdin", "oidc-token-stdin", "forget")
	return cmd
}

func (l *loginFlags) run(cmd *cobra.Command, args []string) error {
	name, err := loginFile()
	if err != nil {
		return err
	}
	if l.remove {
		return forget(cmd, &l.out, name)
	}
	if len(args) == 1 {
		l.to.server = args[0]
	}
	kept, err := l.to.resolve()
	if err != nil {
		return err
	}
	if err := l.credential(cmd, &kept); err != nil {
		return err
	}
	c, err := kept.client()
	if err != nil {
		return err
	}
	who, err := c.Whoami(cmd.Context())
	if err != nil {
		return err
	}
	if err := kept.keep(name); err != nil {
		return err
	}
	return l.out.print(cmd, who, func() {
		fmt.Fprintf(cmd.OutOrStdout(), "%s knows you as %s; kept in %s\n", kept.Server, who.Name, name)
	})
}

func (l login) keep(name string) error {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return node.WriteFileAtomic(name, raw, 0o600)
}

// credential finds the token to keep.
func (l *loginFlags) credential(cmd *cobra.Command, kept *login) error {
	ctx := cmd.Context()
	switch {
	case l.tokenIn:
		token, err := readSecret(cmd.InOrStdin())
		kept.Token = token
		return err
	case l.job:
		token, err := readSecret(cmd.InOrStdin())
		if err != nil {
			return err
		}
		kept.Token, err = kept.exchange(ctx, token, l.tenant)
		return err
	case l.user != "":
		password, err := l.password(cmd)
		if err != nil {
			return err
		}
		kept.Token = ""
		c, err := kept.client()
		if err != nil {
			return err
		}
		session, err := c.Login(ctx, client.NewLogin{User: l.user, Password: password})
		kept.Token = session.Text
		return err
	}
	if kept.Token == "" {
		return errors.New("say who you are: --user NAME, --token-stdin or --oidc-token-stdin")
	}
	return nil
}

func (l *loginFlags) password(cmd *cobra.Command) (string, error) {
	if l.passwordIn {
		return readSecret(cmd.InOrStdin())
	}
	return promptPassword(cmd, "Password of "+l.user)
}

// promptPassword asks for a password without showing it.
func promptPassword(cmd *cobra.Command, prompt string) (string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errors.New("standard input is no terminal: use --password-stdin")
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: ", prompt)
	raw, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	return string(raw), err
}

// exchange gets a credential for the token of a job's issuer (RFC 8693).
func (l login) exchange(ctx context.Context, token, tenant string) (string, error) {
	c, err := l.client()
	if err != nil {
		return "", err
	}
	form := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
		"subject_token":      {token},
	}
	if tenant != "" {
		form.Set("audience", tenant)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(l.Server, "/")+"/token/exchange", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := c.HTTP.Do(request)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, meta.ErrUnavailable)
	}
	defer answer.Body.Close()
	var body struct {
		Token       string `json:"access_token"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&body); err != nil || answer.StatusCode == http.StatusOK && body.Token == "" {
		return "", fmt.Errorf("%s answers %s, not as a shoal gateway does", l.Server, answer.Status)
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the exchange: %s: %w", cmp.Or(body.Description, body.Error, answer.Status), meta.ErrDenied)
	}
	return body.Token, nil
}

func forget(cmd *cobra.Command, out *output, name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return out.print(cmd, map[string]string{"forgotten": name}, func() {
		fmt.Fprintln(cmd.OutOrStdout(), "the credential is forgotten")
	})
}

func newLogout() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use: "logout", Short: "End the session that `shoal login` began, and forget it", Args: cobra.NoArgs,
		Long:    "logout ends a session, or what a job exchanged, at the server and removes it from this machine. A token that was kept is removed from here and goes on elsewhere: `shoal token revoke` ends it.",
		Example: "  shoal logout",
	}
	out.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		name, err := loginFile()
		if err != nil {
			return err
		}
		kept, err := readLogin()
		if err != nil {
			return err
		}
		if kept.Server != "" && kept.Token != "" {
			c, err := kept.client()
			if err != nil {
				return err
			}
			// What ended already needs no end.
			if err := c.Logout(cmd.Context()); err != nil && !errors.Is(err, meta.ErrDenied) {
				return fmt.Errorf("the session goes on until it ends by itself, forget it with `shoal login --forget`: %w", err)
			}
		}
		return forget(cmd, &out, name)
	}
	return cmd
}

func newWhoami() *cobra.Command {
	cmd := &cobra.Command{Use: "whoami", Short: "Show who you are to the registry, and what you may", Args: cobra.NoArgs, Example: "  shoal whoami --json"}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		who, err := c.Whoami(ctx)
		if err != nil {
			return err
		}
		return out.print(cmd, who, func() {
			w := cmd.OutOrStdout()
			fmt.Fprintln(w, who.Name)
			if who.Token != "" {
				fmt.Fprintf(w, "token %s\n", who.Token)
			}
			if who.Admin {
				fmt.Fprintln(w, "may everything: it is the administrator")
			}
			for _, r := range who.Rights {
				not := ""
				if r.Deny {
					not = "not "
				}
				fmt.Fprintf(w, "%s%s on %s\n", not, cmp.Or(r.Role, narrowing([]meta.Right{r})), r.Repository)
			}
			for _, limits := range who.Limits {
				fmt.Fprintf(w, "narrowed to %s\n", cmp.Or(narrowing(limits), "nothing"))
			}
		})
	})
}

func newUserPasswd() *cobra.Command {
	var (
		in, remove bool
	)
	cmd := &cobra.Command{
		Use: "passwd NAME", Short: "Set a user's password", Args: cobra.ExactArgs(1),
		Long: `passwd asks for the new password of a user, and for the present one when it is your own; with --password-stdin
they are lines of standard input, the new one first. Sessions that the old password has opened end.`,
		Example: "  shoal user passwd ada\n  shoal user passwd ada --remove",
	}
	cmd.Flags().BoolVar(&in, "password-stdin", false, "read the new password, and for your own the present one, as lines of standard input")
	cmd.Flags().BoolVar(&remove, "remove", false, "take the password away: only tokens and issuers are left")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		name := strings.TrimPrefix(args[0], meta.KindUser+":")
		who, err := c.Whoami(ctx)
		if err != nil {
			return err
		}
		var p client.NewPassword
		own := who.Name == meta.KindUser+":"+name
		lines := bufio.NewScanner(io.LimitReader(cmd.InOrStdin(), 16<<10))
		ask := func(prompt string) (string, error) {
			if !in {
				return promptPassword(cmd, prompt)
			}
			if !lines.Scan() {
				return "", errors.Join(errors.New("standard input has too few lines"), lines.Err())
			}
			return lines.Text(), nil
		}
		if !remove {
			if p.Password, err = ask("New password of " + name); err != nil {
				return err
			}
			if !in {
				again, err := ask("Once more")
				if err != nil {
					return err
				}
				if again != p.Password {
					return errors.New("the two are not the same")
				}
			}
		}
		if own {
			if p.Current, err = ask("Present password of " + name); err != nil && !in {
				return err
			}
		}
		if err := c.SetPassword(ctx, name, p); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"user": name}, func() { fmt.Fprintf(cmd.OutOrStdout(), "the password of %s is set\n", name) })
	})
}
