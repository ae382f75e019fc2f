package store

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	inlineBytes  = 64 << 10  // block of a small or slow upload
	blockBytes   = 512 << 10 // block of a pipelined upload
	blockCount   = 4         // blocks of a pipelined upload
	saveEvery    = 16 << 20  // received bytes after which an Append's end saves the state
	segmentBytes = 256 << 20 // received bytes after which one Append saves it midway
	flushEvery   = 8 << 20   // received bytes after which writing to the disk is started
)

var (
	inlineBuffers = buffers{size: inlineBytes}
	blockBuffers  = buffers{size: blockBytes}
)

// session is an upload. Its data file grows by appending only, so that after a kill
// the file's length is how far it came, and hashing goes on from the saved state.
type session struct {
	d    *Disk
	id   string
	refs int           // guarded by d.mu
	rest *list.Element // guarded by d.mu

	busy   sync.Mutex // held by the one call that works; TryLock refuses another
	offset atomic.Int64
	ended  atomic.Bool // busy is held when it is set

	// awake says that file, hash and build are there. waking is held to change
	// that, also by who only wants to know the offset.
	awake  atomic.Bool
	waking sync.Mutex

	// Guarded by busy, and by waking while not awake.
	file    *os.File
	hash    *digest.Hasher
	build   *chunk.Builder
	sha512  bool
	saved   int64 // offset of the state file, -1 without one
	flushed int64
}

// sessionState is the state file: codec, then BLAKE3 of that.
type sessionState struct {
	Version uint   `cbor:"1,keyasint,omitempty"`
	SHA512  bool   `cbor:"2,keyasint,omitempty"`
	Offset  int64  `cbor:"3,keyasint,omitempty"`
	Hasher  []byte `cbor:"4,keyasint,omitempty"`
	// Chunks holds the CIDs of the finished chunks, 32 bytes each, Tail the CID of what
	// was received of the unfinished one; zero when nothing was, or nobody noted it.
	Chunks []byte     `cbor:"5,keyasint,omitempty"`
	Tail   digest.CID `cbor:"6,keyasint,omitzero"`
}

func (d *Disk) uploadPath(id string) (part, state string) {
	base := d.path(uploadsDir, id)
	return base + partSuffix, base + stateSuffix
}

// NewUpload implements Store.
func (d *Disk) NewUpload(ctx context.Context, o UploadOptions) (Upload, error) {
	u, err := d.newUpload(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start upload: %w", err)
	}
	return u, nil
}

func (d *Disk) newUpload(ctx context.Context, o UploadOptions) (*upload, error) {
	if err := d.room(ctx, 0); err != nil {
		return nil, err
	}
	d.mu.Lock()
	full := d.uploads >= d.cfg.MaxUploads
	if !full {
		d.uploads++
	}
	d.mu.Unlock()
	if full {
		d.refuse("uploads")
		return nil, &meta.UnavailableError{Reason: "busy", RetryAfter: 10 * time.Second}
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	s := &session{
		d: d, id: hex.EncodeToString(random[:]), saved: -1, refs: 1,
		hash: digest.NewHasher(o.SHA512), build: &chunk.Builder{}, sha512: o.SHA512,
	}
	s.awake.Store(true)
	part, _ := d.uploadPath(s.id)
	var err error
	if s.file, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640); errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the directory.
		if err = d.rebuild(); err == nil {
			s.file, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		}
	}
	if err == nil && o.SHA512 {
		err = s.save() // the one thing that the data file does not say
	}
	if err != nil {
		s.erase()
		return nil, diskError("create upload", err)
	}
	d.mu.Lock()
	d.sessions[s.id] = s
	d.mu.Unlock()
	return &upload{s: s}, nil
}

// OpenUpload implements Store.
func (d *Disk) OpenUpload(ctx context.Context, id string) (Upload, error) {
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 || hex.EncodeToString(b) != id {
		return nil, fmt.Errorf("upload %q: %w", id, meta.ErrNotFound)
	}
	d.mu.Lock()
	s := d.sessions[id]
	if s == nil {
		s = &session{d: d, id: id, saved: -1}
		d.sessions[id] = s
	} else if s.rest != nil {
		d.resting.Remove(s.rest)
		s.rest = nil
	}
	s.refs++
	d.mu.Unlock()
	u := &upload{s: s}
	if err := s.resume(ctx); err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	return u, nil
}

