package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// Headers of the product that reads are held to.
const (
	// headerMode of a request asks for strong; of an answer it says what that is.
	headerMode  = "Shoal-Mode"
	headerAge   = "Shoal-Age" // seconds
	headerStale = "Shoal-Stale"
	headerIndex = "Shoal-Index"
	headerToken = "Shoal-Token" // EPOCH.INDEX
)

// answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   []byte
	cut    error // the body broke off
}

// maxBody bounds what is read of an answer: the largest artifacts are a few MiB.
const maxBody = 64 << 20

// ask sends a request to the client's node and reads the answer. An error says that the
// node did not answer; what it has done by then nobody knows.
func (c *client) ask(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64) (answer, error) {
	// Not with the run: an operation is finished as its own time allows.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.w.cfg.Timeout)
	defer cancel()
	return c.node.ask(ctx, c.w.cfg.Token, method, path, header, body, length)
}

func (n Node) ask(ctx context.Context, token, method, path string, header http.Header, body io.Reader, length int64) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, n.Base+path, body)
	if err != nil {
		return answer{}, err
	}
	if header != nil {
		request.Header = header
	}
	if body != nil {
		request.ContentLength = length
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := n.HTTP.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	a := answer{status: response.StatusCode, header: response.Header}
	a.body, a.cut = io.ReadAll(io.LimitReader(response.Body, maxBody))
	return a, nil
}

// outcome is what an answer to a write says; ok is false when the node should be left.
func outcome(a answer, err error) (o history.Outcome, ok bool) {
	switch {
	case err != nil || a.status >= 500:
		return history.Unknown, false
	case a.status/100 == 2:
		return history.Done, true
	case a.status == http.StatusNotFound:
		return history.Absent, true
	case a.status == http.StatusConflict:
		return history.Conflict, true
	}
	return "", true
}

// paths of a key.
func (k *key) files() string {
	repository := Files
	if k.kind == history.Release {
		repository = Releases
	}
	return "/generic/" + repository + "/" + k.path
}

func (k *key) manifests() string { return "/v2/" + Images + "/" + k.path + "/manifests/" }

func (k *key) aliasURL(tag int) string {
	if k.kind == history.Image {
		return k.manifests() + tagName(tag)
	}
	return k.files()
}

func (k *key) versionURL(digest string) string {
	if k.kind == history.Image {
		return k.manifests() + digest
	}
	return k.files() + "?version=" + digest
}

func tagName(tag int) string { return "t" + strconv.Itoa(tag) }

// publish makes a new version and puts it somewhere.
func (c *client) publish(ctx context.Context, k *key) bool {
	if c.w.shunned(c.node.Name) {
		c.node = c.w.pick(c.rng, true)
	}
	v := version{seed: c.rng.Uint64() >> 9, size: 1 + c.rng.Int64N(24<<10)}
	if c.w.cfg.LargeBytes > 0 && c.rng.IntN(c.w.cfg.LargeEvery) == 0 {
		v.size = c.w.cfg.LargeBytes
	}
	if k.kind == history.Image {
		img, err := image.Make(v.seed, 1, v.size)
		if err != nil {
			panic(err) // one layer of at least a byte
		}
		v.image, v.digest = img, img.Digest()
		// Blobs are no operations of the key: nobody sees them before the manifest.
		registry := image.Client{Base: c.node.Base, HTTP: c.node.HTTP, Token: c.w.cfg.Token}
		for _, b := range img.Blobs() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*c.w.cfg.Timeout)
			err := registry.PushBlob(ctx, Images+"/"+k.path, b)
			cancel()
			if status := image.StatusOf(err); err != nil {
				if status/100 == 4 && status != http.StatusTooManyRequests && status != http.StatusNotFound {
					c.refused(k, err)
				}
				return status != 0 && status < 500
			}
		}
	} else {
		content, err := io.ReadAll(io.LimitReader(image.Random(v.seed), v.size))
		if err != nil {
			panic(err) // it has no end and no errors
		}
		v.digest = image.DigestOf(content)
	}
	k.mu.Lock()
	k.versions = append(k.versions, v)
	number := uint8(len(k.versions))
	k.mu.Unlock()
	return c.put(ctx, k, number)
}

func (c *client) refused(k *key, err error) {
	c.w.fault(func(f *Faults) *[]string { return &f.Refused }, "%s at %s: %v", k.name, c.node.Name, err)
}

