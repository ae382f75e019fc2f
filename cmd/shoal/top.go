package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newTop() *cobra.Command {
	var (
		out   output
		data  string
		ops   []string
		once  bool
		every time.Duration
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch what nodes fetch and serve: blobs, peers, rates, where bytes come from",
		Long: `top asks the private ops listeners of one node or of several and shows, once a second: the blobs that are
fetched or served with size, how much is here, rates, connected peers (whole + others), where the bytes came from (local, zone,
region, wan), chunks a second, hedges, wrong chunks and the time left; for one node its peers; on servers the region's swarms and
the peers that were reported for wrong chunks.

q or Ctrl-C ends it. --once prints one view, with rates over one interval; so does an output that is no terminal. --json prints
one object a view.`,
		Example: `  shoal top
  shoal top --ops 10.0.0.1:7072 --ops 10.0.0.2:7072
  shoal top --once --json --ops 127.0.0.1:7072`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Minute {
				return fmt.Errorf("--interval %v: it is 100ms to 1m", every)
			}
			if data == "" {
				home, err := dataHome()
				if err != nil {
					return err
				}
				data = filepath.Join(home, "dev")
			}
			addresses := ops
			if len(addresses) == 0 {
				addresses = opsAddresses(os.Getenv("SHOAL_OPS"), data)
			}
			for _, a := range addresses {
				if _, _, err := net.SplitHostPort(a); err != nil {
					return fmt.Errorf("--ops %q: write HOST:PORT: %w", a, err)
				}
			}
			w := &watcher{ops: addresses, every: every, client: &http.Client{Timeout: min(requestTimeout, 5*time.Second)}}
			defer w.client.CloseIdleConnections()
			screen, isTerminal := cmd.OutOrStdout().(*os.File)
			isTerminal = isTerminal && terminalSize(screen) != [2]int{}
			switch {
			case once, !isTerminal && !out.json:
				v, err := w.first(cmd.Context())
				if err != nil {
					return err
				}
				return out.print(cmd, v, func() { printLines(cmd.OutOrStdout(), frame(v, 0, 0)) })
			case out.json:
				return w.run(cmd.Context(), func(v topView) error { return json.NewEncoder(cmd.OutOrStdout()).Encode(v) })
			default:
				return watch(cmd.Context(), screen, w)
			}
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&ops, "ops", nil, "ops listener of a node, HOST:PORT; repeatable (default: $SHOAL_OPS, else those of dev.json, else 127.0.0.1:7072)")
	f.StringVar(&data, "data", "", "data directory whose dev.json names the nodes (default: dev's)")
	f.BoolVar(&once, "once", false, "print one view and end")
	f.DurationVar(&every, "interval", time.Second, "how often to look")
	out.flag(cmd)
	return cmd
}

// watcher takes a sample of every node each interval.
type watcher struct {
	ops    []string
	every  time.Duration
	client *http.Client
}

// first returns the view of one interval.
//
// Errors: ctx's; when no node answers, the first one's.
func (w *watcher) first(ctx context.Context) (v topView, err error) {
	ended := errors.New("one is enough")
	views := 0
	err = w.run(ctx, func(next topView) error {
		v = next
		if views++; views < 2 {
			return nil
		}
		return ended
	})
	if err != nil && !errors.Is(err, ended) {
		return v, err
	}
	if v.Nodes == nil { // ctx ended before the first answer
		return v, context.Cause(ctx)
	}
	for _, n := range v.Nodes {
		if n.Error == "" {
			return v, nil
		}
	}
	return v, fmt.Errorf("no node answers: %s", v.Nodes[0].Error)
}

// run shows each new view until ctx ends, which is no error, or show fails. The
// first has no rates.
func (w *watcher) run(ctx context.Context, show func(topView) error) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	var before []sample
	for {
		now := takeSamples(ctx, w.client, w.ops)
		if ctx.Err() != nil {
			return nil
		}
		if err := show(compare(before, now)); err != nil {
			return err
		}
		before = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func printLines(w io.Writer, lines []string) {
	fmt.Fprintln(w, strings.Join(lines, "\n"))
}

// terminalSize returns columns and lines; zeros when f is no terminal.
func terminalSize(f *os.File) [2]int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return [2]int{}
	}
	return [2]int{max(1, int(size.Col)), max(1, int(size.Row))}
}

// Escape sequences of ECMA-48, and xterm's other screen.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watch draws on the terminal until ctx ends or q is typed.
func watch(ctx context.Context, screen *os.File, w *watcher) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	restore, err := typing(os.Stdin)
	if err == nil { // else there is no keyboard, and Ctrl-C ends it
		defer restore()
		// The goroutine ends with the process: a read of a terminal cannot be called off.
		go func() {
			keys := bufio.NewReader(os.Stdin)
			for {
				if key, err := keys.ReadByte(); err != nil || key == 'q' || key == 'Q' {
					cancel()
					return
				}
			}
		}()
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	fmt.Fprint(screen, enterScreen)
	defer fmt.Fprint(screen, leaveScreen)
	var last topView
	draw := func(v topView) error {
		last = v
		size := terminalSize(screen)
		_, err := fmt.Fprint(screen, home+strings.Join(frame(v, size[0], size[1]), clearLine+"\r\n")+clearLine+clearBelow)
		return err
	}
	views := make(chan topView)
	ended := make(chan error, 1)
	go func() {
		ended <- w.run(ctx, func(v topView) error {
			select {
			case views <- v:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	for {
		select {
		case v := <-views:
			err = draw(v)
		case <-resized:
			if last.Nodes != nil {
				err = draw(last)
			}
		case err := <-ended:
			return err
		}
		if err != nil {
			cancel()
			return errors.Join(err, <-ended)
		}
	}
}

// typing has keys of a terminal come one by one, without being shown; restore ends
// that.
//
// Errors: when f is no terminal.
func typing(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *before
	raw.Lflag &^= unix.ICANON | unix.ECHO
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil // the terminal may be gone
}
