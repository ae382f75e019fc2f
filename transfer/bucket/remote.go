package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// remote is what is asked of the service, with errors of ours: meta.ErrNotFound,
// meta.ErrExists, meta.ErrNoSpace, a *meta.UnavailableError with the reason "bucket" for
// all else that is not the context's.
type remote struct {
	loc       Location
	core      *minio.Core
	transport *http.Transport
	joining   *http.Transport // of requests that the service may think about for long
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	metrics   *metrics
	skew      atomic.Int64 // nanoseconds that the service's clock is ahead
	// barred says why nothing may be written or removed; nil while it may.
	barred atomic.Pointer[error]
}

// writable refuses what changes a bucket that is another's.
func (r *remote) writable() error {
	if why := r.barred.Load(); why != nil {
		return fmt.Errorf("the bucket %s: %w", r.loc, *why)
	}
	return nil
}

const (
	remoteRetries = 3                // of one request, by the client
	stallAfter    = 30 * time.Second // a request is given up when no byte has gone either way
	joinWithin    = 10 * time.Minute // the same while a service joins the parts of an object
	bucketRetry   = 2 * time.Second  // when a client should try again
)

func newRemote(loc Location, creds *credentials.Credentials, m *metrics) (*remote, error) {
	if creds == nil {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{},
			&credentials.IAM{Client: &http.Client{Timeout: 5 * time.Second}},
		})
	}
	r := &remote{loc: loc, metrics: m, dial: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext}
	r.transport, r.joining = r.newTransport(stallAfter), r.newTransport(joinWithin)
	lookup := minio.BucketLookupAuto
	if loc.PathStyle {
		lookup = minio.BucketLookupPath
	}
	var err error
	r.core, err = minio.NewCore(loc.Endpoint, &minio.Options{
		Creds: creds, Secure: !loc.Plain, Region: loc.Region, BucketLookup: lookup,
		Transport: clocked{r}, MaxRetries: remoteRetries,
	})
	if err != nil {
		return nil, fmt.Errorf("the bucket %s: %w: %w", loc, err, meta.ErrInvalid)
	}
	return r, nil
}

func (r *remote) newTransport(stall time.Duration) *http.Transport {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &watched{Conn: c, stall: stall}, nil
		},
		// Objects are not to be inflated: their bytes are what was hashed.
		DisableCompression:  true,
		TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: stall,
		IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 128,
	}
}

// watched is a connection that ends when for stall no byte has gone either way: neither
// a service that stops to read nor one that stops to send holds anybody for longer.
type watched struct {
	net.Conn
	stall time.Duration
	over  atomic.Bool // it ended so; the other direction's error says it too
}

// Read implements net.Conn.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	return n, w.moved(err)
}

// Write implements net.Conn.
func (w *watched) Write(p []byte) (int, error) {
	if err := w.moved(nil); err != nil { // it may have been idle
		return 0, err
	}
	n, err := w.Conn.Write(p)
	return n, w.moved(err)
}

func (w *watched) moved(err error) error {
	if err == nil {
		err = w.SetDeadline(time.Now().Add(w.stall))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.over.Store(true)
	}
	if err != nil && w.over.Load() {
		return os.ErrDeadlineExceeded
	}
	return err
}

func (r *remote) close() {
	r.transport.CloseIdleConnections()
	r.joining.CloseIdleConnections()
}

// clocked notes how far the service's clock is from ours.
type clocked struct{ r *remote }

// RoundTrip implements http.RoundTripper.
func (c clocked) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	by := c.r.transport
	if req.Method == http.MethodPost && req.URL.Query().Has("uploadId") {
		by = c.r.joining
	}
	res, err := by.RoundTrip(req)
	if err == nil {
		if at, bad := http.ParseTime(res.Header.Get("Date")); bad == nil {
			// The date is cut to seconds, and as old as the answer's way.
			middle := began.Add(time.Since(began) / 2)
			skew := at.Add(500 * time.Millisecond).Sub(middle)
			if skew.Abs() < time.Second {
				skew = 0
			}
			c.r.skew.Store(int64(skew))
		}
	}
	return res, err
}

