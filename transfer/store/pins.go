package store

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const pinsFile = "pins"

// pins is who keeps which blob. The file is a log of lines `+ROOT OWNER SUM` and
// `-ROOT OWNER SUM`, SUM being CRC-32C of what is before it in 8 hex digits; a torn last
// line is no line. It is rewritten when most of it is history. Files of before had no
// sums: they count as long as no line of the file has one.
type pins struct {
	mu     sync.Mutex
	path   string
	file   *os.File
	owners map[digest.CID]map[string]struct{}
	live   int
	lines  int
	// damaged counts lines that were not what was written.
	damaged int
}

func openPins(path string) (*pins, error) {
	p := &pins{path: path, owners: map[digest.CID]map[string]struct{}{}}
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		var lines []string
		summed := false
		r := bufio.NewReader(f)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				break // the end, or a line whose writer was killed
			}
			line = strings.TrimSuffix(line, "\n")
			_, ok := cutSum(line)
			summed = summed || ok
			lines = append(lines, line)
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		for _, line := range lines {
			if summed {
				var ok bool
				if line, ok = cutSum(line); !ok {
					p.damaged++
					continue
				}
			}
			if !p.read(line) {
				p.damaged++
			}
		}
	}
	return p, p.rewrite()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func lineSum(line string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(line), castagnoli))
}

// cutSum returns what is before the sum of a line, if the sum is right.
func cutSum(line string) (string, bool) {
	at := strings.LastIndexByte(line, ' ')
	if at < 0 || line[at+1:] != lineSum(line[:at]) {
		return "", false
	}
	return line[:at], true
}

// read applies a line without its sum; it returns false for one that is none.
func (p *pins) read(line string) bool {
	name, owner, ok := strings.Cut(line, " ")
	if !ok || len(name) < 2 || owner == "" || strings.Contains(owner, " ") || name[0] != '+' && name[0] != '-' {
		return false
	}
	root, err := digest.ParseHex(name[1:])
	if err != nil {
		return false
	}
	p.change(root, owner, name[0] == '+')
	return true
}

// again writes the file that somebody removed.
func (p *pins) again() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rewrite()
}

// change applies one line; it reports whether that changed anything.
func (p *pins) change(root digest.CID, owner string, add bool) bool {
	set := p.owners[root]
	if _, has := set[owner]; has == add {
		return false
	}
	if add {
		if set == nil {
			set = map[string]struct{}{}
			p.owners[root] = set
		}
		set[owner] = struct{}{}
		p.live++
		return true
	}
	if delete(set, owner); len(set) == 0 {
		delete(p.owners, root)
	}
	p.live--
	return true
}

func pinLine(root digest.CID, owner string, add bool) string {
	sign := "-"
	if add {
		sign = "+"
	}
	line := sign + root.Hex() + " " + owner
	return line + " " + lineSum(line) + "\n"
}

// rewrite replaces the log by the lines of what is pinned.
func (p *pins) rewrite() error {
	var b strings.Builder
	for root, owners := range p.owners {
		for owner := range owners {
			b.WriteString(pinLine(root, owner, true))
		}
	}
	if err := writeAtomic(p.path, []byte(b.String()), true); err != nil {
		return err
	}
	f, err := os.OpenFile(p.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if p.file != nil {
		_ = p.file.Close() // its content is in the new file
	}
	p.file, p.lines = f, p.live
	return nil
}

func (p *pins) set(root digest.CID, owner string, add bool) error {
	if owner == "" || strings.ContainsAny(owner, " \n\r\t") {
		return fmt.Errorf("pin owner %q has white space or is empty: %w", owner, meta.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.change(root, owner, add) {
		return nil
	}
	_, err := p.file.WriteString(pinLine(root, owner, add))
	if err == nil {
		if p.lines++; p.lines > 1000+2*p.live {
			err = p.rewrite()
		}
	}
	if err != nil {
		p.change(root, owner, !add)
		return diskError(fmt.Sprintf("pin %s", root), err)
	}
	return nil
}

func (p *pins) has(root digest.CID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.owners[root]) > 0
}

func (p *pins) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}
