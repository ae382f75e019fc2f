package main

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// run executes the command line args and returns its error.
func run(args ...string) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	return root.Execute()
}

// A typing error is a failure, whatever level it is at: scripts must not go on.
func TestUnknownCommandsFail(t *testing.T) {
	for _, line := range []string{"nope", "tenant nope", "repo crate acme/app", "token nope", "region nope", "trust nope", "config nope"} {
		if err := run(strings.Fields(line)...); err == nil {
			t.Errorf("shoal %s succeeds", line)
		}
	}
	if err := run("repo", "crate"); err == nil || !strings.Contains(err.Error(), `"create"`) {
		t.Errorf("shoal repo crate: %v, want a suggestion of create", err)
	}
	if err := run("tenant"); err != nil {
		t.Errorf("shoal tenant shows its verbs, not %v", err)
	}
}

// A credential for an upstream that cannot be read is known before anything is made.
func TestUpstreamCredentialsAreReadFirst(t *testing.T) {
	for line, want := range map[string]string{
		"--upstream-user ada":                                  "--upstream-user needs --upstream-token-file",
		"--upstream-token-file /nowhere/token.txt":             "/nowhere/token.txt",
		"--upstream-token-file token --no-upstream-credential": "not both",
	} {
		for _, verb := range []string{"create", "set"} {
			args := append([]string{"repo", verb, "acme/hub", "--upstream", "https://registry.example"}, strings.Fields(line)...)
			if err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("shoal %s: %v, want %q", strings.Join(args, " "), err, want)
			}
		}
	}
}

// Every verb has an example in its help.
func TestEveryVerbHasAnExample(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
	walk(newRoot())
}