// leave gives back a handle's hold. Of the sessions that nobody holds the longest
// idle one is put to disk, so that memory does not grow with forgotten uploads.
func (d *Disk) leave(s *session) {
	d.mu.Lock()
	s.refs--
	var oldest *session
	switch {
	case s.refs > 0 || d.closed:
	case !s.awake.Load(): // ended, or its file is all there is of it
		delete(d.sessions, s.id)
	default:
		s.rest = d.resting.PushFront(s)
		if d.resting.Len() > idleSessions {
			oldest = d.resting.Remove(d.resting.Back()).(*session)
			oldest.rest = nil
			oldest.refs++ // ours, while it is being parked
		}
	}
	d.mu.Unlock()
	if oldest == nil {
		return
	}
	oldest.park()
	d.mu.Lock()
	if oldest.refs--; oldest.refs == 0 {
		delete(d.sessions, oldest.id)
	}
	d.mu.Unlock()
}

// park puts a session to disk; it returns false when the session is in use.
func (s *session) park() bool {
	if !s.busy.TryLock() {
		return false
	}
	defer s.busy.Unlock()
	if s.awake.Load() {
		s.saveIfFar()
		s.release()
	}
	return true
}

// saveIfFar saves the state when much was received since the last time. Without it,
// or when it cannot be written, that much is hashed again. Caller holds busy.
func (s *session) saveIfFar() {
	if s.offset.Load()-max(s.saved, 0) < saveEvery {
		return
	}
	if err := s.save(); err != nil {
		s.d.log.Warn("cannot save an upload's state", "upload", s.id, "error", err)
	}
}

// release frees what an awake session holds. Caller holds busy.
func (s *session) release() {
	s.waking.Lock()
	defer s.waking.Unlock()
	s.sleep()
}

func (s *session) sleep() {
	s.awake.Store(false)
	if s.file != nil {
		_ = s.file.Close()
	}
	if s.build != nil {
		s.build.Discard()
	}
	s.file, s.hash, s.build = nil, nil, nil
}

// save writes the state file. It is not synced: after a crash of the machine it is
// either whole or recognised as torn, and its claims are checked. Caller holds busy.
func (s *session) save() error {
	hasher, err := s.hash.MarshalBinary()
	if err != nil {
		return err
	}
	chunks, _ := s.build.Finished()
	st := sessionState{Version: 1, SHA512: s.sha512, Offset: s.offset.Load(), Hasher: hasher}
	for _, c := range chunks {
		st.Chunks = append(st.Chunks, c.ID[:]...)
	}
	st.Tail = s.build.Tail()
	b := codec.Encode(st)
	sum := digest.Sum(b)
	_, path := s.d.uploadPath(s.id)
	if err := writeAtomic(path, append(b, sum[:]...), false); err != nil {
		return err
	}
	s.saved = st.Offset
	return nil
}

// readState returns the saved state, or nil when there is none or it is torn.
func (s *session) readState() *sessionState {
	_, path := s.d.uploadPath(s.id)
	b, err := os.ReadFile(path)
	if err != nil || len(b) < len(digest.CID{}) {
		return nil
	}
	body, sum := b[:len(b)-len(digest.CID{})], b[len(b)-len(digest.CID{}):]
	var st sessionState
	if digest.Sum(body) != digest.CID(sum) || codec.Unmarshal(body, &st) != nil || st.Version != 1 || len(st.Chunks)%len(digest.CID{}) != 0 {
		return nil
	}
	return &st
}

