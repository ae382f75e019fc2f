package store

import "context"

// Usage is what a Disk holds.
type Usage struct {
	// UsedBytes is what files take, WindowBytes the part of it that blobs which do not
	// fit may take while they pass through, CapBytes the most of a cache; 0 is no cap.
	UsedBytes, WindowBytes, CapBytes int64
	// Blobs counts all, Partial those that lack chunks, Pinned those that may not go.
	Blobs, Partial, Pinned int
	// PinnedBytes is what the content of the pinned takes.
	PinnedBytes int64
	// ReusedBytes were taken from other blobs here since the process started.
	ReusedBytes int64
}

// Usage visits every blob.
func (d *Disk) Usage(ctx context.Context) (Usage, error) {
	u := Usage{UsedBytes: d.used.Load(), WindowBytes: d.windows.Load(), CapBytes: max(0, d.cfg.CacheBytes), ReusedBytes: d.reused.Load()}
	err := d.each(ctx, func(info Info) {
		u.Blobs++
		if !info.Complete {
			u.Partial++
		}
		if d.pins.has(info.Root) {
			u.Pinned++
			u.PinnedBytes += info.StoredBytes
		}
	})
	return u, err
}

// Clear removes every blob that is neither pinned nor in use, whether the last copy of
// its region or not, and returns how many went and what that freed.
func (d *Disk) Clear(ctx context.Context) (removed int, freed int64, err error) {
	before := d.used.Load()
	removed, err = d.evict(ctx, 0, 0)
	return removed, max(0, before-d.used.Load()), err
}
