package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/clients"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// setup is `shoal setup`.
type setup struct {
	out                           output
	repo, agent, name, auth, root string
	mirror, suite, component      string
	write, showToken, noToken     bool
}

func newSetup() *cobra.Command {
	var s setup
	cmd := &cobra.Command{
		Use:   "setup CLIENT --repo TENANT/REPOSITORY",
		Short: "Configure a client (" + strings.Join(clients.Names(), ", ") + ") for a repository",
		Long: `setup prints what a stock client's configuration has to have to use a repository by the gateway of this machine, or
with --write puts it there: what the files have otherwise stays, the file as it was is kept beside it with .before-shoal
at its end, and once more changes nothing.

The credential is --auth, SHOAL_TOKEN or what ` + "`shoal login`" + ` keeps; without one the configuration has none, which is
enough where the gateway lets the host read. It is written into files that only you can read, and printed with
--show-token alone.`,
		Example: `  shoal setup npm --repo acme/npm
  shoal setup pip --repo acme/pypi --write
  shoal setup containerd --repo acme/hub --mirror docker.io --write
  shoal setup apt --repo acme/deb --suite stable --component main --root /srv/image --write`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: clients.Names(),
		RunE:      func(cmd *cobra.Command, args []string) error { return s.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&s.repo, "repo", "", "the repository, TENANT/REPOSITORY")
	f.StringVar(&s.agent, "agent", "", "URL of the gateway (default: that of this machine)")
	f.StringVar(&s.name, "name", "shoal", "what the client calls the repository")
	f.StringVar(&s.auth, "auth", "", "token (SHOAL_TOKEN)")
	f.BoolVar(&s.write, "write", false, "change the files")
	f.BoolVar(&s.showToken, "show-token", false, "print the token, too")
	f.BoolVar(&s.noToken, "no-token", false, "leave the credential out")
	f.StringVar(&s.root, "root", "", "folder to take for /, to prepare an image")
	f.StringVar(&s.mirror, "mirror", "", "registry whose images come by this repository, as docker.io (containerd, podman)")
	f.StringVar(&s.suite, "suite", "stable", "suite of apt")
	f.StringVar(&s.component, "component", "main", "component of apt")
	s.out.flag(cmd)
	if err := cmd.MarkFlagRequired("repo"); err != nil {
		panic(err) // the flag is above
	}
	return cmd
}

// configured is one file as setup prints it.
type configured struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"` // with TOKEN for the token, unless that is asked for
	Changed bool   `json:"changed"`
	Backup  string `json:"backup,omitempty"`
}

func (s *setup) run(cmd *cobra.Command, name string) error {
	client, err := clients.Find(name)
	if err != nil {
		return err
	}
	place, from, err := s.place()
	if err != nil {
		return err
	}
	if client.Key != "" {
		if place.Key, err = signingKey(cmd.Context(), place, client); err != nil && s.write {
			return err
		}
	}
	real := place.Token
	if !s.write && !s.showToken && real != "" {
		place.Token = "TOKEN"
	}
	plan, err := client.For(place)
	if err != nil {
		return err
	}
	var files []configured
	for _, e := range plan.Edits {
		file, err := s.apply(e)
		if err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
		if !s.showToken { // what the file has otherwise may be secret, too
			file.Content = ""
			if !s.write {
				fresh, err := e.Apply(nil)
				if err != nil {
					return err
				}
				file.Content = string(fresh)
			}
		}
		files = append(files, file)
	}
	notes := plan.Notes
	switch {
	case real == "" && !s.noToken:
		notes = append(notes, "without a credential: `shoal login`, or --auth, gives one")
	case real != "" && !s.write && !s.showToken:
		notes = append(notes, "TOKEN stands for that of "+from+"; --show-token prints it, --write writes it")
	}
	return s.out.print(cmd, map[string]any{"files": files, "notes": notes}, func() {
		w := cmd.OutOrStdout()
		for _, f := range files {
			switch {
			case !s.write:
				fmt.Fprintf(w, "# %s\n%s\n", f.Path, f.Content)
			case f.Backup != "":
				fmt.Fprintf(w, "changed    %s (it was: %s)\n", f.Path, f.Backup)
			case f.Changed:
				fmt.Fprintf(w, "written    %s\n", f.Path)
			default:
				fmt.Fprintf(w, "unchanged  %s\n", f.Path)
			}
		}
		for _, note := range notes {
			fmt.Fprintf(w, "# %s\n", note)
		}
	})
}