// resume opens the data file of a parked session and brings the hashes up to its
// end.
//
// After a kill of the process the file has all that was written. After a restart of
// the machine it may not, and a disk may damage what it has; a commit must not vouch for
// bytes that are not there. So what the state vouches for is read back, and when it is not
// all there, or the machine was restarted, only its finished chunks that hash right
// count, the rest is cut off.
//
// Errors: meta.ErrNotFound.
func (s *session) resume(ctx context.Context) error {
	if s.awake.Load() {
		return nil
	}
	s.waking.Lock()
	defer s.waking.Unlock()
	if s.ended.Load() {
		return meta.ErrNotFound
	}
	if s.awake.Load() {
		return nil
	}
	part, _ := s.d.uploadPath(s.id)
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return meta.ErrNotFound
	}
	if err != nil {
		return err
	}
	stat, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	st := s.readState()
	s.file, s.saved, s.flushed, s.sha512 = f, -1, 0, st != nil && st.SHA512
	good, sound, err := s.checkState(ctx, st)
	switch {
	case err != nil:
	case sound && !stat.ModTime().Before(s.d.restarted):
		err = s.resumeTrusted(ctx, st, stat.Size())
	default:
		if !sound {
			s.d.countMended("upload")
		}
		if err = s.resumeChecked(ctx, good); err == nil {
			s.d.give(stat.Size() - s.offset.Load())
		}
	}
	if err != nil {
		s.sleep()
		return err
	}
	s.awake.Store(true)
	return nil
}

func (st *sessionState) finished() []chunk.Chunk {
	ids := st.Chunks
	var out []chunk.Chunk
	var at int64
	for ; len(ids) > 0; ids = ids[len(digest.CID{}):] {
		length := chunk.LengthAt(at)
		out = append(out, chunk.Chunk{ID: digest.CID(ids[:len(digest.CID{})]), Plain: uint32(length), Stored: uint32(length)})
		at += int64(length)
	}
	return out
}

func (s *session) resumeTrusted(ctx context.Context, st *sessionState, size int64) error {
	s.hash, s.build = digest.NewHasher(s.sha512), &chunk.Builder{}
	if st != nil && st.Offset <= size {
		hash, build, err := st.restore()
		if err == nil {
			s.hash, s.build, s.saved = hash, build, st.Offset
		} else {
			s.d.log.Warn("an upload's state is unusable, hashing it again", "upload", s.id, "error", err)
		}
	}
	return s.catchUp(ctx, size)
}

func (st *sessionState) restore() (*digest.Hasher, *chunk.Builder, error) {
	hash := &digest.Hasher{}
	if err := hash.UnmarshalBinary(st.Hasher); err != nil {
		return nil, nil, err
	}
	build, err := chunk.Resume(st.finished())
	if err == nil && (hash.Size() != st.Offset || build.Size() > st.Offset) {
		err = fmt.Errorf("offsets %d, %d and %d do not fit: %w", st.Offset, hash.Size(), build.Size(), meta.ErrInvalid)
	}
	return hash, build, err
}

// catchUp feeds the hashes from the file up to size, each from where it is.
func (s *session) catchUp(ctx context.Context, size int64) error {
	buf := blockBuffers.get()
	defer blockBuffers.put(buf)
	for at := min(s.hash.Size(), s.build.Size()); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf.b[:min(int64(len(buf.b)), size-at)]
		if _, err := s.file.ReadAt(b, at); err != nil {
			return fmt.Errorf("read back upload: %w", err)
		}
		if behind := s.hash.Size() - at; behind < int64(len(b)) {
			_, _ = s.hash.Write(b[max(0, behind):]) // never fails
		}
		if behind := s.build.Size() - at; behind < int64(len(b)) {
			if _, err := s.build.Write(b[max(0, behind):]); err != nil {
				return err
			}
		}
		at += int64(len(b))
	}
	s.offset.Store(size)
	return nil
}

// checkState reads back what the state vouches for; good are its finished chunks up to
// the first that the file does not have, sound says that it has all, also what was
// received of the unfinished one.
func (s *session) checkState(ctx context.Context, st *sessionState) (good []chunk.Chunk, sound bool, err error) {
	if st == nil {
		return nil, true, nil
	}
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	var size int64
	for _, c := range st.finished() {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		b := buf.b[:c.Plain]
		if _, err := s.file.ReadAt(b, size); err != nil || digest.Sum(b) != c.ID {
			return good, false, nil
		}
		good = append(good, c)
		size += int64(c.Plain)
	}
	if st.Tail.IsZero() {
		return good, true, nil
	}
	tail := st.Offset - size
	if tail <= 0 || tail > int64(len(buf.b)) {
		return good, false, nil
	}
	_, err = s.file.ReadAt(buf.b[:tail], size)
	return good, err == nil && digest.Sum(buf.b[:tail]) == st.Tail, nil
}

