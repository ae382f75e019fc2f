package nuget

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Documents of upstreams. What is decoded of one is about as large as its text: leaves stay
// text, and are decoded one by one. It is kept, as each request needs it, and shared, so
// nobody changes it.

const (
	// maxListed bounds what a document lists beside leaves.
	maxListed = 4096
	// maxLeafBytes bounds the text of a leaf; a longer one is left out. One of a package
	// with dependencies for every framework has 20 KiB.
	maxLeafBytes = 256 << 10
	// maxDecodedBytes bounds what is kept, and maxDecoded how many that are.
	maxDecodedBytes = 32 << 20
	maxDecoded      = 4096
	// decodedCost is how many bytes decoding takes for one of text: the decoder's buffer,
	// which doubles, and what is kept.
	decodedCost = 4
)

// foreign reads a JSON document of an upstream, out of gzip where it is in that; numbers
// in leaves stay as they were written.
//
// Errors: as upstream.Engine.Fetch has them; protocol.ErrUpstream for what is no such
// document.
func foreign[T any](ctx context.Context, p *Protocol, by catalog.Caller, member *meta.Repository, w upstream.Want) (*T, *upstream.Found, error) {
	f, err := p.proxies.Fetch(ctx, by, member, w)
	if err != nil {
		return nil, nil, err
	}
	v := new(T)
	key := decodedKey{f.Record.Digest, fmt.Sprintf("%T", v)}
	if known, ok := p.decoded.get(key); ok {
		return known.(*T), f, nil
	}
	broken := func(err error) error {
		if errors.Is(err, meta.ErrUnavailable) {
			return err // ours
		}
		return fmt.Errorf("document %s of the upstream: %w: %w", w.Path, err, protocol.ErrUpstream)
	}
	// How long the text is only its end says: it is unpacked to nowhere first.
	var size int64
	err = p.unpacked(ctx, f, func(r io.Reader) (err error) {
		size, err = io.Copy(io.Discard, io.LimitReader(r, w.MaxBytes+1))
		if err == nil && size > w.MaxBytes {
			err = fmt.Errorf("over %d bytes", w.MaxBytes)
		}
		if err != nil {
			err = broken(err)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	release, err := p.catalog.Reserve(ctx, decodedCost*size)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	err = p.unpacked(ctx, f, func(r io.Reader) error {
		if err := json.NewDecoder(io.LimitReader(r, size)).Decode(v); err != nil {
			return broken(err)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	p.decoded.add(key, v, size)
	return v, f, nil
}

// unpacked reads a document.
func (p *Protocol) unpacked(ctx context.Context, f *upstream.Found, read func(io.Reader) error) error {
	r, err := p.proxies.Open(ctx, f)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := unpack(r)
	if err != nil {
		return fmt.Errorf("document %s of the upstream: %w: %w", f.Record.Path, err, protocol.ErrUpstream)
	}
	return read(text)
}

// unpack returns what is in gzip, or what is not as it is.
func unpack(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	if head, _ := b.Peek(2); !bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return b, nil // an error comes again
	}
	return gzip.NewReader(b)
}

// listed is a list of at most maxListed.
type listed[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (l *listed[T]) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return err // of what is no list nothing is read
	}
	for *l = nil; d.More(); {
		if len(*l) == maxListed {
			return fmt.Errorf("a list of more than %d", maxListed)
		}
		var v T
		if err := d.Decode(&v); err != nil {
			return err
		}
		*l = append(*l, v)
	}
	return nil
}

// perhaps is a text, "" for what is none.
type perhaps string

// UnmarshalJSON implements json.Unmarshaler.
func (p *perhaps) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		s = ""
	}
	*p = perhaps(s)
	return nil
}

// leaves are those of a page, as text.
type leaves json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (l *leaves) UnmarshalJSON(b []byte) error {
	*l = nil
	if len(b) > 0 && b[0] == '[' {
		*l = bytes.Clone(b)
	}
	return nil
}

// all decodes them, each for the caller to change.
func (l leaves) all() iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		d := json.NewDecoder(bytes.NewReader(l))
		if _, err := d.Token(); err != nil {
			return
		}
		for d.More() {
			var text json.RawMessage
			if d.Decode(&text) != nil {
				return
			}
			if len(text) > maxLeafBytes {
				continue
			}
			one := json.NewDecoder(bytes.NewReader(text))
			one.UseNumber()
			var leaf map[string]any
			if one.Decode(&leaf) == nil && leaf != nil && !yield(leaf) {
				return
			}
		}
	}
}

// decoded keeps what documents were decoded to, the last that were asked for.
type decoded struct {
	mu    sync.Mutex
	docs  *simplelru.LRU[decodedKey, decodedDoc]
	bytes int64 // of text
}

type decodedKey struct {
	digest digest.Digest
	as     string // the type
}

type decodedDoc struct {
	v     any
	bytes int64
}

func newDecoded() *decoded {
	d := &decoded{}
	// It fails for a size below 1 only.
	d.docs, _ = simplelru.NewLRU(maxDecoded, func(_ decodedKey, doc decodedDoc) { d.bytes -= doc.bytes })
	return d
}

func (d *decoded) get(k decodedKey) (any, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	doc, ok := d.docs.Get(k)
	return doc.v, ok
}

// add keeps a document, unless it would take the place of most others.
func (d *decoded) add(k decodedKey, v any, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if bytes > maxDecodedBytes/2 || d.docs.Contains(k) {
		return
	}
	d.docs.Add(k, decodedDoc{v, bytes})
	for d.bytes += bytes; d.bytes > maxDecodedBytes; {
		d.docs.RemoveOldest()
	}
}
