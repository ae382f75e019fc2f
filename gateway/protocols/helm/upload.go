package helm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxParts bounds the parts of a form; maxDrained is what is read of an upload that is
// refused, so that the client gets to read why.
const (
	maxParts   = 16
	maxDrained = 64 << 20
)

// received is a chart that has come.
type received struct {
	upload     *catalog.Upload
	stored     catalog.Stored
	provenance []byte
}

// upload takes a chart as the body, or as the part chart of a form, beside which prov may
// be its provenance, in either order.
func (p *Protocol) upload(c *protocol.Call) error {
	token, err := p.take(c)
	if err != nil {
		// A client that is cut off while it sends sees no reason.
		_, _ = io.CopyN(io.Discard, c.R.Body, maxDrained)
		return err
	}
	c.Committed(token)
	return protocol.WriteJSON(c.W, http.StatusCreated, map[string]bool{"saved": true})
}

func (p *Protocol) take(c *protocol.Call) (meta.Token, error) {
	ctx, by := c.R.Context(), caller(c)
	repo, err := p.catalog.ForPush(ctx, by, c.Repo, Format, c.Repository)
	if err != nil {
		return meta.Token{}, err
	}
	r := &received{}
	defer func() {
		if r.upload != nil {
			_ = r.upload.Close() // Nothing is lost: what was not linked is collected.
		}
	}()
	if err := p.receive(ctx, by, repo.Ref, r, c.R); err != nil {
		if r.upload != nil {
			err = errors.Join(err, r.upload.Cancel(context.WithoutCancel(ctx)))
		}
		return meta.Token{}, err
	}
	ch, err := p.inspect(ctx, r)
	if err != nil {
		return meta.Token{}, err
	}
	summary, err := ch.summarize()
	if err != nil {
		return meta.Token{}, err
	}
	name := fileName(ch.Name, ch.Version)
	if err := p.free(ctx, by, repo.Ref, ch, name); err != nil {
		return meta.Token{}, err
	}
	draft := catalog.Draft{
		Version: meta.Version{Package: ch.Name, Name: ch.Version, MediaType: mediaChart, State: meta.StateClosed, Summary: summary},
		Content: []catalog.StoredFile{{Path: name, MediaType: mediaChart, Stored: r.stored}},
	}
	if r.provenance != nil {
		if err := checkProvenance(r.provenance, name, r.stored.Blob.Digest); err != nil {
			return meta.Token{}, err
		}
		s, up, err := p.catalog.Ingest(ctx, by.Nth(1), repo.Ref, strings.NewReader(string(r.provenance)), "")
		if err != nil {
			return meta.Token{}, err
		}
		defer up.Close()
		draft.Content = append(draft.Content, catalog.StoredFile{Path: name + provenanceSuffix, MediaType: mediaProvenance, Stored: s})
	}
	published, err := p.catalog.Publish(ctx, by, repo.Ref, draft)
	if errors.Is(err, meta.ErrExists) {
		return meta.Token{}, fmt.Errorf("%s already exists, or was deleted, and its version never takes other bytes: use a new one: %w", name, meta.ErrExists)
	}
	return published.Token, err
}

// free says whether the name of a chart's file is no other chart's: app-7 1.0.0 and app
// 7-1.0.0 have one, whose bytes must not change.
//
// Errors: meta.ErrExists.
func (p *Protocol) free(ctx context.Context, by catalog.Caller, repo meta.RepoRef, ch chart, name string) error {
	by.Absent = nil
	for _, at := range coordinates(strings.TrimSuffix(name, chartSuffix)) {
		if at.name == ch.Name {
			continue
		}
		_, _, err := p.catalog.Version(ctx, by, catalog.Package{Repo: repo, Name: at.name}, at.version)
		if err == nil {
			return fmt.Errorf("%s is the file of version %s of chart %s already: use another version: %w", name, at.version, at.name, meta.ErrExists)
		}
		if !isAbsent(err) {
			return err
		}
	}
	return nil
}

// receive reads the request and stores the chart, which nobody sees yet.
func (p *Protocol) receive(ctx context.Context, by catalog.Caller, repo meta.RepoRef, r *received, req *http.Request) error {
	kind, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return p.chart(ctx, by, repo, r, req.Body)
	}
	parts, err := req.MultipartReader()
	if err != nil {
		return broken(err)
	}
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		switch {
		case errors.Is(err, io.EOF) && r.upload == nil:
			return fmt.Errorf("the form has no chart: send it as the part chart: %w", meta.ErrInvalid)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return broken(err)
		case n == maxParts:
			return fmt.Errorf("the form has more than %d parts: %w", maxParts, meta.ErrInvalid)
		}
		switch part.FormName() {
		case "chart":
			err = p.chart(ctx, by, repo, r, part)
		case "prov":
			err = r.prov(part)
		default:
			_, err = io.CopyN(io.Discard, part, maxProvenance)
			if errors.Is(err, io.EOF) {
				err = nil
			} else if err == nil {
				err = fmt.Errorf("part %.40q of the form is too long: %w", part.FormName(), meta.ErrInvalid)
			}
		}
		if err != nil {
			return err
		}
	}
}

func broken(err error) error {
	return fmt.Errorf("%w: %w", protocol.ErrBroken, err)
}

func (p *Protocol) chart(ctx context.Context, by catalog.Caller, repo meta.RepoRef, r *received, from io.Reader) error {
	if r.upload != nil {
		return fmt.Errorf("the form has two charts: send each on its own: %w", meta.ErrInvalid)
	}
	up, err := p.catalog.Begin(ctx, by, repo, false)
	if err != nil {
		return err
	}
	r.upload = up
	if _, err := up.Append(ctx, protocol.Part(from)); err != nil {
		return err
	}
	r.stored, err = up.Store(ctx, "")
	return err
}

func (r *received) prov(part *multipart.Part) (err error) {
	if r.provenance != nil {
		return fmt.Errorf("the form has two provenance files: %w", meta.ErrInvalid)
	}
	r.provenance, err = io.ReadAll(io.LimitReader(part, maxProvenance+1))
	if err != nil {
		return broken(err)
	}
	if len(r.provenance) > maxProvenance {
		return fmt.Errorf("the provenance is over %d bytes: %w", maxProvenance, meta.ErrInvalid)
	}
	return nil
}

// checkProvenance says whether a provenance file is signed text that names the chart with
// its digest. Whose signature it is, `helm verify` judges by the keys of who asks.
func checkProvenance(text []byte, name string, d digest.Digest) error {
	s := string(text)
	if !strings.HasPrefix(s, "-----BEGIN PGP SIGNED MESSAGE-----") || !strings.Contains(s, name+": sha256:"+d.Encoded()) {
		return fmt.Errorf("the provenance is no signed message that names %s with sha256:%s: %w", name, d.Encoded(), meta.ErrInvalid)
	}
	return nil
}

// inspect opens what came.
func (p *Protocol) inspect(ctx context.Context, r *received) (chart, error) {
	release, err := p.catalog.Reserve(ctx, 2*maxChartYAML)
	if err != nil {
		return chart{}, err
	}
	defer release()
	content, err := p.catalog.Open(ctx, r.stored.Blob)
	if err != nil {
		return chart{}, err
	}
	defer content.Close()
	ch, err := inspect(content, r.stored.Blob.PlainBytes)
	if err != nil {
		return ch, fmt.Errorf("the chart is refused: %w", err)
	}
	return ch, nil
}
