package doctor_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shoal-registry/shoal/node/doctor"
	"github.com/shoal-registry/shoal/transfer/bucket"
	"github.com/shoal-registry/shoal/transfer/bucket/buckettest"
)

func TestBucket(t *testing.T) {
	if found := doctor.Bucket(t.Context(), t.TempDir(), nil); found != nil {
		t.Errorf("of a server without one: %+v", found)
	}
	s := buckettest.Start(t)
	data := t.TempDir()
	text, err := json.Marshal(bucket.Known{URL: s.URL("eu")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, bucket.KnownFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	found := doctor.Bucket(t.Context(), data, s.Credentials())
	if len(found) != 5 || doctor.Worst(found) != doctor.OK {
		t.Errorf("%+v", found)
	}
	found = doctor.Bucket(t.Context(), data, credentials.NewStaticV4("nobody", "nothing-at-all", ""))
	if doctor.Worst(found) != doctor.Fail || !strings.Contains(found[len(found)-1].Advice, "AWS_ACCESS_KEY_ID") {
		t.Errorf("%+v", found)
	}
	s.Stop()
	if found := doctor.Bucket(t.Context(), data, s.Credentials()); doctor.Worst(found) != doctor.Fail {
		t.Errorf("%+v", found)
	}
}
