// Package rpmtest makes small .rpm files that rpm and dnf install, without rpmbuild.
// Start at Package.Bytes. It has what the RPM v4 format demands and no more.
package rpmtest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Package is what an .rpm says and has.
type Package struct {
	Name, Version, Release, Arch string
	Epoch                        uint32
	Summary                      string
	// Requires and Provides are `name` or `name = version`.
	Requires, Provides []string
	// Files are those with their content, by path from the root.
	Files map[string][]byte
	// Log is a changelog, newest first.
	Log []string
}

// File is the name that the package's file has.
func (p Package) File() string {
	return p.Name + "-" + p.Version + "-" + p.Release + "." + p.Arch + ".rpm"
}

// tags is a header being made: values in the order in which they are added.
type tags struct {
	index, store bytes.Buffer
	count        uint32
}

func (h *tags) add(tag, kind, count uint32, align int, value []byte) {
	for h.store.Len()%align != 0 {
		h.store.WriteByte(0)
	}
	for _, n := range []uint32{tag, kind, uint32(h.store.Len()), count} {
		h.index.Write(binary.BigEndian.AppendUint32(nil, n))
	}
	h.store.Write(value)
	h.count++
}

func (h *tags) text(tag uint32, s string) { h.add(tag, 6, 1, 1, append([]byte(s), 0)) }
func (h *tags) i18n(tag uint32, s string) { h.add(tag, 9, 1, 1, append([]byte(s), 0)) }

func (h *tags) texts(tag uint32, all []string) {
	if len(all) > 0 {
		h.add(tag, 8, uint32(len(all)), 1, []byte(strings.Join(all, "\x00")+"\x00"))
	}
}

