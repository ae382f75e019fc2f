// Package archivetest makes the archives that tests publish: Zip, Tar and Tgz of files,
// given as name, content, name, content and so on, in that order. The same files make the
// same bytes each time.
package archivetest

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// Zip makes a zip archive, compressed.
func Zip(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		check(t, err)
		_, err = io.WriteString(w, files[i+1])
		check(t, err)
	}
	check(t, z.Close())
	return b.Bytes()
}

// Tar makes a tar archive of ordinary files.
func Tar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		check(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, files[i+1])
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

// Tgz makes a tar archive, compressed by gzip.
func Tgz(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(Tar(t, files...))
	check(t, err)
	check(t, z.Close())
	return b.Bytes()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