// resumeChecked cuts off all but the chunks that the file really has.
func (s *session) resumeChecked(ctx context.Context, good []chunk.Chunk) error {
	size := chunkEnd(good)
	s.d.log.Warn("an upload goes back to what is sound of it", "upload", s.id, "offset_bytes", size)
	if err := s.file.Truncate(size); err != nil {
		return err
	}
	build, err := chunk.Resume(good)
	if err != nil {
		return err
	}
	s.hash, s.build = digest.NewHasher(s.sha512), build
	if err := s.catchUp(ctx, size); err != nil {
		return err
	}
	// The file's time is no longer of before the crash only once this is noted.
	if err := s.save(); err != nil {
		return err
	}
	part, _ := s.d.uploadPath(s.id)
	now := time.Now()
	return os.Chtimes(part, now, now)
}

// rewind takes back what came after offset, from memory and disk. Caller holds busy.
func (s *session) rewind(offset int64, hasher []byte) error {
	chunks, _ := s.build.Finished()
	for len(chunks) > 0 && chunkEnd(chunks) > offset {
		chunks = chunks[:len(chunks)-1]
	}
	build, err := chunk.Resume(chunks)
	if err != nil {
		return err
	}
	s.build.Discard()
	s.build = build
	if err := s.hash.UnmarshalBinary(hasher); err != nil {
		return err
	}
	if err := s.file.Truncate(offset); err != nil {
		return err
	}
	s.d.give(s.offset.Load() - offset)
	s.flushed = min(s.flushed, offset)
	if s.saved > offset {
		_, path := s.d.uploadPath(s.id)
		if err := unlink(path); err != nil {
			return err
		}
		s.saved = -1
	}
	return s.catchUp(context.Background(), offset)
}

func chunkEnd(chunks []chunk.Chunk) int64 {
	var end int64
	for _, c := range chunks {
		end += int64(c.Plain)
	}
	return end
}

// expire ends a session that nobody uses.
//
// Errors: meta.ErrConflict when somebody does.
func (d *Disk) expire(id string) error {
	d.mu.Lock()
	s := d.sessions[id]
	if s == nil {
		s = &session{d: d, id: id, saved: -1}
		d.sessions[id] = s
	} else if s.rest != nil {
		d.resting.Remove(s.rest)
		s.rest = nil
	}
	s.refs++
	alone := s.refs == 1
	d.mu.Unlock()
	defer d.leave(s)
	if !alone || !s.busy.TryLock() {
		return meta.ErrConflict
	}
	defer s.busy.Unlock()
	if s.ended.Load() {
		return nil
	}
	return s.end()
}

// end forgets the session and its bytes. Caller holds busy.
func (s *session) end() error {
	part, state := s.d.uploadPath(s.id)
	stat, err := os.Stat(part)
	if err := errors.Join(unlink(part), unlink(state)); err != nil {
		return err
	}
	if err == nil {
		s.d.give(stat.Size())
	}
	s.finish()
	s.release()
	return nil
}

// finish says that the session is over. Caller holds busy.
func (s *session) finish() {
	s.ended.Store(true)
	s.d.mu.Lock()
	s.d.uploads--
	s.d.mu.Unlock()
}

// erase undoes a session that never was.
func (s *session) erase() {
	part, state := s.d.uploadPath(s.id)
	_, _ = unlink(part), unlink(state)
	s.finish()
	s.release()
}

// upload is one caller's handle on a session.
type upload struct {
	s      *session
	closed atomic.Bool
	// kept is the blob that a commit made, held until Close: who vouches for it does so
	// meanwhile, and nobody collects it.
	kept atomic.Pointer[entry]
}

func (u *upload) ID() string    { return u.s.id }
func (u *upload) Offset() int64 { return u.s.offset.Load() }

func (u *upload) Close() error {
	if !u.closed.Swap(true) {
		u.s.d.leave(u.s)
	}
	if e := u.kept.Swap(nil); e != nil {
		u.s.d.drop(e)
	}
	return nil
}

