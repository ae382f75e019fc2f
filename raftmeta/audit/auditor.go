package audit

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// MaxLineBytes bounds a line of an export.
const MaxLineBytes = 4 << 20

// State is what an auditor keeps between exports: all entries so far as a compact
// range, and the last checkpoint that they had. Its zero value has seen nothing.
type State struct {
	Tree       Tree      `json:"tree"`
	Checkpoint string    `json:"checkpoint,omitempty"` // Text
	Time       time.Time `json:"time,omitzero"`        // of the last entry
	Index      uint64    `json:"index,omitempty"`
	Epoch      uint64    `json:"epoch,omitempty"`
}

// Report is what an audit found.
type Report struct {
	// From and Size bound the entries that were read: from From on, Size in the log then.
	From uint64 `json:"from"`
	Size uint64 `json:"size"`
	Root string `json:"root"`
	// Covered are the entries up to the last checkpoint that holds, signed by Regions at
	// Signed. What is behind it has no witness yet.
	Covered uint64            `json:"covered"`
	Signed  time.Time         `json:"signed,omitzero"`
	Regions []meta.RegionName `json:"regions,omitempty"`
	// Checkpoints counts those that were compared.
	Checkpoints int `json:"checkpoints"`
	// Recovered says where epochs began that lost entries, which were accepted.
	Recovered []string `json:"recovered,omitempty"`
	// Findings are what is wrong; without any the export is what the servers signed.
	Findings []string `json:"findings,omitempty"`
}

// Audit reads an export from the place on where s is, and compares it with checkpoints:
// also such as the auditor kept from earlier. It finds a changed byte, an entry left
// out, put in or moved, a log that was rewound or forked. s is advanced when nothing is
// wrong. recoveries accepts that epochs may have begun by losing entries, which is
// reported otherwise.
//
// Errors: of reading.
func Audit(s *State, export io.Reader, points []Signed, trust Trust, recoveries bool) (Report, error) {
	a := auditor{state: *s, report: Report{From: s.Tree.Size}, recoveries: recoveries}
	a.takePoints(points, trust)
	if err := a.read(export); err != nil {
		return a.report, err
	}
	a.end()
	if len(a.report.Findings) == 0 {
		*s = a.state
	}
	return a.report, nil
}

type signedPoint struct {
	Checkpoint
	regions []meta.RegionName
}

type auditor struct {
	state      State
	report     Report
	recoveries bool
	points     []signedPoint // by epoch, size; those behind what was read
	broken     bool          // the tree is not the log's any more
}

func (a *auditor) find(format string, args ...any) {
	if len(a.report.Findings) < maxFindings {
		a.report.Findings = append(a.report.Findings, fmt.Sprintf(format, args...))
	}
}

// takePoints verifies the checkpoints and looks whether they can be of one log.
func (a *auditor) takePoints(points []Signed, trust Trust) {
	for i, p := range points {
		c, regions, err := p.Verify(trust)
		if err != nil {
			a.find("checkpoint %d of those given: %v", i+1, err)
			continue
		}
		a.points = append(a.points, signedPoint{c, regions})
	}
	if a.state.Checkpoint != "" {
		if c, err := ParseCheckpoint(a.state.Checkpoint); err == nil {
			a.points = append(a.points, signedPoint{c, nil})
		} else {
			a.find("the state of the last audit: %v", err)
		}
	}
	slices.SortStableFunc(a.points, func(x, y signedPoint) int {
		return cmp.Or(cmp.Compare(x.Epoch, y.Epoch), cmp.Compare(x.Size, y.Size), x.Time.Compare(y.Time))
	})
	for i := 1; i < len(a.points); i++ {
		was, is := a.points[i-1], a.points[i]
		switch {
		case was.Cluster != is.Cluster:
			a.find("checkpoints of two clusters, %s and %s", was.Cluster, is.Cluster)
		case was.Epoch != is.Epoch:
		case was.Size == is.Size && was.Root != is.Root:
			a.find("the log was forked: two signed checkpoints of %d entries have different roots", is.Size)
		case is.Time.Before(was.Time) && is.Size > was.Size:
			a.find("the log was rewound: a checkpoint of %s had %d entries, one of %s later has %d",
				is.Time.Format(time.RFC3339), is.Size, was.Time.Format(time.RFC3339), was.Size)
		}
	}
	root, err := a.state.Tree.Root()
	if err != nil {
		a.find("the state of the last audit: %v", err)
		return
	}
	a.compare(root)
}