// again publishes what was published before: an image under other tags, a release that
// may have been deleted.
func (c *client) again(ctx context.Context, k *key, number uint8) bool {
	if c.w.shunned(c.node.Name) {
		c.node = c.w.pick(c.rng, true)
	}
	return c.put(ctx, k, number)
}

// put sends a version that the key knows.
func (c *client) put(ctx context.Context, k *key, number uint8) bool {
	k.mu.Lock()
	v := &k.versions[number-1]
	v.puts++
	fresh := v.puts == 1
	seed, size, img, digest := v.seed, v.size, v.image, v.digest
	k.mu.Unlock()
	op := history.Op{Client: c.id, Node: c.node.Name, Verb: history.Put, Version: number, Tags: 1}
	header := http.Header{}
	var path string
	var body io.Reader
	length := size
	if img != nil {
		path, op.Tags = c.chooseTags(k, digest)
		header.Set("Content-Type", image.ManifestType)
		body, length = bytes.NewReader(img.Manifest), int64(len(img.Manifest))
	} else {
		path = k.files()
		header.Set("Content-Type", "application/octet-stream")
		header.Set("X-Checksum-Sha256", strings.TrimPrefix(digest, "sha256:"))
		body = io.LimitReader(image.Random(seed), size)
	}
	op.Call = c.w.record.Now()
	k.began(number, op.Call)
	a, err := c.ask(ctx, http.MethodPut, path, header, body, length)
	op.Return = c.w.record.Now()
	var ok bool
	op.Outcome, ok = outcome(a, err)
	if op.Outcome == history.Conflict && k.kind != history.Release {
		op.Outcome = ""
	}
	k.mu.Lock()
	v = &k.versions[number-1]
	switch op.Outcome {
	case history.Done:
		v.acked = true
		if v.wrote == 0 {
			v.wrote = op.Return
		}
	case history.Unknown:
		v.unknown = true
	}
	k.mu.Unlock()
	switch op.Outcome {
	case history.Done, history.Unknown, history.Conflict:
		c.w.add(k, op)
	default:
		// What was deleted may have lost its blobs, so that it cannot be published again
		// without them; what is new has just been given all it needs.
		if fresh && a.status != http.StatusTooManyRequests {
			c.refused(k, fmt.Errorf("%d %s", a.status, head(a.body)))
		}
	}
	if op.Outcome == history.Done {
		c.w.Pulse.count()
		c.wrote, c.token, c.version = k, a.header.Get(headerToken), number
	}
	return ok
}

// began notes when the first attempt at a version begins.
func (k *key) began(number uint8, now int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := &k.versions[number-1]; v.began == 0 {
		v.began = now
	}
}

// chooseTags returns a path that publishes an image under one or two tags, and their set.
func (c *client) chooseTags(k *key, digest string) (path string, tags uint8) {
	first := c.rng.IntN(aliases(k.kind))
	if c.rng.IntN(2) == 0 {
		return k.manifests() + tagName(first), 1 << first
	}
	second := c.rng.IntN(aliases(k.kind))
	return k.manifests() + digest + "?tag=" + tagName(first) + "&tag=" + tagName(second), 1<<first | 1<<second
}

// delete deletes a version.
func (c *client) delete(ctx context.Context, k *key, number uint8) bool {
	k.mu.Lock()
	v := &k.versions[number-1]
	v.deletes++
	digest := v.digest
	k.mu.Unlock()
	op := history.Op{Client: c.id, Node: c.node.Name, Verb: history.Delete, Version: number}
	op.Call = c.w.record.Now()
	a, err := c.ask(ctx, http.MethodDelete, k.versionURL(digest), nil, nil, 0)
	op.Return = c.w.record.Now()
	var ok bool
	op.Outcome, ok = outcome(a, err)
	k.mu.Lock()
	v = &k.versions[number-1]
	v.gone = v.gone || op.Outcome == history.Done
	v.unknown = v.unknown || op.Outcome == history.Unknown
	k.mu.Unlock()
	c.removed(k, op, a)
	return ok
}

// untag deletes an alias.
func (c *client) untag(ctx context.Context, k *key, tag int) bool {
	op := history.Op{Client: c.id, Node: c.node.Name, Verb: history.Untag, Tags: 1 << tag}
	op.Call = c.w.record.Now()
	a, err := c.ask(ctx, http.MethodDelete, k.aliasURL(tag), nil, nil, 0)
	op.Return = c.w.record.Now()
	var ok bool
	op.Outcome, ok = outcome(a, err)
	c.removed(k, op, a)
	return ok
}