// failed gives an error its kind. What services say of their insides is left out, and
// what the client says of keys is not there: it never has them in its errors.
func (r *remote) failed(ctx context.Context, act string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", act, ctx.Err())
	}
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
		return fmt.Errorf("%s: the bucket %s does not answer: no byte came or went for %v: %w", act, r.loc, stallAfter, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
	}
	var e minio.ErrorResponse
	if !errors.As(err, &e) {
		return fmt.Errorf("%s in the bucket %s: %w: %w", act, r.loc, err, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
	}
	switch {
	case e.Code == "NoSuchKey", e.Code == "NoSuchUpload":
		return fmt.Errorf("%s: %w", act, meta.ErrNotFound)
	case e.StatusCode == http.StatusPreconditionFailed, e.Code == "PreconditionFailed", e.Code == "ConditionalRequestConflict":
		return fmt.Errorf("%s: %w", act, meta.ErrExists)
	case e.StatusCode == http.StatusInsufficientStorage, slices.Contains([]string{"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"}, e.Code):
		return fmt.Errorf("%s: the bucket %s is full: %w", act, r.loc, meta.ErrNoSpace)
	case e.Code == "RequestTimeTooSkewed":
		return fmt.Errorf("%s: the clocks of this server and of the bucket %s are too far apart, set this server's: %w", act, r.loc, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
	case e.StatusCode == http.StatusForbidden, e.StatusCode == http.StatusUnauthorized, e.Code == "InvalidAccessKeyId", e.Code == "NoSuchUser", strings.HasSuffix(e.Code, "AdminUserNotFound"):
		return fmt.Errorf("%s: the bucket %s refuses this server's credentials (%s): %w", act, r.loc, e.Code, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
	}
	return fmt.Errorf("%s in the bucket %s: %s (%d): %w", act, r.loc, e.Code, e.StatusCode, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
}

// retryable says that asking again may help.
func retryable(err error) bool { return errors.Is(err, meta.ErrUnavailable) }

// objectInfo is a key of a listing.
type objectInfo struct {
	key      string
	bytes    int64
	modified time.Time
	etag     string
}

// list calls visit for the keys with prefix behind after, in their order, until it says
// no. page is how many are asked for at a time, up to 1,000.
func (r *remote) list(ctx context.Context, prefix, after string, page int, visit func(objectInfo) bool) error {
	done := r.metrics.begin("list")
	ctx, cancel := context.WithCancel(ctx)
	all := r.core.Client.ListObjects(ctx, r.loc.Bucket, minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, MaxKeys: page})
	var err error
	for info := range all {
		if info.Err != nil {
			err = r.failed(ctx, "list objects", info.Err)
			break
		}
		if !visit(objectInfo{key: info.Key, bytes: info.Size, modified: info.LastModified, etag: info.ETag}) {
			break
		}
	}
	cancel()
	for range all { // until its goroutine has ended
	}
	done(err)
	return err
}

// sums returns what a service checks the bytes by on their way.
func sums(b []byte) (base64MD5, hexMD5 string) {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:]), hex.EncodeToString(sum[:])
}

// put writes an object; once, if it is not to replace another.
//
// Errors: meta.ErrExists.
func (r *remote) put(ctx context.Context, key string, b []byte, once bool) error {
	if err := r.writable(); err != nil {
		return err
	}
	done := r.metrics.begin("put")
	opts := minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, DisableMultipart: true}
	if once {
		opts.SetMatchETagExcept("*")
	}
	sum, _ := sums(b)
	_, err := r.core.PutObject(ctx, r.loc.Bucket, key, bytes.NewReader(b), int64(len(b)), sum, "", opts)
	err = r.failed(ctx, "write an object", err)
	if err == nil {
		r.metrics.sent.Add(float64(len(b)))
	}
	done(err)
	return err
}

// get reads length bytes of an object from an offset on; the caller closes the stream.
func (r *remote) get(ctx context.Context, key string, from, length int64) (io.ReadCloser, error) {
	done := r.metrics.begin("get")
	opts := minio.GetObjectOptions{}
	err := opts.SetRange(from, from+length-1)
	var body io.ReadCloser
	if err == nil {
		body, _, _, err = r.core.GetObject(ctx, r.loc.Bucket, key, opts)
	}
	err = r.failed(ctx, "read an object", err)
	done(err)
	if err != nil {
		return nil, err
	}
	return body, nil
}

// read returns a whole object of at most limit bytes.
func (r *remote) read(ctx context.Context, key string, limit int64) ([]byte, error) {
	done := r.metrics.begin("get")
	body, _, _, err := r.core.GetObject(ctx, r.loc.Bucket, key, minio.GetObjectOptions{})
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(body, limit+1))
		_ = body.Close() // it was read
	}
	err = r.failed(ctx, "read an object", err)
	done(err)
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("object %s has more than %d bytes: %w", key, limit, meta.ErrCorrupt)
	}
	r.metrics.received.Add(float64(len(b)))
	return b, err
}

