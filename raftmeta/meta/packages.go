package meta

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// MaxSummaryBytes bounds Version.Summary and File.Summary. What is larger is a file of
// the version, and the summary stays empty.
const MaxSummaryBytes = 24 << 10

// MaxMarkReasonBytes bounds the reason of a mark.
const MaxMarkReasonBytes = 1024

// Mark is one thing that was said of a version, by whom and when.
type Mark struct {
	Reason string `cbor:"1,keyasint,omitempty" json:"reason,omitempty"`
	By     string `cbor:"2,keyasint,omitempty" json:"by"`
	At     Time   `cbor:"3,keyasint,omitempty" json:"at"`
}

// Marks are what was said of a version. A yanked one is not chosen any more unless it is
// asked for by name, an unlisted one is not shown in searches and lists, a deprecated one
// comes with a warning.
type Marks struct {
	Yanked     *Mark `cbor:"1,keyasint,omitempty" json:"yanked,omitempty"`
	Unlisted   *Mark `cbor:"2,keyasint,omitempty" json:"unlisted,omitempty"`
	Deprecated *Mark `cbor:"3,keyasint,omitempty" json:"deprecated,omitempty"`
}

// Marking changes marks: true sets one with the Reason, false takes it away, nil leaves it
// as it is.
type Marking struct {
	Yanked     *bool  `cbor:"1,keyasint,omitempty" json:"yanked,omitempty"`
	Unlisted   *bool  `cbor:"2,keyasint,omitempty" json:"unlisted,omitempty"`
	Deprecated *bool  `cbor:"3,keyasint,omitempty" json:"deprecated,omitempty"`
	Reason     string `cbor:"4,keyasint,omitempty" json:"reason,omitempty"`
}

// Check refuses a marking that says nothing, or too much.
//
// Errors: ErrInvalid.
func (m Marking) Check() error {
	if m.Yanked == nil && m.Unlisted == nil && m.Deprecated == nil {
		return fmt.Errorf("nothing is marked: say yanked, unlisted or deprecated: %w", ErrInvalid)
	}
	if m.Reason == "" {
		return nil
	}
	// People write several lines into a deprecation.
	lines := strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(m.Reason)
	return checkText("reason", lines, MaxMarkReasonBytes)
}

// Promotion is how a version came here from another repository of the tenant.
type Promotion struct {
	From RepoRef `cbor:"1,keyasint,omitempty" json:"from"`
	// Revision is that of the version there, CreatedBy and PublishTime are who published
	// it first, and when.
	Revision    uint64 `cbor:"2,keyasint,omitempty" json:"revision"`
	CreatedBy   string `cbor:"3,keyasint,omitempty" json:"created_by"`
	PublishTime Time   `cbor:"4,keyasint,omitempty" json:"publish_time"`
	By          string `cbor:"5,keyasint,omitempty" json:"by"`
	At          Time   `cbor:"6,keyasint,omitempty" json:"at"`
	Reason      string `cbor:"7,keyasint,omitempty" json:"reason,omitempty"`
}

// Bounds of groups and proxies.
const (
	// MaxMembers bounds Repository.Members.
	MaxMembers = 16
	// MaxUpstreamPatterns bounds Upstream.Allow and Upstream.Block, each.
	MaxUpstreamPatterns = 256
	// MaxUpstreamURLBytes bounds Upstream.URL.
	MaxUpstreamURLBytes = 1024
	// MaxUpstreamAge bounds the durations of an Upstream.
	MaxUpstreamAge = 10 * 365 * 24 * time.Hour
)