func (h *tags) int32s(tag uint32, all ...uint32) {
	var b []byte
	for _, n := range all {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	if len(all) > 0 {
		h.add(tag, 4, uint32(len(all)), 4, b)
	}
}

func (h *tags) int16s(tag uint32, all []uint16) {
	var b []byte
	for _, n := range all {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	if len(all) > 0 {
		h.add(tag, 3, uint32(len(all)), 2, b)
	}
}

// bytes returns the header with its region, which covers all of it.
func (h *tags) bytes(region uint32) []byte {
	trailer := make([]byte, 0, 16)
	for _, n := range []uint32{region, 7, -(h.count + 1) * 16, 16} {
		trailer = binary.BigEndian.AppendUint32(trailer, n)
	}
	at := uint32(h.store.Len())
	b := []byte("\x8e\xad\xe8\x01\x00\x00\x00\x00")
	for _, n := range []uint32{h.count + 1, at + 16, region, 7, at, 16} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = append(b, h.index.Bytes()...)
	return append(append(b, h.store.Bytes()...), trailer...)
}

const built = 1_700_000_000

// Bytes returns the package.
func (p Package) Bytes() []byte {
	paths := make([]string, 0, len(p.Files))
	for name := range p.Files {
		paths = append(paths, name)
	}
	slices.Sort(paths)
	payload := p.payload(paths)

	var h tags
	h.texts(100, []string{"C"})
	h.text(1000, p.Name)
	h.text(1001, p.Version)
	h.text(1002, p.Release)
	if p.Epoch > 0 {
		h.int32s(1003, p.Epoch)
	}
	h.i18n(1004, p.Summary)
	h.i18n(1005, p.Summary)
	h.int32s(1006, built)
	h.text(1007, "localhost")
	size := 0
	for _, b := range p.Files {
		size += len(b)
	}
	h.int32s(1009, uint32(size))
	h.text(1014, "MIT")
	h.i18n(1016, "Unspecified")
	h.text(1021, "linux")
	h.text(1022, p.Arch)
	p.files(&h, paths)
	h.text(1044, p.Name+"-"+p.Version+"-"+p.Release+".src.rpm")
	relations(&h, append([]string{fmt.Sprintf("%s = %d:%s-%s", p.Name, p.Epoch, p.Version, p.Release)}, p.Provides...), 1047, 1112, 1113)
	relations(&h, append([]string{"rpmlib(CompressedFileNames) = 3.0.4-1", "rpmlib(PayloadFilesHavePrefix) = 4.0-1"}, p.Requires...), 1049, 1048, 1050)
	h.text(1064, "4.18.0")
	var times []uint32
	var authors []string
	for i := range p.Log {
		times, authors = append(times, uint32(built-86400*i)), append(authors, "Ada <ada@example.org>")
	}
	h.int32s(1080, times...)
	h.texts(1081, authors)
	h.texts(1082, p.Log)
	h.text(1124, "cpio")
	h.text(1125, "gzip")
	h.text(1126, "6")
	h.int32s(5011, 8)
	h.texts(5092, []string{sum(payload)})
	h.int32s(5093, 8)
	header := h.bytes(63)

	var s tags
	s.text(273, sum(header))
	s.int32s(1000, uint32(len(header)+len(payload)))
	signature := s.bytes(62)
	for len(signature)%8 != 0 {
		signature = append(signature, 0)
	}

	lead := make([]byte, 96)
	copy(lead, "\xed\xab\xee\xdb\x03\x00\x00\x00\x00\x01")
	copy(lead[10:75], p.Name+"-"+p.Version+"-"+p.Release)
	lead[77], lead[79] = 1, 5 // linux; the signature is a header
	return slices.Concat(lead, signature, header, payload)
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// relations adds those that others need or get.
func relations(h *tags, all []string, names, flags, versions uint32) {
	var name, version []string
	var flag []uint32
	for _, r := range all {
		n, v, exact := strings.Cut(r, " = ")
		f := uint32(0)
		if exact {
			f = 8
		}
		if strings.HasPrefix(n, "rpmlib(") {
			f = 1<<24 | 8 | 2
		}
		name, version, flag = append(name, n), append(version, v), append(flag, f)
	}
	h.int32s(flags, flag...)
	h.texts(names, name)
	h.texts(versions, version)
}

// files adds what the header says of each file.
func (p Package) files(h *tags, paths []string) {
	n := len(paths)
	if n == 0 {
		return
	}
	var sizes, times, flags, verify, devices, inodes, dirOf []uint32
	var modes, rdevs []uint16
	var digests, links, users, langs, bases, dirs []string
	for i, name := range paths {
		dir := path.Dir(name) + "/"
		at := slices.Index(dirs, dir)
		if at < 0 {
			at, dirs = len(dirs), append(dirs, dir)
		}
		mode := uint16(0o100644)
		if strings.Contains(dir, "bin/") {
			mode = 0o100755
		}
		sizes, times, flags, verify = append(sizes, uint32(len(p.Files[name]))), append(times, built), append(flags, 0), append(verify, 0xffffffff)
		devices, inodes, dirOf = append(devices, 1), append(inodes, uint32(i+1)), append(dirOf, uint32(at))
		modes, rdevs = append(modes, mode), append(rdevs, 0)
		digests, links, users, langs, bases = append(digests, sum(p.Files[name])), append(links, ""), append(users, "root"), append(langs, ""), append(bases, path.Base(name))
	}
	h.int32s(1028, sizes...)
	h.int16s(1030, modes)
	h.int16s(1033, rdevs)
	h.int32s(1034, times...)
	h.texts(1035, digests)
	h.texts(1036, links)
	h.int32s(1037, flags...)
	h.texts(1039, users)
	h.texts(1040, users)
	h.int32s(1045, verify...)
	h.int32s(1095, devices...)
	h.int32s(1096, inodes...)
	h.texts(1097, langs)
	h.int32s(1116, dirOf...)
	h.texts(1117, bases)
	h.texts(1118, dirs)
}

// payload is the files as a cpio archive (newc), compressed.
func (p Package) payload(paths []string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	var cpio bytes.Buffer
	pad := func() {
		for cpio.Len()%4 != 0 {
			cpio.WriteByte(0)
		}
	}
	entry := func(name string, inode int, mode uint32, body []byte) {
		fmt.Fprintf(&cpio, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, built, len(body), 0, 1, 0, 0, len(name)+1, 0, name)
		pad()
		cpio.Write(body)
		pad()
	}
	for i, name := range paths {
		mode := uint32(0o100644)
		if strings.Contains(path.Dir(name)+"/", "bin/") {
			mode = 0o100755
		}
		entry("."+name, i+1, mode, p.Files[name])
	}
	entry("TRAILER!!!", 0, 0, nil)
	// Writing into memory does not fail.
	_, _ = z.Write(cpio.Bytes())
	_ = z.Close()
	return b.Bytes()
}