// begin takes the session for one call.
func (s *session) begin(ctx context.Context) error {
	if !s.busy.TryLock() {
		return fmt.Errorf("another request is using it: %w", meta.ErrConflict)
	}
	if err := s.resume(ctx); err != nil {
		s.busy.Unlock()
		return err
	}
	return nil
}

func (u *upload) Append(ctx context.Context, r io.Reader) (int64, error) {
	s := u.s
	if err := s.begin(ctx); err != nil {
		return 0, fmt.Errorf("append to upload %s: %w", s.id, err)
	}
	defer s.busy.Unlock()
	n, err := s.receive(ctx, r)
	if m := s.d.metrics; m != nil {
		m.ingested.Add(float64(n))
	}
	if err != nil {
		return n, fmt.Errorf("append to upload %s: %w", s.id, err)
	}
	return n, nil
}

func (s *session) receive(ctx context.Context, r io.Reader) (int64, error) {
	from := s.offset.Load()
	before, err := s.hash.MarshalBinary()
	if err != nil {
		return 0, err
	}
	readErr, err := s.readFrom(ctx, r)
	if err != nil {
		if undo := s.rewind(from, before); undo != nil {
			// Neither forward nor back: the bytes on disk are what a new process
			// would find, so start over from them.
			s.release()
			err = errors.Join(err, undo)
		}
		return 0, err
	}
	s.saveIfFar()
	return s.offset.Load() - from, readErr
}

// readFrom takes r to its end. readErr is r's or the context's own, after which the
// received bytes stand; err is ours, after which they do not.
func (s *session) readFrom(ctx context.Context, r io.Reader) (readErr, err error) {
	small := inlineBuffers.get()
	defer inlineBuffers.put(small)
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err, nil
		}
		n, readErr := fill(r, small.b)
		if err := s.take(small.b[:n]); err != nil {
			return nil, err
		}
		if readErr != nil {
			if readErr == io.EOF {
				readErr = nil
			}
			return readErr, nil
		}
		if !first {
			continue
		}
		// More than a block: use the second core, unless many do already.
		select {
		case s.d.pipelines <- struct{}{}:
			defer func() { <-s.d.pipelines }()
			for {
				more, readErr, err := s.pipeline(ctx, r)
				if !more || err != nil {
					return readErr, err
				}
				s.saveIfFar()
			}
		default:
		}
	}
}

