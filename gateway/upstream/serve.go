package upstream

import (
	"cmp"
	"context"
	"io"
	"net/http"

	"github.com/shoal-registry/shoal/gateway/protocol"
)

// Serve answers a GET or HEAD with what was found. The size, the ETag and the reader of
// content are filled in, and its media type and Last-Modified where it has none.
//
// Errors: as protocol.Serve has them.
func Serve(c *protocol.Call, e *Engine, f *Found, content protocol.Content) error {
	Describe(c, f)
	content.Size = f.Record.Size
	content.ETag = cmp.Or(content.ETag, protocol.ETag(f.Record.Digest))
	content.MediaType = cmp.Or(content.MediaType, f.Record.MediaType)
	if content.Modified.IsZero() {
		// What does not parse is none.
		content.Modified, _ = http.ParseTime(f.Record.LastModified)
	}
	content.Open = func(ctx context.Context) (io.ReadSeekCloser, error) { return e.Open(ctx, f) }
	return protocol.Serve(c.W, c.R, content)
}

// Describe writes what an answer is that was made of f: how old, and a Warning (RFC
// 7234, 5.5) when the upstream could not be asked whether it is still so.
func Describe(c *protocol.Call, f *Found) {
	c.AsOf(f.AsOf)
	if f.Stale {
		c.W.Header().Add("Warning", `110 - "Response is Stale"`)
		c.W.Header().Add("Warning", `111 - "Revalidation Failed"`)
	}
}
