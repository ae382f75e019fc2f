package dht

import (
	"context"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
)

// recordLimits bounds the provider records that a node keeps for others. A record
// costs about 200 bytes.
type recordLimits struct {
	total, perKey, perProvider int
}

// Of one root about 64 nodes announce; the rest is headroom for changing swarm
// sizes. No single node can fill the store.
var defaultRecordLimits = recordLimits{total: 131072, perKey: 256, perProvider: 4096}

// recordStore keeps kad-dht's provider records, /providers/<key>/<provider>, in
// memory. Unlike the library's map it finds a key's records without reading all,
// and it is bounded: a record beyond a limit is dropped, which for a hint is right.
// It is safe for concurrent use.
type recordStore struct {
	limits recordLimits

	mu          sync.RWMutex
	keys        map[string]map[ds.Key][]byte // by the part before the provider
	perProvider map[string]int
	total       int
}

var _ ds.Batching = (*recordStore)(nil)

func newRecordStore(limits recordLimits) *recordStore {
	return &recordStore{limits: limits, keys: map[string]map[ds.Key][]byte{}, perProvider: map[string]int{}}
}

// split returns /providers/<key> and <provider>.
func split(k ds.Key) (key, provider string) {
	s := k.String()
	i := strings.LastIndexByte(s, '/')
	return s[:i], s[i+1:]
}

// Put keeps a record unless a limit is reached.
func (s *recordStore) Put(_ context.Context, k ds.Key, value []byte) error {
	key, provider := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	group := s.keys[key]
	if _, known := group[k]; !known {
		if s.total >= s.limits.total || len(group) >= s.limits.perKey || s.perProvider[provider] >= s.limits.perProvider {
			return nil
		}
		if group == nil {
			group = map[ds.Key][]byte{}
			s.keys[key] = group
		}
		s.total++
		s.perProvider[provider]++
	}
	group[k] = value
	return nil
}

// Delete forgets a record.
func (s *recordStore) Delete(_ context.Context, k ds.Key) error {
	key, provider := split(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	group := s.keys[key]
	if _, known := group[k]; !known {
		return nil
	}
	if delete(group, k); len(group) == 0 {
		delete(s.keys, key)
	}
	if s.perProvider[provider]--; s.perProvider[provider] == 0 {
		delete(s.perProvider, provider)
	}
	s.total--
	return nil
}

func (s *recordStore) find(k ds.Key) ([]byte, bool) {
	key, _ := split(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, ok := s.keys[key][k]
	return value, ok
}

// Get returns a record.
func (s *recordStore) Get(_ context.Context, k ds.Key) ([]byte, error) {
	if value, ok := s.find(k); ok {
		return value, nil
	}
	return nil, ds.ErrNotFound
}

// Has reports whether there is a record.
func (s *recordStore) Has(_ context.Context, k ds.Key) (bool, error) {
	_, ok := s.find(k)
	return ok, nil
}

// GetSize returns a record's length.
func (s *recordStore) GetSize(_ context.Context, k ds.Key) (int, error) {
	if value, ok := s.find(k); ok {
		return len(value), nil
	}
	return -1, ds.ErrNotFound
}

// Query returns the records of a key, or, for the library's clean-up, all.
func (s *recordStore) Query(_ context.Context, q dsq.Query) (dsq.Results, error) {
	prefix := strings.TrimSuffix(ds.NewKey(q.Prefix).String(), "/")
	var entries []dsq.Entry
	add := func(group map[ds.Key][]byte) {
		for k, v := range group {
			entries = append(entries, dsq.Entry{Key: k.String(), Value: v, Size: len(v)})
		}
	}
	s.mu.RLock()
	if strings.Count(prefix, "/") == 2 { // /providers/<key>: the look-up, at most limits.perKey
		add(s.keys[prefix])
	} else {
		for key, group := range s.keys {
			if strings.HasPrefix(key, prefix+"/") {
				add(group)
			}
		}
	}
	s.mu.RUnlock()
	q.Prefix = "" // applied
	return dsq.NaiveQueryApply(q, dsq.ResultsWithEntries(q, entries)), nil
}

// Sync does nothing: memory is all there is.
func (s *recordStore) Sync(context.Context, ds.Key) error { return nil }

// Close does nothing.
func (s *recordStore) Close() error { return nil }

// Batch returns a batch that writes record by record.
func (s *recordStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }
