package history

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Limits of one key. A key with more operations, or more writes without an answer, each
// of which may have happened at any time since, takes the checker too long.
const (
	maxOps     = 160
	maxUnknown = 5
)

// Recorder takes operations in as they end, and judges keys when they are closed.
type Recorder struct {
	begun   time.Time
	limit   time.Duration // for the judgement of one key
	file    *os.File
	zip     *gzip.Writer
	buffer  *bufio.Writer
	encoder *json.Encoder
	closed  chan []Op
	ended   sync.WaitGroup

	mu       sync.Mutex
	open     map[string]*keyOps
	writing  error // of the file
	totals   Totals
	findings []Finding
}

type keyOps struct {
	ops     []Op
	unknown int
}

// Totals counts what was judged.
type Totals struct {
	Operations int `json:"operations"` // in judged keys
	Strong     int `json:"strong_reads"`
	Weak       int `json:"bounded_reads"`
	Writes     int `json:"writes"`
	Unknown    int `json:"unknown"` // of the writes: nobody was told
	Keys       int `json:"keys"`
	Undecided  int `json:"undecided"` // keys whose judgement took too long
}

// Finding is a key whose history nothing explains.
type Finding struct {
	Key    string
	Result Result
	Small  []Op // what is wrong, with as little else as possible
}

// maxFindings bounds what is kept of a product that is broken altogether.
const maxFindings = 100

// Create starts a recorder that writes to a new gzip file, a JSON object a line.
func Create(path string, limit time.Duration) (*Recorder, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	r := &Recorder{begun: time.Now(), limit: limit, file: file, closed: make(chan []Op, 16), open: make(map[string]*keyOps)}
	r.zip = gzip.NewWriter(file)
	r.buffer = bufio.NewWriterSize(r.zip, 64<<10)
	r.encoder = json.NewEncoder(r.buffer)
	r.ended.Add(1)
	go func() {
		defer r.ended.Done()
		for ops := range r.closed {
			r.judge(ops)
		}
	}()
	return r, nil
}

// Now is the clock of the history, in nanoseconds.
func (r *Recorder) Now() int64 { return int64(time.Since(r.begun)) }

// Add takes in an operation that has ended. It reports whether the key is full: whoever
// hears that starts no more operations on it and closes it when all have ended.
func (r *Recorder) Add(o Op) (full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.encoder.Encode(o); err != nil && r.writing == nil {
		r.writing = err
	}
	key := r.open[o.Key]
	if key == nil {
		key = &keyOps{}
		r.open[o.Key] = key
	}
	key.ops = append(key.ops, o)
	if o.Outcome == Unknown {
		key.unknown++
	}
	return len(key.ops) >= maxOps || key.unknown >= maxUnknown
}

// CloseKey hands a key's history to the judge. It waits when the judge is behind.
func (r *Recorder) CloseKey(key string) {
	r.mu.Lock()
	k := r.open[key]
	delete(r.open, key)
	r.mu.Unlock()
	if k != nil {
		r.closed <- k.ops
	}
}

func (r *Recorder) judge(ops []Op) {
	result := Check(ops, r.limit)
	finding := Finding{Key: ops[0].Key, Result: result}
	if result == Wrong || result == Younger {
		finding.Small = Shrink(ops, r.limit)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.totals.Keys++
	r.totals.Operations += len(ops)
	for _, o := range ops {
		switch {
		case o.Verb != Read && o.Verb != Fetch:
			r.totals.Writes++
			if o.Outcome == Unknown {
				r.totals.Unknown++
			}
		case o.Weak():
			r.totals.Weak++
		default:
			r.totals.Strong++
		}
	}
	switch result {
	case Undecided:
		r.totals.Undecided++
	case Wrong, Younger:
		if len(r.findings) < maxFindings {
			r.findings = append(r.findings, finding)
		}
	}
}

// Judged returns what has been judged so far.
func (r *Recorder) Judged() (Totals, []Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.totals, append([]Finding(nil), r.findings...)
}

// Close judges the keys that are still open, and ends the file.
func (r *Recorder) Close() (Totals, []Finding, error) {
	r.mu.Lock()
	var left []string
	for key := range r.open {
		left = append(left, key)
	}
	r.mu.Unlock()
	for _, key := range left {
		r.CloseKey(key)
	}
	close(r.closed)
	r.ended.Wait()
	err := errors.Join(r.writing, r.buffer.Flush(), r.zip.Close(), r.file.Close())
	if err != nil {
		err = fmt.Errorf("history: %w", err)
	}
	return r.totals, r.findings, err
}

// Load judges the histories of a file that a Recorder wrote, one key after another. A
// file that breaks off, as after a kill, is judged as far as it goes.
func Load(path string, limit time.Duration) (Totals, []Finding, error) {
	file, err := os.Open(path)
	if err != nil {
		return Totals{}, nil, fmt.Errorf("history: %w", err)
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		return Totals{}, nil, fmt.Errorf("history %s: %w", path, err)
	}
	byKey := make(map[string][]Op)
	decoder := json.NewDecoder(bufio.NewReader(zip))
	for {
		var o Op
		err := decoder.Decode(&o)
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return Totals{}, nil, fmt.Errorf("history %s: %w", path, err)
		}
		byKey[o.Key] = append(byKey[o.Key], o)
	}
	r := &Recorder{limit: limit}
	for _, ops := range byKey {
		r.judge(ops)
	}
	return r.totals, r.findings, nil
}
