package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// liar makes a real node serve wrong bytes: as bad memory would, it flips bits in the
// chunks that the node keeps in memory, which were checked when they came.
var liar = Scenario{
	Name:  "liar",
	Claim: "an agent whose copy in memory is damaged serves it to others",
	Full:  wave.Plan{Hosts: 6, Rate: 100e6, ServerRate: 25e6, Bytes: 24 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 3, Rate: 200e6, ServerRate: 50e6, Bytes: 8 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		l.Plan.AgentArgs = []string{"--hot-size", "64MiB"}
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		img, err := c.Image(0, l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/liar"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		bad, others := c.Agents[0], c.Agents[1:]
		if _, err := c.Registry(bad, "").Pull(ctx, name, "1"); err != nil {
			return err
		}
		flipped, err := damage(bad.Process().PID(), img.Layer(0), img.Parsed.Layers[0].Size)
		if err != nil {
			return err
		}
		if flipped == 0 {
			return errors.New("found nothing of the blob in the agent's memory")
		}
		l.Say("flipped %d places in the memory of %s", flipped, bad.Name())
		results, err := c.Pull(ctx, others, name, img, nil)
		if err != nil {
			return err
		}
		l.rightBytes(results)
		var wrong, banned float64
		for _, m := range others {
			n, err := m.Metric(ctx, "shoal_swarm_chunks_received_total", `result="corrupt"`)
			if err != nil {
				return err
			}
			wrong += n
			if n, err = m.Metric(ctx, "shoal_swarm_bans_total"); err != nil {
				return err
			}
			banned += n
		}
		reports, err := c.Origin().Metric(ctx, "shoal_peer_reports_total")
		if err != nil {
			return err
		}
		l.Must("wrong chunks that came and were refused", ">= 1, or nothing was shown", wrong > 0, "%.0f", wrong)
		l.Note("agents that keep the liar away", "%.0f of %d", banned, len(others))
		l.Note("reports of it to the server", "%.0f", reports)
		return nil
	},
}

// damage flips a bit in each copy of each whole 64 KiB of content, of which total bytes
// count, that a process has in its writable memory, and returns how many it flipped.
func damage(pid int, content io.Reader, total int64) (int, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer memory.Close()
	const every, length = 64 << 10, 32
	wanted := make(map[[8]byte][]byte) // by their first bytes
	piece := make([]byte, every)
	for range total / every {
		if _, err := io.ReadFull(content, piece); err != nil {
			return 0, err
		}
		wanted[[8]byte(piece)] = bytes.Clone(piece[:length])
	}
	flipped := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") {
			continue
		}
		block := make([]byte, 1<<20)
		for at := from; at < to; at += int64(len(block)) {
			n, _ := memory.ReadAt(block[:min(int64(len(block)), to-at)], at) // holes read as nothing
			for i := 0; i+length <= n; i += 8 {                              // as buffers are aligned
				want, ok := wanted[[8]byte(block[i:])]
				if !ok || !bytes.Equal(want, block[i:i+length]) {
					continue
				}
				if _, err := memory.WriteAt([]byte{block[i] ^ 1}, at+int64(i)); err != nil {
					return flipped, err
				}
				flipped++
			}
		}
	}
	return flipped, nil
}