// compare checks the checkpoints that are of what was read up to now.
func (a *auditor) compare(root tlog.Hash) {
	size := a.state.Tree.Size
	for len(a.points) > 0 {
		p := a.points[0]
		switch {
		case p.Epoch == a.state.Epoch && p.Size > size, p.Epoch > a.state.Epoch && p.Size > size:
			return
		case p.Epoch > a.state.Epoch && p.Size == size && p.Root != root:
			return // The epoch begins with an entry that is yet to come.
		case p.Size == size:
			a.report.Checkpoints++
			if p.Root != root {
				if !a.broken {
					a.find("the %d entries are not those that were signed at %s: something in entries %d to %d was changed, or the log was forked",
						size, p.Time.Format(time.RFC3339), a.report.Covered, size-1)
				}
				a.broken = true
			} else if !a.broken && p.regions != nil {
				a.report.Covered, a.report.Signed, a.report.Regions = size, p.Time, p.regions
				a.state.Checkpoint = p.Text()
			}
		case p.Size < a.report.From || p.Epoch < a.state.Epoch:
			// Of before what is looked at: the state covers it.
		}
		a.points = a.points[1:]
	}
}

func (a *auditor) read(export io.Reader) error {
	lines := bufio.NewScanner(export)
	lines.Buffer(make([]byte, 0, 64<<10), MaxLineBytes)
	for n := 1; lines.Scan(); n++ {
		line := lines.Bytes()
		e, err := ParseLine(line)
		if err != nil {
			a.find("line %d: %v", n, err)
			a.broken = true
			continue
		}
		s := &a.state
		switch next := s.Tree.Size; {
		case e.Seq < next:
			a.find("line %d has entry %d again, behind entry %d: a log that was rewound, or an entry that was put in", n, e.Seq, next-1)
			a.broken = true
			continue
		case e.Seq > next:
			a.find("entries %d to %d are missing: behind entry %d comes %d", next, e.Seq-1, int64(next)-1, e.Seq)
			a.broken = true
			// Go on as if they were there, to find more of the same; no root holds now.
			for s.Tree.Size < e.Seq && e.Seq-next < 1<<20 {
				if err := s.Tree.Append([]tlog.Hash{{}}, nil); err != nil {
					return err
				}
			}
			if s.Tree.Size < e.Seq {
				return nil
			}
		}
		if again := e.AppendLine(nil); string(again) != string(line) {
			a.find("entry %d is not written as the log writes it", e.Seq)
		}
		if e.Time.Before(s.Time) || e.Index < s.Index || e.Epoch < s.Epoch {
			a.find("entry %d is of %s and index %d, before the entry in front of it", e.Seq, e.Time.Format(time.RFC3339Nano), e.Index)
		}
		if e.Epoch > s.Epoch {
			a.began(e)
		}
		if err := s.Tree.Append([]tlog.Hash{LeafHash(line)}, nil); err != nil {
			return err
		}
		s.Time, s.Index, s.Epoch = e.Time, e.Index, e.Epoch
		if len(a.points) > 0 && a.points[0].Size <= s.Tree.Size {
			root, err := s.Tree.Root()
			if err != nil {
				return err
			}
			a.compare(root)
		}
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			a.find("a line of more than %d bytes", MaxLineBytes)
			a.broken = true
			return nil
		}
		return fmt.Errorf("read the export: %w", err)
	}
	return nil
}

// began notes what an epoch lost that was signed in the one before.
func (a *auditor) began(e Entry) {
	for len(a.points) > 0 && a.points[0].Epoch < e.Epoch {
		p := a.points[0]
		a.points = a.points[1:]
		text := fmt.Sprintf("epoch %d began at entry %d, %s: of the epoch before it %d entries were signed at %s, so that up to %d are lost",
			e.Epoch, e.Seq, e.Time.Format(time.RFC3339), p.Size, p.Time.Format(time.RFC3339), p.Size-min(e.Seq, p.Size))
		if a.recoveries {
			a.report.Recovered = append(a.report.Recovered, text)
		} else {
			a.find("%s; if the cluster was recovered or restored then, say so", text)
		}
	}
}

// end looks for checkpoints of entries that were not there.
func (a *auditor) end() {
	a.report.Size = a.state.Tree.Size
	if root, err := a.state.Tree.Root(); err == nil {
		a.report.Root = root.String()
	}
	if n := len(a.points); n > 0 && !a.broken {
		p := a.points[n-1]
		a.find("the export ends at %d entries, and %d were signed at %s: the end is missing, or the log was rewound", a.state.Tree.Size, p.Size, p.Time.Format(time.RFC3339))
	}
}
