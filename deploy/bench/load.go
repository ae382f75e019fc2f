package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// getLoad sends total GET requests for path over clients persistent connections, each
// of which sends its next request when it has the answer to the last.
//
// It reads HTTP/1.1 by hand: net/http's client costs more than the servers it would
// measure. Any answer but 200 with a Content-Length of want bytes is an error, as is
// an answer that takes longer than 30 s.
func getLoad(ctx context.Context, address, path string, clients, total, want int) error {
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n", path, address)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left atomic.Int64
	left.Store(int64(total))
	var running sync.WaitGroup
	for range clients {
		running.Add(1)
		go func() {
			defer running.Done()
			if err := getUntil(ctx, address, request, want, &left); err != nil {
				cancel(err)
			}
		}()
	}
	running.Wait()
	return context.Cause(ctx)
}

func getUntil(ctx context.Context, address string, request []byte, want int, left *atomic.Int64) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	reader := bufio.NewReaderSize(conn, 16<<10)
	for left.Add(-1) >= 0 {
		if ctx.Err() != nil {
			return nil // somebody else's error ends the load
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(request); err != nil {
			return err
		}
		n, err := readAnswer(reader)
		if err != nil {
			return err
		}
		if n != want {
			return fmt.Errorf("answer of %d bytes instead of %d", n, want)
		}
	}
	return nil
}

// readAnswer reads one answer with status 200 and returns its body's length.
func readAnswer(r *bufio.Reader) (int, error) {
	status, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("answer %q", bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(key, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errors.New("answer without Content-Length")
	}
	if _, err := r.Discard(length); err != nil {
		return 0, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return length, nil
}