// removed records a deletion of either kind.
func (c *client) removed(k *key, op history.Op, a answer) {
	switch op.Outcome {
	case history.Done, history.Absent:
		c.w.Pulse.count()
		c.w.add(k, op)
	case history.Unknown:
		c.w.add(k, op)
	default:
		if a.status != http.StatusTooManyRequests {
			c.refused(k, fmt.Errorf("%s: %d %s", op.Verb, a.status, head(a.body)))
		}
	}
}

// judgeable says how an answer to a read is to be judged; not at all when it says itself
// that it does not know its age.
func judgeable(a answer, o *history.Op) bool {
	o.Mode = a.header.Get(headerMode)
	if a.status == http.StatusNotFound && o.Mode == "" {
		// That something is not there is only said after a strong read.
		o.Mode = "strong"
	}
	if a.header.Get(headerStale) != "" {
		return false
	}
	if o.Mode == "strong" {
		return true
	}
	seconds, err := strconv.ParseFloat(a.header.Get(headerAge), 64)
	o.Age = int64(seconds * float64(time.Second))
	return err == nil && o.Mode != ""
}

// read asks which version an alias names. It returns the number, 0 for none, what the
// answer says it is, and whether one came.
func (c *client) read(ctx context.Context, k *key, tag int, strong bool) (version uint8, mode string, ok bool) {
	header := http.Header{}
	if strong {
		header.Set(headerMode, "strong")
	}
	op, a, ok := c.readAlias(ctx, k, tag, header)
	if ok && judgeable(a, &op) {
		c.w.add(k, op)
	}
	return op.Version, op.Mode, ok
}

// readAlias is the request of read; its operation is not recorded yet.
func (c *client) readAlias(ctx context.Context, k *key, tag int, header http.Header) (history.Op, answer, bool) {
	method := http.MethodGet
	if c.rng.IntN(2) == 0 {
		method = http.MethodHead
	}
	if k.kind == history.Image {
		header.Set("Accept", image.ManifestType)
	}
	op := history.Op{Client: c.id, Node: c.node.Name, Verb: history.Read, Tags: 1 << tag}
	op.Call = c.w.record.Now()
	a, err := c.ask(ctx, method, k.aliasURL(tag), header, nil, 0)
	op.Return = c.w.record.Now()
	switch {
	case err != nil || a.cut != nil:
		return op, a, false
	case a.status == http.StatusNotFound:
		op.Outcome = history.Absent
	case a.status == http.StatusOK:
		op.Outcome = history.Done
		digest := strings.Trim(a.header.Get("Etag"), `"`)
		if method == http.MethodGet && image.DigestOf(a.body) != digest {
			c.wrongBytes(k, "%s of %d bytes, said to be %s", image.DigestOf(a.body), len(a.body), digest)
		}
		if op.Version = k.number(digest); op.Version == 0 {
			c.wrongBytes(k, "an alias names %s, which nobody published", digest)
			return op, a, false
		}
	default:
		return op, a, false
	}
	c.w.Pulse.count()
	return op, a, true
}

func (c *client) wrongBytes(k *key, format string, args ...any) {
	c.w.fault(func(f *Faults) *[]string { return &f.Bytes }, "%s at %s: %s", k.name, c.node.Name, fmt.Sprintf(format, args...))
}

// number finds a version by its digest; 0 is unknown.
func (k *key) number(digest string) uint8 {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, v := range k.versions {
		if v.digest == digest {
			return uint8(i + 1)
		}
	}
	return 0
}