// place reads the flags; from says where the token is from.
func (s *setup) place() (p clients.Place, from string, err error) {
	if p.Repo, err = meta.ParseRepoRef(s.repo); err != nil {
		return p, "", err
	}
	agent := s.agent
	if agent == "" {
		defaults, err := config.Defaults("agent")
		if err != nil {
			return p, "", err
		}
		agent = "http://" + defaults.Gateway
	}
	if !strings.Contains(agent, "://") {
		agent = "http://" + agent
	}
	if p.Agent, err = url.Parse(agent); err != nil {
		return p, "", fmt.Errorf("agent %q: write http://HOST:PORT or https://HOST:PORT: %w", agent, meta.ErrInvalid)
	}
	if !s.noToken {
		kept, err := readLogin()
		if err != nil {
			return p, "", err
		}
		file, err := loginFile()
		if err != nil {
			return p, "", err
		}
		p.Token = trust.Secret(cmp.Or(s.auth, os.Getenv("SHOAL_TOKEN"), kept.Token))
		from = file
		if s.auth != "" {
			from = "--auth"
		} else if os.Getenv("SHOAL_TOKEN") != "" {
			from = "SHOAL_TOKEN"
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return p, "", err
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return p, "", err
	}
	p.Home, p.Config = filepath.ToSlash(home), filepath.ToSlash(dir)
	p.Name, p.Mirror, p.Suite, p.Component = s.name, s.mirror, s.suite, s.component
	return p, from, nil
}

// beforeShoal ends the names of files as they were.
const beforeShoal = ".before-shoal"

// maxConfigBytes bounds a file that is edited.
const maxConfigBytes = 4 << 20

// apply works out one file, and writes it when asked to.
func (s *setup) apply(e clients.Edit) (configured, error) {
	path := filepath.FromSlash(e.Path)
	if s.root != "" {
		path = filepath.Join(s.root, path)
	}
	c := configured{Path: path}
	if err := within(s.root, path); err != nil {
		return c, err
	}
	// A link, as those who keep their dot files elsewhere have, stays one.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	old, mode, err := readConfig(path, e.Mode())
	if err != nil {
		return c, err
	}
	next, err := e.Apply(old)
	if err != nil {
		return c, err
	}
	c.Content = string(next)
	if e.Secret {
		mode &= 0o700
	}
	c.Changed = !bytes.Equal(old, next)
	if !s.write || !c.Changed {
		return c, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return c, err
	}
	if old != nil {
		c.Backup = path + beforeShoal
		if err := node.WriteFileAtomic(c.Backup, old, mode); err != nil {
			return c, err
		}
	}
	return c, node.WriteFileAtomic(path, next, mode)
}

// within refuses a path that a link leads out of the folder that is taken for /: the links
// of an image mean its own files, not this machine's.
//
// Errors: meta.ErrInvalid.
func within(root, path string) error {
	if root == "" {
		return nil
	}
	top, err := filepath.EvalSymlinks(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is in it
	}
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	for errors.Is(err, fs.ErrNotExist) {
		path = filepath.Dir(path)
		real, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(top, real); err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("a link leads to %s, out of %s: %w", real, root, meta.ErrInvalid)
	}
	return nil
}

// readConfig reads a file; nil when there is none, whose mode is then to be standard.
func readConfig(path string, standard fs.FileMode) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, standard, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigBytes {
		return nil, 0, fmt.Errorf("it is no file of at most %d bytes: %w", maxConfigBytes, meta.ErrInvalid)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if b == nil {
		b = []byte{}
	}
	return b, info.Mode().Perm(), err
}

// signingKey gets the key that the repository signs with.
func signingKey(ctx context.Context, p clients.Place, c clients.Client) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	at := p.Agent.Scheme + "://" + p.Agent.Host + "/" + c.Format + "/" + p.Repo.String() + "/" + c.Key
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	if p.Token != "" {
		r.SetBasicAuth("shoal", p.Token.Reveal())
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("get the signing key: %w", err)
	}
	defer answer.Body.Close()
	key, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("get the signing key: %w", err)
	}
	if answer.StatusCode != http.StatusOK || !bytes.HasPrefix(key, []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----")) {
		return nil, fmt.Errorf("%s answers %s and no signing key: is the repository one of %s, and has something been published?", at, answer.Status, c.Format)
	}
	return key, nil
}
