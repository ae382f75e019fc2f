package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shoal-registry/shoal/transfer/bucket"
)

// Bucket tries the bucket that the server of a data directory keeps its blobs in: whether
// it is reached, the credentials are good, the clocks agree, and objects can be written,
// read, listed, deleted and uploaded in parts. Nil credentials are those that a server
// would take. There are no findings for a server without a bucket.
func Bucket(ctx context.Context, data string, creds *credentials.Credentials) []Finding {
	text, err := os.ReadFile(filepath.Join(data, bucket.KnownFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	failed := func(name string, err error) Finding {
		advice := "see that the bucket is up and reached from here"
		switch said := err.Error(); {
		case strings.Contains(said, "credentials"):
			advice = "give the server's user AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials or an instance role, with rights to get, put, delete and list objects and to upload in parts"
		case strings.Contains(said, "clock"):
			advice = "set this machine's clock by NTP"
		}
		f := bad(Fail, advice, "%v", err)
		f.Check = name
		return f
	}
	var known bucket.Known
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	var location bucket.Location
	if err == nil {
		location, err = bucket.Parse(known.URL)
	}
	if err != nil {
		return []Finding{failed("bucket", err)}
	}
	var findings []Finding
	for _, c := range bucket.Examine(ctx, location, creds) {
		if c.Err != nil {
			findings = append(findings, failed(c.Name, c.Err))
			continue
		}
		f := ok("%s", c.Text)
		f.Check = c.Name
		findings = append(findings, f)
	}
	return findings
}
