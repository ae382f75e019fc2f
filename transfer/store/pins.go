package store

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const pinsFile = "pins"

// pins is who keeps which blob. The file is a log of lines `+ROOT OWNER` and
// `-ROOT OWNER`; a torn last line is no line. It is rewritten when most of it is
// history.
type pins struct {
	mu     sync.Mutex
	path   string
	file   *os.File
	owners map[digest.CID]map[string]struct{}
	live   int
	lines  int
}

func openPins(path string) (*pins, error) {
	p := &pins{path: path, owners: map[digest.CID]map[string]struct{}{}}
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		r := bufio.NewReader(f)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				break // the end, or a line whose writer was killed
			}
			p.read(strings.TrimSuffix(line, "\n"))
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return p, p.rewrite()
}

func (p *pins) read(line string) {
	name, owner, ok := strings.Cut(line, " ")
	if !ok || len(name) < 2 {
		return
	}
	root, err := digest.ParseHex(name[1:])
	if err != nil {
		return
	}
	p.change(root, owner, name[0] == '+')
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
	return sign + root.Hex() + " " + owner + "\n"
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