// readAfterWrite reads an alias that the client's last publish set, with the token that
// it returned, perhaps at another node: it must see that publish or what came after.
func (c *client) readAfterWrite(ctx context.Context, k *key) bool {
	if k.kind != history.File {
		_, _, ok := c.read(ctx, k, c.rng.IntN(aliases(k.kind)), false)
		return ok
	}
	op, a, ok := c.readAlias(ctx, k, 0, http.Header{headerToken: {c.token}})
	if !ok {
		return false
	}
	if judgeable(a, &op) {
		c.w.add(k, op)
	}
	broken := func(format string, args ...any) {
		c.w.fault(func(f *Faults) *[]string { return &f.Tokens }, "%s at %s with token %s: %s", k.name, c.node.Name, c.token, fmt.Sprintf(format, args...))
	}
	_, at, _ := strings.Cut(c.token, ".")
	want, err1 := strconv.ParseUint(at, 10, 64)
	got, err2 := strconv.ParseUint(a.header.Get(headerIndex), 10, 64)
	if a.status == http.StatusOK && (errors.Join(err1, err2) != nil || got < want) {
		broken("the answer is of index %q", a.header.Get(headerIndex))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	own, deletes := k.versions[c.version-1], 0
	for _, v := range k.versions {
		deletes += v.deletes
	}
	switch {
	case op.Version == 0 && deletes == 0:
		broken("the file is not there, and nobody deleted it")
	case op.Version != 0 && op.Version != c.version:
		// Every file is published once, so one that was acknowledged before our own
		// publish began is older.
		if other := k.versions[op.Version-1]; other.wrote != 0 && other.wrote < own.began {
			broken("version %d, which is older than version %d", op.Version, c.version)
		}
	}
	return true
}

// fetch asks for a version's bytes.
func (c *client) fetch(ctx context.Context, k *key, number uint8) bool {
	k.mu.Lock()
	v := k.versions[number-1]
	k.mu.Unlock()
	header := http.Header{}
	if k.kind == history.Image {
		header.Set("Accept", image.ManifestType)
	}
	if c.rng.IntN(2) == 0 {
		header.Set(headerMode, "strong")
	}
	op := history.Op{Client: c.id, Node: c.node.Name, Verb: history.Fetch, Version: number}
	op.Call = c.w.record.Now()
	a, err := c.ask(ctx, http.MethodGet, k.versionURL(v.digest), header, nil, 0)
	op.Return = c.w.record.Now()
	switch {
	case err != nil:
		return false
	case a.status == http.StatusNotFound:
		op.Outcome = history.Absent
	case a.status == http.StatusOK:
		op.Outcome = history.Done
		c.compare(k, v, a)
		if a.cut != nil {
			return false
		}
	default:
		return a.status < 500
	}
	c.w.Pulse.count()
	if judgeable(a, &op) {
		c.w.add(k, op)
	}
	return true
}

// compare holds the bytes of an answer against the version's.
func (c *client) compare(k *key, v version, a answer) {
	want := io.LimitReader(image.Random(v.seed), v.size)
	if v.image != nil {
		want = bytes.NewReader(v.image.Manifest)
	}
	c.compareBytes(k, want, 0, a)
}

// compareBytes holds an answer against what must be there from offset on; of one that
// broke off as far as it came.
func (c *client) compareBytes(k *key, want io.Reader, offset int64, a answer) {
	all, err := io.ReadAll(want)
	if err != nil {
		panic(err) // made of memory
	}
	all = all[min(offset, int64(len(all))):]
	whole := a.cut == nil && a.status == http.StatusOK
	if len(a.body) > len(all) || !bytes.Equal(a.body, all[:len(a.body)]) || whole && len(a.body) != len(all) {
		c.wrongBytes(k, "status %d, %d bytes from %d on that are not those of %d published ones", a.status, len(a.body), offset, len(all))
	}
}

// pullLayer reads the layer of an image, or a part of it. A layer of an acknowledged image
// that nobody has tried to delete must be there.
func (c *client) pullLayer(ctx context.Context, k *key, number uint8) bool {
	k.mu.Lock()
	v := k.versions[number-1]
	k.mu.Unlock()
	layer := v.image.Parsed.Layers[0]
	header, offset := http.Header{}, int64(0)
	if c.rng.IntN(2) == 0 {
		offset = c.rng.Int64N(layer.Size)
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+c.rng.Int64N(layer.Size-offset)))
	}
	a, err := c.ask(ctx, http.MethodGet, "/v2/"+Images+"/"+k.path+"/blobs/"+layer.Digest, header, nil, 0)
	if err != nil {
		return false
	}
	switch {
	case a.status == http.StatusOK || a.status == http.StatusPartialContent:
		if a.status == http.StatusOK { // all of it, whatever was asked for
			offset = 0
		}
		c.compareBytes(k, v.image.Layer(0), offset, a)
		if a.cut != nil {
			return false
		}
		c.w.Pulse.count()
	case a.status == http.StatusNotFound && v.acked:
		k.mu.Lock()
		deletes := k.versions[number-1].deletes
		k.mu.Unlock()
		if deletes == 0 {
			c.w.fault(func(f *Faults) *[]string { return &f.Missing }, "%s at %s: layer %s of version %d: %s", k.name, c.node.Name, layer.Digest, number, head(a.body))
		}
	}
	return a.status < 500
}

// head is the beginning of a body, for messages.
func head(body []byte) string {
	var problem struct {
		Error  string
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &problem) == nil && len(problem.Errors) > 0 {
		return problem.Errors[0].Code + ": " + problem.Errors[0].Message
	}
	return strings.TrimSpace(string(body[:min(len(body), 300)]))
}
