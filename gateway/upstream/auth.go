package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Upstreams that keep images ask for a token of a token server (distribution's token
// specification): 401 names it, it gives a token for a scope, to strangers too. Others
// take what the proxy was given, with the first request.

// tokenKey says what a token is for. Images of one name are one scope.
type tokenKey struct {
	repo    meta.RepoRef
	host    string
	pkg     string
	version uint64 // of the credential
}

type bearer struct {
	token trust.Secret
	until time.Time
}

const (
	maxTokenBytes = 64 << 10
	// tokenTime is how long a token holds that does not say so, by the specification;
	// it is given up tokenSlack before its end.
	tokenTime  = 60 * time.Second
	tokenSlack = 5 * time.Second
	maxToken   = time.Hour
)

func (d *download) tokenKey() tokenKey {
	return tokenKey{repo: d.repo.Ref, host: d.target.Host, pkg: d.want.Package, version: d.credential.Version}
}

// authorize adds to a request to the upstream's own host what it is to be asked with.
func (d *download) authorize(r *http.Request) {
	if !d.own {
		return
	}
	if b, ok := d.engine.tokens.Get(d.tokenKey()); ok && d.engine.cfg.Now().Before(b.until) {
		r.Header.Set("Authorization", "Bearer "+b.token.Reveal())
		return
	}
	d.credential.set(r)
}

func (c Credential) set(r *http.Request) {
	switch {
	case c.Secret == "":
	case c.User == "":
		r.Header.Set("Authorization", "Bearer "+c.Secret.Reveal())
	default:
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Secret.Reveal())))
	}
}

// answerChallenge gets the token that a 401 asks for; false when it asks for none.
func (d *download) answerChallenge(ctx context.Context, response *http.Response) (bool, error) {
	if !d.own {
		return false, nil
	}
	challenge := parseChallenge(response.Header.Values("WWW-Authenticate"))
	realm, err := url.Parse(challenge["realm"])
	if err != nil || realm.Host == "" || realm.User != nil {
		return false, nil
	}
	if realm.Scheme != "https" && (realm.Scheme != "http" || d.target.Scheme != "http") {
		return false, fmt.Errorf("upstream %s names a token server without https: %w", d.target.Host, protocol.ErrUpstream)
	}
	q := realm.Query()
	for _, name := range []string{"service", "scope"} {
		if v := challenge[name]; v != "" {
			q.Set(name, v)
		}
	}
	if d.credential.User != "" {
		q.Set("account", d.credential.User)
	}
	realm.RawQuery = q.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return false, fmt.Errorf("token server of upstream %s: %w", d.target.Host, protocol.ErrUpstream)
	}
	request.Header.Set("User-Agent", userAgent)
	d.credential.set(request)
	answer, err := d.engine.client.Do(request)
	if err != nil {
		return false, d.unanswered(err)
	}
	defer answer.Body.Close()
	switch meaning(answer.StatusCode, false, false) {
	case hasBytes:
	case failing:
		return false, d.later(fmt.Sprintf("its token server answers %d", answer.StatusCode), retryAfter(answer.Header, d.engine.cfg.Now()), nil)
	default:
		if d.credential.Secret == "" {
			return false, nil // it is not for strangers
		}
		return false, fmt.Errorf("the token server of %s answers %d: %w", d.target.Host, answer.StatusCode, errRefused)
	}
	var doc struct {
		Token       trust.Secret `json:"token"`
		AccessToken trust.Secret `json:"access_token"`
		ExpiresIn   int64        `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxTokenBytes)).Decode(&doc); err != nil {
		return false, fmt.Errorf("the token server of %s gives no token: %w", d.target.Host, protocol.ErrUpstream)
	}
	token := doc.Token
	if token == "" {
		token = doc.AccessToken
	}
	if token == "" || strings.ContainsFunc(token.Reveal(), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return false, fmt.Errorf("the token server of %s gives no token: %w", d.target.Host, protocol.ErrUpstream)
	}
	holds := tokenTime
	if doc.ExpiresIn > 0 {
		holds = min(time.Duration(min(doc.ExpiresIn, int64(maxToken/time.Second)))*time.Second, maxToken)
	}
	d.engine.tokens.Add(d.tokenKey(), bearer{token: token, until: d.engine.cfg.Now().Add(max(holds-tokenSlack, tokenSlack))})
	return true, nil
}

// parseChallenge reads the parameters of the Bearer challenge (RFC 9110, 11.6.1); nil
// when there is none.
func parseChallenge(lines []string) map[string]string {
	const maxParameters = 16
	for _, line := range lines {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		params := map[string]string{}
		for len(params) < maxParameters {
			rest = strings.TrimLeft(rest, " \t,")
			name, value, ok := strings.Cut(rest, "=")
			if !ok {
				break
			}
			name = strings.ToLower(strings.TrimSpace(name))
			if strings.HasPrefix(value, `"`) {
				value, rest = unquote(value[1:])
			} else {
				value, rest, _ = strings.Cut(value, ",")
				value = strings.TrimSpace(value)
			}
			params[name] = value
		}
		return params
	}
	return nil
}

// unquote reads a quoted string behind its first quote, and returns what follows.
func unquote(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