// Upstream is a foreign registry that a proxy repository caches.
type Upstream struct {
	// URL is where its protocol begins: https, or http, without user, query and fragment.
	URL string `cbor:"1,keyasint,omitempty" json:"url"`
	// Credential names the sealed secret that it is asked with, "" for none.
	Credential string `cbor:"2,keyasint,omitempty" json:"credential,omitempty"`
	// Allow and Block are patterns of package names, in which * is any run of characters.
	// What is blocked is never fetched or served; when something is allowed all else is
	// blocked.
	Allow []string `cbor:"3,keyasint,omitempty" json:"allow,omitempty"`
	Block []string `cbor:"4,keyasint,omitempty" json:"block,omitempty"`
	// MinReleaseAge is how long ago a version must have been released there; 0 is at once.
	MinReleaseAge time.Duration `cbor:"5,keyasint,omitempty" json:"min_release_age,omitempty"`
	// DocumentTTL is how long a document is served before the upstream is asked again, and
	// NegativeTTL how long what it does not have is not asked for again; 0 is the
	// standard of the node.
	DocumentTTL time.Duration `cbor:"6,keyasint,omitempty" json:"document_ttl,omitempty"`
	NegativeTTL time.Duration `cbor:"7,keyasint,omitempty" json:"negative_ttl,omitempty"`
}

var secretName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$`)

// Check refuses an upstream that cannot be asked.
//
// Errors: ErrInvalid.
func (u Upstream) Check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("upstream: %s: %w", fmt.Sprintf(format, args...), ErrInvalid)
	}
	if len(u.URL) > MaxUpstreamURLBytes {
		return fail("a URL of %d bytes is over the limit of %d", len(u.URL), MaxUpstreamURLBytes)
	}
	// What does not parse is not repeated: it may hold a password.
	at, err := url.Parse(u.URL)
	switch {
	case err != nil || at.Scheme != "https" && at.Scheme != "http" || at.Host == "" || at.Opaque != "":
		return fail("give the URL of the registry, like https://registry.npmjs.org")
	case at.User != nil:
		return fail("the URL holds a user or password: give them on their own, they are kept sealed")
	case at.RawQuery != "" || at.ForceQuery || at.Fragment != "":
		return fail("the URL holds a query or fragment: leave it out")
	}
	if err := checkText("upstream URL", u.URL, MaxUpstreamURLBytes); err != nil {
		return err
	}
	if u.Credential != "" && !secretName.MatchString(u.Credential) {
		return fail("credential %q is no name of a secret", u.Credential)
	}
	for _, list := range [][]string{u.Allow, u.Block} {
		if len(list) > MaxUpstreamPatterns {
			return fail("%d patterns are over the limit of %d", len(list), MaxUpstreamPatterns)
		}
		for _, p := range list {
			if err := checkText("pattern of package names", p, MaxPackageBytes); err != nil {
				return err
			}
		}
	}
	for i, d := range []time.Duration{u.MinReleaseAge, u.DocumentTTL, u.NegativeTTL} {
		if d < 0 || d > MaxUpstreamAge {
			return fail("%s of %s: use 0s to %s", []string{"minimum release age", "document TTL", "negative TTL"}[i], d, MaxUpstreamAge)
		}
	}
	return nil
}

// Admits reports whether a package may be fetched and served, and when not which rule
// says so: `block PATTERN`, or `allow` when no pattern of Allow matches.
func (u Upstream) Admits(pkg string) (ok bool, rule string) {
	for _, p := range u.Block {
		if MatchPackage(p, pkg) {
			return false, "block " + p
		}
	}
	for _, p := range u.Allow {
		if MatchPackage(p, pkg) {
			return true, ""
		}
	}
	if len(u.Allow) > 0 {
		return false, "allow"
	}
	return true, ""
}

// MatchPackage reports whether a package name matches a pattern in which * is any run of
// characters. It takes time in proportion to the product of their lengths at most.
func MatchPackage(pattern, name string) bool {
	p, n := 0, 0
	star, from := -1, 0 // the last * and where what it took ends
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && pattern[p] == name[n]:
			p, n = p+1, n+1
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// ReadOnlyError says that a repository takes no writes: a proxy, or a group without a
// member to write to.
type ReadOnlyError struct {
	Repo RepoRef
	Kind Kind
}

func (e *ReadOnlyError) Error() string {
	if e.Kind == KindGroup {
		return fmt.Sprintf("group %s takes no writes: write to a hosted member of it, or name one with `shoal repo set %s --write-to MEMBER`", e.Repo, e.Repo)
	}
	return fmt.Sprintf("repository %s is a %s and takes no writes: write to a hosted repository", e.Repo, e.Kind)
}

// Unwrap returns ErrConflict.
func (e *ReadOnlyError) Unwrap() error { return ErrConflict }