// stat says whether a key is there.
func (r *remote) stat(ctx context.Context, key string) (objectInfo, error) {
	done := r.metrics.begin("head")
	info, err := r.core.Client.StatObject(ctx, r.loc.Bucket, key, minio.StatObjectOptions{})
	err = r.failed(ctx, "look at an object", err)
	done(err)
	return objectInfo{key: key, bytes: info.Size, modified: info.LastModified, etag: info.ETag}, err
}

// remove deletes a key; that it is not there is no error.
func (r *remote) remove(ctx context.Context, key string) error {
	if err := r.writable(); err != nil {
		return err
	}
	done := r.metrics.begin("delete")
	err := r.failed(ctx, "delete an object", r.core.Client.RemoveObject(ctx, r.loc.Bucket, key, minio.RemoveObjectOptions{}))
	if errors.Is(err, meta.ErrNotFound) {
		err = nil
	}
	done(err)
	return err
}

// multi is an object that is being uploaded in parts.
type multi struct {
	key, id string
	began   time.Time
}

func (r *remote) beginParts(ctx context.Context, key string) (multi, error) {
	if err := r.writable(); err != nil {
		return multi{}, err
	}
	done := r.metrics.begin("begin_parts")
	id, err := r.core.NewMultipartUpload(ctx, r.loc.Bucket, key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	err = r.failed(ctx, "begin an object of parts", err)
	done(err)
	return multi{key: key, id: id}, err
}

func (r *remote) part(ctx context.Context, m multi, number int, b []byte) (etag string, err error) {
	if err := r.writable(); err != nil {
		return "", err
	}
	done := r.metrics.begin("part")
	sum, _ := sums(b)
	p, err := r.core.PutObjectPart(ctx, r.loc.Bucket, m.key, m.id, number, bytes.NewReader(b), int64(len(b)), minio.PutObjectPartOptions{Md5Base64: sum})
	err = r.failed(ctx, "write a part of an object", err)
	if err == nil {
		r.metrics.sent.Add(float64(len(b)))
	}
	done(err)
	return p.ETag, err
}

// partsOf lists the parts that are there: number -> size and etag.
func (r *remote) partsOf(ctx context.Context, m multi) (map[int]minio.ObjectPart, error) {
	out := map[int]minio.ObjectPart{}
	for after := 0; ; {
		page, err := r.core.ListObjectParts(ctx, r.loc.Bucket, m.key, m.id, after, 1000)
		if err != nil {
			return nil, r.failed(ctx, "list the parts of an object", err)
		}
		for _, p := range page.ObjectParts {
			out[p.PartNumber] = p
		}
		if !page.IsTruncated || page.NextPartNumberMarker <= after {
			return out, nil
		}
		after = page.NextPartNumberMarker
	}
}

func (r *remote) complete(ctx context.Context, m multi, parts []minio.CompletePart) error {
	if err := r.writable(); err != nil {
		return err
	}
	done := r.metrics.begin("complete_parts")
	_, err := r.core.CompleteMultipartUpload(ctx, r.loc.Bucket, m.key, m.id, parts, minio.PutObjectOptions{})
	err = r.failed(ctx, "complete an object of parts", err)
	done(err)
	return err
}

func (r *remote) abort(ctx context.Context, m multi) error {
	if err := r.writable(); err != nil {
		return err
	}
	err := r.failed(ctx, "give up an object of parts", r.core.AbortMultipartUpload(ctx, r.loc.Bucket, m.key, m.id))
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	return err
}

// unfinished calls visit for the objects below prefix of which parts are there.
func (r *remote) unfinished(ctx context.Context, prefix string, visit func(multi) bool) error {
	done := r.metrics.begin("list_parts")
	ctx, cancel := context.WithCancel(ctx)
	all := r.core.Client.ListIncompleteUploads(ctx, r.loc.Bucket, prefix, true)
	var err error
	for info := range all {
		if info.Err != nil {
			err = r.failed(ctx, "list unfinished objects", info.Err)
			break
		}
		if !visit(multi{key: info.Key, id: info.UploadID, began: info.Initiated}) {
			break
		}
	}
	cancel()
	for range all {
	}
	done(err)
	return err
}