// fill reads until b is full or r fails; io.EOF is r's end. Unlike io.ReadFull it
// keeps r's own io.ErrUnexpectedEOF, a broken request, apart from a short end.
func fill(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b); {
		m, err := r.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
		if m > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// take writes and hashes one block.
func (s *session) take(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := s.write(b); err != nil {
		return err
	}
	_, _ = s.hash.Write(b) // never fails
	_, err := s.build.Write(b)
	return err
}

// write appends b to the data file.
func (s *session) write(b []byte) error {
	at := s.offset.Load()
	if err := s.d.capped(context.Background(), int64(len(b)), false); err != nil {
		s.d.refuse("space")
		return err
	}
	if err := s.writeAt(b, at); err != nil {
		s.d.give(int64(len(b)))
		return err
	}
	return nil
}

func (s *session) writeAt(b []byte, at int64) error {
	if at/flushEvery != (at+int64(len(b)))/flushEvery || at == 0 {
		if err := s.d.room(context.Background(), int64(len(b))); err != nil {
			s.d.refuse("space")
			return err
		}
		if s.d.cfg.Fsync && at > s.flushed {
			startWriteback(s.file, s.flushed, at)
			s.flushed = at
		}
	}
	if _, err := s.file.WriteAt(b, at); err != nil {
		return diskError("write upload", err)
	}
	s.offset.Store(at + int64(len(b)))
	s.d.traffic.Add(int64(len(b)))
	return nil
}

// block is a piece of a stream on its way through the pipeline.
type block struct {
	buf   *buffer
	b     []byte
	users atomic.Int32
}

// pipeline takes up to a segment of r: this goroutine reads and writes, one computes
// sha256, one BLAKE3, each block used by all without a copy. more says that r may
// have more. All hashes have caught up when it returns.
func (s *session) pipeline(ctx context.Context, r io.Reader) (more bool, readErr, err error) {
	free := make(chan *block, blockCount)
	sha, blake := make(chan *block, blockCount), make(chan *block, blockCount)
	done := func(b *block) {
		if b.users.Add(-1) == 0 {
			free <- b
		}
	}
	var hashing sync.WaitGroup
	hashing.Go(func() {
		for b := range sha {
			_, _ = s.hash.Write(b.b) // never fails
			done(b)
		}
	})
	var buildErr error
	hashing.Go(func() {
		for b := range blake {
			if buildErr == nil {
				_, buildErr = s.build.Write(b.b)
			}
			done(b)
		}
	})
	for range blockCount {
		free <- &block{buf: blockBuffers.get()}
	}

	more = true
	for end := s.offset.Load() + segmentBytes; more && err == nil && s.offset.Load() < end; {
		b := <-free
		if readErr = ctx.Err(); readErr != nil {
			more = false
			free <- b
			break
		}
		var n int
		n, readErr = fill(r, b.buf.b)
		more = readErr == nil
		if readErr == io.EOF {
			readErr = nil
		}
		if b.b = b.buf.b[:n]; n == 0 {
			free <- b
			break
		}
		b.users.Store(3)
		sha <- b
		blake <- b
		err = s.write(b.b)
		done(b)
	}
	close(sha)
	close(blake)
	hashing.Wait()
	for range blockCount {
		blockBuffers.put((<-free).buf)
	}
	if err == nil {
		err = buildErr
	}
	return more, readErr, err
}

func (u *upload) Commit(ctx context.Context, want digest.Digest) (Ingested, error) {
	s := u.s
	if err := s.begin(ctx); err != nil {
		return Ingested{}, fmt.Errorf("commit upload %s: %w", s.id, err)
	}
	defer s.busy.Unlock()
	in, err := u.commit(want)
	if err != nil {
		return Ingested{}, fmt.Errorf("commit upload %s: %w", s.id, err)
	}
	return in, nil
}

func (u *upload) commit(want digest.Digest) (Ingested, error) {
	s := u.s
	d := s.d
	if want != "" {
		if err := s.hash.Check(want); err != nil {
			d.metrics.countCommit("mismatch")
			return Ingested{}, err
		}
	}
	// The Builder is used up by Map, so a commit that fails below leaves a session
	// that is read back from its file.
	m, err := s.build.Map()
	if err != nil {
		return Ingested{}, err
	}
	s.build = nil
	encoded := m.Encode()
	in := Ingested{
		Digest: s.hash.SHA256(), SHA512: s.hash.SHA512(), Map: m, Root: digest.Sum(encoded),
		PlainBytes: m.PlainBytes, StoredBytes: m.StoredBytes,
	}
	e := d.hold(in.Root)
	part, state := d.uploadPath(s.id)
	existed, err := e.adopt(m, encoded, s.file, part)
	if err != nil {
		d.drop(e)
		s.release()
		return Ingested{}, err
	}
	u.kept.Store(e)
	if existed {
		d.metrics.countCommit("deduplicated")
		if err := s.end(); err != nil {
			d.log.Warn("cannot remove a finished upload", "upload", s.id, "error", err)
		}
		return in, nil
	}
	d.metrics.countCommit("new")
	d.give(s.offset.Load())
	s.file = nil // the blob's now
	s.finish()
	s.release()
	if s.saved >= 0 {
		_ = unlink(state) // a state without data is removed by the scan
	}
	return in, nil
}

func (u *upload) Cancel(ctx context.Context) error {
	s := u.s
	if !s.busy.TryLock() {
		return fmt.Errorf("cancel upload %s: another request is using it: %w", s.id, meta.ErrConflict)
	}
	defer s.busy.Unlock()
	if s.ended.Load() {
		return fmt.Errorf("cancel upload %s: %w", s.id, meta.ErrNotFound)
	}
	if err := s.end(); err != nil {
		return fmt.Errorf("cancel upload %s: %w", s.id, err)
	}
	return nil
}
