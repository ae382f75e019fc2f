package bucket

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Location says where a bucket is. Parse reads it from
//
//	s3://BUCKET[/PREFIX]?endpoint=https://HOST[:PORT]&region=NAME&path-style=1
type Location struct {
	Bucket string
	// Prefix is in front of all keys, without slashes at its ends; "" is none.
	Prefix string
	// Endpoint is host[:port] of the service; Plain says that it speaks HTTP without TLS.
	Endpoint string
	Plain    bool
	// Region is the service's name of the bucket's region, "" when it is to be asked.
	Region string
	// PathStyle puts the bucket's name into the path instead of the host name.
	PathStyle bool
}

// Scheme begins the URLs of buckets.
const Scheme = "s3://"

const awsEndpoint = "s3.amazonaws.com"

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$`)
)

// Parse reads a Location. Credentials have no place in it, as command lines and
// configuration are seen by many.
//
// Errors: meta.ErrInvalid.
func Parse(text string) (Location, error) {
	bad := func(format string, args ...any) (Location, error) {
		return Location{}, fmt.Errorf("the bucket's URL: "+format+"; write s3://BUCKET/PREFIX?endpoint=https://HOST&region=NAME: %w", append(args, meta.ErrInvalid)...)
	}
	u, err := url.Parse(text)
	if err != nil {
		return bad("it is no URL") // the parser's error would repeat all of it
	}
	if u.User != nil {
		return bad("it has no place for credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws/credentials, or by the role of the instance")
	}
	l := Location{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Endpoint: awsEndpoint}
	switch {
	case u.Scheme != "s3":
		return bad("its scheme is s3")
	case !bucketName.MatchString(l.Bucket):
		return bad("%q is no name of a bucket", l.Bucket)
	case l.Prefix != "" && !prefixName.MatchString(l.Prefix) || len(l.Prefix) > 256:
		return bad("the prefix %q has letters, digits, '.', '_', '-' and single slashes", l.Prefix)
	case u.Fragment != "":
		return bad("it has no fragment")
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("its parameters cannot be read")
	}
	for name, all := range values {
		if len(all) != 1 {
			return bad("%s is given more than once", name)
		}
		switch value := all[0]; name {
		case "endpoint":
			if l.Endpoint, l.Plain, err = parseEndpoint(value); err != nil {
				return bad("%w", err)
			}
		case "region":
			if !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(value) {
				return bad("%q is no name of a region", value)
			}
			l.Region = value
		case "path-style":
			if !slices.Contains([]string{"0", "1", "false", "true"}, value) {
				return bad("path-style is 0 or 1")
			}
			l.PathStyle = value == "1" || value == "true"
		default:
			// Its value may be a secret, and is not repeated.
			return bad("it knows endpoint, region and path-style, not %q", name)
		}
	}
	if l.Region == "" && l.Endpoint != awsEndpoint {
		l.Region = "us-east-1" // what services without regions take
	}
	return l, nil
}

func parseEndpoint(value string) (host string, plain bool, err error) {
	if !strings.Contains(value, "://") {
		value = "https://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", false, fmt.Errorf("the endpoint is https://HOST:PORT, or http:// where nobody listens in")
	}
	return u.Host, u.Scheme == "http", nil
}

// key is a key of the bucket.
func (l Location) key(elem ...string) string {
	return strings.TrimPrefix(path.Join(append([]string{l.Prefix}, elem...)...), "/")
}

// String names the bucket for people.
func (l Location) String() string {
	scheme := "https://"
	if l.Plain {
		scheme = "http://"
	}
	return Scheme + path.Join(l.Bucket, l.Prefix) + " at " + scheme + l.Endpoint
}
